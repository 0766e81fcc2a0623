"""Exact answer log-probabilities from Qwen2-Audio and Qwen3-Omni, at the cost of the prompt's own tokens.

Three savings, none of them an approximation:

1. The audio tower runs on the clip's own frames (`families`). The stock model pads every clip to its whole window.
2. The chat template puts the audio before the question. Keys and values of the system message are computed once, those
   of the audio once per clip, and kept (`prefixes`). Every prompt pays for its own tokens only (`packing`).
3. Only the hidden states at the answer go through the last layer's feed-forward and the head (`decoder`).
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.audio import Wave
from evaluators.audio_lm import selftest
from evaluators.audio_lm.adapter_kinds import leaves_tower, own_numbers
from evaluators.audio_lm.adapters import beside, merge
from evaluators.audio_lm.answer_tokens import find_answers, reading_of
from evaluators.audio_lm.batch_sizes import BatchSizes
from evaluators.audio_lm.checkpoint import Checkpoint, Known
from evaluators.audio_lm.decoder import Decoder, load_kernels
from evaluators.audio_lm.device import (
    card_gib,
    device_faults,
    estimate_seconds_per_eval,
    limits,
    one_thread,
    pick_device,
    pick_dtype,
    rate_in_use,
)
from evaluators.audio_lm.families import Family, audio_config, family_of
from evaluators.audio_lm.features import FRONT_END, FeatureStore, front_end_versions
from evaluators.audio_lm.generic_class import GenericClass
from evaluators.audio_lm.identity import base_digest, check_once, versions
from evaluators.audio_lm.lanes import Lanes, lanes_of
from evaluators.audio_lm.memory import (
    Shape,
    batch_bytes,
    can_share,
    memory_lines,
    shape_for,
    should_dequantize,
    weight_counts,
)
from evaluators.audio_lm.packing import (
    AnswerReads,
    BatchLimits,
    CacheSegment,
    Ints,
    Job,
    PromptRow,
    WaitingJobs,
    lay_out_prompts,
    pack,
    pack_parts,
    to_device,
)
from evaluators.audio_lm.plain_lora import plain_lora
from evaluators.audio_lm.plain_model import fitting_model, load_plain
from evaluators.audio_lm.prefixes import Before, Embeddings, Prefixes
from evaluators.audio_lm.shared_base import SharedBase
from evaluators.audio_lm.templates import count_tokens, encode, parts_of
from evaluators.audio_lm.tower import AudioTower, clip_key
from evaluators.clips import Clip
from evaluators.errors import PauseError, PromptError, UserError
from evaluators.evaluator import About, ScoreTable, Uncached, Work, score_each_sound
from evaluators.presentation import Presentation
from evaluators.prompts import Prompt

log = logging.getLogger(__name__)
SCORER = "4"  # raise it whenever a change can change a score: it is part of every cache key
MIN_TOKENS = 128  # smaller batches are not tried when memory runs out
MEASURED_S = 1.0  # seconds of scoring from which on its share of the device's rate is told
PENDING = 256  # batches whose results wait on the device, so that it need not wait for the host
# Prompts that share what is computed of a clip: by how its samples are presented, and by what stands before it.
Groups = dict[Presentation, dict[Before, list[PromptRow]]]
BatchResult = tuple[Tensor, AnswerReads]  # what `Decoder.read` gave for a batch, and what it read


@dataclass(frozen=True)
class LoadedModel:
    """What a score runs on: the weights, and the embeddings, keys and values that are kept."""

    decoder: Decoder
    prefixes: Prefixes


def loader() -> Any:
    """The module that loads weights by transformers, which it imports."""
    from evaluators.audio_lm import loading

    return loading


def check_whole(checkpoint: Checkpoint, kind: Family | GenericClass) -> None:
    """Raises UserError where tensors or processor of a checkpoint do not fit; see `loading.check_load`.

    What has passed is remembered, so that a command whose scores are all kept need not import the model's class.
    """

    def check() -> None:
        if isinstance(kind, Family):
            kind.front(checkpoint.base)
        if fitting_model(checkpoint) is None:
            loader().check_load(checkpoint, kind)

    about = [kind.model_class, versions("transformers", "peft", "tokenizers")]
    check_once(checkpoint.files, about, check)


class _Results:
    """The members of a score table, as far as they are there; memory does not grow but by them.

    Attributes:
        logp: ``[prompt, clip, label]``, as in `ScoreTable`.
        top: The same.
        open: ``[prompt, clip]`` answer sequences that are not there yet.
    """

    def __init__(self, sequences: Sequence[int], clips: int, labels: int) -> None:
        """Of prompts with so many answer sequences each."""
        self.logp = np.full((len(sequences), clips, labels), -np.inf, dtype=np.float32)
        self.top = self.logp.copy()
        self._all = np.repeat(np.array(sequences, dtype=np.int64)[:, None], clips, axis=1)
        self.open = self._all.copy()
        self._pending: list[BatchResult] = []

    @property
    def done(self) -> NDArray[np.bool_]:
        """``[prompt, clip]`` whether every answer is there."""
        return np.asarray(self.open == 0)

    def add(self, values: Tensor, reads: AnswerReads) -> None:
        """Takes what `Decoder.read` gave for a batch; it may be still under way."""
        self._pending.append((values, reads))
        if len(self._pending) >= PENDING:
            self.finish()

    def add_all(self, batches: Iterable[BatchResult]) -> None:
        """Takes the results of several."""
        for values, reads in batches:
            self.add(values, reads)

    def finish(self) -> None:
        """Enters all that was taken into the table."""
        for values, reads in self._pending:
            reads.add_to(self.logp, self.top, values)
            np.subtract.at(self.open, (reads.cells[:, 0], reads.cells[:, 1]), 1)
        self._pending.clear()

    def drop(self, done: bool) -> None:
        """Begins anew with pairs of which only a part is there; with all, if `done`."""
        self.finish()
        again = np.ones_like(self.open, dtype=bool) if done else self.open > 0
        self.logp[again] = self.top[again] = -np.inf
        self.open[again] = self._all[again]


class AudioScorer(Uncached):
    """An Evaluator for checkpoints of `families`. Weights are loaded on the first score, not before.

    Args:
        checkpoint: What to score.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        shape: Sizes of the batches; halved for a call that would run out of memory. None: by the kind of device.
        dequantize: Whether 4-bit weights are dequantized once, to the numbers that every batch would dequantize them
            to. None: where memory allows it.
        features: Folder that stores features of clips by content. None: they are computed anew.
        loaded: (model, processor) that are in memory already, instead of the checkpoint's files.
        store_bytes: What kept embeddings, keys and values may take on the device. None: what it has to spare.
    """

    presents = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "auto",
        dtype: str = "auto",
        *,
        shape: Shape | None = None,
        dequantize: bool | None = None,
        features: Path | None = None,
        loaded: tuple[Any, Any] | None = None,
        store_bytes: float | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self._wanted = self._used = shape or shape_for(card_gib(self.device))
        self._store_bytes = store_bytes
        self._dequantize = dequantize
        self._features = features
        self._given = loaded
        self._untested = None if loaded else checkpoint.self_test
        self._loaded: LoadedModel | None = None
        self._base = SharedBase()
        self._base.join(self)
        self._computed = 0  # evals: those of clips of one sound are one
        self._seconds = 0.0  # of calls, weights in memory
        self._asked = 0  # tokens of their prompts

    @property
    def shape(self) -> Shape:
        """Sizes of the last call's batches. A call begins with those that were asked for, whatever the one before."""
        return self._used

    @shape.setter
    def shape(self, shape: Shape) -> None:
        self._wanted = self._used = shape

    @property
    def fingerprint(self) -> str:
        """Digest of weights, adapter, quantization, precision, device class, versions and (in bf16) batch shape.

        After a call: of its scores. They are of one shape, also where memory ran out on the way.
        """
        parts: dict[str, Any] = {
            "scorer": SCORER,
            "front_end": FRONT_END,
            "versions": self.versions,
            "checkpoint": self._known.digest,
            "dtype": str(self.dtype),
            "device": self.device.type,
        }
        if self.dtype != torch.float32:
            card = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
            parts |= {"card": card, "shape": astuple(self.shape)}
            if self.checkpoint.quantization != "none":
                parts["expanded"] = self.dequantize
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def _known(self) -> Known:
        """The checkpoint, all of which can be read. Kept here: what is sent elsewhere must not bring it along."""
        _ = self.config
        return Known.of(self.checkpoint)

    def _check_unchanged(self) -> None:
        """Raises PauseError where the files are no longer those that the fingerprint told of; nothing is kept then."""
        if "_known" in vars(self) and not self._given:
            try:
                self._known = self._known.again(self.checkpoint)
            except (PauseError, UserError):
                self._base.forget()
                self.release()
                raise

    @functools.cached_property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that a score may depend on, and what computes between matrix products."""
        kernels = load_kernels(self.device)
        more = ["peft"] if self.checkpoint.adapter is not None else []
        more += ["bitsandbytes"] if self.checkpoint.quantization != "none" else []
        return {
            **front_end_versions(),
            **versions("tokenizers", *more),
            "kernels": "torch" if kernels is None else kernels.VERSION,
        }

    @functools.cached_property
    def dequantize(self) -> bool:
        """Whether 4-bit weights are dequantized once."""
        gib = card_gib(self.device)
        if self.checkpoint.quantization == "none" or gib is None:
            return False
        return should_dequantize(self.config, gib) if self._dequantize is None else self._dequantize

    @functools.cached_property
    def config(self) -> Any:
        """The checkpoint's configuration, by which all of its tensors have their places; reads no weights."""
        if self._given:
            return self._given[0].config
        config = audio_config(self.checkpoint.base)
        check_whole(self.checkpoint, family_of(config))
        return config

    @functools.cached_property
    def family(self) -> Family:
        """What kind of model it is."""
        return family_of(self.config)

    @functools.cached_property
    def processor(self) -> Any:
        """The base checkpoint's processor as transformers makes it; reads no weights. Scoring uses `front`."""
        return self._given[1] if self._given else self.family.processor(self.checkpoint.base)

    @functools.cached_property
    def front(self) -> Any:
        """Tokenizer and feature extractor of the base checkpoint; reads no weights."""
        return self._given[1] if self._given else self.family.front(self.checkpoint.base)

    @functools.cached_property
    def feature_store(self) -> FeatureStore:
        """Features of clips, as this checkpoint takes them; reads no weights."""
        return self.family.feature_store(self._features, self.front.feature_extractor)

    @property
    def decoder(self) -> Decoder:
        """The language model; loads the weights."""
        return self._load().decoder

    def make_features(self, wave: Wave) -> None:
        """What the front end does with a clip, for timing; reads no weights, keeps nothing."""
        self.family.feature_store(None, self.front.feature_extractor).log_mel([wave])

    def embeddings(self, clips: Sequence[Clip]) -> list[Tensor]:
        """``[token, channel]`` that the audio tower makes of each clip; loads the weights, keeps nothing."""
        tower, keys = self._tower(self.decoder), list(map(clip_key, clips))
        with torch.inference_mode(), tower.reader(clips) as reader:
            made = tower.embed(keys, reader, self.shape.prefix)
        return [made[key] for key in keys]

    def _tower(self, decoder: Decoder) -> AudioTower:
        return AudioTower(decoder.model, self.family, self.feature_store, decoder.dtype)

    @property
    def prefixes(self) -> Prefixes:
        """Keys and values that are kept; loads the weights."""
        return self._load().prefixes

    def reading(self, prompt: Prompt) -> str:
        """See `Evaluator.reading`."""
        return reading_of(prompt, lambda: self.front.tokenizer)

    def prompt_tokens(self, prompt: Prompt) -> int:
        """See `evaluators.evaluator.prompt_tokens`."""
        return count_tokens(self.front.tokenizer, (prompt.system, prompt.text))

    def about(self) -> About:
        """See `Evaluator.about`."""
        lines = memory_lines(
            self.config, self.checkpoint.quantization, card_gib(self.device), self.shape
        )
        if card_gib(self.device) is not None and len(self._base.users) > 1:
            lines.append(
                f"the base's weights lie there once for {len(self._base.users)} checkpoints, beside them"
                f" {self._own_bytes() / 2**30:.1f} GiB of this one's own"
            )
        lines += limits(self.device, self.dtype)
        lines += [self.family.note] if self.family.note else []
        return About(
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            checkpoint=self.checkpoint,
            batch_tokens=self.shape.tokens,
            memory=tuple(lines),
            versions=self.versions,
            seconds_per_eval=self._seconds_per_eval,
            work=self._work(),
        )

    def _work(self) -> Work:
        """What was computed; the device's rate is measured where that took long enough to be told."""
        rate = 0.0
        if self._seconds >= MEASURED_S:
            rate = rate_in_use(self.device, self.dtype, torch.get_num_threads())
        flop = 2.0 * weight_counts(self.config)[1] * self._asked
        return Work(self._computed, self._seconds, flop, rate)

    def forget(self) -> None:
        """Drops embeddings, keys and values that are kept, as before timing."""
        if self._loaded is not None:
            self._loaded.prefixes.clear()

    def unload(self) -> None:
        """Drops weights, embeddings, keys and values of its own; the next `score` makes them again."""
        self._loaded = None

    def share_with(self, other: Uncached) -> bool:
        """Whether both stand on one base, which lies on the device once for the two from here on."""
        if not isinstance(other, AudioScorer) or self._stands_on() != other._stands_on():
            return False
        if self._base is other._base:
            return True
        self._base.leave(self)
        self._base = other._base
        self._base.join(self)
        return True

    def _stands_on(self) -> object:
        """Equal of two scorers that may have one base; of one that must have its own, equal to itself alone."""
        quantization, gib = self.checkpoint.quantization, card_gib(self.device)
        # Of layers that stay 4-bit their library changes the weights as it computes, on a CPU.
        if self._given or (quantization != "none" and not self.dequantize):
            return self
        if gib and not can_share(self.config, quantization, gib, self._own_bytes() / 2**30):
            return self
        return (
            self.checkpoint.base.resolve(),
            quantization,
            self.device,
            self.dtype,
            self._dequantize,
        )

    def _own_bytes(self) -> int:
        """Memory of what it has for itself beside a base that it shares."""
        adapter = self.checkpoint.adapter
        return 0 if adapter is None else own_numbers(adapter) * self.dtype.itemsize

    def release(self) -> None:
        """See `Evaluator.release`."""
        self.unload()
        self._base.leave(self)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`."""
        test, self._untested = self._untested, None
        if test is not None:
            precision = str(self.dtype).removeprefix("torch.")
            selftest.check(self, test, precision, self.checkpoint.name)
            self.forwards, self._computed, self._seconds, self._asked = 0, 0, 0.0, 0
        table = score_each_sound(self._score, prompts, clips)
        self.forwards += len(prompts) * len(clips)
        return table

    def _score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """The same of clips that are all different."""
        groups: Groups = {}
        tokenizer = self.front.tokenizer
        answers = [find_answers(tokenizer, prompt) for prompt in prompts]
        for number, prompt in enumerate(prompts):
            first, last = parts_of(prompt)
            suffix = encode(tokenizer, self.family.template.after(last))
            shape = self._wanted
            rows = pack_parts(number, suffix, answers[number], shape.tokens, shape.kept)
            by_system = groups.setdefault(prompt.presentation.sound, {})
            by_system.setdefault((prompt.system, first), []).extend(rows)
        sequences = [sum(map(len, one.sequences)) for one in answers]
        results = _Results(sequences, len(clips), len(prompts[0].answers))
        self._used = self._wanted
        alone = contextlib.nullcontext() if self.device.type == "cpu" else one_thread()
        with device_faults(), torch.inference_mode():
            self._load()  # here: smaller batches would not help the weights into memory
            begin = time.perf_counter()
            with alone:
                while not results.done.all():
                    self._attempt(groups, clips, results)
        if self.device.type == "cpu":  # where weights may lie in the file itself, mapped
            self._check_unchanged()
        table = ScoreTable(tuple(prompts), tuple(clips), results.logp, results.top)
        check_finite(table)
        rows = [row for by_system in groups.values() for own in by_system.values() for row in own]
        self._seconds += time.perf_counter() - begin
        self._asked += sum(len(row.ids) for row in rows) * len(clips)
        self._computed += len(prompts) * len(clips)
        return table

    def _load(self) -> LoadedModel:
        """The loaded model; what was dropped is loaded again."""
        if self._loaded is None:
            self._base.join(self)
            decoder = Decoder(self._read_model())
            self._check_unchanged()
            tower = self._tower(decoder)
            # Not a method of this object: in a cycle with it, the device's memory would wait for the collector.
            before = functools.partial(_tokens_before, self.family, self.front.tokenizer)
            prefixes = Prefixes(decoder, tower, before, self._store_bytes, self._embeddings())
            self._loaded = LoadedModel(decoder, prefixes)
        return self._loaded

    def _read_model(self) -> Any:
        """The model with its adapter merged into it."""
        if self._base.is_shared and not self._given:
            # Without inference tensors, through which no gradient goes: soft prompts learn on the same weights.
            with torch.inference_mode(False), torch.no_grad():
                return self._read_beside()
        model = self._given[0] if self._given else self._load_checkpoint(self.checkpoint)
        merge(model, self.dtype, self.dequantize)
        return model

    def _load_checkpoint(self, checkpoint: Checkpoint) -> Any:
        """A model: its adapter is merged into it, or beside its layers. Without transformers where that will do."""
        plain = load_plain(checkpoint, self.device, self.dtype, self.dequantize)
        if plain is not None:
            return plain
        return loader().load_model(checkpoint, self.family, self.device, self.dtype)

    def _read_beside(self) -> Any:
        """The same, on the weights of the base that it shares with others."""
        adapter = self.checkpoint.adapter

        def load() -> Any:
            model = self._load_checkpoint(dataclasses.replace(self.checkpoint, adapter=None))
            merge(model, self.dtype, self.dequantize)
            return model

        base = self._base.model(base_digest(self.checkpoint.base), load)
        if adapter is None:
            return base
        self._base.make_room(
            self, self._own_bytes() + batch_bytes(self.config, self.shape), self.device
        )
        if plain_lora(adapter, base) is None:  # peft joins it to transformers' model
            base = loader().stock_model(base)
        return beside(base, adapter, self.dtype)

    def _embeddings(self) -> Embeddings:
        """Where audio embeddings are kept: in common with all that have the same tower."""
        adapter = self.checkpoint.adapter
        same = self._base.is_shared and not self._given
        return (
            self._base.embeddings
            if same and (adapter is None or leaves_tower(adapter))
            else Embeddings()
        )

    def _attempt(self, groups: Groups, clips: Sequence[Clip], results: _Results) -> None:
        """Scores what is not done. When memory runs out it returns early, with a smaller store or smaller batches."""
        try:
            for how, by_system in groups.items():
                self._run(by_system, clips, results, how)
        except torch.OutOfMemoryError:
            shrunk = self.prefixes.shrink(self.shape)
            if not shrunk and self.shape.tokens <= MIN_TOKENS:
                raise
        else:
            return
        # Here, where the error no longer holds on to the tensors of the functions that it came through.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        results.drop(done=False)
        if shrunk:
            log.warning("out of memory: fewer keys and values of clips are kept from here on")
            return
        self._used = self.shape.halved()
        if self.dtype != torch.float32:
            results.drop(done=True)  # a table is of one shape
        log.warning("out of memory: batches of %d tokens in this call", self.shape.tokens)

    def _run(
        self,
        by_system: Mapping[Before, Sequence[PromptRow]],
        clips: Sequence[Clip],
        results: _Results,
        how: Presentation,
    ) -> None:
        """Scores the prompts of each system message on each clip, presented in one way, but for what is done."""
        for row in (row for rows in by_system.values() for row in rows):
            if len(row.ids) > self.shape.tokens or row.kept > self.shape.kept:  # it may be halved
                raise PromptError(
                    f"prompt {row.prompt + 1} of this call has {len(row.ids)} tokens with its longest"
                    f" answer, {row.kept} of them the answer's; at most {self.shape.tokens} and"
                    f" {self.shape.kept} fit a batch here"
                )
        # Long rows first: the same order whatever the order of the prompts.
        ordered = {
            system: sorted(rows, key=lambda row: (-len(row.ids), row.prompt))
            for system, rows in by_system.items()
        }
        own = [row.prompt for rows in by_system.values() for row in rows]
        left: list[int] = np.flatnonzero(~results.done[own].all(axis=0)).tolist()
        prefixes = self.prefixes
        waiting = WaitingJobs(
            BatchLimits(self.shape.tokens, self.shape.kept, prefixes.row_bucket())
        )
        with Lanes[BatchResult](self.lanes()) as lanes:
            for ready in prefixes.compute(list(ordered), [clips[c] for c in left], self.shape, how):
                if isinstance(ready, CacheSegment):
                    batches = waiting.over(ready)
                else:
                    jobs = [
                        Job(row, left[i], segment)
                        for i, segment in ready.clips
                        for row in ordered[ready.before]
                        if results.open[row.prompt, left[i]]
                    ]
                    waiting.add(ready.segment, jobs)
                    batches = waiting.full()
                self._score_batches(batches, lanes, results)
                if isinstance(ready, CacheSegment):
                    results.add_all(lanes.over(ready))
            self._score_batches(waiting.rest(), lanes, results)
            results.add_all(lanes.rest())
        results.finish()

    def _score_batches(
        self,
        batches: Iterable[tuple[CacheSegment, Sequence[Job]]],
        lanes: Lanes[BatchResult],
        results: _Results,
    ) -> None:
        """Starts batches; their results stay on the device, so that nothing waits for them."""
        sizes = self.decoder.sizes(self.shape.tokens, self.shape.tokens)
        for system, jobs in batches:
            work = functools.partial(self._score_batch, system, jobs, sizes)
            results.add_all(lanes.give(work, [system, *(job.segment for job in jobs)]))

    def _score_batch(
        self, system: CacheSegment, jobs: Sequence[Job], sizes: BatchSizes
    ) -> BatchResult:
        layout = lay_out_prompts(jobs, system)
        size, device = sizes.holding(len(layout.positions)), self.device
        batch = pack(self._tokens(jobs), layout, size=size, kept=self.shape.kept, device=device)
        hidden = self.decoder.step(batch, self.prefixes.layers)
        reads = AnswerReads.of(jobs)
        state, token = (to_device(part, device) for part in (reads.state, reads.token))
        return self.decoder.read(hidden, state, token), reads

    def lanes(self) -> int:
        """Batches at once: several on a CPU, but for 4-bit weights, which their library changes as it computes."""
        if self.device.type != "cpu" or self.checkpoint.quantization != "none":
            return 1
        return lanes_of(torch.get_num_threads())

    def _tokens(self, jobs: Sequence[Job]) -> Ints | Tensor:
        """``[token]`` ids of a batch's rows; of soft prompts ``[token, channel]`` vectors."""
        return np.concatenate([job.row.ids for job in jobs])

    @functools.cached_property
    def _seconds_per_eval(self) -> float:
        return estimate_seconds_per_eval(self.config, self.device, self.dtype)


def _tokens_before(family: Family, tokenizer: Any, system: str, text: str) -> Ints:
    """Tokens before the audio."""
    return np.array(encode(tokenizer, family.template.before(system, text)), dtype=np.int64)


def check_finite(table: ScoreTable) -> None:
    """Raises UserError if any score is NaN."""
    if np.isnan(table.logp).any():
        p, c, _ = np.argwhere(np.isnan(table.logp))[0]
        raise UserError(
            f"prompt {table.prompts[p].prompt_id} on clip {table.clips[c].clip_id!r} gave NaN: the weights or the"
            " precision are broken; check the checkpoint with opro.doctor, or give --dtype float32"
        )
