"""Exact answer log-probabilities from Qwen2-Audio and Qwen3-Omni, at the cost of the prompt's own tokens.

Three savings, none of them an approximation:

1. The audio tower runs on the clip's own frames. The stock model pads to its whole window (30 s) and masks the
   padding as keys in every layer, so valid positions never see it.
2. The chat template puts the audio before the question. Keys and values of the system message are computed once, those
   of the audio once per clip, and kept; every prompt pays for its own tokens only, answer words of several tokens for
   theirs on top, as branches of one row.
3. Only the hidden states at the answer are put through the last layer's feed-forward and the head.

Rows of tokens are packed into batches of one fixed number of tokens. A batch always has the same shape, and nothing
but attention looks beyond a token's own row, so a score does not depend on its neighbours: equal bits however the
pairs are asked for.
"""

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.audio_lm import selftest
from evaluators.audio_lm.answer_tokens import Answers, PromptError, find_answers
from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.decoder import Cache, Dense, Rows, Transformer
from evaluators.audio_lm.families import Family, audio_config, family_of
from evaluators.audio_lm.features import FeatureStore, Heard
from evaluators.audio_lm.loading import card_gib, flatten, load_model, pick_device, pick_dtype
from evaluators.audio_lm.memory import Shape, cache_bytes, expands, shape_for
from evaluators.clips import Clip
from evaluators.errors import DeviceLostError, PauseError, UserError
from evaluators.evaluator import ScoreTable
from evaluators.prompts import Prompt, encode

log = logging.getLogger(__name__)
Item = TypeVar("Item")
SCORER = "3"  # raise it whenever a change can change a score: it is part of every cache key
DECODERS = 8  # threads that decode clips; more of them are in each other's way
TOWER_BATCH = {
    "cuda": 32,
    "cpu": 16,
    "mps": 16,
}  # clips of one length in the audio tower, always so many


@dataclass(frozen=True)
class Plan:
    """One prompt's row: its tokens, and where each answer is read.

    The row holds the suffix, then one branch per answer of several tokens: its tokens but the last, seen by nothing
    else. `reads` are (offset from the first kept token, token id, number of the sequence); sequences belong to labels.
    """

    prompt: int
    ids: np.ndarray  # [token]
    place: np.ndarray  # [token], position after the prefix
    branch: np.ndarray  # [token]
    kept: int  # tokens at the end that are read
    reads: np.ndarray  # [read, 3]
    labels: tuple[int, ...]  # of each sequence


def plan_row(number: int, suffix: Sequence[int], answers: Answers) -> Plan:
    """The row that scores a prompt's answers, at the cost of its suffix and the extra tokens of long answers."""
    ids, place, branch = list(suffix), list(range(len(suffix))), [0] * len(suffix)
    reads: list[tuple[int, int, int]] = []
    labels: list[int] = []
    branches = 0
    for label, group in enumerate(answers.sequences):
        for sequence in group:
            reads.append((0, sequence[0], len(labels)))
            if len(sequence) > 1:
                branches += 1
                first = len(ids) - len(suffix) + 1  # offset of the branch among the kept tokens
                for i, token in enumerate(sequence[:-1]):
                    ids.append(token)
                    place.append(len(suffix) + i)
                    branch.append(branches)
                    reads.append((first + i, sequence[i + 1], len(labels)))
            labels.append(label)
    return Plan(
        number,
        np.array(ids, dtype=np.int64),
        np.array(place, dtype=np.int64),
        np.array(branch, dtype=np.int32),
        len(ids) - len(suffix) + 1,
        np.array(reads, dtype=np.int64),
        tuple(labels),
    )


@dataclass(frozen=True)
class Prefix:
    """Where a clip's keys and values lie in the cache."""

    begin: int
    length: int


@dataclass
class Known:
    """What is kept for one system message: its place in the cache, and that of each clip."""

    cache: Cache
    system: Prefix
    clips: dict[tuple[str, str], Prefix]


