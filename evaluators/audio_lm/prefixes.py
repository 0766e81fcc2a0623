"""What is kept of system messages and clips, in one bounded store: keys and values, and audio embeddings.

All of it is computed once, shared by all prompts, and dropped where the budget asks for it; what was dropped is
computed anew, to the same bits.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evaluators.audio_lm.attention import ROW_BUCKET, KeysValues
from evaluators.audio_lm.batch_sizes import BatchSizes
from evaluators.audio_lm.decoder import Decoder
from evaluators.audio_lm.memory import EMBEDDINGS_SHARE, Shape, cache_bytes
from evaluators.audio_lm.packing import (
    NOTHING,
    BatchLimits,
    CacheSegment,
    Ints,
    fill_batches,
    lay_out_prefixes,
    overlap,
    pack,
)
from evaluators.audio_lm.tower import AudioTower, ClipKey, ClipReader, clip_key
from evaluators.clips import Clip
from evaluators.presentation import Presentation

log = logging.getLogger(__name__)
CPU_CACHE_BYTES = 2**30
FIRST_PLACES = {"cuda": 4096, "cpu": 1024, "mps": 1024}  # of a new cache, where it may take so many
WORTHWHILE = 1.25  # a cache that may grow by less does not: all of it would be copied
WAITING_FACTOR = 16  # without kernels, clips worth so many batches of audio tokens are collected
FIRST_AHEAD = 4  # clips for each thread that are decoded at first, beside the first part
GROWTH = 4  # each part of a call's clips may be so many times the one before
BATCH_SHARE = 1 / 4  # of the cache, that a batch takes at most where it could be smaller
Before = tuple[str, str]  # what stands before the audio: a system message, and a text of the user's
PrefixKey = tuple[
    Before, ClipKey | None
]  # what stands before the audio, and a clip after it; None: the former itself


class KVRing:
    """Keys and values by place, over all layers: what was written first is overwritten first.

    It grows by doubling as long as it may, and then goes round.

    Attributes:
        layers: Of each layer ``[place, key heads * dim]``.
        capacity: Places. Padding is written to the last one.
        segments: What lies where, in the order of writing.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.layers: list[KeysValues] = []
        self.capacity = 0
        self.segments: OrderedDict[PrefixKey, CacheSegment] = OrderedDict()
        self._head = 0  # the next place that is written

    @property
    def spare(self) -> int:
        """The place that padding is written to."""
        return self.capacity - 1

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.capacity * self._decoder.bytes_per_place

    def fits(self, count: int) -> bool:
        """Whether there are `count` further places before it goes round."""
        return self._head + count <= self.spare

    def reserve(self, count: int, most: int) -> None:
        """Grows, where `count` further places do not fit: up to `most` in all, or to what `count` needs at least."""
        if self.fits(count):
            return
        first = FIRST_PLACES[self._decoder.device.type]
        larger = min(max(first, 2 * self.capacity, self._head + count + 1), most)
        if larger > WORTHWHILE * self.capacity or count > self.spare:
            self._resize(max(larger, count + 1))

    def next_places(self, count: int) -> CacheSegment:
        """The places that `take` would give."""
        return CacheSegment(self._head if self.fits(count) else 0, count)

    def next_out(self, count: int) -> list[PrefixKey]:
        """What `take` would let go of."""
        places = self.next_places(count)
        out = []
        for key, segment in self.segments.items():  # the oldest lie ahead
            passed = segment.begin >= self._head > places.begin  # on the way round
            if not passed and not overlap(segment, places):
                break
            out.append(key)
        return out

    def take(self, count: int) -> int:
        """The first of `count` places in a row, which may be overwritten. They must fit: see `reserve`."""
        begin = self.next_places(count).begin
        for key in self.next_out(count):
            del self.segments[key]
        self._head = begin + count
        return begin

    def note(self, key: PrefixKey, segment: CacheSegment) -> None:
        """What was written to places that were taken last."""
        self.segments.pop(key, None)
        self.segments[key] = segment

    def _resize(self, capacity: int) -> None:
        """Makes room for so many places, which are more than before."""
        model = self._decoder

        def larger(old: Tensor | None) -> Tensor:
            new = torch.zeros(
                capacity, model.heads.key_width, dtype=model.dtype, device=model.device
            )
            if old is not None:
                new[: len(old)] = old
            return new

        if self.layers:  # one by one: the old ones are freed on the way
            for i, old in enumerate(self.layers):
                self.layers[i] = KeysValues(larger(old.keys), larger(old.values))
        else:
            self.layers = [KeysValues(larger(None), larger(None)) for _ in model.layers]
        self.capacity = capacity
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # the old ones are of no size that is asked for again


