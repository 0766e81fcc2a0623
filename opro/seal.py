"""Seals what a run found: python -m opro.seal runs/NAME

One file, card.yaml, with prompt, threshold and baseline, digests of checkpoint and clips, the rule and how often the
clips were looked at, the score with its interval, versions, and what was said of every holdout clip. `opro.verify`
makes the numbers again from the raw clips; `opro.check` holds another checkpoint against them. Nothing is scored here.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluators.build import build_evaluator
from evaluators.clips import ClipSet
from evaluators.errors import UserError
from evaluators.files import check_file, resolve, write_text
from evaluators.manifest import verify
from evaluators.statistics.compare import ALPHA, compare, estimate
from evaluators.statistics.resampling import Estimate
from evaluators.targets import Predictions
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.problem import open_data
from opro.results.card import (
    Card,
    CardClips,
    CardModel,
    CardRule,
    CardScore,
    rows_text,
)
from opro.results.looks import count_uses
from opro.results.predictions import read_own
from opro.results.run_folder import RunFolder, find_runs
from opro.results.summary import Interval
from opro.search.history import Trial
from opro.search.select import DECIDED
from opro.settings import DataSettings, model_settings

RULE = (  # with the level of the run's decision
    "dev halved by source; the best seed prompt of the search half is the baseline, at most five prompts that beat it"
    " there are finalists; one replaces it when its gain on the holdout has a p, corrected by Holm, below {level:.3g},"
    " one-sided, over sources"
)


@dataclass(frozen=True)
class SealSettings:
    """The card."""

    out: Path | None = flag(None, "where the card goes (default: card.yaml in the run's folder)")
    runs_dir: Path | None = flag(
        None, "runs whose looks at the same clips are counted (default: those beside the run)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        SealSettings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument("run", type=Path, metavar="RUN", help="finished run"),
        config=False,
    )
    RunFolder.read(space.run)  # first of all, whether it is a run
    out = settings.out or space.run / "card.yaml"
    check_file(out, "--out")
    card = seal(space.run, settings.runs_dir or space.run.resolve().parent)
    write_text(out, card.text())
    gain = card.holdout.gain
    bounds = (
        ""
        if gain.low is None or gain.high is None
        else f" [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    )
    print(f"sealed    {card.holdout.reason}")
    print(f"chosen    {100 * card.holdout.chosen.value:.1f}, gain {100 * gain.value:+.1f}{bounds}")
    print(
        f"looks     {card.rule.decisions} decisions on this holdout, {card.rule.test_uses} uses of the test split"
    )
    print(f"written   {out}")
    print(f"next      python -m opro.verify {out}")
    hand_over({"card": str(out), "digest": card.digest, **card.holdout.model_dump()})
    return DONE


def seal(run: Path, runs_dir: Path) -> Card:
    """The card of a finished run.

    Raises:
        UserError: It is not finished, serves several checkpoints, or its clips or checkpoint are no longer its own.
    """
    folder = RunFolder.read(run)
    summary, header = folder.finished(), folder.history.header or {}
    if len(folder.checkpoints) > 1:
        raise UserError(
            f"run {folder.name!r} serves {len(folder.checkpoints)} checkpoints; a card is of one: search on each"
        )
    data = open_data(DataSettings(folder.task_flag, resolve(Path(folder.config["manifest"]))))
    if data.digest != header["data"]:
        raise UserError(
            f"the manifest {str(data.manifest)!r} has changed since run {folder.name!r}; restore it"
        )
    split = data.heard(str(folder.config.get("split", "dev")))
    labels = folder.task.labels
    trials, clips, said = _said(folder, split)
    metric = summary.objective if summary.objective in DECIDED else "balanced_accuracy"
    seed = summary.seed
    scores = {who: estimate(one, metric, seed=seed) for who, one in said.items()}
    gain = compare(said["chosen"], said["baseline"], metric, seed=seed)
    card = Card(
        run=folder.name,
        sealed=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        task=folder.task.to_dict(),
        labels=labels,
        chosen=trials["chosen"].classifier.to_dict(),
        baseline=trials["baseline"].classifier.to_dict(),
        model=_model(folder),
        rule=CardRule(
            objective=summary.objective,
            threshold=summary.threshold,
            seed=seed,
            trials=len(folder.history.trials),
            finalists=len(summary.finalists),
            text=RULE.format(level=summary.turn.level if summary.turn else ALPHA),
            decisions=_decisions(runs_dir, data.digest),
            test_uses=count_uses(runs_dir, data.digest),
        ),
        holdout=_score(metric, scores["chosen"], scores["baseline"], gain, summary.reason),
        clips=CardClips(
            manifest=str(folder.config["manifest"]),
            manifest_sha256=data.digest,
            split=str(folder.config.get("split", "dev")),
            rows=rows_text(clips.clips, said),
        ),
        warnings=summary.warnings,
    )
    return card.model_copy(update={"digest": card.sealed_digest()})


def _said(
    folder: RunFolder, split: ClipSet
) -> tuple[dict[str, Trial], ClipSet, dict[str, Predictions]]:
    """(Chosen and baseline, the holdout's clips as they are on disk, what each said of them)."""
    made = folder.history.selection or {}
    trials = {who: folder.history.trials[int(made[who])] for who in ("chosen", "baseline")}
    said = {
        who: read_own(folder.holdout(t.prompt.prompt_id), folder.task.labels)
        for who, t in trials.items()
    }
    place = {clip.name: i for i, clip in enumerate(split)}
    clips = split.take([place[one] for one in said["chosen"].targets.clip_ids])
    verify(clips)
    own = {}
    for who, one in said.items():
        own[who] = dataclasses.replace(one, targets=clips.targets)
    return trials, clips, own


def _score(
    metric: str, chosen: Estimate, baseline: Estimate, gain: Estimate, reason: str
) -> CardScore:
    return CardScore(
        metric=metric,
        chosen=Interval.of(chosen),
        baseline=Interval.of(baseline),
        gain=Interval.of(gain),
        p=gain.p,
        clips=chosen.clips,
        sources=chosen.sources,
        reason=reason,
    )


def _model(folder: RunFolder) -> CardModel:
    """Raises UserError where the checkpoint here is not the one that was scored."""
    model = model_settings(None, folder.config)
    evaluator, _ = build_evaluator(
        model.checkpoint,
        adapter=model.adapter,
        quantization=model.quantization,
        device=model.device,
        dtype=model.dtype,
    )
    about, header = evaluator.about(), folder.history.header or {}
    recorded = folder.scored_with or {}
    fingerprint = str(header["fingerprint"]).removesuffix("-swap")
    if evaluator.fingerprint != fingerprint and dict(about.versions) == recorded:
        raise UserError(
            f"checkpoint {model.checkpoint!r} is not the one that run {folder.name!r} scored, or this machine is"
            " another one; seal where the run was made"
        )
    checkpoint = about.checkpoint
    return CardModel(
        name=model.checkpoint,
        digest=checkpoint.digest if checkpoint else fingerprint,
        adapter=None if model.adapter is None else str(model.adapter),
        quantization=model.quantization,
        dtype=about.dtype,
        device=about.device,
        versions=recorded,
    )


def _decisions(runs_dir: Path, digest: str) -> int:
    """Runs that decided on the holdout of a manifest."""
    count = 0
    for path in find_runs(runs_dir):
        history = RunFolder.read(path).history
        same = (history.header or {}).get("data") == digest
        count += same and history.selection is not None
    return count


if __name__ == "__main__":
    sys.exit(run_verb(main))
