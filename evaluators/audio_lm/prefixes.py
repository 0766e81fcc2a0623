"""Keys and values of system messages and clips: computed once, kept as far as memory allows, shared by all prompts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evaluators.audio_lm.attention import ROW_BUCKET, KeysValues
from evaluators.audio_lm.decoder import Decoder
from evaluators.audio_lm.memory import Shape, cache_bytes
from evaluators.audio_lm.packing import (
    NOTHING,
    BatchLimits,
    CacheSegment,
    Ints,
    fill_batches,
    lay_out_prefixes,
    pack,
)
from evaluators.audio_lm.tower import AudioTower, ClipKey, ClipReader, clip_key
from evaluators.clips import Clip

MAX_SYSTEMS = 4  # system messages whose caches are kept at once
CPU_CACHE_BYTES = 2**30
WAITING_FACTOR = 16  # without kernels, clips worth so many batches of audio tokens are collected


class KVCache:
    """Keys and values by place, over all layers; grown by doubling."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.layers: list[KeysValues] = []
        self.capacity = 0
        self.used = 0  # places

    @property
    def spare(self) -> int:
        """The place that padding is written to: the last one."""
        return self.capacity - 1

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.capacity * self._decoder.bytes_per_place

    def grow(self, places: int, most: int) -> None:
        """Makes room for `places` in all, by doubling up to `most`."""
        if places < self.capacity:
            return
        capacity = max(places + 1, min(max(1024, 2 * self.capacity), most))

        def larger(old: Tensor | None) -> Tensor:
            model = self._decoder
            new = torch.zeros(
                capacity, model.heads.key_width, dtype=model.dtype, device=model.device
            )
            if old is not None:
                new[: self.used] = old[: self.used]
            return new

        if self.layers:  # one by one: the old ones are freed on the way
            for i, old in enumerate(self.layers):
                self.layers[i] = KeysValues(larger(old.keys), larger(old.values))
        else:
            self.layers = [KeysValues(larger(None), larger(None)) for _ in self._decoder.layers]
        self.capacity = capacity


@dataclass(frozen=True)
class PrefixCache:
    """What is kept for one system message: a cache that holds it, and the places of clips after it."""

    cache: KVCache
    system: CacheSegment
    clips: dict[ClipKey, CacheSegment] = field(default_factory=dict)


class Prefixes:
    """Prefix caches by system message.

    Args:
        decoder: Computes the keys and values.
        tower: Computes what clips become for the decoder.
        encode: System message -> tokens before the audio.
    """

    def __init__(self, decoder: Decoder, tower: AudioTower, encode: Callable[[str], Ints]) -> None:
        self._decoder, self._tower, self._encode = decoder, tower, encode
        self._caches: dict[str, PrefixCache] = {}

    def clear(self) -> None:
        """Drops all caches."""
        self._caches.clear()

    def budget(self) -> float:
        """Bytes that a cache may take."""
        device = self._decoder.device
        if device.type != "cuda":
            return CPU_CACHE_BYTES
        free, total = torch.cuda.mem_get_info(device)
        return cache_bytes(total, free + sum(p.cache.bytes for p in self._caches.values()))

    def compute(
        self, system: str, clips: Sequence[Clip], shape: Shape
    ) -> Iterator[tuple[PrefixCache, list[int]]]:
        """(prefix cache, positions of clips that are in it), until every clip had its turn.

        Clips that are not kept yet are computed in parts: while the device works on what was yielded, the features of
        the next clips are made. A cache that is full is replaced by a new one between two parts.
        """
        prefixes = self._caches.get(system) or self._begin(system, shape)
        ready = [i for i, clip in enumerate(clips) if clip_key(clip) in prefixes.clips]
        if ready:
            yield prefixes, ready
        kept = set(ready)
        new = [i for i in range(len(clips)) if i not in kept]
        budget = self.budget()
        with self._tower.reader() as reader:
            for part in self._parts([clips[i] for i in new], reader, shape):
                positions = [new[i] for i in part]
                audio = self._tower.embed([clips[i] for i in positions], reader)
                places = prefixes.cache.used + sum(map(len, audio))
                if places * self._decoder.bytes_per_place > budget and prefixes.clips:
                    prefixes = self._begin(system, shape)
                keys = [clip_key(clips[i]) for i in positions]
                self._add(prefixes, dict(zip(keys, audio, strict=True)), shape)
                yield prefixes, positions

    def row_bucket(self) -> int:
        """Rows share a batch if their lengths round up to the same multiple of this; 0: all may, as with kernels."""
        return 0 if self._decoder.kernels is not None else ROW_BUCKET

    def _parts(
        self, clips: Sequence[Clip], reader: ClipReader, shape: Shape
    ) -> Iterator[list[int]]:
        """Positions of clips that fill about one batch of audio tokens, decoded some way ahead."""
        # Without kernels a batch holds clips of one length bucket: more of them at once fill it.
        full = shape.prefix * (1 if self._decoder.kernels is not None else WAITING_FACTOR)
        # The first part is small, and little is decoded beside it, so that the device starts early.
        enough, ahead = full // 4, 4 * reader.threads
        part: list[int] = []
        tokens = 0
        for i in range(len(clips)):
            self._tower.read_ahead(clips[i : i + 1 + ahead], reader)
            part.append(i)
            tokens += self._tower.count_tokens(clips[i], reader)
            if i + 1 < len(clips):
                following = self._tower.count_tokens(clips[i + 1], reader)
                if following and tokens + following <= enough:
                    continue
            yield part
            part, tokens, enough, ahead = [], 0, full, 64 * reader.threads

    def _begin(self, system: str, shape: Shape) -> PrefixCache:
        """A new cache that holds the system message alone."""
        if len(self._caches) >= MAX_SYSTEMS:
            self._caches.clear()
        cache, ids = KVCache(self._decoder), self._encode(system)
        cache.grow(len(ids), 0)
        layout = lay_out_prefixes([len(ids)], NOTHING, 0, cache.spare)
        size = -(-len(ids) // 64) * 64
        batch = pack(ids, layout, size=size, kept=shape.kept, device=self._decoder.device)
        self._decoder.step(batch, cache.layers)
        cache.used = len(ids)
        self._caches[system] = PrefixCache(cache, CacheSegment(0, len(ids)))
        return self._caches[system]

    def _add(self, prefixes: PrefixCache, audio: Mapping[ClipKey, Tensor], shape: Shape) -> None:
        """Computes keys and values of clips from their embeddings ``[token, channel]``, and notes their places."""
        limits = BatchLimits(shape.prefix, shape.kept, self.row_bucket())
        waiting = [item for item in audio.items() if item[0] not in prefixes.clips]
        waiting.sort(key=lambda item: limits.bucket_of(len(item[1])))
        cache, device = prefixes.cache, self._decoder.device
        for batch in fill_batches(waiting, lambda item: (len(item[1]), 0), limits):
            lengths = [len(tokens) for _, tokens in batch]
            begin, total = cache.used, sum(lengths)
            cache.grow(begin + total, int(self.budget() // self._decoder.bytes_per_place))
            layout = lay_out_prefixes(lengths, prefixes.system, begin, cache.spare)
            embeddings = torch.cat([tokens for _, tokens in batch])
            size = max(shape.prefix, total)
            packed = pack(embeddings, layout, size=size, kept=shape.kept, device=device)
            self._decoder.step(packed, cache.layers)
            cache.used += total
            for (key, _), length in zip(batch, lengths, strict=True):
                prefixes.clips[key] = CacheSegment(begin, length)
                begin += length