@dataclass(frozen=True)
class Ready:
    """Clips whose keys and values are in the cache, after those of a system message.

    Attributes:
        before: The message, with what else stands before the audio.
        segment: Where it lies.
        clips: Positions in the call, and where the clips lie.
    """

    before: Before
    segment: CacheSegment
    clips: list[tuple[int, CacheSegment]]


@dataclass
class Embeddings:
    """What an audio tower made of clips, as far as there is room. Stores of one tower may have it in common.

    Attributes:
        kept: ``[token, channel]`` of each clip.
        bytes: Memory that they take.
        refused: Whether one did not fit.
        prefix: Tokens of the lines that all of them were computed in: a bf16 number may depend on it.
    """

    kept: dict[ClipKey, Tensor] = field(default_factory=dict)
    bytes: int = 0
    refused: bool = False
    prefix: int = 0

    def clear(self) -> None:
        """Drops everything."""
        self.keep_only(frozenset())
        self.prefix = 0

    def keep_only(self, keys: Set[ClipKey]) -> None:
        """Drops all others."""
        self.kept = {key: kept for key, kept in self.kept.items() if key in keys}
        self.bytes = sum(t.numel() * t.itemsize for t in self.kept.values())
        self.refused = False

    def add(self, key: ClipKey, tokens: Tensor, most: float) -> None:
        """Keeps a clip's, unless all would be more than so many bytes."""
        size = tokens.numel() * tokens.itemsize
        if self.bytes + size > most:
            self.refused = True
            return
        self.kept[key] = tokens
        self.bytes += size


