"""What the model hears of a clip: its wave, and log-mel features that are computed once and kept by content."""

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluators.audio import RATE, load, shuffle
from evaluators.clips import Clip
from evaluators.errors import UserError

FRONT_END = "1"  # raise it whenever the features of a clip change


def clip_wave(clip: Clip) -> np.ndarray:
    """What is heard: the recording, silence of its length, or its own samples in random order."""
    wave = load(clip.path)
    if clip.audio == "silence":
        return np.zeros_like(wave)
    if clip.audio == "shuffled":
        return shuffle(wave, int(clip.sha256[:12], 16))
    return wave


@dataclass(frozen=True)
class Features:
    """Log-mel features ``[mel bin, frame]`` of a clip, and how many of its 10 ms frames are the clip's."""

    mel: NDArray[np.float32]
    frames: int


class FeatureStore:
    """Features of clips, kept on disk by content when a folder is given."""

    def __init__(self, folder: Path | None, extractor: Any) -> None:
        self.folder = folder
        self.extractor = extractor
        about = extractor.to_dict() | {"front_end": FRONT_END}
        self._about = json.dumps(about, sort_keys=True, default=str)

    def get(self, clip: Clip) -> Features:
        """The features, from the folder or computed.

        Raises:
            UserError: The clip cannot be decoded, or is longer than the model hears.
        """
        extractor = self.extractor
        path = None
        if self.folder is not None:
            key = f"{self._about}|{clip.sha256}|{clip.audio}"
            digest = hashlib.sha256(key.encode()).hexdigest()
            path = self.folder / digest[:2] / f"{digest}.npy"
            if path.is_file():
                try:
                    mel = np.load(path, allow_pickle=False)
                    return Features(mel[:, 1:], int(mel[0, 0]))
                except (ValueError, OSError, EOFError):
                    pass  # half a file: made anew
        wave = clip_wave(clip)
        if len(wave) > extractor.n_samples:
            raise UserError(
                f"clip {clip.clip_id!r} lasts {len(wave) / RATE:.2f} s, the model hears "
                f"{extractor.n_samples / RATE:.0f} s; cut it first"
            )
        frames = -(-len(wave) // extractor.hop_length)
        mel = clip_mel(extractor, wave)
        if path is not None:
            whole = np.concatenate([np.full((len(mel), 1), frames, dtype=np.float32), mel], 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
            with scratch.open("wb") as file:
                np.save(file, whole)
            scratch.replace(path)
        return Features(mel, frames)


def clip_mel(extractor: Any, wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-mel features ``[mel bin, frame]`` of a wave: what the checkpoint's extractor gives, to the bit.

    Written out here because the extractor's own call takes 2 ms a clip and holds the interpreter's lock. Padded a
    little past the clip instead of to the whole window: the log floor comes from the clip's maximum and the frames
    that the tower reads end before the new edge, so the values are those of the full window.
    """
    frames = -(-len(wave) // extractor.hop_length)
    samples = min(extractor.n_samples, (frames + 8) * extractor.hop_length)
    padded = torch.from_numpy(np.pad(wave, (0, samples - len(wave))))
    window, filters = _front_end(extractor)
    spectrum = torch.stft(
        padded, extractor.n_fft, extractor.hop_length, window=window, return_complex=True
    )
    mel = (filters @ (spectrum[:, :-1].abs() ** 2)).clamp(min=1e-10).log10()
    return ((torch.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0).numpy()


def _front_end(extractor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Window and mel filters of an extractor, made once."""
    kept = getattr(extractor, "_front_end", None)
    if kept is None:
        filters = torch.from_numpy(np.asarray(extractor.mel_filters, dtype=np.float32)).T
        kept = torch.hann_window(extractor.n_fft), filters.contiguous()
        extractor._front_end = kept
    return kept
