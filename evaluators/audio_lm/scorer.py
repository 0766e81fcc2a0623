"""Exact answer log-probabilities from Qwen2-Audio and Qwen3-Omni, at the cost of the prompt's own tokens.

Three savings, none of them an approximation:

1. The audio tower runs on the clip's own frames (`families`). The stock model pads every clip to its whole window.
2. The chat template puts the audio before the question. Keys and values of the system message are computed once, those
   of the audio once per clip, and kept (`prefixes`). Every prompt pays for its own tokens only (`packing`).
3. Only the hidden states at the answer go through the last layer's feed-forward and the head (`decoder`).
"""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from evaluators.audio_lm import selftest
from evaluators.audio_lm.answer_tokens import find_answers, reading_of
from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.decoder import Decoder
from evaluators.audio_lm.device import (
    card_gib,
    device_faults,
    estimate_seconds_per_eval,
    limits,
    pick_device,
    pick_dtype,
)
from evaluators.audio_lm.families import Family, audio_config, family_of
from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.memory import (
    Shape,
    memory_lines,
    shape_for,
    should_dequantize,
)
from evaluators.audio_lm.packing import (
    AnswerReads,
    BatchLimits,
    Ints,
    Job,
    PromptRow,
    fill_batches,
    lay_out_prompts,
    pack,
    pack_prompt,
    to_device,
)
from evaluators.audio_lm.prefixes import PrefixCache, Prefixes
from evaluators.audio_lm.templates import encode
from evaluators.audio_lm.tower import TOWER_BATCH, AudioTower, clip_key
from evaluators.clips import Clip
from evaluators.errors import PromptError, UserError
from evaluators.evaluator import About, ScoreTable, Uncached
from evaluators.prompts import Prompt

log = logging.getLogger(__name__)
Result = TypeVar("Result")
SCORER = "3"  # raise it whenever a change can change a score: it is part of every cache key
MIN_TOKENS = 128  # smaller batches are not tried when memory runs out


@dataclass(frozen=True)
class LoadedModel:
    """What a score runs on: the weights, and the embeddings, keys and values that are kept."""

    decoder: Decoder
    tower: AudioTower
    prefixes: Prefixes


