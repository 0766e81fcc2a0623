"""Holds a new checkpoint against a sealed card: python -m opro.check card.yaml --checkpoint NEW

A gate for continuous integration. The card's prompt and threshold are scored with the new checkpoint on the card's
clips, and compared with what was sealed, paired by clip, over sources. Exit 0 where the lower bound of the
difference is above minus the margin: it is shown to be no worse by more than that. Exit 1 otherwise.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.files import resolve
from evaluators.manifest import verify as verify_files
from evaluators.statistics.compare import compare, estimate
from evaluators.statistics.resampling import Estimate
from evaluators.threads import use_threads
from opro.cli import DONE, FAULT, flag, hand_over, parse, run_verb
from opro.problem import data_of, open_model
from opro.results.card import Card, clips_of, read_card, sealed_predictions
from opro.search.select import points
from opro.settings import MachineSettings, ModelSettings


@dataclass(frozen=True)
class CheckSettings(MachineSettings, ModelSettings):
    """The gate."""

    margin: float = flag(5.0, "points by which the new checkpoint may be worse", min=0)
    manifest: Path | None = flag(None, "manifest CSV or its folder (default: the card's)")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        CheckSettings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument("card", type=Path, metavar="CARD", help="file of opro.seal"),
        config=False,
    )
    use_threads(settings.threads)
    result = check(read_card(space.card), settings)
    print("\n".join(result["told"]))
    hand_over(result)
    return DONE if result["passed"] else FAULT


def check(card: Card, settings: CheckSettings) -> dict[str, Any]:
    """The comparison, with ``told`` in sentences and ``passed`` as the verdict.

    Raises:
        UserError: Clips or checkpoint cannot be used, or it was trained on sources of the clips.
    """
    manifest = settings.manifest or Path(card.clips.manifest)
    data = data_of(card.decides, resolve(manifest))
    clips = clips_of(card, data.heard(card.clips.split))
    verify_files(clips)
    model = open_model(settings, data, [clips], machine=settings)
    classifier = card.classifier("chosen")
    said = model.evaluator.score([classifier.prompt], clips).predict(
        classifier, settings.checkpoint
    )
    metric, seed = card.holdout.metric, card.rule.seed
    change = compare(said, sealed_predictions(card, "chosen", clips), metric, seed=seed)
    score = estimate(said, metric, seed=seed)
    verdict = verdict_of(change, settings.margin / 100)
    told = [
        f"{verdict.upper()}: {points(change)} on {change.clips} clips of {change.sources} sources; worse by"
        f" {settings.margin:g} points is allowed",
        f"sealed    {100 * card.holdout.chosen.value:.1f}  {card.model.name}",
        f"new       {100 * score.value:.1f}  {settings.checkpoint}",
    ]
    if verdict == "not shown":
        told.append(
            "more clips of further sources make the interval narrower; a larger --margin asks for less"
        )
    return {
        "passed": verdict == "no worse",
        "verdict": verdict,
        "difference": change.to_dict(),
        "score": score.to_dict(),
        "margin": settings.margin / 100,
        "told": [*told, *(f"warning   {text}" for text in model.warnings)],
    }


def verdict_of(change: Estimate, margin: float) -> str:
    """Non-inferiority: ``no worse`` by more than the margin, ``worse``, or ``not shown``.

    Both bounds are one-sided at 2.5 %. Without bounds, for want of sources, nothing is shown.
    """
    if change.low is None or change.high is None:
        return "not shown"
    if change.low > -margin:
        return "no worse"
    return "worse" if change.high < -margin else "not shown"


if __name__ == "__main__":
    sys.exit(run_verb(main))
