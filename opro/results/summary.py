"""summary.json: what a finished run came to. The schema is writer, reader and documentation in one."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from evaluators.classifier import Bias
from evaluators.errors import UserError
from evaluators.evaluator import Work
from evaluators.files import read_json
from evaluators.statistics.resampling import Estimate
from opro.problem import Problem
from opro.search.brittleness import Brittleness
from opro.search.history import History, Trial
from opro.search.select import Decision, Turn, TwoByTwo
from opro.settings import OptimizeSettings


class Part(BaseModel):
    """A part of the summary. Keys of other versions are left aside."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Scored(Part):
    """A classifier with its score on the holdout and on the search half; `bias` in the order of the task's labels.

    `presentation` says in words how the clip is given; "" of the clip as it is. `tokens` counts system message and text
    by the checkpoint's own tokenizer; None where it has none here.
    """

    prompt_id: str
    text: str
    score: float
    low: float | None
    high: float | None
    search_score: float | None = None
    bias: Bias = 0.0
    presentation: str = ""
    tokens: int | None = None

    @classmethod
    def of(cls, trial: Trial, score: Estimate, **more: Any) -> Self:
        """From a trial and its score on the holdout."""
        return cls(
            prompt_id=trial.prompt.prompt_id,
            text=trial.prompt.text,
            score=score.value,
            low=score.low,
            high=score.high,
            search_score=trial.outcome.score if trial.outcome else None,
            bias=trial.classifier.bias,
            presentation=trial.prompt.given,
            tokens=trial.outcome.tokens if trial.outcome else None,
            **more,
        )


class ScoredFinalist(Scored):
    """A finalist: its gain over the baseline, with bounds and p corrected for the number of finalists."""

    difference: float
    difference_low: float | None
    difference_high: float | None
    p_holm: float


class Gain(Part):
    """A paired difference of the objective on the holdout."""

    estimate: float
    low: float | None
    high: float | None
    clips: int | None = None
    sources: int | None = None


class TurnPart(Part):
    """Which decision on its holdout half it was, the one-sided level that it had, and what all later ones have left."""

    number: int
    level: float
    left: float

    @classmethod
    def of(cls, turn: Turn) -> Self:
        """From what the ledger said."""
        return cls(number=turn.number, level=turn.level, left=turn.left)


