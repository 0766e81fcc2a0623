"""Exact answer log-probabilities from Qwen2-Audio, at the cost of the prompt's own tokens.

Three savings, none of them an approximation:

1. The audio tower runs on the clip's own frames. The stock model pads to its whole window (30 s) and masks the
   padding as keys in every layer, so valid positions never see it.
2. The chat template puts the audio before the question. Keys and values of system message and audio are computed
   once per clip; every prompt pays for its own tokens only.
3. Only the hidden states at the answer are put through the last layer's feed-forward and the head.

Prefixes are right-padded to a bucket and the padding is masked, so clips of any duration share a batch. Every batch
is filled up to the same shape (rows x prefix bucket x suffix bucket), so a score does not depend on its neighbours:
equal bits however the pairs are asked for.
"""

import functools
import hashlib
import json
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluators.answers import Answers, find_answers
from evaluators.audio import RATE, load, shuffle
from evaluators.checkpoint import Checkpoint
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.layers import Prefixes, Transformer, encode_audio
from evaluators.prompts import Prompt, after_audio, before_audio, encode
from evaluators.scores import ScoreTable

log = logging.getLogger(__name__)
SCORER = "1"  # raise it whenever a change can change a score: it is part of every cache key
PREFIX_BUCKET = 24  # prefix lengths are padded to multiples of this
SUFFIX_BUCKET = 4  # suffix lengths likewise
TOWER_BATCH = 16  # clips of one length that go through the audio tower together, always so many


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU."""
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used ({str(error).splitlines()[0]}); expected auto, cpu,"
            " cuda or mps"
        ) from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA, float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def default_rows(device: torch.device) -> int:
    """Rows of a batch, by the size of the device: fixed for a kind of card, so that cached scores stay valid."""
    if device.type != "cuda":
        return 16  # what fits a CPU's caches, with little to fill up: 1.6 times faster than 256
    gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    return 128 if gib > 60 else 64 if gib > 30 else 32 if gib > 15 else 8


@dataclass(frozen=True)
class Row:
    """One sequence to run after a prefix, and what to read from its end.

    `reads` holds (label, sequence): the sequence's tokens are the targets of the last ``len(sequence)`` positions.
    """

    prompt: int
    ids: tuple[int, ...]
    reads: tuple[tuple[int, tuple[int, ...]], ...]


def rows_of(number: int, suffix: Sequence[int], answers: Answers) -> list[Row]:
    """The rows that score a prompt: one for all single-token answers, one more for every longer answer."""
    single = tuple(
        (label, s) for label, group in enumerate(answers.sequences) for s in group if len(s) == 1
    )
    rows = [Row(number, tuple(suffix), single)] if single else []
    for label, group in enumerate(answers.sequences):
        rows += [Row(number, (*suffix, *s[:-1]), ((label, s),)) for s in group if len(s) > 1]
    return rows


class QwenAudio:
    """An Evaluator for Qwen2-Audio checkpoints. Weights are loaded on the first score, not before.

    Args:
        checkpoint: What to score.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        rows: Sequences a batch; halved when memory runs out. None: by the size of the device.
        compiled: Compile the decoder layer: a slow first batch, faster after. None: on CUDA, unless the weights are
            quantised.
        loaded: (model, processor) that are in memory already, instead of the checkpoint's files.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "auto",
        dtype: str = "auto",
        rows: int | None = None,
        compiled: bool | None = None,
        loaded: tuple[Any, Any] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.rows = rows or default_rows(self.device)
        unquantised = checkpoint.quantisation == "none"
        self.compiled = (
            (self.device.type == "cuda" and unquantised) if compiled is None else compiled
        )
        self._loaded = loaded
        self.forwards = 0  # evals that went through the model
        self._embedded: dict[
            tuple[str, str], Tensor
        ] = {}  # audio embeddings by content, kept for the whole run
        self._prefixes: OrderedDict[tuple[Any, ...], Prefixes] = OrderedDict()

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
            parts |= {
                "card": card,
                "shape": [self.rows, PREFIX_BUCKET, SUFFIX_BUCKET],
                "compiled": self.compiled,
            }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def processor(self) -> Any:
        """Tokenizer and feature extractor of the base checkpoint."""
        from transformers import AutoProcessor

        return (
            self._loaded[1] if self._loaded else AutoProcessor.from_pretrained(self.checkpoint.base)
        )

    @functools.cached_property
    def transformer(self) -> Transformer:
        """The loaded model."""
        model = (
            self._loaded[0]
            if self._loaded
            else load_model(self.checkpoint, self.device, self.dtype)
        )
        return Transformer(model, self.compiled)

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`."""
        tokenizer = self.processor.tokenizer
        answers = [find_answers(tokenizer, prompt) for prompt in prompts]
        labels = len(prompts[0].answers)
        logp = np.full((len(prompts), len(clips), labels), -np.inf, dtype=np.float32)
        top = logp.copy()
        by_system: dict[str, list[int]] = {}
        for number, prompt in enumerate(prompts):
            by_system.setdefault(prompt.system, []).append(number)
        with torch.inference_mode():
            for system, numbers in by_system.items():
                rows = [
                    row
                    for n in numbers
                    for row in rows_of(
                        n, encode(tokenizer, after_audio(prompts[n].text)), answers[n]
                    )
                ]
                for start, chunk in self._clip_chunks(clips, system):
                    self._score_chunk(rows, chunk, start, system, logp, top)
        if np.isnan(logp).any():
            p, c, _ = np.argwhere(np.isnan(logp))[0]
            raise RuntimeError(
                f"prompt {prompts[p].prompt_id} on clip {clips[c].clip_id!r} gave NaN: the weights"
                " or the precision are broken"
            )
        self.forwards += len(prompts) * len(clips)
        return ScoreTable(tuple(prompts), tuple(clips), logp, top)

    def forget(self) -> None:
        """Drops audio embeddings and prefixes that are kept, e.g. before timing."""
        self._embedded.clear()
        self._prefixes.clear()

    def _clip_chunks(self, clips: Sequence[Clip], system: str) -> list[tuple[int, list[Clip]]]:
        """Clips whose prefixes fit in memory together."""
        config = self.transformer.model.config.text_config
        per_token = (
            2
            * config.num_hidden_layers
            * self.transformer.kv_heads
            * self.transformer.head_dim
            * self.dtype.itemsize
        )
        size = max(
            self.rows if self.device.type == "cuda" else 1,
            int(self._prefix_budget() // (per_token * 2 * PREFIX_BUCKET)),
        )
        return [(start, list(clips[start : start + size])) for start in range(0, len(clips), size)]

    def _prefix_budget(self) -> float:
        if self.device.type != "cuda":
            return 1 * 2**30
        return 0.2 * torch.cuda.get_device_properties(self.device).total_memory

    def _score_chunk(
        self,
        rows: Sequence[Row],
        clips: Sequence[Clip],
        start: int,
        system: str,
        logp: np.ndarray,
        top: np.ndarray,
    ) -> None:
        prefixes = self._retry(lambda: self._prefix(clips, system))
        groups: dict[tuple[int, int], list[tuple[Row, int]]] = {}
        for row in rows:
            reads = max(len(s) for _, s in row.reads)
            length = -(-len(row.ids) // SUFFIX_BUCKET) * SUFFIX_BUCKET
            groups.setdefault((length, reads), []).extend((row, c) for c in range(len(clips)))
        for (length, reads), jobs in groups.items():
            done = 0
            while done < len(jobs):
                batch = jobs[done : done + self.rows]
                found = self._retry(
                    lambda b=batch, n=length, r=reads: self._batch(prefixes, b[: self.rows], n, r)
                )
                for (row, clip), values in zip(batch, found, strict=False):
                    for label, value in values:
                        cell = (row.prompt, start + clip, label)
                        logp[cell] = np.logaddexp(logp[cell], value)
                        top[cell] = max(top[cell], value)
                done += len(found)

    def _batch(
        self, prefixes: Prefixes, jobs: Sequence[tuple[Row, int]], length: int, reads: int
    ) -> list[list[tuple[int, float]]]:
        """Per job the (label, log-probability) of each of its answers."""
        wanted = sorted(
            {
                token
                for row, _ in {id(r): (r, 0) for r, _ in jobs}.values()
                for _, s in row.reads
                for token in s
            }
        )
        column = {token: i for i, token in enumerate(wanted)}
        fixed = self.rows
        padded = list(jobs) + [jobs[-1]] * (fixed - len(jobs))
        ids = torch.zeros(fixed, length, dtype=torch.long)
        for i, (row, _) in enumerate(padded):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
        lengths = torch.tensor([len(row.ids) for row, _ in padded])
        clip = torch.tensor([c for _, c in padded])
        out = (
            self.transformer.read(
                prefixes,
                clip.to(self.device),
                ids.to(self.device),
                lengths.to(self.device),
                reads,
                torch.tensor(wanted, device=self.device),
            )
            .cpu()
            .numpy()
        )
        return [
            [
                (label, float(sum(out[i, reads - len(s) + k, column[t]] for k, t in enumerate(s))))
                for label, s in row.reads
            ]
            for i, (row, _) in enumerate(jobs)
        ]

    def _retry(self, work: Callable[[], Any]) -> Any:
        """Runs `work`; when memory runs out, frees what is kept, halves the batch and tries again."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise
            self._prefixes.clear()
            torch.cuda.empty_cache()
            self.rows //= 2
            log.warning("out of memory: batches of %d rows from here on", self.rows)

    def _prefix(self, clips: Sequence[Clip], system: str) -> Prefixes:
        key = (system, *((clip.sha256, clip.audio) for clip in clips))
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
            return self._prefixes[key]
        audio = self._embed(clips)
        head = self.transformer.lm.embed_tokens(
            torch.tensor(encode(self.processor.tokenizer, before_audio(system)), device=self.device)
        )
        lengths = [len(head) + len(a) for a in audio]
        bucket = -(-max(lengths) // PREFIX_BUCKET) * PREFIX_BUCKET
        parts = []
        for first in range(0, len(clips), self.rows):
            group = range(first, min(first + self.rows, len(clips)))
            count = self.rows
            x = torch.zeros(
                count, bucket, head.shape[-1], dtype=self.transformer.dtype, device=self.device
            )
            x[:, : len(head)] = head
            for i, c in enumerate(group):
                x[i, len(head) : lengths[c]] = audio[c]
            part = self.transformer.prefix(
                x, torch.tensor([lengths[c] for c in group], device=self.device)
            )
            parts.append(
                Prefixes(
                    [k[: len(group)] for k in part.keys],
                    [v[: len(group)] for v in part.values],
                    part.lengths,
                )
            )
        whole = (
            parts[0]
            if len(parts) == 1
            else Prefixes(
                [torch.cat(layer) for layer in zip(*(p.keys for p in parts), strict=True)],
                [torch.cat(layer) for layer in zip(*(p.values for p in parts), strict=True)],
                torch.cat([p.lengths for p in parts]),
            )
        )
        while (
            self._prefixes
            and sum(p.bytes for p in self._prefixes.values()) + whole.bytes > self._prefix_budget()
        ):
            self._prefixes.popitem(last=False)
        self._prefixes[key] = whole
        return whole

    def _embed(self, clips: Sequence[Clip]) -> list[Tensor]:
        """Audio embeddings ``[token, channel]`` of each clip, computed once per content."""
        extractor = self.processor.feature_extractor
        new: dict[int, list[tuple[str, str]]] = {}
        missing = {
            (c.sha256, c.audio): c for c in clips if (c.sha256, c.audio) not in self._embedded
        }
        with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter's lock alone
            waves = dict(zip(missing, pool.map(clip_wave, missing.values()), strict=True))
        for key, clip in missing.items():
            if len(waves[key]) > extractor.n_samples:
                raise UserError(
                    f"clip {clip.clip_id!r} lasts {len(waves[key]) / RATE:.2f} s, the model hears "
                    f"{extractor.n_samples / RATE:.0f} s; cut it first"
                )
            new.setdefault(-(-len(waves[key]) // extractor.hop_length), []).append(key)
        for frames, keys in new.items():
            for i in range(0, len(keys), TOWER_BATCH):
                part = keys[i : i + TOWER_BATCH]
                full = part + [part[-1]] * (TOWER_BATCH - len(part))
                mel = clip_mel(extractor, [waves[k] for k in full]).to(self.device)
                for k, tokens in zip(
                    part,
                    encode_audio(self.transformer.model, mel, frames).to(self.transformer.dtype),
                    strict=False,
                ):
                    self._embedded[k] = tokens.clone()
        return [self._embedded[clip.sha256, clip.audio] for clip in clips]


def clip_wave(clip: Clip) -> np.ndarray:
    """What is heard: the recording, silence of its length, or its own samples in random order."""
    wave = load(clip.path)
    if clip.audio == "silence":
        return np.zeros_like(wave)
    if clip.audio == "shuffled":
        return shuffle(wave, int(clip.sha256[:12], 16))
    return wave


def clip_mel(extractor: Any, waves: Sequence[np.ndarray]) -> Tensor:
    """Log-mel features of waves that fill equally many frames, by the checkpoint's own extractor.

    Padded a little past the clip instead of to the whole window: the log floor comes from the clip's maximum and
    the frames that the tower reads end before the new edge, so the values are those of the full window.
    """
    frames = -(-max(map(len, waves)) // extractor.hop_length)
    samples = min(extractor.n_samples, (frames + 8) * extractor.hop_length)
    out = extractor(
        list(waves),
        sampling_rate=RATE,
        padding="max_length",
        max_length=samples,
        return_tensors="pt",
    )
    features: Tensor = out["input_features"]
    return features


def load_model(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """The model with its adapter in place, through the ordinary classes; safetensors only, no remote code."""
    from transformers import BitsAndBytesConfig, Qwen2AudioForConditionalGeneration
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    options: dict[str, Any] = {}
    if checkpoint.quantisation == "nf4":
        options = {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            ),
            "device_map": {"": device},
        }
    model = Qwen2AudioForConditionalGeneration.from_pretrained(
        checkpoint.base, dtype=dtype, use_safetensors=True, **options
    )
    if not options:
        model = model.to(device)
    if checkpoint.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(
            model, str(checkpoint.adapter), use_safetensors=True
        ).get_base_model()
    return model.eval().requires_grad_(False)
