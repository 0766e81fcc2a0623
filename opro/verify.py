"""Scores a sealed card again, from the raw clips: python -m opro.verify card.yaml

Says "same labels, P within x" (exit 0), or what differs (exit 1): labels, probabilities, score, interval. Clips are
found by their manifest and checked by content; the checkpoint by the digest of its weights.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.build import build_evaluator
from evaluators.choices import in_orders
from evaluators.evaluator import Evaluator, ScoreTable
from evaluators.files import resolve
from evaluators.manifest import verify as verify_files
from evaluators.statistics.compare import compare, compare_by_percentiles, estimate
from evaluators.statistics.resampling import Estimate
from evaluators.threads import use_threads
from opro.cli import DONE, FAULT, flag, hand_over, parse, run_verb
from opro.problem import data_of
from opro.results.card import Agreement, Card, agreement, clips_of, read_card
from opro.results.provenance import version_changes
from opro.results.summary import Interval
from opro.settings import Dtype, ThreadSettings

TOLERANCE = {"float32": 1e-3}  # of a probability, where both machines score in it
ROUNDED = 0.05  # of one in bfloat16 or float16, or in 4 bits


@dataclass(frozen=True)
class VerifySettings(ThreadSettings):
    """What is sealed: what is not given is taken from the card."""

    manifest: Path | None = flag(None, "manifest CSV or its folder (default: the card's)")
    checkpoint: str | None = flag(
        None, "where the checkpoint lies here (default: as the card names it)"
    )
    adapter: Path | None = flag(None, "where its adapter lies here (default: as the card names it)")
    dtype: Dtype = flag("auto", "auto is the card's, where the device has it")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        VerifySettings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument("card", type=Path, metavar="CARD", help="file of opro.seal"),
        config=False,
    )
    use_threads(settings.threads)
    card = read_card(space.card / "card.yaml" if space.card.is_dir() else space.card)
    result = verify(card, settings)
    print("\n".join(result["told"]))
    hand_over(result)
    return DONE if result["same"] else FAULT


def verify(card: Card, settings: VerifySettings) -> dict[str, Any]:
    """Scores the card's prompts on its clips. What came out, with ``told`` in sentences and ``same`` as the verdict.

    Raises:
        UserError: Clips or checkpoint are not there.
    """
    manifest = settings.manifest or Path(card.clips.manifest)
    data = data_of(card.decides, resolve(manifest))
    clips = clips_of(card, data.heard(card.clips.split))
    verify_files(clips)
    evaluator = open_sealed(card, settings)
    prompts = list(dict.fromkeys(card.classifier(who).prompt for who in ("chosen", "baseline")))
    table = evaluator.score(prompts, clips)
    about = evaluator.about()
    digest = about.checkpoint.digest if about.checkpoint else evaluator.fingerprint
    found = agreement(card, table, clips)
    numbers = list(_numbers(card, table))
    exact = about.dtype == card.model.dtype == "float32" and card.model.quantization == "none"
    tolerance = TOLERANCE["float32"] if exact else ROUNDED
    own = digest == card.model.digest
    same = own and found.same_labels and found.largest <= tolerance and not numbers
    told = (
        []
        if own
        else [
            f"another checkpoint: its weights are not those of {card.model.name!r} that were sealed"
        ]
    )
    told += _of_clips(found, len(card.rows), tolerance)
    told += numbers or [_score(card)]
    if about.dtype != card.model.dtype:
        told.append(f"scored in {about.dtype} here, in {card.model.dtype} then")
    if changed := version_changes(card.model.versions, about.versions):
        told.append(f"then with {changed}")
    return {
        "same": same,
        "largest": found.largest,
        "tolerance": tolerance,
        "other_labels": {who: list(ids) for who, ids in found.other_labels.items()},
        "numbers": numbers,
        "same_weights": own,
        "told": told,
    }


def open_sealed(card: Card, settings: VerifySettings) -> Evaluator:
    """The evaluator of the card's checkpoint; its scores are made anew, not taken from a cache."""
    given = settings.checkpoint
    adapter = settings.adapter
    if adapter is None and given is None and card.model.adapter is not None:
        adapter = Path(card.model.adapter)
    dtype = card.model.dtype if settings.dtype == "auto" else settings.dtype
    evaluator, _ = build_evaluator(
        given or card.model.name,
        adapter=adapter,
        quantization=card.model.quantization,
        device=settings.device,
        dtype="auto" if dtype == "none" else dtype,
    )
    return in_orders(evaluator)


def _numbers(card: Card, table: ScoreTable) -> Iterator[str]:
    """Scores and gain that are not the card's, in sentences."""
    metric, seed = card.holdout.metric, card.rule.seed
    said = {who: table.predict(card.classifier(who)) for who in ("chosen", "baseline")}
    made = {who: estimate(one, metric, seed=seed) for who, one in said.items()}
    # Cards of before differences had Student's bounds are held against percentiles.
    ways = (compare, compare_by_percentiles)
    gains = [way(said["chosen"], said["baseline"], metric, seed=seed) for way in ways]
    made["gain"] = next((g for g in gains if _is(g, card.holdout.gain)), gains[0])
    for name, one in made.items():
        sealed = {
            "chosen": card.holdout.chosen,
            "baseline": card.holdout.baseline,
            "gain": card.holdout.gain,
        }[name]
        for part, here, there in (
            ("", one.value, sealed.value),
            (", lower bound", one.low, sealed.low),
            (", upper bound", one.high, sealed.high),
        ):
            if not _same(here, there):
                yield f"{name}{part} is {_shown(here)}, the card says {_shown(there)}"


def _same(here: float | None, there: float | None) -> bool:
    if here is None or there is None:
        return here is there
    return abs(here - there) <= 5e-7


def _is(made: Estimate, sealed: Interval) -> bool:
    return all(
        _same(getattr(made, name), getattr(sealed, name)) for name in ("value", "low", "high")
    )


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f}"


def _of_clips(found: Agreement, count: int, tolerance: float) -> Iterator[str]:
    if found.same_labels:
        yield f"same labels, P within {found.largest:.1e}: {count} clips, both prompts"
    for who, ids in found.other_labels.items():
        if ids:
            yield f"{len(ids)} of {count} clips have another label with the {who} prompt, such as {ids[0]!r}"
    if found.largest > tolerance:
        yield f"a probability differs by {found.largest:.3f}; expected at most {tolerance:g}"


def _score(card: Card) -> str:
    chosen, gain = card.holdout.chosen, card.holdout.gain
    return (
        f"same score {_shown(chosen.value)} [{_shown(chosen.low)}, {_shown(chosen.high)}], gain {_shown(gain.value)}"
        f" [{_shown(gain.low)}, {_shown(gain.high)}]"
    )


if __name__ == "__main__":
    sys.exit(run_verb(main))