class Prefixes:
    """The store: keys and values of system messages and clips, and the clips' embeddings, under one budget.

    Args:
        decoder: Computes the keys and values.
        tower: Computes what clips become for the decoder.
        encode: System message, and a text of the user's -> tokens before the audio.
        most: Bytes that it may take. None: what the device has to spare.
        embeddings: Of the same tower, where other stores have them, too; None: its own.
    """

    def __init__(
        self,
        decoder: Decoder,
        tower: AudioTower,
        encode: Callable[[str, str], Ints],
        most: float | None = None,
        embeddings: Embeddings | None = None,
    ) -> None:
        self._decoder, self._tower, self._encode, self._most = decoder, tower, encode, most
        self._embeddings = Embeddings() if embeddings is None else embeddings
        self._ring, self._prefix = KVRing(decoder), 0

    def clear(self) -> None:
        """Drops everything."""
        self._embeddings.clear()
        self._drop_keys()

    def _drop_keys(self) -> None:
        """Drops keys and values."""
        self._ring = KVRing(self._decoder)
        self._prefix = 0  # tokens of the batches that they were computed in, as of the embeddings

    @property
    def layers(self) -> Sequence[KeysValues]:
        """Keys and values of each layer."""
        return self._ring.layers

    @property
    def bytes(self) -> int:
        """Memory that is taken."""
        return self._ring.bytes + self._embeddings.bytes

    def budget(self) -> float:
        """Bytes that may be taken; where one batch of audio tokens needs more, that."""
        most = CPU_CACHE_BYTES if self._most is None else self._most
        device = self._decoder.device
        if device.type != "cuda":
            return most
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        spare = cache_bytes(total, free + unused + self.bytes)
        return spare if self._most is None else min(self._most, spare)

    def shrink(self, shape: Shape) -> bool:
        """Drops everything, and halves the budget from here on. False: what it held was too little to matter."""
        held = self.bytes
        self.clear()
        if held <= (shape.prefix + 1) * self._decoder.bytes_per_place:
            return False
        self._most = held / 2
        return True

    def row_bucket(self) -> int:
        """Rows share a batch if their lengths round up to the same multiple of this; 0: all may, as with kernels."""
        return 0 if self._decoder.kernels is not None else ROW_BUCKET

    def compute(
        self, systems: Sequence[Before], clips: Sequence[Clip], shape: Shape, how: Presentation
    ) -> Iterator[Ready | CacheSegment]:
        """Clips that are ready, presented in one way, until each was so after each system message.

        What is kept comes first. The rest is computed in parts, each after all system messages before the next: while
        the device works on what was yielded, the features of the next clips are made.

        A segment by itself is about to be overwritten: what was yielded and lies there must be used now.
        """
        if self.bytes > self.budget() or shape.prefix != self._embeddings.prefix:
            self.clear()
        elif shape.prefix != self._prefix:
            self._drop_keys()
        self._prefix = self._embeddings.prefix = shape.prefix
        places: dict[ClipKey, list[int]] = {}
        for i, clip in enumerate(clips):
            places.setdefault(clip_key(clip, how), []).append(i)
        if self._embeddings.refused:  # room for this call's, where others' are kept
            self._embeddings.keep_only(places.keys())
        unheard: list[ClipKey] = []
        with self._tower.reader(self._unread(systems, places, clips), how) as reader:
            # Decoded while the system messages are computed. These may take the places of clips, but only where a
            # message was not there, and after that one no clip was either: all are read.
            reader.read_ahead(FIRST_AHEAD * reader.threads)
            for system in systems:
                self._hold(system, 0, self._needed(system, 0))
            missing: dict[Before, set[ClipKey]] = {}
            for system in systems:
                kept = self._kept(system, places)
                missing[system] = places.keys() - kept.keys()
                if kept:
                    yield self._ready(system, kept, places)
            new = [key for key in places if any(key in keys for keys in missing.values())]
            for part in self._parts(new, reader, shape):
                audio = self._embed(part, reader, shape)
                unheard += [key for key in part if not len(audio[key])]
                for system in systems:
                    own = {key: audio[key] for key in part if key in missing[system]}
                    for got in self._add(system, own, shape):
                        yield (
                            got
                            if isinstance(got, CacheSegment)
                            else self._ready(system, got, places)
                        )
        if unheard:
            log.warning(
                "%d clips, such as %r, are too short to become an audio token (20 ms): they are scored on the text"
                " alone, as the stock model scores them",
                len(unheard),
                clips[places[unheard[0]][0]].clip_id,
            )

    def _unread(
        self,
        systems: Sequence[Before],
        places: Mapping[ClipKey, Sequence[int]],
        clips: Sequence[Clip],
    ) -> list[Clip]:
        """Clips that the tower has to hear: neither their embeddings nor all of their keys and values are there."""
        there = [self._kept(system, places) for system in systems]
        return [
            clips[first]
            for key, (first, *_) in places.items()
            if key not in self._embeddings.kept and any(key not in kept for kept in there)
        ]

    def _sizes(self, shape: Shape) -> BatchSizes:
        """Tokens that a batch of clips may have; those of the largest take no large part of the cache."""
        if self._decoder.kernels is None:  # a CPU gains nothing from larger ones
            return self._decoder.sizes(shape.prefix, shape.prefix)
        sizes = self._decoder.sizes(shape.prefix, shape.tokens)
        places = BATCH_SHARE * self.budget() / self._decoder.bytes_per_place
        fitting = tuple(n for n in sizes.equal if n <= max(places, shape.prefix))
        return BatchSizes(fitting)

    def _kept(self, system: Before, keys: Iterable[ClipKey]) -> dict[ClipKey, CacheSegment]:
        """Those of the clips whose keys and values after the system message are in the cache."""
        segments = self._ring.segments
        if (system, None) not in segments:  # overwritten by that of another one
            return {}
        return {key: segments[system, key] for key in keys if (system, key) in segments}

    def _ready(
        self,
        system: Before,
        segments: Mapping[ClipKey, CacheSegment],
        places: Mapping[ClipKey, Sequence[int]],
    ) -> Ready:
        clips = [(i, segment) for key, segment in segments.items() for i in places[key]]
        return Ready(system, self._ring.segments[system, None], clips)

    def _parts(
        self, keys: Sequence[ClipKey], reader: ClipReader, shape: Shape
    ) -> Iterator[list[ClipKey]]:
        """Clips that fill about one batch of audio tokens or more, decoded some way ahead."""
        # Without kernels a batch holds clips of one length bucket: more of them at once fill it.
        first = shape.prefix * (1 if self._decoder.kernels is not None else WAITING_FACTOR)
        full = max(first, self._sizes(shape).largest)
        # The first part is small, and little is decoded beside it, so that the device starts early.
        enough, ahead = first // GROWTH, FIRST_AHEAD * reader.threads
        part: list[ClipKey] = []
        taken = 0
        for key in keys:
            reader.read_ahead(len(part) + 1 + ahead)
            kept = self._embeddings.kept.get(key)
            share = self._tower.share(reader.frames(key)) if kept is None else len(kept)
            if part and taken + share > enough:
                yield part
                part, taken = [], 0
                enough, ahead = min(full, GROWTH * enough), 64 * reader.threads
            part.append(key)
            taken += share
        if part:
            yield part

    def _embed(
        self, part: Sequence[ClipKey], reader: ClipReader, shape: Shape
    ) -> dict[ClipKey, Tensor]:
        """Embeddings ``[token, channel]`` of the clips; new ones are kept while they fit."""
        new = [key for key in part if key not in self._embeddings.kept]
        made = self._tower.embed(new, reader, shape.prefix)
        most = EMBEDDINGS_SHARE * self.budget()
        for key, tokens in made.items():
            self._embeddings.add(key, tokens, most)
        return {key: made[key] if key in made else self._embeddings.kept[key] for key in part}

    def _add(
        self, system: Before, audio: Mapping[ClipKey, Tensor], shape: Shape
    ) -> Iterator[dict[ClipKey, CacheSegment] | CacheSegment]:
        """Computes keys and values of clips from their embeddings, a batch after another.

        Yields the places of a batch before they are overwritten, and then where its clips lie.
        """
        sizes = self._sizes(shape)
        limits = BatchLimits(sizes.largest, shape.kept, self.row_bucket())
        unheard = [item for item in audio.items() if not len(item[1])]
        heard = [item for item in audio.items() if 0 < len(item[1]) <= shape.prefix]
        long = [item for item in audio.items() if len(item[1]) > shape.prefix]  # each by itself
        heard.sort(key=lambda item: limits.bucket_of(len(item[1])))
        batches = fill_batches(heard, lambda item: (len(item[1]), 0), limits)
        alone = ([item] for item in long)
        for batch in [*([unheard] if unheard else []), *batches, *alone]:
            lengths = [len(tokens) for _, tokens in batch]
            total = sum(lengths)
            needed = self._needed(system, total)
            yield self._ring.next_places(needed)
            begin = self._hold(system, total, needed)
            segment = self._ring.segments[system, None]
            if total:
                embeddings = torch.cat([tokens for _, tokens in batch])
                size = sizes.holding(total) if lengths[0] <= shape.prefix else total
                self._write(embeddings, lengths, segment, begin, size)
            segments = {}
            for (key, _), length in zip(batch, lengths, strict=True):
                segments[key] = CacheSegment(begin, length) if length else NOTHING
                if length:
                    self._ring.note((system, key), segments[key])
                begin += length
            yield segments

    def _hold(self, system: Before, count: int, needed: int) -> int:
        """The first of `count` places of clips after a system message.

        `needed`, as `_needed` gives it, has places for the message too where it must be written again.
        """
        begin = self._ring.take(needed)
        if needed == count:
            return begin
        ids = self._encode(*system)
        self._write(ids, [len(ids)], NOTHING, begin, -(-len(ids) // 64) * 64)
        self._ring.note((system, None), CacheSegment(begin, len(ids)))
        return begin + len(ids)

    def _needed(self, system: Before, count: int) -> int:
        """Places to take for `count` of clips: with those of the system message, unless it is there and stays."""
        self._reserve(count)
        key = (system, None)
        if key in self._ring.segments and key not in self._ring.next_out(count):
            return count
        count += len(self._encode(*system))
        self._reserve(count)
        return count

    def _reserve(self, count: int) -> None:
        if not self._ring.fits(count):
            most = (1 - EMBEDDINGS_SHARE) * self.budget() // self._decoder.bytes_per_place
            self._ring.reserve(count, int(most))

    def _write(
        self, tokens: Ints | Tensor, lengths: list[int], after: CacheSegment, begin: int, size: int
    ) -> None:
        """Computes keys and values of rows of tokens after a segment, into places from `begin` on."""
        layout = lay_out_prefixes(lengths, after, begin, self._ring.spare)
        batch = pack(tokens, layout, size=size, kept=0, device=self._decoder.device)
        self._decoder.step(batch, self._ring.layers)
