"""Clips as embeddings: decoding and log-mel features in threads, then the audio tower on the clips' own frames."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from evaluators.audio_lm.device import one_thread
from evaluators.audio_lm.families import Family
from evaluators.audio_lm.features import DecodedClip, FeatureStore
from evaluators.audio_lm.packed_tower import LogMel
from evaluators.audio_lm.packing import BatchLimits, fill_batches
from evaluators.clips import Clip
from evaluators.presentation import AS_IS, Presentation

DECODING_THREADS = 8  # more of them are in each other's way
SECONDS_AHEAD = 512.0  # of audio that is decoded and waits, 32 MB: long clips are not read as far ahead as short ones
ClipKey = tuple[str, str, Presentation]


def clip_key(clip: Clip, how: Presentation = AS_IS) -> ClipKey:
    """What a clip is to the model: its content, whether a control replaces it, and how its samples are presented."""
    return clip.sha256, clip.audio, how.sound


@dataclass(frozen=True)
class _Reading:
    """A clip that is being decoded, or was."""

    decoded: "Future[DecodedClip]"
    seconds: float


class ClipReader:
    """Decodes clips in threads, ahead of the device, and lets go of each as its features are taken.

    A context manager; leaving it waits for its threads.

    Args:
        store: Features of clips.
        clips: What will be taken, about in that order; no two of the same content.
        how: They are presented.
    """

    threads = DECODING_THREADS

    def __init__(
        self, store: FeatureStore, clips: Sequence[Clip], how: Presentation = AS_IS
    ) -> None:
        self._store, self._how = store, how
        self._pool = ThreadPoolExecutor(self.threads)
        self._left = deque(clips)
        self._begun: dict[ClipKey, _Reading] = {}
        self._seconds = 0.0

    def __enter__(self) -> "ClipReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)

    def read_ahead(self, most: int) -> None:
        """Starts to decode the next clips, until `most`, or a lot of audio, wait to be taken."""
        while self._left and len(self._begun) < most and self._seconds < SECONDS_AHEAD:
            self._begin()

    def frames(self, key: ClipKey) -> int:
        """10 ms frames of a clip, once it is decoded. Raises what decoding raised."""
        while key not in self._begun:
            self._begin()
        return self._begun[key].decoded.result().frames

    def take(self, keys: Sequence[ClipKey]) -> list[LogMel]:
        """Features of decoded clips, which are let go of; new features are stored."""
        reads = [self._begun.pop(key) for key in keys]
        self._seconds -= sum(read.seconds for read in reads)
        decoded = [read.decoded.result() for read in reads]
        waves = [d.wave for d in decoded if d.wave is not None]
        with one_thread():  # with four, a clip of a second has other bits
            new = iter(self._store.log_mel(waves) if waves else ())
        out = []
        for d in decoded:
            mel = next(new) if d.mel is None else d.mel
            if d.mel is None and self._store.folder is not None:
                self._pool.submit(self._store.keep, d, mel)
            out.append(LogMel(mel, d.frames))
        return out

    def _begin(self) -> None:
        clip = self._left.popleft()
        how = self._how
        seconds = max(clip.duration_ms, how.repeat_to_ms, how.pad_to_ms) / 1e3
        decoded = self._pool.submit(self._store.decode, clip, how)
        self._begun[clip_key(clip, how)] = _Reading(decoded, seconds)
        self._seconds += seconds


class AudioTower:
    """Audio embeddings of clips; keeps none.

    Args:
        model: The loaded model.
        family: What kind of model it is.
        store: Features of clips.
        dtype: Precision of the embeddings.
    """

    def __init__(self, model: Any, family: Family, store: FeatureStore, dtype: torch.dtype) -> None:
        self._model, self._family, self._store, self._dtype = model, family, store, dtype

    def reader(self, clips: Sequence[Clip], how: Presentation = AS_IS) -> ClipReader:
        """A reader of clips; one for each call."""
        return ClipReader(self._store, clips, how)

    def share(self, frames: int) -> int:
        """What a clip of so many frames takes of the tower's line, in tokens."""
        positions = self._family.positions(self._model.config, frames)
        return -(-positions // self._family.positions_per_token)

    def embed(
        self, keys: Sequence[ClipKey], reader: ClipReader, tokens: int
    ) -> dict[ClipKey, Tensor]:
        """``[token, channel]`` of each clip.

        Args:
            keys: Of clips that the reader has.
            reader: Gives their features.
            tokens: What fits a line of the tower: always so many, since a bf16 embedding may depend on it.
        """
        out: dict[ClipKey, Tensor] = {}
        order = sorted(keys, key=reader.frames)  # features of about one length are made together
        size = lambda key: (self.share(reader.frames(key)), 0)  # noqa: E731
        for line in fill_batches(order, size, BatchLimits(tokens, 0)):
            needed = sum(size(key)[0] for key in line)  # more than fits: one long clip
            places = max(tokens, needed) * self._family.positions_per_token
            embedded = self._family.embed(self._model, reader.take(line), places)
            for key, embedding in zip(line, embedded, strict=True):
                out[key] = embedding.to(self._dtype).clone()
        return out
