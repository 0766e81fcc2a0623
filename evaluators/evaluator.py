"""Evaluator: what scores prompts on clips. Its protocol, the scores it returns, and what it says of itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import Classifier, log_odds
from evaluators.clips import Clip, sound_of
from evaluators.errors import UserError
from evaluators.presentation import AS_IS
from evaluators.prompts import Prompt
from evaluators.targets import Predictions, Targets

if TYPE_CHECKING:
    from evaluators.audio_lm.checkpoint import Checkpoint

Array = NDArray[np.float32]
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class ScoreTable:
    """Log-probabilities of the answers.

    Attributes:
        prompts: The prompts, in the order of the call.
        clips: The clips, likewise.
        logp: ``[prompt, clip, label]`` in nats over the full vocabulary, summed over the words of a label. The labels
            need not sum to one, the rest is `outside`. NaN means not scored.
        logp_top: The same shape: the single likeliest answer token (or token sequence) of each label, which is what
            constrained generation picks by. NaN: a server did not list it, and `logp` is an upper bound.
    """

    prompts: tuple[Prompt, ...]
    clips: tuple[Clip, ...]
    logp: Array
    logp_top: Array

    @property
    def outside(self) -> Array:
        """``[prompt, clip]`` probability mass that goes to no answer."""
        return np.asarray(1 - np.exp(self.logp).sum(axis=-1), dtype=np.float32)

    @property
    def unlisted(self) -> Array:
        """``[prompt, clip]`` share of the labels whose answers a server did not list: their scores are upper bounds."""
        return np.asarray(np.isnan(self.logp_top).mean(axis=-1), dtype=np.float32)

    @cached_property
    def targets(self) -> Targets:
        """What is right about the clips."""
        return Targets.of(self.clips, [label for label, _ in self.prompts[0].answers])

    def predict(self, classifier: Classifier, name: str = "") -> Predictions:
        """What a classifier says of the clips: the one way from scores to decisions, for every verb.

        Raises:
            KeyError: Its prompt was not scored.
        """
        try:
            logp = self.logp[self.prompts.index(classifier.prompt)]
        except ValueError:
            raise KeyError(f"prompt {classifier.prompt_id} was not scored") from None
        return predictions(name or classifier.prompt_id, self.targets, classifier, logp)


def predictions(name: str, targets: Targets, classifier: Classifier, logp: Floats) -> Predictions:
    """What a classifier says of clips, from ``[clip, label]`` nats; its prompt is not looked at."""
    shares = classifier.distribution(logp)
    more = logp.shape[-1] > 2
    return Predictions(
        name,
        targets,
        classifier.decide(logp),
        shares[..., 0],
        log_odds(logp),
        logp if more else None,
        shares if more else None,
    )


@dataclass(frozen=True)
class Usage:
    """Evals so far, in pairs of prompt and clip: requested = cached + forward."""

    requested: int = 0
    cached: int = 0
    forward: int = 0  # new: the model answers them; what it computes is a `Work`

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.requested + other.requested,
            self.cached + other.cached,
            self.forward + other.forward,
        )


@dataclass(frozen=True)
class Work:
    """What an evaluator has computed since it was made, and how fast its devices multiply.

    Attributes:
        evals: Pairs of prompt and clip that went through the model: those of clips of one sound are one.
        seconds: Wall time of the calls that computed them, weights in memory: decoding, features and audio included.
        flop: Operations of the language model's matrix products for the prompts' own tokens: the least that evals cost,
            as `evaluators.bench` counts it.
        rate: FLOP/s of large matrix products, measured on all devices in use, in the process that computed, after it
            did; 0 where it was not measured.
    """

    evals: int = 0
    seconds: float = 0.0
    flop: float = 0.0
    rate: float = 0.0

    @property
    def ms(self) -> float:
        """Milliseconds an eval."""
        return 1e3 * self.seconds / self.evals if self.evals else 0.0

    @property
    def share(self) -> float | None:
        """How much of the measured rate was reached; None where none was."""
        return self.flop / self.seconds / self.rate if self.rate and self.seconds else None

    def after(self, other: "Work") -> "Work":
        """Of both, one after the other on devices of one rate."""
        rate = self.rate or other.rate
        evals, flop = self.evals + other.evals, self.flop + other.flop
        return Work(evals, self.seconds + other.seconds, flop, rate)


@dataclass(frozen=True)
class About:
    """What an evaluator runs on.

    Attributes:
        device: As torch names it; ``none`` where no weights are run here.
        dtype: Precision, as in ``float32``; ``none`` likewise.
        checkpoint: The checkpoint of an `AudioScorer`; None for every other evaluator.
        batch_tokens: Tokens of a batch in the last call, halved where memory ran out; None where there are no batches.
        memory: Lines of text: what fits the device, or what would fit which card.
        versions: Of the libraries that are a part of the fingerprint; none where no score depends on one.
        seconds_per_eval: An estimate from the model's size and a matrix product timed on the device; None: next to
            nothing.
        work: What was computed so far; None of evaluators that do not count it.
    """

    device: str = "none"
    dtype: str = "none"
    checkpoint: "Checkpoint | None" = None
    batch_tokens: int | None = None
    memory: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds_per_eval: float | None = None
    work: Work | None = None


@runtime_checkable
class Evaluator(Protocol):
    """Scores prompts on clips."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that can change a score, besides prompt and clip.

        After `score`: that of its scores, of all of them. It is another one where memory ran out and smaller batches,
        which round otherwise, were needed; the next call goes back to the first where it can.
        """

    @property
    def usage(self) -> Usage:
        """Evals since this evaluator was made."""

    @property
    def innermost(self) -> "Evaluator":
        """The evaluator that computes scores, below cache and averaging; this one where it computes them itself."""

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """Scores every prompt on every clip, in the given order; neither is changed.

        Deterministic: a pair's score does not depend on the other prompts and clips of the call, to 1e-5 nats in
        float32. Raises PromptError for a prompt that cannot be scored, UserError for a clip that cannot be read;
        anything else is a fault of the machine and must stop the run.
        """

    def count_missing(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> int:
        """How many of these pairs `score` would send through the model."""

    def reading(self, prompt: Prompt) -> str:
        """What of how a prompt's answers are read is no part of fingerprint and prompt; "" mostly. Loads no weights."""

    def about(self) -> About:
        """Device, precision, checkpoint, memory and speed. Loads no weights."""

    def release(self) -> None:
        """Frees the device. The next `score` loads again."""


