"""Clips as embeddings: decoding and log-mel features in threads, then the audio tower on the clip's own frames."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.audio_lm.families import Family
from evaluators.audio_lm.features import DecodedClip, FeatureStore
from evaluators.audio_lm.packing import to_device
from evaluators.clips import Clip

DECODING_THREADS = 8  # more of them are in each other's way
# Clips of one length in a batch of the tower. Always so many, since a bf16 score may depend on it.
TOWER_BATCH = {"cuda": 32, "cpu": 16, "mps": 16}
ClipKey = tuple[str, str]


def clip_key(clip: Clip) -> ClipKey:
    """What a clip is to the model: its content, and whether a control replaces it."""
    return clip.sha256, clip.audio


class ClipReader:
    """Decodes clips in threads, ahead of the device. A context manager; leaving it waits for its threads."""

    threads = DECODING_THREADS

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(self.threads)
        self._decoded: dict[ClipKey, Future[DecodedClip]] = {}

    def __enter__(self) -> "ClipReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()

    def start(self, clip: Clip) -> None:
        """Starts to decode a clip, unless that was done."""
        key = clip_key(clip)
        if key not in self._decoded:
            self._decoded[key] = self._pool.submit(self._store.decode, clip)

    def wait(self, key: ClipKey) -> DecodedClip:
        """The decoded clip, once it is there. Raises what decoding raised."""
        return self._decoded[key].result()

    def log_mel(self, keys: Sequence[ClipKey]) -> NDArray[np.float32]:
        """``[clip, mel bin, frame]`` of clips of equally many frames; new features are stored."""
        decoded = [self.wait(key) for key in keys]
        waves = [d.wave for d in decoded if d.wave is not None]
        new = iter(self._store.log_mel(waves) if waves else ())
        out = []
        for d in decoded:
            mel = next(new) if d.mel is None else d.mel
            if d.mel is None and self._store.folder is not None:
                self._pool.submit(self._store.keep, d, mel)
            out.append(mel)
        return np.stack(out)


class AudioTower:
    """Audio embeddings of clips, computed once per content.

    Args:
        model: The loaded model.
        family: What kind of model it is.
        store: Features of clips.
        dtype: Precision of the embeddings.
    """

    def __init__(self, model: Any, family: Family, store: FeatureStore, dtype: torch.dtype) -> None:
        self._model, self._family, self._store, self._dtype = model, family, store, dtype
        self._device = model.model.language_model.embed_tokens.weight.device
        self._embedded: dict[ClipKey, Tensor] = {}

    def clear(self) -> None:
        """Drops the embeddings."""
        self._embedded.clear()

    def reader(self) -> ClipReader:
        """A reader of clips; one for each call, since it holds the decoded waves."""
        return ClipReader(self._store)

    def read_ahead(self, clips: Sequence[Clip], reader: ClipReader) -> None:
        """Starts to decode the clips that are not embedded yet."""
        for clip in clips:
            if clip_key(clip) not in self._embedded:
                reader.start(clip)

    def count_tokens(self, clip: Clip, reader: ClipReader) -> int:
        """Tokens that a clip becomes."""
        kept = self._embedded.get(clip_key(clip))
        if kept is not None:
            return len(kept)
        return self._family.tokens(self._model.config, reader.wait(clip_key(clip)).frames)

    def embed(self, clips: Sequence[Clip], reader: ClipReader) -> list[Tensor]:
        """``[token, channel]`` of each clip."""
        size = TOWER_BATCH[self._device.type]
        new: dict[int, list[ClipKey]] = {}  # by frames
        for key in dict.fromkeys(map(clip_key, clips)):
            if key not in self._embedded:
                new.setdefault(reader.wait(key).frames, []).append(key)
        for frames, keys in new.items():
            for i in range(0, len(keys), size):
                part = keys[i : i + size]
                mel = reader.log_mel(part)
                full = np.concatenate([mel, np.repeat(mel[-1:], size - len(part), 0)])
                tokens = self._family.encode(self._model, to_device(full, self._device), frames)
                for key, embedding in zip(part, tokens.to(self._dtype), strict=False):
                    self._embedded[key] = embedding.clone()
        return [self._embedded[clip_key(clip)] for clip in clips]
