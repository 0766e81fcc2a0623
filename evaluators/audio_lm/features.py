"""Log-mel features of clips, computed once and stored by content hash."""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.audio import DECODERS, RATE
from evaluators.audio_lm.identity import versions
from evaluators.clips import Clip, clip_wave
from evaluators.errors import PromptError, UserError
from evaluators.presentation import AS_IS, Presentation

log = logging.getLogger(__name__)
FRONT_END = "1"  # raise it whenever the features of a clip change
FEWEST_FRAMES = (
    64  # of a product: on some CPUs narrow ones are summed in another order than a whole window's
)
PAST = 8  # frames after the clip that its features hold: the tower reads two, and nothing is heard in them


@dataclass(frozen=True)
class Windows:
    """What becomes of clips that are longer than the window of a feature extractor.

    Attributes:
        most: Windows that a clip may take; longer ones are refused.
        apart: Features of each window are made alone, else of the whole clip at once.
    """

    most: int = 1
    apart: bool = False


ONE_WINDOW = Windows()


@dataclass(frozen=True)
class DecodedClip:
    """A clip's stored features ``[mel bin, frame]``, or its wave where none are stored."""

    key: str  # under which the features are stored
    frames: int  # 10 ms frames that are the clip's
    mel: NDArray[np.float32] | None
    wave: NDArray[np.float32] | None


def front_end_versions() -> dict[str, str]:
    """Versions of the libraries that make features of a file."""
    return {**DECODERS, "torch": str(torch.__version__), **versions("transformers")}