@contextlib.contextmanager
def _device_faults() -> Iterator[None]:
    """A lost device, and memory that even the smallest batches do not find, as faults that a resume can continue."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise PauseError(
            "out of memory even with the smallest batches: close what else uses the device, or give --quantization nf4;"
            " the same command goes on from here"
        ) from None
    except RuntimeError as error:
        # torch names it only since 2.8
        lost = isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(
            error
        )
        if not lost:
            raise
        raise DeviceLostError(
            f"the device was lost ({str(error).splitlines()[0][:200]}); nothing that was scored is lost, the same"
            " command goes on from here"
        ) from None


class QwenAudio:
    """An Evaluator for checkpoints of `families`. Weights are loaded on the first score, not before.

    Args:
        checkpoint: What to score.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        shape: Sizes of the batches; halved when memory runs out. None: by the kind of device.
        dequantise: 4-bit weights are expanded once, to the numbers that every batch would expand them to. None: where
            the memory allows it.
        features: Folder that keeps the features of clips by content. None: they are computed anew.
        loaded: (model, processor) that are in memory already, instead of the checkpoint's files.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "auto",
        dtype: str = "auto",
        shape: Shape | None = None,
        dequantise: bool | None = None,
        features: Path | None = None,
        loaded: tuple[Any, Any] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.shape = shape or shape_for(card_gib(self.device))
        self._dequantise = dequantise
        self._features = features
        self._loaded = loaded
        self._untested = None if loaded else checkpoint.self_test
        self.forwards = 0  # evals that went through the model
        self._embedded: dict[tuple[str, str], Tensor] = {}  # audio embeddings by content
        self._known: dict[str, Known] = {}  # by system message

    @property
    def fingerprint(self) -> str:
        """Digest of weights, adapter, quantisation, precision, device class, scorer and (in bf16) batch shape."""
        parts: dict[str, Any] = {
            "scorer": SCORER,
            "checkpoint": self.checkpoint.digest,
            "dtype": str(self.dtype),
            "device": self.device.type,
        }
        if self.dtype != torch.float32:
            card = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
            parts |= {"card": card, "shape": [*astuple(self.shape), TOWER_BATCH[self.device.type]]}
            if self.checkpoint.quantisation != "none":
                parts["expanded"] = self.dequantise
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def dequantise(self) -> bool:
        """Whether 4-bit weights are expanded once."""
        if self.checkpoint.quantisation == "none" or self.gib is None:
            return False
        return expands(self.config, self.gib) if self._dequantise is None else self._dequantise

    @property
    def gib(self) -> float | None:
        """Memory of the card in GiB; None without one."""
        return card_gib(self.device)

    @functools.cached_property
    def config(self) -> Any:
        """The checkpoint's configuration; reads no weights."""
        return self._loaded[0].config if self._loaded else audio_config(self.checkpoint.base)

    @functools.cached_property
    def family(self) -> Family:
        """What kind of model it is."""
        return family_of(self.config)

    @functools.cached_property
    def processor(self) -> Any:
        """Tokenizer and feature extractor of the base checkpoint."""
        return self._loaded[1] if self._loaded else self.family.processor(self.checkpoint.base)

    @functools.cached_property
    def transformer(self) -> Transformer:
        """The loaded model."""
        model = (
            self._loaded[0]
            if self._loaded
            else load_model(self.checkpoint, self.family, self.device, self.dtype)
        )
        flatten(model.model, self.dtype, self.dequantise)
        return Transformer(model)

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`."""
        test, self._untested = self._untested, None
        if test is not None:
            precision = str(self.dtype).removeprefix("torch.")
            selftest.check(self, test, precision, self.checkpoint.name)
            self.forwards = 0
        tokenizer = self.processor.tokenizer
        answers = [find_answers(tokenizer, prompt) for prompt in prompts]
        labels = len(prompts[0].answers)
        logp = np.full((len(prompts), len(clips), labels), -np.inf, dtype=np.float32)
        top = logp.copy()
        by_system: dict[str, list[Plan]] = {}
        for number, prompt in enumerate(prompts):
            plan = plan_row(
                number, encode(tokenizer, self.family.after(prompt.text)), answers[number]
            )
            by_system.setdefault(prompt.system, []).append(plan)
        with _device_faults(), torch.inference_mode():
            _ = self.transformer  # loaded here: smaller batches would not help it into memory
            for system, plans in by_system.items():
                self._retry(lambda s=system, p=plans: self._score(s, p, clips, logp, top))
        if np.isnan(logp).any():
            p, c, _ = np.argwhere(np.isnan(logp))[0]
            raise UserError(
                f"prompt {prompts[p].prompt_id} on clip {clips[c].clip_id!r} gave NaN: the weights or the precision"
                " are broken; check the checkpoint with opro.doctor, or give --dtype float32"
            )
        self.forwards += len(prompts) * len(clips)
        return ScoreTable(tuple(prompts), tuple(clips), logp, top)

    def forget(self) -> None:
        """Drops audio embeddings and prefixes that are kept, e.g. before timing."""
        self._embedded.clear()
        self._known.clear()

    def unload(self) -> None:
        """Drops the weights and all that is kept; the next score loads them anew."""
        self.forget()
        self.__dict__.pop("transformer", None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _score(
        self,
        system: str,
        plans: Sequence[Plan],
        clips: Sequence[Clip],
        logp: np.ndarray,
        top: np.ndarray,
    ) -> None:
        """Scores prompts of one system message: clips outside, prompts inside, results fetched at the end."""
        for plan in plans:  # here, since the shape may have been halved
            if len(plan.ids) > self.shape.tokens or plan.kept > self.shape.kept:
                raise PromptError(
                    f"prompt {plan.prompt + 1} of this call has {len(plan.ids)} tokens with its"
                    f" answers; at most {self.shape.tokens} fit a batch here"
                )
        # Long rows first: the same order whatever the order of the prompts.
        plans = sorted(plans, key=lambda p: (-len(p.ids), p.prompt))
        cells: list[np.ndarray] = []
        found: list[tuple[Tensor, np.ndarray]] = []

        def run(known: Known, jobs: Sequence[tuple[Plan, int]]) -> None:
            values, sequence, where = self._batch(known, jobs, clips)
            found.append((values, sequence))
            cells.append(where)

        waiting: list[tuple[Plan, int]] = []
        before: Known | None = None
        for known, numbers in self._prefixes(system, clips):
            if before is not None and known is not before:
                for jobs in self._full(waiting, last=True):
                    run(before, jobs)
                waiting = []
            before = known
            waiting += [(plan, c) for c in numbers for plan in plans]
            waiting.sort(key=lambda job: self._bucket(len(job[0].ids)))
            done = 0
            for jobs in self._full(waiting, last=False):
                run(known, jobs)
                done += len(jobs)
            waiting = waiting[done:]
        if before is not None:
            for jobs in self._full(waiting, last=True):
                run(before, jobs)
        for (values, sequence), where in zip(found, cells, strict=True):
            sums = np.bincount(sequence, weights=values.cpu().numpy().astype(np.float64))
            at = tuple(where.T)
            np.logaddexp.at(logp, at, sums.astype(np.float32))
            np.maximum.at(top, at, sums.astype(np.float32))

    def _full(
        self, waiting: Sequence[tuple[Plan, int]], last: bool
    ) -> Iterator[list[tuple[Plan, int]]]:
        """Batches of jobs; unless these are the last ones, the end of the queue waits for more to fill its batch."""
        batches = list(
            self._batches(waiting, lambda job: (len(job[0].ids), job[0].kept), self.shape.tokens)
        )
        if last:
            yield from batches
        elif self.transformer.kernels is not None:  # else any bucket of lengths may wait for more
            yield from batches[:-1]

    def _bucket(self, tokens: int) -> int:
        """Rows of one bucket may share a batch: without kernels, attention pads them to one length."""
        return 0 if self.transformer.kernels is not None else -(-tokens // Dense.ROW)

    def _batches(
        self, items: Sequence[Item], size: Callable[[Item], tuple[int, int]], limit: int
    ) -> Iterator[list[Item]]:
        """Items, each of (tokens, kept) by `size`, in batches of at most `limit` tokens."""
        batch: list[Item] = []
        tokens = kept = bucket = 0
        for item in items:
            more, reads = size(item)
            full = tokens + more > limit or kept + reads > self.shape.kept
            if batch and (full or self._bucket(more) != bucket):
                yield batch
                batch, tokens, kept = [], 0, 0
            batch.append(item)
            tokens, kept, bucket = tokens + more, kept + reads, self._bucket(more)
        if batch:
            yield batch

    def _batch(
        self, known: Known, jobs: Sequence[tuple[Plan, int]], clips: Sequence[Clip]
    ) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """(log-probability of each read, the sequence it belongs to, the cell of each sequence)."""
        plans = [plan for plan, _ in jobs]
        prefix = [known.clips[clip_key(clips[c])] for _, c in jobs]
        lengths = np.array([len(p.ids) for p in plans])
        kept = np.array([p.kept for p in plans])
        offset = np.array([known.system.length + x.length for x in prefix])
        start = np.concatenate([[0], np.cumsum(lengths)])
        query_start = np.concatenate([[0], np.cumsum(kept)])
        keep = np.concatenate([np.arange(e - k, e) for e, k in zip(start[1:], kept, strict=True)])
        reads = np.concatenate(
            [p.reads[:, :2] + [[q, 0]] for p, q in zip(plans, query_start, strict=False)]
        )
        first = np.cumsum([0, *(len(p.labels) for p in plans)])
        sequence = np.concatenate([p.reads[:, 2] + f for p, f in zip(plans, first, strict=False)])
        where = np.array(
            [(plan.prompt, c, label) for plan, c in jobs for label in plan.labels], dtype=np.int64
        )
        hidden = self._step(
            known.cache,
            self.shape.tokens,
            ids=np.concatenate([p.ids for p in plans]),
            positions=np.concatenate([p.place for p in plans]) + np.repeat(offset, lengths),
            branch=np.concatenate([p.branch for p in plans]),
            start=start,
            prefix=prefix,
            shared=known.system,
            keep=keep,
            query_start=query_start,
        )
        values = self.transformer.read(hidden, self._to(reads[:, 0]), self._to(reads[:, 1]))
        return values, sequence, where

    def _to(self, array: np.ndarray) -> Tensor:
        """On the device. From pinned memory: any other copy would wait for all that is queued there."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _step(
        self,
        cache: Cache,
        size: int,
        *,
        positions: np.ndarray,
        start: np.ndarray,
        prefix: Sequence[Prefix],
        shared: Prefix,
        ids: np.ndarray | None = None,
        embeddings: Tensor | None = None,
        branch: np.ndarray | None = None,
        write: np.ndarray | None = None,
        keep: np.ndarray | None = None,
        query_start: np.ndarray | None = None,
    ) -> Tensor:
        """Pads a batch to `size` tokens and runs it."""
        count = len(positions)

        def padded(array: np.ndarray, length: int, value: int) -> np.ndarray:
            out = np.full(length, value, dtype=array.dtype)
            out[: len(array)] = array
            return out

        lm = self.transformer.lm
        if embeddings is None:
            assert ids is not None
            x = lm.embed_tokens(self._to(padded(ids, size, 0)))
        else:
            x = torch.zeros(size, embeddings.shape[1], dtype=embeddings.dtype, device=self.device)
            x[:count] = embeddings
        branch = np.zeros(count, dtype=np.int32) if branch is None else branch
        ends = start if query_start is None else query_start
        rows = Rows(
            start=self._to(start.astype(np.int32)),
            query_start=self._to(ends.astype(np.int32)),
            branch=self._to(padded(branch, size, 0)),
            begin=self._to(np.array([p.begin for p in prefix], dtype=np.int32)),
            length=self._to(np.array([p.length for p in prefix], dtype=np.int32)),
            shared=(shared.begin, shared.length),
            longest=int(np.diff(start).max()),
            longest_query=int(np.diff(ends).max()),
            branches=bool(branch.any()),
        )
        return self.transformer.step(
            x,
            self._to(padded(positions.astype(np.int64), size, 0)),
            rows,
            cache,
            None if write is None else self._to(padded(write, size, cache.capacity - 1)),
            None if keep is None else self._to(padded(keep, self.shape.kept, 0)),
        )

    def _retry(self, work: Callable[[], Any]) -> Any:
        """Runs `work`; when memory runs out, frees what is kept, halves the batches and tries again."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if self.shape.tokens <= 128:
                    raise
            self._known.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.shape = self.shape.halved()
            log.warning("out of memory: batches of %d tokens from here on", self.shape.tokens)

    def _prefix_budget(self) -> float:
        """Bytes that keys and values may take."""
        if self.device.type != "cuda":
            return 1 * 2**30
        free, total = torch.cuda.mem_get_info(self.device)
        held = sum(k.cache.capacity * k.cache.bytes_per_place for k in self._known.values())
        return cache_bytes(total, free + held)

    def _prefixes(self, system: str, clips: Sequence[Clip]) -> Iterator[tuple[Known, list[int]]]:
        """(what is known, positions of clips that are in its cache), until all clips had their turn.

        New clips are embedded and their keys and values computed, some at a time: while the device works on what was
        yielded, the features of the next clips are made.
        """
        known = self._known.get(system) or self._begin(system)
        ready = [i for i, clip in enumerate(clips) if clip_key(clip) in known.clips]
        if ready:
            yield known, ready
        had = set(ready)
        new = [i for i in range(len(clips)) if i not in had]
        budget = self._prefix_budget()
        store = FeatureStore(
            self._features, self.processor.feature_extractor, self.family.whole_window
        )
        with ThreadPoolExecutor(DECODERS) as pool:
            heard: dict[tuple[str, str], Future[Heard]] = {}

            def listen(positions: Sequence[int]) -> None:
                for key, clip in {clip_key(clips[j]): clips[j] for j in positions}.items():
                    if key not in self._embedded and key not in heard:
                        heard[key] = pool.submit(store.hear, clip)

            part: list[int] = []
            tokens = 0
            # Without kernels a batch holds clips of one length bucket: more of them at once fill it.
            full = self.shape.prefix * (1 if self.transformer.kernels is not None else 16)
            # The first part is small, and little is decoded beside it, so that the device starts early.
            enough, ahead = full // 4, 4 * DECODERS
            for number, i in enumerate(new, 1):
                listen(new[number - 1 : number + ahead])
                part.append(i)
                tokens += self._audio_tokens(clips[i], heard)
                following = (
                    self._audio_tokens(clips[new[number]], heard) if number < len(new) else 0
                )
                if following and tokens + following <= enough:
                    continue  # as many clips as fill a batch of prefixes
                audio = self._embed([clips[j] for j in part], heard, store, pool)
                places = known.cache.used + sum(map(len, audio))
                if places * known.cache.bytes_per_place > budget and known.clips:
                    known = self._begin(system)  # what was kept so far had its turn
                self._add(known, {clip_key(clips[j]): a for j, a in zip(part, audio, strict=True)})
                yield known, part
                part, tokens, enough, ahead = [], 0, full, 64 * DECODERS

    def _audio_tokens(self, clip: Clip, heard: dict[tuple[str, str], Future[Heard]]) -> int:
        """Tokens that a clip becomes."""
        kept = self._embedded.get(clip_key(clip))
        if kept is not None:
            return len(kept)
        return self.family.tokens(self.config, heard[clip_key(clip)].result().frames)

    def _begin(self, system: str) -> Known:
        """An empty cache that holds the system message."""
        if len(self._known) > 3:
            self._known.clear()
        cache = self.transformer.new_cache()
        ids = np.array(encode(self.processor.tokenizer, self.family.before(system)), dtype=np.int64)
        cache.grow(len(ids), 0)
        self._step(
            cache,
            -(-len(ids) // 64) * 64,
            ids=ids,
            positions=np.arange(len(ids)),
            start=np.array([0, len(ids)]),
            prefix=[Prefix(0, 0)],
            shared=Prefix(0, 0),
            write=np.arange(len(ids)),
        )
        cache.used = len(ids)
        self._known[system] = Known(cache, Prefix(0, len(ids)), {})
        return self._known[system]

    def _add(self, known: Known, audio: dict[tuple[str, str], Tensor]) -> None:
        """Computes keys and values of clips and notes where they lie."""
        waiting = [item for item in audio.items() if item[0] not in known.clips]
        waiting.sort(key=lambda item: self._bucket(len(item[1])))
        for batch in self._batches(waiting, lambda item: (len(item[1]), 0), self.shape.prefix):
            self._add_batch(known, batch)

    def _add_batch(self, known: Known, batch: Sequence[tuple[tuple[str, str], Tensor]]) -> None:
        cache, first = known.cache, known.cache.used
        lengths = np.array([len(a) for _, a in batch])
        start = np.concatenate([[0], np.cumsum(lengths)])
        cache.grow(first + int(start[-1]), int(self._prefix_budget() // cache.bytes_per_place))
        place = np.concatenate([np.arange(n) for n in lengths])
        self._step(
            cache,
            max(self.shape.prefix, int(start[-1])),
            embeddings=torch.cat([a for _, a in batch]),
            positions=place + known.system.length,
            start=start,
            prefix=[Prefix(0, 0)] * len(batch),
            shared=known.system,
            write=np.arange(first, first + int(start[-1])),
        )
        cache.used = first + int(start[-1])
        for (key, _), begin, length in zip(batch, start, lengths, strict=False):
            known.clips[key] = Prefix(first + int(begin), int(length))

    def _embed(
        self,
        clips: Sequence[Clip],
        heard: dict[tuple[str, str], Future[Heard]],
        store: FeatureStore,
        pool: ThreadPoolExecutor,
    ) -> list[Tensor]:
        """Audio embeddings ``[token, channel]`` of each clip, computed once per content."""
        size = TOWER_BATCH[self.device.type]
        new: dict[int, list[tuple[str, str]]] = {}
        for key in dict.fromkeys(map(clip_key, clips)):
            if key not in self._embedded:
                new.setdefault(heard[key].result().frames, []).append(key)
        for frames, keys in new.items():
            for i in range(0, len(keys), size):
                part = keys[i : i + size]
                mel = self._mel([heard[k].result() for k in part], store, pool)
                full = np.concatenate([mel, np.repeat(mel[-1:], size - len(part), 0)])
                tokens = self.family.encode(self.transformer.model, self._to(full), frames)
                for k, found in zip(part, tokens.to(self.transformer.dtype), strict=False):
                    self._embedded[k] = found.clone()
        return [self._embedded[clip_key(clip)] for clip in clips]

    def _mel(
        self, heard: Sequence[Heard], store: FeatureStore, pool: ThreadPoolExecutor
    ) -> NDArray[np.float32]:
        """Features of clips of equally many frames, as kept or computed."""
        waves = [h.wave for h in heard if h.wave is not None]
        fresh = iter(store.log_mel(waves) if waves else ())
        out = []
        for h in heard:
            mel = next(fresh) if h.mel is None else h.mel
            if h.mel is None and store.folder is not None:
                pool.submit(store.keep, h, mel)
            out.append(mel)
        return np.stack(out)


def clip_key(clip: Clip) -> tuple[str, str]:
    """What a clip is to the model: its content, and whether a control replaces it."""
    return clip.sha256, clip.audio
