"""Answer log-probabilities from any audio-text-to-text model of transformers, by its own forward and chat template.

It is the way of all models that have no packed path (`families`). One prefix forward a clip (what stands before the
audio, and the audio) fills the library's cache, which is repeated for the prompts; rows of what follows the audio are
padded on the right, where causal attention never looks, and logits are kept at the answers. Whether a model allows
that is not assumed: a self-test at load compares it with whole forwards, one by one, which are what is done where it
fails.
"""

import copy
import functools
import hashlib
import inspect
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluators.audio import Wave
from evaluators.audio_lm import selftest
from evaluators.audio_lm.adapters import merge
from evaluators.audio_lm.answer_tokens import reading_of
from evaluators.audio_lm.checkpoint import Checkpoint, Known
from evaluators.audio_lm.device import (
    card_gib,
    device_faults,
    limits,
    pick_device,
    pick_dtype,
    seconds_per_eval,
)
from evaluators.audio_lm.features import front_end_versions
from evaluators.audio_lm.generic_chat import BY_TOKEN, Chat, Ids, Row, extended, read_chat
from evaluators.audio_lm.generic_class import ROUND, GenericClass, generic_class
from evaluators.audio_lm.identity import versions
from evaluators.audio_lm.memory import cache_bytes
from evaluators.audio_lm.model_folder import AGAIN, weight_count
from evaluators.audio_lm.scorer import AudioScorer, check_finite, check_whole, loader
from evaluators.audio_lm.templates import count_tokens
from evaluators.audio_lm.tower import ClipKey, clip_key
from evaluators.clips import Clip
from evaluators.errors import PauseError, UserError
from evaluators.evaluator import About, Array, Evaluator, ScoreTable, Uncached, score_each_sound
from evaluators.prompts import Prompt

log = logging.getLogger(__name__)
GENERIC = "1"  # raise it whenever a change can change a score: it is part of every cache key
CPU_CACHE_BYTES = 2**30
BATCH_TOKENS = {"cuda": 16384, "cpu": 2048, "mps": 2048}  # of a batch, prefixes counted in each row
MIN_TOKENS = 128  # smaller batches are not tried when memory runs out
LOGITS = 2**27  # numbers that a batch's kept logits may be
# What the self-test asks. The second has answers of several tokens in most vocabularies, and is longer.
ASKED = (
    Prompt("Is this speech? Answer A for yes, B for no."),
    Prompt(
        "Listen to the clip once more. Say whether a voice is present or absent in it, in one word.",
        (("SPEECH", ("present",)), ("NONSPEECH", ("absent",))),
    ),
)


@dataclass(frozen=True)
class Way:
    """How a model is scored, and what the self-test found.

    Attributes:
        shared: Prompts share a clip's prefix; otherwise each pair is a forward of its own.
        parity: The most that shared scores of made-up clips lie from those of whole forwards, in nats; None where
            sharing could not be tried.
        why: The reason, as a part of a sentence.
    """

    shared: bool
    parity: float | None
    why: str


@dataclass(frozen=True)
class _Loaded:
    """The model, what it was found to allow, and the prefixes that are kept."""

    model: Any
    way: Way
    kept: dict[tuple[Ids, ClipKey], "_Prefix"]

    @property
    def bytes(self) -> int:
        return sum(prefix.bytes for prefix in self.kept.values())


@dataclass(frozen=True)
class _Prefix:
    """A clip that was heard: the library's cache of keys and values after it, and how many tokens lie there."""

    cache: Any
    length: int

    @property
    def bytes(self) -> int:
        return sum(_bytes(value) for layer in self.cache.layers for value in vars(layer).values())


class _Sums:
    """``[prompt, clip, label]`` of a call as far as it is there, in nats; see `ScoreTable` for both."""

    def __init__(self, prompts: int, clips: int, labels: int) -> None:
        self.logp = np.full((prompts, clips, labels), -np.inf, dtype=np.float32)
        self.top = self.logp.copy()

    def add(self, rows: Sequence[Row], clip: int, values: Array) -> None:
        """Enters what rows read: one value for each of their reads, in order."""
        places = [(row.prompt, clip, label) for row in rows for label, _ in row.reads]
        for place, value in zip(places, values, strict=True):
            self.logp[place] = np.logaddexp(self.logp[place], value)
            self.top[place] = max(self.top[place], value)

    def drop(self, clip: int | slice) -> None:
        """Forgets a clip's, or all."""
        self.logp[:, clip] = self.top[:, clip] = -np.inf