def score_each_sound(
    score: Callable[[Sequence[Prompt], Sequence[Clip]], ScoreTable],
    prompts: Sequence[Prompt],
    clips: Sequence[Clip],
) -> ScoreTable:
    """The table of an evaluator that hears nothing but samples: `score` is asked for clips of one sound once.

    Args:
        score: Scores clips that are all different.
        prompts, clips: As for `Evaluator.score`.
    """
    first: dict[object, Clip] = {}
    sounds = [sound_of(clip) for clip in clips]
    for sound, clip in zip(sounds, clips, strict=True):
        first.setdefault(sound, clip)
    if len(first) == len(clips):
        return score(prompts, clips)
    number = {sound: i for i, sound in enumerate(first)}
    index = [number[sound] for sound in sounds]
    table = score(prompts, list(first.values()))
    logp, top = (np.take(part, index, axis=1) for part in (table.logp, table.logp_top))
    return ScoreTable(table.prompts, tuple(clips), logp, top)


def require_presents(evaluator: Evaluator, prompts: Sequence[Prompt]) -> None:
    """Refuses prompts with a presentation for an evaluator that would not heed it.

    Raises:
        UserError: There is one, and the innermost evaluator does not say `presents`.
    """
    other = next((p for p in prompts if p.presentation != AS_IS), None)
    if other is not None and not getattr(evaluator.innermost, "presents", False):
        raise UserError(
            f"prompt {other.prompt_id} wants the clip {other.presentation.words}, and evaluator"
            f" {type(evaluator.innermost).__name__} does not say that it heeds that; take `presentation` out of the"
            " prompt, or set presents = True in an evaluator that plays clip_wave(clip, prompt.presentation)"
        )


