"""What more training clips give: python -m opro.curve --checkpoint pocket-base --clips 64 128 256 all

For each number of clips a LoRA is trained on the first hand-written prompt, on the first clips of the train split in
its fixed balanced order, so that a smaller set lies in each larger one; then prompts are searched on it. The best
hand-written prompt and the one that leads the search, each with the threshold of the search half of dev, are scored on
--split; so are those of the checkpoint as it is, as 0 clips. No decision is made: nothing but the scores hears --split.
Written to --out/SPLIT: curve.html, .svg, .json, .csv and .md. The same command goes on after an interruption.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluators.classifier import Classifier, dump_classifiers
from evaluators.clips import ClipSet
from evaluators.errors import UserError
from evaluators.files import check_folder, disk_faults, write_text
from evaluators.manifest import verify
from evaluators.statistics.compare import compare_pairs, estimate
from evaluators.targets import Predictions
from evaluators.threads import use_threads
from opro import finetune
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.finetune import FinetuneSettings
from opro.optimize import search_only
from opro.problem import Data, open_data, open_problem, seeds_of
from opro.results.curves import curve_sheet, told, write_curve
from opro.results.looks import count_uses, look_id, record_use
from opro.results.run_folder import RunFolder, open_run
from opro.results.sheet import render
from opro.results.shown import time_of
from opro.search.budget import most_evals
from opro.search.history import Trial
from opro.search.objective import NAMES
from opro.settings import OptimizeSettings, SplitSettings, clip_count
from opro.tuning import (
    Step,
    TuneSettings,
    is_trained,
    opened,
    said_by,
    say,
    step_of,
    time_left,
    train,
)

WORDINGS = ("hand", "searched")


@dataclass(frozen=True)
class CurveSettings(TuneSettings):
    """The curve."""

    split: Literal["dev", "test"] = flag(
        "dev", "clips to score on: of dev the holdout, or test, each use of which is counted"
    )

    @property
    def folder(self) -> Path:
        """The folder of the adapters; sizes can be added to it, and both splits share it."""
        return self.folder_of("curve", self.config)

    @property
    def config(self) -> dict[str, Any]:
        """Plain data, as config.yaml holds it: all that adapters and searches depend on."""
        return self.config_without("split")

    def adapter(self, size: int) -> Path:
        """The adapter of so many clips."""
        return self.folder / f"lora-{size}"

    def checkpoint_of(self, size: int) -> str:
        """The checkpoint of so many clips; 0 is the one that is trained."""
        return str(self.adapter(size)) if size else self.checkpoint

    def search(self, size: int) -> OptimizeSettings:
        """The search on it."""
        return self.search_on(self.checkpoint_of(size))

    def training(self, size: int, prompts: Path | None) -> FinetuneSettings:
        """The training on so many clips."""
        return self.training_of(self.checkpoint, prompts, self.adapter(size), str(size))


@dataclass(frozen=True)
class Clips:
    """The clips of a curve: what is scored, the search half, the train split in its order."""

    scored: ClipSet
    search: ClipSet
    train: ClipSet


@dataclass(frozen=True)
class Point:
    """A checkpoint of a curve, with its two prompts.

    Attributes:
        size: Clips that it was trained on.
        best: Classifier by wording: ``hand``, ``searched``.
    """

    size: int
    best: dict[str, Classifier]


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(CurveSettings, argv, __doc__ or "", _extra_flags)
    use_threads(settings.threads)
    check_folder(settings.folder, "--out")
    check_folder(settings.runs_dir, "--runs-dir")
    data = open_data(settings)
    clips = _open_clips(data, settings.split)
    sizes = _sizes(space.clips, len(clips.train))
    training: list[tuple[str, str]] = []  # the plan of the largest that is not finished
    for size in sorted({sizes[0], sizes[-1]}):  # whatever would fail after hours is found now
        if not is_trained(settings.adapter(size)):
            training = finetune.describe(finetune.prepare(settings.training(size, None)))
    if space.dry_run:
        plan = [*_plan(settings, data, clips, sizes), *(f"{n:11} {text}" for n, text in training)]
        print("\n".join(plan))
        hand_over({"dry_run": True, "folder": str(settings.folder), "plan": plan})
        return DONE
    out = settings.folder / settings.split
    with disk_faults(settings.folder), open_run(settings.folder, settings.config):
        document = _curve(settings, data, clips, sizes)
        write_curve(out, document)
    print(render(curve_sheet(document)))
    print("\n".join(told(document, out)))
    paths = {name: str(out / f"curve.{name}") for name in ("html", "svg", "json", "csv", "md")}
    hand_over({**document, "paths": {"folder": str(out), **paths}})
    return DONE


def _extra_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clips",
        nargs="+",
        default=["64", "128", "256", "512", "all"],
        metavar="N",
        help="sizes of the train split, numbers or all (default: 64 128 256 512 all)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and its cost; train nothing"
    )


def _sizes(given: Sequence[str], most: int) -> list[int]:
    """The sizes, smallest first."""
    sizes = sorted(clip_count(text, most, "train") for text in given)
    twice = [n for n in sizes if sizes.count(n) > 1]
    if twice:
        raise UserError(f"--clips names {twice[0]} clips twice; give each size once")
    return sizes


def _open_clips(data: Data, split: str) -> Clips:
    search, holdout = data.halves(SplitSettings())
    scored = holdout if split == "dev" else data.split(split)
    verify([*search, *scored])
    return Clips(scored, search, data.split("train"))


def _plan(settings: CurveSettings, data: Data, clips: Clips, sizes: Sequence[int]) -> Iterator[str]:
    """What would be done, and what it costs at most."""
    first = settings.search(0)
    problem = open_problem(first)
    most = most_evals(problem, first)
    yield f"result      {settings.folder}"
    yield f"sizes       0, {', '.join(f'{n:,}' for n in sizes)} train clips: {len(sizes)} trainings"
    yield f"searches    {len(sizes) + 1}, each at most {most:,} evals; {time_of(problem.evaluator, most, first)}"
    uses = count_uses(settings.runs_dir, data.digest)
    used = f"; its test split was used {uses} times so far" if settings.split == "test" else ""
    yield f"scored      {len(clips.scored)} clips of {_where(settings.split)}{used}"
    for text in problem.warnings:
        yield f"warning     {text}"


def _where(split: str) -> str:
    return "the holdout of dev" if split == "dev" else split


def _curve(
    settings: CurveSettings, data: Data, clips: Clips, sizes: Sequence[int]
) -> dict[str, Any]:
    """Trains and searches what is left, and scores all of it. The content of curve.json."""
    prompts = settings.folder / "hand.yaml"
    seeds = seeds_of(data.task, settings.seeds)
    write_text(prompts, dump_classifiers([Classifier(seeds[0])]))
    steps, points = list[Step](), list[Point]()
    rest = [("search", 0)]
    for size in sizes:
        rest += [("train", size), ("search", 0)]  # steps grow with the clips
    for size in (0, *sizes):
        if size:
            say(f"training on {size:,} clips{time_left(_by_size(steps), rest)}")
            steps.append(train(settings.training(size, prompts), settings.adapter(size), size))
            rest.pop(0)
        say(
            f"searching prompts on {settings.checkpoint_of(size)}{time_left(_by_size(steps), rest)}"
        )
        run = search_only(settings.search(size))
        steps.append(step_of(run, size))
        rest.pop(0)
        by_hand = {p.prompt_id for p in seeds}
        points.append(Point(size, {"hand": _hand(run, by_hand), "searched": _leader(run)}))
    said, uses, warnings = _said(settings, data, clips, points)
    return {
        "schema": 1,
        "checkpoint": settings.checkpoint,
        "objective": NAMES[settings.objective],
        "split": settings.split,
        "manifest": data.digest,
        "clips": len(clips.scored),
        "sources": len({c.source_id for c in clips.scored}),
        "test_openings": uses,
        "rows": _rows(settings, clips, points, said, steps),
        "steps": [dataclasses.asdict(s) for s in steps],
        "warnings": warnings,
    }


def _by_size(steps: Sequence[Step]) -> list[Step]:
    """The steps with clips in place of optimizer steps, which are not known beforehand."""
    return [dataclasses.replace(s, steps=s.round if s.kind == "train" else 0) for s in steps]


def _hand(run: RunFolder, by_hand: set[str]) -> Classifier:
    """The best hand-written prompt on the search half."""
    seeds: list[Trial] = [t for t in run.history.complete if t.prompt.prompt_id in by_hand]
    return seeds[0].classifier


def _leader(run: RunFolder) -> Classifier:
    return run.history.complete[0].classifier


def _said(
    settings: CurveSettings, data: Data, clips: Clips, points: Sequence[Point]
) -> tuple[list[Predictions], int | None, list[str]]:
    """(What each point's prompts say, hand first; uses of the test split; warnings)."""
    shows, warnings = list[str](), list[str]()
    uses, said = None, []
    names = [settings.checkpoint_of(point.size) for point in points]
    with opened(settings, names, data, [clips.search, clips.scored]) as models:
        for model, point in zip(models, points, strict=True):
            print_of = model.evaluator.fingerprint
            shows += [look_id("curve", print_of, c) for c in point.best.values()]
            warnings += [text for text in model.warnings if text not in warnings]
        if settings.split == "test":
            about = f"curve, {len(points)} checkpoints"
            uses = record_use(settings.runs_dir, data.digest, "curve", about, shows)
        for model, point in zip(models, points, strict=True):
            said += [said_by(model, point.best[name], clips.scored) for name in WORDINGS]
            model.evaluator.release()  # its memory is the next one's
    return said, uses, warnings


def _rows(
    settings: CurveSettings,
    clips: Clips,
    points: Sequence[Point],
    said: Sequence[Predictions],
    steps: Sequence[Step],
) -> list[dict[str, Any]]:
    """A row a size: both scores, what the search gains, and what the searched prompt gains over the size before."""
    pairs = [(2 * i + 1, 2 * i) for i in range(len(points))]
    pairs += [(2 * i + 1, 2 * i - 1) for i in range(1, len(points))]
    gains = [
        {"value": g["difference"], **{k: g[k] for k in ("low", "high", "p", "p_holm")}}
        for g in compare_pairs(said, pairs=pairs, metric=settings.objective, seed=settings.seed)
    ]
    rows = []
    for i, point in enumerate(points):
        own = [s for s in steps if s.round == point.size]
        taken = clips.train.first(point.size)
        rows.append(
            {
                "clips": point.size,
                "sources": len({c.source_id for c in taken}),
                "checkpoint": settings.checkpoint_of(point.size),
                "steps": sum(s.steps for s in own),
                "evals": sum(s.evals for s in own),
                "seconds": sum(s.seconds for s in own),
                **{
                    name: {
                        **estimate(said[2 * i + k], settings.objective).to_dict(),
                        "text": point.best[name].prompt.text,
                        "classifier": point.best[name].to_dict(),
                    }
                    for k, name in enumerate(WORDINGS)
                },
                "search_gains": gains[i],
                "clips_gain": gains[len(points) + i - 1] if i else None,
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(run_verb(main))