class Interval(Part):
    """A value on the holdout, or a difference of two, with its 95 % interval."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, one: Estimate) -> Self:
        """From an estimate."""
        return cls(value=one.value, low=one.low, high=one.high)


class FourCells(Part):
    """{best seed, prompt found} x {argmax, threshold fitted on the search half}: see `opro.search.select.TwoByTwo`."""

    metric: str
    found: str | None
    presentation: str = (
        ""  # how the prompt found is given the clip; its gain is a part of `wording`
    )
    scores: dict[str, dict[str, Interval]]
    wording: dict[str, Interval]
    threshold: dict[str, Interval]
    both: Interval

    @classmethod
    def of(cls, cells: TwoByTwo) -> Self:
        """From what the selection found."""
        return cls(
            metric=cells.metric,
            found=cells.found.prompt.prompt_id if cells.found else None,
            presentation=cells.found.prompt.given if cells.found else "",
            scores={
                name: {mode: Interval.of(one) for mode, one in pair.items()}
                for name, pair in cells.scores.items()
            },
            wording={mode: Interval.of(one) for mode, one in cells.wording.items()},
            threshold={name: Interval.of(one) for name, one in cells.threshold.items()},
            both=Interval.of(cells.both),
        )


class Repeat(Part):
    """One search of several: what it would hand over, the best prompt of its search half, baseline or not.

    `score` is that on the holdout: it describes, and nothing was decided by it. Shares of 1, as everywhere.
    """

    seed: int
    trials: int
    prompt_id: str
    text: str
    search_score: float
    score: float


class Spread(Part):
    """How far the best prompts of the repeats lie apart; `sd` is that of a sample."""

    mean: float
    sd: float
    low: float
    high: float


class Repeats(Part):
    """Searches that differ in their seed alone, pooled into one decision.

    `wins`: prompt id -> repeats in which it was best, most first.
    """

    each: tuple[Repeat, ...]
    search: Spread
    holdout: Spread
    wins: dict[str, int]


class EditPart(Part):
    """A trivial edit and the score that it leaves; `text` is the edited prompt's.

    `anew` is the score with a threshold fitted anew to it; None where none is fitted.
    """

    kind: str
    name: str
    score: float
    anew: float | None = None
    text: str


class BrittlePart(Part):
    """A classifier on clips of the search half, and what trivial edits of its prompt leave, its threshold kept.

    `quantiles` are of the scores over edits, by percent; `floor` is the one of 10 %: nine of ten edits reach it. `loss`
    is the score as it is less the mean over edits; `floor_anew` is the floor with a threshold fitted anew to each edit,
    None where none is fitted. `refused` counts edits that the model cannot be asked with.
    """

    prompt_id: str
    text: str
    presentation: str = ""
    score: float
    floor: float
    floor_anew: float | None = None
    quantiles: dict[str, float]
    loss: Interval
    clips: int
    sources: int
    edits: tuple[EditPart, ...]
    refused: int = 0

    @classmethod
    def of(cls, one: Brittleness) -> Self:
        """From what was measured."""
        return cls(
            prompt_id=one.classifier.prompt_id,
            text=one.classifier.prompt.text,
            presentation=one.classifier.prompt.given,
            score=one.score,
            floor=one.floor,
            floor_anew=one.floor_anew,
            quantiles={f"{100 * q:.0f}": value for q, value in one.quantiles.items()},
            loss=Interval.of(one.loss),
            clips=one.loss.clips,
            sources=one.loss.sources,
            edits=tuple(
                EditPart(kind=e.kind, name=e.name, score=score, anew=anew, text=e.prompt.text)
                for e, score, anew in zip(
                    one.edits, one.scores, one.anew or [None] * len(one.edits), strict=True
                )
            ),
            refused=one.refused,
        )

    @property
    def worst(self) -> EditPart | None:
        """The edit that costs most."""
        return min(self.edits, key=lambda e: e.score, default=None)


class Evals(Part):
    """Evals that the run asked for, found in the cache, and new: of all processes that worked on it."""

    requested: int
    cached: int
    forward: int


class Seconds(Part):
    """Wall time of all processes that worked on the run."""

    total: float
    scoring: float
    proposing: float


class Speed(Part):
    """How fast evals went through the model, in the process that ended the run; see `evaluators.evaluator.Work`.

    Attributes:
        evals: Those that did: fewer than were new where clips are one sound, as silence of one length is.
        ms_per_eval: Wall time, with decoding, features and audio, without loading weights.
        share: How much of the devices' matrix rate the language model's products for the prompts' tokens came to; None
            where scoring was too short to measure it.
        tflops: That rate, of all devices in use, measured as the run ended.
    """

    evals: int
    ms_per_eval: float
    share: float | None = None
    tflops: float | None = None

    @classmethod
    def of(cls, work: Work | None) -> "Speed | None":
        """The speed of what was computed; None where nothing was, or nobody counted."""
        if work is None or not work.evals:
            return None
        share, tflops = work.share, work.rate / 1e12
        measured = share is not None
        return cls(
            evals=work.evals,
            ms_per_eval=round(work.ms, 4),
            share=round(share, 4) if share is not None else None,
            tflops=float(f"{tflops:.4g}") if measured else None,
        )

    def line(self) -> str:
        """In words, for terminal and page."""
        text = f"{self.ms_per_eval:.2f} ms an eval through the model ({self.evals:,} in the last process)"
        if self.share is None or self.tflops is None:
            return text
        rate = f"({self.tflops:.3g} TFLOP/s as the run ended)"
        return f"{text}, {100 * self.share:.0f} % of the devices' matrix rate {rate}"


class LmUsage(Part):
    """Calls to a language model; cost in US dollars."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = 0.0