class FeatureStore:
    """Log-mel features of clips, stored on disk by content hash when a folder is given.

    Args:
        folder: Where they are stored; None: nowhere.
        extractor: A WhisperFeatureExtractor.
        whole_window: Whether the model's processor pads every clip to the extractor's whole window, or not at all.
        windows: What becomes of longer clips, where it pads.
    """

    def __init__(
        self,
        folder: Path | None,
        extractor: Any,
        whole_window: bool = True,
        windows: Windows = ONE_WINDOW,
    ) -> None:
        self.folder = folder
        self.extractor = extractor
        self.whole_window = whole_window
        self.windows = windows
        about = extractor.to_dict() | {"front_end": FRONT_END, **front_end_versions()}
        if not whole_window:
            about["padding"] = "none"
        if windows != ONE_WINDOW:
            about["windows"] = "apart" if windows.apart else "together"
        self._about = json.dumps(about, sort_keys=True, default=str)
        filters = torch.from_numpy(np.asarray(extractor.mel_filters, dtype=np.float32))
        self._filters = filters.T.contiguous()
        self._window = torch.hann_window(extractor.n_fft)

    def decode(self, clip: Clip, how: Presentation = AS_IS) -> DecodedClip:
        """A clip's stored features, or its wave as it is presented. Meant for threads: it mostly runs without the GIL.

        Raises:
            UserError: The clip cannot be decoded, is longer than the model's window, or too short for any feature.
            PromptError: It is longer than the model's window by how it is presented.
        """
        about = f"{self._about}|{clip.sha256}|{clip.audio}"
        if how.sound != AS_IS:  # only then, so that older features stay
            about += f"|{json.dumps(how.sound.to_dict())}"
        key = hashlib.sha256(about.encode()).hexdigest()
        path = self._path(key)
        if path is not None and path.is_file():
            try:
                whole = np.load(path, allow_pickle=False)
                return DecodedClip(key, int(whole[0, 0]), whole[:, 1:], None)
            except (ValueError, OSError, EOFError, IndexError):
                pass  # half a file: made anew
        wave = clip_wave(clip, how)
        hop = self.extractor.hop_length
        if not self.whole_window:
            shortest = (
                self.extractor.n_fft // 2 + 1
            )  # samples: the first frame is mirrored around its middle
            if len(wave) < shortest:
                raise UserError(
                    f"clip {clip.clip_id!r} lasts {1e3 * len(wave) / RATE:.2f} ms, the model's features need"
                    f" {1e3 * shortest / RATE:.2f} ms at least; leave it out, or cut it longer"
                )
            return DecodedClip(key, len(wave) // hop, None, wave)
        longest = self.windows.most * self.extractor.n_samples
        if len(wave) > longest and max(how.repeat_to_ms, how.pad_to_ms) * RATE > 1000 * longest:
            raise PromptError(
                f"the clip is {how.words}, the model hears {1000 * longest // RATE} ms; ask for no more"
            )
        if len(wave) > longest:
            raise UserError(
                f"clip {clip.clip_id!r} lasts {len(wave) / RATE:.2f} s, the model hears "
                f"{longest / RATE:.0f} s; cut it first"
            )
        return DecodedClip(key, -(-len(wave) // hop), None, wave)

    def keep(self, decoded: DecodedClip, mel: NDArray[np.float32]) -> None:
        """Stores features that are not on disk yet."""
        path = self._path(decoded.key)
        if path is None or decoded.mel is not None:
            return
        whole = np.concatenate([np.full((len(mel), 1), decoded.frames, dtype=np.float32), mel], 1)
        scratch = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                np.save(file, whole)
            scratch.replace(path)
        except OSError as error:  # a full disk costs time, not results
            scratch.unlink(missing_ok=True)
            log.warning("features are not stored: %s", error)

    def log_mel(self, waves: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """``[mel bin, frame]`` of each wave: equal to the extractor's own to the bit, whatever the other waves.

        Written out here, for a whole window, because the extractor's own call takes 2 ms a clip and holds the GIL.
        Padded a little past the clip instead of to the whole window: the log floor comes from the clip's maximum, and
        the frames that the tower reads end before the new edge, so the values are the same.
        """
        hop = self.extractor.hop_length
        if not self.whole_window:
            parts = [
                self.extractor(w, sampling_rate=RATE, padding=True, truncation=False) for w in waves
            ]
            return [
                p["input_features"][0][:, : len(w) // hop]
                for p, w in zip(parts, waves, strict=True)
            ]
        samples = self.extractor.n_samples
        if all(len(wave) <= samples for wave in waves):
            return self._log_mel(waves)
        return [self._log_mel_of_windows(wave) for wave in waves]

    def _log_mel_of_windows(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same of a clip that may be longer than the window."""
        samples = self.extractor.n_samples
        if not self.windows.apart:
            return self._log_mel([wave], -(-len(wave) // samples))[0]
        parts = [wave[i : i + samples] for i in range(0, len(wave), samples)]
        return np.concatenate(self._log_mel(parts), axis=1)

    def _log_mel(
        self, waves: Sequence[NDArray[np.float32]], windows: int = 1
    ) -> list[NDArray[np.float32]]:
        """The same of waves that fit into so many windows."""
        hop = self.extractor.hop_length
        window = windows * self.extractor.n_samples // hop
        frames = [min(window, -(-len(wave) // hop) + PAST) for wave in waves]
        widest = min(window, max(*frames, FEWEST_FRAMES))
        padded = np.zeros((len(waves), widest * hop), dtype=np.float32)
        for row, wave in zip(padded, waves, strict=True):
            row[: len(wave)] = wave
        spectrum = torch.stft(
            torch.from_numpy(padded),
            self.extractor.n_fft,
            hop,
            window=self._window,
            return_complex=True,
        )
        power = spectrum.abs() ** 2
        # One product per wave, of its own frames: that of all at once may round differently, and so may narrow ones.
        mels = [
            (self._filters @ p[:, : max(n, FEWEST_FRAMES)])[:, :n]
            for p, n in zip(power, frames, strict=True)
        ]
        return [_log_scale(mel).numpy() for mel in mels]

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / key[:2] / f"{key}.npy"


def _log_scale(mel: Tensor) -> Tensor:
    """Mel power as Whisper takes it."""
    mel = mel.clamp(min=1e-10).log10()
    mel = torch.maximum(mel, mel.max() - 8.0)
    return (mel + 4.0) / 4.0