def prompt_tokens(evaluator: Evaluator, prompt: Prompt) -> int | None:
    """Tokens of a prompt's system message and text; None where no tokenizer of the model is at hand.

    What is the same for all prompts (chat template, clip) and the answers are left out. The innermost evaluator counts,
    of several checkpoints the first, if it has `prompt_tokens`. Loads no weights.
    """
    count = getattr(evaluator.innermost, "prompt_tokens", None)
    return None if count is None else int(count(prompt))


class Uncached:
    """The part of `Evaluator` that is the same for all that compute scores themselves and keep none.

    A subclass adds `fingerprint` and `score`, which counts `forwards`. One that plays clips as their prompt's
    `presentation` says (``clip_wave(clip, prompt.presentation)``, and the question first where it asks for that) sets
    `presents`; others are given no such prompt, see `require_presents`.
    """

    forwards: int = 0  # evals that it answered
    presents: bool = False
    shape: Any = None  # sizes of the batches, where they shrink when memory runs out

    @property
    def usage(self) -> Usage:
        """See `Evaluator.usage`."""
        return Usage(self.forwards, 0, self.forwards)

    @property
    def innermost(self) -> Evaluator:
        """Itself."""
        return self  # type: ignore[return-value]  # fingerprint and score are the subclass'

    def count_missing(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> int:
        """All of them."""
        return len(prompts) * len(clips)

    def reading(self, prompt: Prompt) -> str:
        """Nothing."""
        return ""

    def about(self) -> About:
        """Nothing that is known."""
        return About()

    def share_with(self, other: "Uncached") -> bool:
        """Whether it holds from here on together with another one what both need; see `share`. Loads nothing."""
        return False

    def release(self) -> None:
        """Nothing is held."""


def share(evaluators: Sequence[Evaluator]) -> None:
    """Lets evaluators of several checkpoints hold once what they have in common: a base's weights, Ray's workers.

    Scores stay the same to the bit. What is held once is freed when the last of those who share it is released.
    """
    cores = [_core(evaluator) for evaluator in evaluators]
    own = [core for core in cores if isinstance(core, Uncached)]
    for i, one in enumerate(own):
        any(one.share_with(other) for other in own[:i])  # with the first that it can share with


def _core(evaluator: Evaluator) -> Evaluator:
    """What computes the scores, here or elsewhere, below cache and averaging."""
    return _core(evaluator.inner) if isinstance(evaluator, Around) else evaluator


class Around:
    """The part of `Evaluator` that is the same for all that stand around another one and hand on what they can.

    Args:
        inner: Computes the scores, or stands around who does.
    """

    def __init__(self, inner: Evaluator) -> None:
        self.inner = inner

    @property
    def fingerprint(self) -> str:
        """The inner evaluator's: what is added is a part of prompt or clip."""
        return self.inner.fingerprint

    @property
    def usage(self) -> Usage:
        """The inner evaluator's."""
        return self.inner.usage

    @property
    def innermost(self) -> Evaluator:
        """See `Evaluator.innermost`."""
        return self.inner.innermost

    def count_missing(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> int:
        """The inner evaluator's."""
        return self.inner.count_missing(prompts, clips)

    def reading(self, prompt: Prompt) -> str:
        """See `Evaluator.reading`."""
        return self.innermost.reading(prompt)

    def about(self) -> About:
        """The inner evaluator's."""
        return self.inner.about()

    def release(self) -> None:
        """Releases the inner evaluator."""
        self.inner.release()