class AudioScorer(Uncached):
    """An Evaluator for checkpoints of `families`. Weights are loaded on the first score, not before.

    Args:
        checkpoint: What to score.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        shape: Sizes of the batches; halved when memory runs out. None: by the kind of device.
        dequantize: Whether 4-bit weights are dequantized once, to the numbers that every batch would dequantize them
            to. None: where memory allows it.
        features: Folder that stores features of clips by content. None: they are computed anew.
        loaded: (model, processor) that are in memory already, instead of the checkpoint's files.
    """

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
    ) -> None:
        self.checkpoint = checkpoint
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.shape = shape or shape_for(card_gib(self.device))
        self._dequantize = dequantize
        self._features = features
        self._given = loaded
        self._untested = None if loaded else checkpoint.self_test
        self._loaded: LoadedModel | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of weights, adapter, quantization, precision, device class, scorer and (in bf16) batch shape."""
        parts: dict[str, Any] = {
            "scorer": SCORER,
            "checkpoint": self.checkpoint.digest,
            "dtype": str(self.dtype),
            "device": self.device.type,
        }
        if self.dtype != torch.float32:
            card = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
            parts |= {"card": card, "shape": [*astuple(self.shape), TOWER_BATCH[self.device.type]]}
            if self.checkpoint.quantization != "none":
                parts["expanded"] = self.dequantize
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def dequantize(self) -> bool:
        """Whether 4-bit weights are dequantized once."""
        gib = card_gib(self.device)
        if self.checkpoint.quantization == "none" or gib is None:
            return False
        return should_dequantize(self.config, gib) if self._dequantize is None else self._dequantize

    @functools.cached_property
    def config(self) -> Any:
        """The checkpoint's configuration; reads no weights."""
        return self._given[0].config if self._given else audio_config(self.checkpoint.base)

    @functools.cached_property
    def family(self) -> Family:
        """What kind of model it is."""
        return family_of(self.config)

    @functools.cached_property
    def processor(self) -> Any:
        """Tokenizer and feature extractor of the base checkpoint; reads no weights."""
        return self._given[1] if self._given else self.family.processor(self.checkpoint.base)

    @functools.cached_property
    def feature_store(self) -> FeatureStore:
        """Features of clips, as this checkpoint takes them; reads no weights."""
        return FeatureStore(
            self._features, self.processor.feature_extractor, self.family.whole_window
        )

    @property
    def decoder(self) -> Decoder:
        """The language model; loads the weights."""
        return self._load().decoder

    @property
    def tower(self) -> AudioTower:
        """The audio tower; loads the weights."""
        return self._load().tower

    @property
    def prefixes(self) -> Prefixes:
        """Keys and values that are kept; loads the weights."""
        return self._load().prefixes

    def reading(self, prompt: Prompt) -> str:
        """See `Evaluator.reading`."""
        return reading_of(prompt, lambda: self.processor.tokenizer)

    def about(self) -> About:
        """See `Evaluator.about`."""
        lines = memory_lines(
            self.config, self.checkpoint.quantization, card_gib(self.device), self.shape
        )
        lines += limits(self.device, self.dtype)
        return About(
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            checkpoint=self.checkpoint,
            batch_tokens=self.shape.tokens,
            memory=tuple(lines),
            seconds_per_eval=self._seconds_per_eval,
        )

    def forget(self) -> None:
        """Drops embeddings, keys and values that are kept, as before timing."""
        if self._loaded is not None:
            self._loaded.tower.clear()
            self._loaded.prefixes.clear()

    def release(self) -> None:
        """See `Evaluator.release`."""
        self._loaded = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`."""
        test, self._untested = self._untested, None
        if test is not None:
            precision = str(self.dtype).removeprefix("torch.")
            selftest.check(self, test, precision, self.checkpoint.name)
            self.forwards = 0
        by_system: dict[str, list[PromptRow]] = {}
        tokenizer = self.processor.tokenizer
        answers = [find_answers(tokenizer, prompt) for prompt in prompts]
        for number, prompt in enumerate(prompts):
            suffix = encode(tokenizer, self.family.template.after(prompt.text))
            row = pack_prompt(number, suffix, answers[number])
            by_system.setdefault(prompt.system, []).append(row)
        shape = (len(prompts), len(clips), len(prompts[0].answers))
        logp = np.full(shape, -np.inf, dtype=np.float32)
        top = logp.copy()
        with device_faults(), torch.inference_mode():
            self._load()  # here: smaller batches would not help the weights into memory
            for system, rows in by_system.items():
                for values, reads in self._retry(functools.partial(self._run, system, rows, clips)):
                    reads.add_to(logp, top, values)
        table = ScoreTable(tuple(prompts), tuple(clips), logp, top)
        _check_finite(table)
        self.forwards += len(prompts) * len(clips)
        return table

    def _load(self) -> LoadedModel:
        """The loaded model; what was dropped is loaded again."""
        if self._loaded is None:
            from evaluators.audio_lm import loading  # and with it transformers

            model = (
                self._given[0]
                if self._given
                else loading.load_model(self.checkpoint, self.family, self.device, self.dtype)
            )
            loading.merge(model, self.dtype, self.dequantize)
            decoder = Decoder(model)
            tower = AudioTower(model, self.family, self.feature_store, decoder.dtype)
            # Not a method of this object: in a cycle with it, the device's memory would wait for the collector.
            before = functools.partial(_tokens_before, self.family, self.processor.tokenizer)
            self._loaded = LoadedModel(decoder, tower, Prefixes(decoder, tower, before))
        return self._loaded

    def _run(
        self, system: str, rows: Sequence[PromptRow], clips: Sequence[Clip]
    ) -> list[tuple[Tensor, AnswerReads]]:
        """Scores prompts of one system message. The results stay on the device, so that nothing waits for them."""
        for row in rows:  # here, since the shape may have been halved
            if len(row.ids) > self.shape.tokens or row.kept > self.shape.kept:
                raise PromptError(
                    f"prompt {row.prompt + 1} of this call has {len(row.ids)} tokens with its"
                    f" answers; at most {self.shape.tokens} fit a batch here"
                )
        # Long rows first: the same order whatever the order of the prompts.
        rows = sorted(rows, key=lambda row: (-len(row.ids), row.prompt))
        decoder = self.decoder
        results = []
        for prefixes, jobs in self._batches(system, rows, clips):
            layout = lay_out_prompts(
                [row for row, _ in jobs],
                [prefixes.clips[clip_key(clips[c])] for _, c in jobs],
                prefixes.system,
            )
            ids = np.concatenate([row.ids for row, _ in jobs])
            batch = pack(
                ids, layout, size=self.shape.tokens, kept=self.shape.kept, device=self.device
            )
            hidden = decoder.step(batch, prefixes.cache.layers)
            reads = AnswerReads.of(jobs)
            state, token = (to_device(part, self.device) for part in (reads.state, reads.token))
            results.append((decoder.read(hidden, state, token), reads))
        return results

    def _batches(
        self, system: str, rows: Sequence[PromptRow], clips: Sequence[Clip]
    ) -> Iterator[tuple[PrefixCache, list[Job]]]:
        """(prefix cache, a batch's jobs). A batch that is not full waits for more clips in the same cache."""
        limits = BatchLimits(self.shape.tokens, self.shape.kept, self.prefixes.row_bucket())
        waiting: list[Job] = []
        current: PrefixCache | None = None

        def full(last: bool) -> list[list[Job]]:
            if limits.bucket and not last:
                return []  # the batch of any bucket may wait for more
            batches = list(fill_batches(waiting, lambda job: job[0].size, limits))
            return batches if last else batches[:-1]

        for prefixes, positions in self.prefixes.compute(system, clips, self.shape):
            if current is not None and prefixes is not current:
                for jobs in full(last=True):
                    yield current, jobs
                waiting = []
            current = prefixes
            waiting += [(row, c) for c in positions for row in rows]
            waiting.sort(key=lambda job: limits.bucket_of(len(job[0].ids)))
            done = full(last=False)
            for jobs in done:
                yield current, jobs
            waiting = waiting[sum(map(len, done)) :]
        if current is not None:
            for jobs in full(last=True):
                yield current, jobs

    def _retry(self, work: Callable[[], Result]) -> Result:
        """The result of `work`. When memory runs out, drops keys and values, halves the batches and tries again."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if self.shape.tokens <= MIN_TOKENS:
                    raise
            self.prefixes.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.shape = self.shape.halved()
            log.warning("out of memory: batches of %d tokens from here on", self.shape.tokens)

    @functools.cached_property
    def _seconds_per_eval(self) -> float:
        return estimate_seconds_per_eval(self.config, self.device, self.dtype)


def _tokens_before(family: Family, tokenizer: Any, system: str) -> Ints:
    """Tokens before the audio."""
    return np.array(encode(tokenizer, family.template.before(system)), dtype=np.int64)


def _check_finite(table: ScoreTable) -> None:
    """Raises UserError if any score is NaN."""
    if np.isnan(table.logp).any():
        p, c, _ = np.argwhere(np.isnan(table.logp))[0]
        raise UserError(
            f"prompt {table.prompts[p].prompt_id} on clip {table.clips[c].clip_id!r} gave NaN: the weights or the"
            " precision are broken; check the checkpoint with opro.doctor, or give --dtype float32"
        )