class Summary(Part):
    """A finished run."""

    status: Literal["complete"]
    checkpoint: str
    fingerprint: str
    task: str
    seed: int
    iterations: int
    trials: int
    proposer: str
    strategy: str
    objective: str = "balanced_accuracy"
    threshold: str = "argmax"
    baseline: Scored
    chosen: Scored
    baseline_kept: bool
    reason: str
    turn: TurnPart | None = None
    gain: Gain
    gain_to_first_seed: Gain
    finalists: tuple[ScoredFinalist, ...]
    two_by_two: FourCells | None = None
    brittleness: tuple[BrittlePart, ...] = ()
    controls: dict[str, dict[str, float]]
    evals: Evals
    seconds: Seconds
    speed: Speed | None = None  # left out where nothing went through a model that counts
    proposed: dict[str, int] = {}
    refused: int = 0
    lost: int = 0
    lm: LmUsage = LmUsage()
    warnings: tuple[str, ...] = ()
    repeats: Repeats | None = None  # left out of a run of one search

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = dump(self)
        for name in ("repeats", "speed"):
            if plain.get(name) is None:
                plain.pop(name, None)
        return plain

    @classmethod
    def of(
        cls,
        settings: OptimizeSettings,
        problem: Problem,
        history: History,
        decision: Decision,
        costs: Mapping[str, Any],
    ) -> "Summary":
        """The summary of a search that has just ended.

        Args:
            costs: evals, seconds, speed, refused, lost, lm; of several searches `repeats`, too.
        """
        none = Estimate(
            0.0, 0.0, 0.0, decision.baseline_score.clips, decision.baseline_score.sources
        )
        gain = decision.winner.gain if decision.winner else none
        first = decision.to_first_seed
        return cls(
            status="complete",
            checkpoint=", ".join(
                [settings.checkpoint, *([settings.also] if settings.also else [])]
            ),
            fingerprint=problem.evaluator.fingerprint,
            task=problem.task.name,
            seed=settings.seed,
            iterations=settings.iterations,
            trials=len(history.trials),
            proposer=settings.proposer,
            strategy=settings.strategy,
            objective=settings.objective,
            threshold=settings.threshold,
            baseline=Scored.of(decision.baseline, decision.baseline_score),
            chosen=Scored.of(decision.chosen, decision.chosen_score),
            baseline_kept=decision.winner is None,
            reason=decision.reason,
            turn=TurnPart.of(decision.turn) if decision.turn else None,
            gain=Gain(
                estimate=gain.value,
                low=gain.low,
                high=gain.high,
                clips=gain.clips,
                sources=gain.sources,
            ),
            gain_to_first_seed=Gain(estimate=first.value, low=first.low, high=first.high),
            finalists=tuple(
                ScoredFinalist.of(
                    f.trial,
                    f.score,
                    difference=f.gain.value,
                    difference_low=f.gain.low,
                    difference_high=f.gain.high,
                    p_holm=f.gain.p,
                )
                for f in decision.finalists
            ),
            two_by_two=FourCells.of(decision.two_by_two) if decision.two_by_two else None,
            brittleness=tuple(map(BrittlePart.of, decision.brittleness)),
            controls={k: dict(v) for k, v in decision.controls.items()},
            proposed=dict(Counter(t.candidate.origin.partition(":")[0] for t in history.trials)),
            warnings=problem.warnings,
            **costs,
        )


def read_summary(path: Path, renamed: Mapping[str, str] | None = None) -> Summary | None:
    """summary.json of a run that has ended, else None.

    Args:
        renamed: Prompt ids of an earlier version -> today's.
    Raises:
        UserError: The file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return _renamed(Summary.model_validate(read_json(path)), renamed or {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where or 'the whole'}: {first['msg']}"
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
    except (ValueError, TypeError) as error:
        reason = str(error)
    raise UserError(f"{path}: damaged ({reason}); delete it and give the run's command again")


def _renamed(summary: Summary, ids: Mapping[str, str]) -> Summary:
    def one(scored: Scored) -> Scored:
        return scored.model_copy(update={"prompt_id": ids.get(scored.prompt_id, scored.prompt_id)})

    return summary.model_copy(
        update={
            "baseline": one(summary.baseline),
            "chosen": one(summary.chosen),
            "finalists": tuple(map(one, summary.finalists)),
            "two_by_two": summary.two_by_two
            and summary.two_by_two.model_copy(
                update={"found": ids.get(str(summary.two_by_two.found), summary.two_by_two.found)}
            ),
            "controls": {ids.get(k, k): v for k, v in summary.controls.items()},
        }
    )