class GenericScorer(Uncached):
    """An Evaluator for models without a packed path. Weights are loaded on the first score, not before.

    Args:
        checkpoint: What to score.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        share: None: as the self-test finds. False: each pair by a forward of its own, which is the reference.
        loaded: A model in memory, instead of the checkpoint's files.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "auto",
        dtype: str = "auto",
        *,
        share: bool | None = None,
        loaded: Any = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self._wanted = self._used = BATCH_TOKENS[self.device.type]
        self._share = share
        self._given = loaded
        self._most = float("inf")  # bytes that kept keys and values may take, once memory ran out
        self._heard_ms = 0.0  # the longest clip of which the end is known to be heard
        self._loaded: _Loaded | None = None

    @property
    def shape(self) -> int:
        """Tokens of the last call's batches. A call begins with those that were asked for, whatever the one before."""
        return self._used

    @shape.setter
    def shape(self, shape: int) -> None:
        self._wanted = self._used = shape

    @property
    def fingerprint(self) -> str:
        """Digest of weights, class, chat template, precision, device class, versions and (in bf16) size of batches.

        Not of whether prefixes are shared: the self-test, which all of this decides, holds both ways together.
        """
        parts: dict[str, Any] = {
            "generic": GENERIC,
            "class": self.kind.model_class,
            "template": [self.chat.template, self.chat.in_parts, self.chat.system_role],
            "versions": self.versions,
            "checkpoint": self._known.digest,
            "dtype": str(self.dtype),
            "device": self.device.type,
        }
        if self.dtype != torch.float32:
            card = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
            parts |= {"card": card, "shape": self.shape}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def _known(self) -> Known:
        """The checkpoint, which is whole."""
        check_whole(self.checkpoint, self.kind)
        return Known.of(self.checkpoint)

    def _check_unchanged(self) -> None:
        """Raises PauseError where the files are no longer those that the fingerprint told of; nothing is kept then."""
        if "_known" in vars(self) and self._given is None:
            try:
                self._known = self._known.again(self.checkpoint)
            except (PauseError, UserError):
                self.release()
                raise

    @functools.cached_property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that a score may depend on."""
        more = ["peft"] if self.checkpoint.adapter is not None else []
        return {**front_end_versions(), **versions("tokenizers", *more)}

    @functools.cached_property
    def kind(self) -> GenericClass:
        """The model's class in transformers; reads no weights."""
        return generic_class(self.checkpoint.base, self._who)

    @functools.cached_property
    def chat(self) -> Chat:
        """How it is asked; reads no weights."""
        return read_chat(self.checkpoint.base, self._who)

    @property
    def processor(self) -> Any:
        """The library's own; reads no weights."""
        return self.chat.processor

    @property
    def _who(self) -> str:
        return f"checkpoint {self.checkpoint.name!r}"

    @property
    def way(self) -> Way:
        """How it is scored; loads the weights."""
        with device_faults(), torch.inference_mode():
            return self._load().way

    def reading(self, prompt: Prompt) -> str:
        """See `Evaluator.reading`."""
        return reading_of(prompt, lambda: self.processor.tokenizer)

    def prompt_tokens(self, prompt: Prompt) -> int:
        """See `evaluators.evaluator.prompt_tokens`."""
        return count_tokens(self.processor.tokenizer, (prompt.system, prompt.text))

    def about(self) -> About:
        """See `Evaluator.about`."""
        return About(
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            checkpoint=self.checkpoint,
            batch_tokens=self.shape,
            memory=tuple([*self._memory(), *limits(self.device, self.dtype)]),
            versions=self.versions,
            seconds_per_eval=self._seconds_per_eval,
        )

    def _memory(self) -> Iterator[str]:
        weights = self._weights * torch.finfo(self.dtype).bits / 8 / 2**30
        gib = card_gib(self.device)
        fits = "" if gib is None else f" of the {gib:.1f} GiB of this card"
        yield (
            f"the generic path ({self.kind.model_class} of transformers, no packed path): weights take"
            f" {weights:.1f} GiB{fits}; what a batch takes beside them is found by trying"
        )
        if not self.chat.system_role:
            yield "its chat template has no system message: a prompt's begins the user's message"
        if self.chat.rate != 16_000:
            yield f"its front end takes {self.chat.rate:,} samples a second: clips are resampled from 16,000"

    @functools.cached_property
    def _weights(self) -> int:
        return weight_count(self.checkpoint.base, self._who)

    @functools.cached_property
    def _seconds_per_eval(self) -> float:
        return seconds_per_eval(self._weights, 1024, self.device, self.dtype)

    def make_features(self, wave: Wave) -> None:
        """What the processor does with a question about a clip, for timing; reads no weights, keeps nothing."""
        self.chat.process(ASKED[0], wave)

    def forget(self) -> None:
        """Drops keys and values that are kept, as before timing."""
        if self._loaded is not None:
            self._loaded.kept.clear()

    def release(self) -> None:
        """See `Evaluator.release`."""
        self._loaded = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`."""
        table = score_each_sound(self._score, prompts, clips)
        self.forwards += len(prompts) * len(clips)
        return table

    def _score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """The same of clips that are all different."""
        rows = [row for i, prompt in enumerate(prompts) for row in self.chat.rows(i, prompt)]
        sums = _Sums(len(prompts), len(clips), len(prompts[0].answers))
        self._used = self._wanted
        with device_faults(), torch.inference_mode():
            loaded = self._load()
            alone, shared = self._split(loaded, rows, prompts, clips)
            begin = 0
            while begin < len(clips):
                begin = self._attempt(loaded, (alone, shared), (prompts, clips), sums, begin)
        if self.device.type == "cpu":  # where weights may lie in the file itself, mapped
            self._check_unchanged()
        table = ScoreTable(tuple(prompts), tuple(clips), sums.logp, sums.top)
        check_finite(table)
        return table

    def _attempt(
        self,
        loaded: _Loaded,
        rows: tuple[Sequence[Row], Sequence[Row]],
        asked: tuple[Sequence[Prompt], Sequence[Clip]],
        sums: _Sums,
        begin: int,
    ) -> int:
        """Scores clips from one on. Returns the one to go on with: when memory ran out, with less of it in use."""
        (alone, shared), (prompts, clips) = rows, asked
        done = begin
        try:
            for done in range(begin, len(clips)):
                for row in alone:
                    values = self._whole(loaded.model, prompts[row.prompt], clips[done], row)
                    sums.add([row], done, values)
                for batch, values in self._shared(loaded, prompts, clips[done], shared):
                    sums.add(batch, done, values)
        except torch.OutOfMemoryError:
            if self.shape < MIN_TOKENS:
                raise
        else:
            return len(clips)
        # Here, where the error no longer holds on to the tensors of the functions that it came through.
        sums.drop(done)
        held = loaded.bytes
        several = len(loaded.kept) > 1
        loaded.kept.clear()
        if several:
            self._most = held / 2  # from here on
            log.warning("out of memory: fewer keys and values of clips are kept from here on")
        else:
            self._used //= 2
            log.warning("out of memory: batches of %d tokens in this call", self.shape)
            if self.dtype != torch.float32:
                sums.drop(slice(None))  # a table is of one shape
                done = 0
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return done

    def _load(self) -> _Loaded:
        """The loaded model; what was dropped is loaded again, and tested again."""
        if self._loaded is None:
            loading = loader()
            model = self._given
            if model is None:
                model = loading.load_model(self.checkpoint, self.kind, self.device, self.dtype)
            merge(model, self.dtype, dequantize=False)
            way = self._find_way(model)
            if not way.shared and self._share is None:
                log.warning("every pair is scored by a forward of its own: %s", way.why)
            self._check_unchanged()
            self._loaded = _Loaded(model, way, {})
        return self._loaded

    def _find_way(self, model: Any) -> Way:
        """Whether prompts may share prefixes: tried on made-up clips."""
        if self._share is False:
            return Way(False, None, "sharing was not asked for")
        if self.chat.text_first:
            return Way(False, None, "the chat template puts the prompt before the audio")
        rows = [row for i, prompt in enumerate(ASKED) for row in self.chat.rows(i, prompt)]
        with tempfile.TemporaryDirectory() as folder:
            clips = selftest.made_up_clips(Path(folder), ASKED[0].answers[0][0])
            whole = self._try_whole(model, clips, rows)
            if any(not self._fits(row, ASKED[row.prompt], clip) for row in rows for clip in clips):
                return Way(False, None, "tokens of prompt and audio merge where they meet")
            leak = self._leak(model, clips[0], rows[-1])
            if not leak <= selftest.EXACT.nats:
                why = f"words after the audio change by {leak:.2g} nats what the model makes of it: it looks ahead"
                return Way(False, None, why)
            try:
                shared = self._try_shared(model, clips, rows)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                why = f"{self.kind.model_class} does not go on from a cache ({_said(error)})"
                return Way(False, None, why)
        apart = np.abs(shared - whole)
        exact = self.dtype == torch.float32
        allowed = (selftest.EXACT if exact else selftest.ROUGH).nats
        if not (apart / np.maximum(1, np.abs(whole))).max() <= allowed:
            return Way(
                False,
                float(apart.max()),
                f"with a shared prefix, scores of made-up clips lie {apart.max():.2g} nats from those of whole"
                f" forwards, and {allowed:g} nats a nat are allowed",
            )
        return Way(True, float(apart.max()), "that gives what whole forwards give")

    def _leak(self, model: Any, clip: Clip, row: Row) -> float:
        """How far other words after the audio move what is said at its end, in nats.

        Both forwards have the same shapes, so that only an attention that looks ahead moves it, in any precision.
        """
        inputs = self.chat.inputs(ASKED[row.prompt], clip)
        cut = inputs["input_ids"].shape[1] - len(row.after)
        said = []
        for after in (row.after, row.after[-1:] * len(row.after)):
            ids = torch.cat([inputs["input_ids"][:, :cut], torch.tensor([after])], 1)
            out = self._forward(model, inputs | {"input_ids": ids}, [cut - 1])
            said.append(out.logits[0, -1].float().log_softmax(-1))
        return float((said[0] - said[1]).abs().max())

    def _try_whole(self, model: Any, clips: Sequence[Clip], rows: Sequence[Row]) -> Array:
        """Log-probabilities of what the self-test asks, by the reference.

        Raises:
            UserError: Processor and model do not fit each other, or this library.
        """
        sums = _Sums(len(ASKED), len(clips), 2)
        try:
            for i, clip in enumerate(clips):
                for row in rows:
                    sums.add([row], i, self._whole(model, ASKED[row.prompt], clip, row))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise UserError(
                f"{self._who}: {self.kind.model_class} of transformers does not answer a question about a made-up clip"
                f" ({_said(error)}); {AGAIN}, try another version of transformers, {ROUND}"
            ) from error
        return sums.logp

    def _try_shared(self, model: Any, clips: Sequence[Clip], rows: Sequence[Row]) -> Array:
        """The same with shared prefixes."""
        sums = _Sums(len(ASKED), len(clips), 2)
        tried = _Loaded(model, Way(True, None, ""), {})
        for i, clip in enumerate(clips):
            for batch, values in self._shared(tried, ASKED, clip, rows):
                sums.add(batch, i, values)
        return sums.logp

    def _fits(self, row: Row, prompt: Prompt, clip: Clip) -> bool:
        """Whether the tokens of the processor are those of the row, with those of the clip between them."""
        ids = self.chat.inputs(prompt, clip)["input_ids"][0].tolist()
        inner = ids[len(row.before) : len(ids) - len(row.after)]
        return (*row.before, *inner, *row.after) == tuple(
            ids
        ) and self.chat.audio_id not in row.after

    def _split(
        self, loaded: _Loaded, rows: Sequence[Row], prompts: Sequence[Prompt], clips: Sequence[Clip]
    ) -> tuple[list[Row], list[Row]]:
        """(rows that are scored by whole forwards, rows that share prefixes), the latter in the order of their lengths.

        Each prompt's tokens are compared with the processor's own on one clip: a text may merge with what precedes it.
        """
        if not loaded.way.shared:
            return list(rows), []
        first = {row.prompt: row for row in reversed(rows)}
        odd = {i for i, row in first.items() if not self._fits(row, prompts[i], clips[0])}
        if odd:
            log.warning(
                "%d prompts are scored by forwards of their own: their first characters merge with what precedes them",
                len(odd),
            )
        alone = [row for row in rows if row.prompt in odd]
        shared = [row for row in rows if row.prompt not in odd]
        return alone, sorted(shared, key=lambda r: (r.before, len(r.after) + len(r.head), r.prompt))

    def _whole(self, model: Any, prompt: Prompt, clip: Clip, row: Row) -> Array:
        """What a row reads, by one forward over everything: the reference."""
        inputs = self._inputs(prompt, clip)
        length, more = inputs["input_ids"].shape[1], len(row.head)
        kept = list(range(length - 1, length + more))
        logits = self._forward(model, extended(inputs, row.head), kept).logits
        return _read(logits, kept, [row], [length - 1])

    def _shared(
        self, loaded: _Loaded, prompts: Sequence[Prompt], clip: Clip, rows: Sequence[Row]
    ) -> Iterator[tuple[Sequence[Row], Array]]:
        """What rows read of a clip, batch by batch."""
        for before in dict.fromkeys(row.before for row in rows):
            own = [row for row in rows if row.before == before]
            prefix = self._prefix(loaded, prompts[own[0].prompt], clip, own[0])
            for batch in self._batches(own, prefix.length, loaded.model):
                yield batch, self._step(loaded.model, prefix, batch)

    def _inputs(self, prompt: Prompt, clip: Clip) -> dict[str, Tensor]:
        """The model's inputs for a question about a clip, all of which is heard."""
        inputs = self.chat.inputs(prompt, clip)
        if clip.duration_ms > self._heard_ms:
            self.chat.check_end(prompt, clip, inputs)
            self._heard_ms = clip.duration_ms
        return inputs

    def _prefix(self, loaded: _Loaded, prompt: Prompt, clip: Clip, row: Row) -> _Prefix:
        """The clip after what stands before it: kept, or heard now and kept while there is room."""
        key = row.before, clip_key(clip)
        found = loaded.kept.get(key)
        if found is not None:
            return found
        inputs = self._inputs(prompt, clip)
        length = inputs["input_ids"].shape[1] - len(row.after)
        cut = {n: v[:, :length] if n in BY_TOKEN else v for n, v in inputs.items()}
        out = self._forward(loaded.model, cut, [length - 1], use_cache=True)
        cache = out.cache if _cache_name(loaded.model) == "cache" else out.past_key_values
        made = _Prefix(cache, length)
        if loaded.bytes + made.bytes <= min(self._most, self._budget()):
            loaded.kept[key] = made
        return made

    def _budget(self) -> float:
        """Bytes that kept keys and values may take. What is full stays: calls come back to the same clips in turn."""
        if self.device.type != "cuda":
            return CPU_CACHE_BYTES
        free, total = torch.cuda.mem_get_info(self.device)
        reserved = torch.cuda.memory_reserved(self.device)
        unused = reserved - torch.cuda.memory_allocated(self.device)
        return cache_bytes(total, free + unused)

    def _batches(self, rows: Sequence[Row], prefix: int, model: Any) -> Iterator[Sequence[Row]]:
        """Rows, which are in the order of their lengths, in batches of at most so many tokens and logits."""
        words = model.config.get_text_config().vocab_size
        batch: list[Row] = []
        kept: set[int] = set()
        for row in rows:
            places = kept | set(_places(row))
            count, length = len(batch) + 1, prefix + len(row.after) + len(row.head)
            if batch and (count * length > self.shape or count * len(places) * words > LOGITS):
                yield batch
                batch, places = [], set(_places(row))
            batch.append(row)
            kept = places
        if batch:
            yield batch

    def _step(self, model: Any, prefix: _Prefix, rows: Sequence[Row]) -> Array:
        """What rows read after a prefix, by one forward over their own tokens."""
        length = max(len(row.after) + len(row.head) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            own = torch.tensor([*row.after, *row.head])
            ids[i, : len(own)] = own
        cache = copy.deepcopy(prefix.cache)  # the forward adds to it
        # Made for beam search: the one way of repeating that recurrent layers have, too.
        cache.reorder_cache(torch.zeros(len(rows), dtype=torch.long, device=self.device))
        kept = sorted({place for row in rows for place in _places(row)})
        # No mask: padding is on the right, and the place of a token is told by the cache.
        inputs = {"input_ids": ids}
        options = {_cache_name(model): cache, "use_cache": True}
        out = self._forward(model, inputs, kept, **options)
        return _read(out.logits, kept, rows, [len(row.after) - 1 for row in rows])

    def _forward(
        self, model: Any, inputs: dict[str, Tensor], kept: Sequence[int], **options: Any
    ) -> Any:
        """The model's own forward, with logits at some places of the rows."""
        places = torch.tensor(kept, device=self.device)
        given = {
            name: value.to(self.device, self.dtype)
            if value.is_floating_point()
            else value.to(self.device)
            for name, value in inputs.items()
        }
        return logits_at(model.forward, given, places, **options)


def logits_at(
    forward: Callable[..., Any], inputs: Mapping[str, Tensor], places: Tensor, **options: Any
) -> Any:
    """What a forward returns, with logits at some places of the rows alone."""
    options.setdefault("use_cache", False)
    if "logits_to_keep" in inspect.signature(forward).parameters:
        return forward(**inputs, **options, logits_to_keep=places)
    out = forward(**inputs, **options)
    out.logits = out.logits[:, places]
    return out


def _cache_name(model: Any) -> str:
    """What the forward calls the cache: `past_key_values` in older versions."""
    known = inspect.signature(model.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def _bytes(value: Any) -> int:
    """Memory of a tensor, or of those that a list or dictionary holds."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value))
    return value.nbytes if isinstance(value, Tensor) else 0


def _said(error: Exception) -> str:
    """An error's first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _places(row: Row) -> range:
    """Where, of a row's own tokens, its reads lie."""
    return range(len(row.after) - 1, len(row.after) + len(row.head))


def _read(logits: Tensor, kept: Sequence[int], rows: Sequence[Row], begin: Sequence[int]) -> Array:
    """Log-probabilities of the rows' answers, one for each read.

    Args:
        logits: ``[row, kept place, vocabulary]``.
        kept: The places.
        rows: What is read.
        begin: The place of each row at which its answers begin.
    """
    index = {place: i for i, place in enumerate(kept)}
    picked = [(i, begin[i] + j) for i, row in enumerate(rows) for j in range(len(row.head) + 1)]
    line = {pair: number for number, pair in enumerate(picked)}
    at = torch.tensor([(i, index[place]) for i, place in picked], device=logits.device)
    logp = logits[at[:, 0], at[:, 1]].float().log_softmax(-1)
    tokens = [
        (line[i, begin[i] + j], token)
        for i, row in enumerate(rows)
        for _, answer in row.reads
        for j, token in enumerate(answer)
    ]
    where = torch.tensor(tokens, device=logits.device)
    values = logp[where[:, 0], where[:, 1]].double().cpu().numpy()
    lengths = [len(answer) for row in rows for _, answer in row.reads]
    starts = np.cumsum([0, *lengths[:-1]])
    return np.asarray(np.add.reduceat(values, starts), dtype=np.float32)


def scorer_class(checkpoint: Checkpoint, features: Path | None) -> Callable[..., Evaluator]:
    """What scores a checkpoint: its packed path where it has one.

    Args:
        checkpoint: What is to be scored.
        features: Folder that stores features of clips, on a packed path.
    """
    if checkpoint.is_packed:
        return functools.partial(AudioScorer, features=features)
    return GenericScorer
