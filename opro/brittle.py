"""How brittle a run's prompt is, and what each of its phrases is worth: python -m opro.brittle runs/NAME

Scores trivial edits (blanks, line breaks, punctuation, case, a synonym, the options' order and marks, a typo) of the
chosen prompt, the baseline and the finalists, each with the threshold that the run fitted; and the chosen prompt
without each of its phrases. All on clips of the search half: the holdout is opened for nothing more. Written to
brittle.json in the run's folder, where opro.report finds it. optimize --brittleness does the first as it decides.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.classifier import Classifier
from evaluators.clips import ClipSet
from evaluators.errors import UserError
from evaluators.evaluator import Evaluator
from evaluators.files import check_file, check_folder, write_json
from evaluators.manifest import verify
from evaluators.orders import evals_per_clip
from evaluators.prompts import Prompt
from evaluators.statistics.compare import compare_pairs
from evaluators.targets import Predictions
from evaluators.threads import use_threads
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.problem import Data, Model, open_data, open_joint_model
from opro.results.brittle import (
    BRITTLE,
    Brittle,
    PhrasePart,
    Worth,
    brittle_sheet,
    kind_sheet,
    names_of,
    phrase_sheet,
)
from opro.results.predictions import read_own
from opro.results.progress import counting
from opro.results.run_folder import RunFolder
from opro.results.sheet import render
from opro.results.shown import time_of
from opro.results.summary import BrittlePart
from opro.search.brittleness import CLIPS, How, brittleness, fits_anew
from opro.search.edits import trivial_edits
from opro.search.objective import Objective
from opro.search.parts import score_those_that_can
from opro.search.phrases import Phrase, phrases
from opro.settings import (
    MOST_EDITS,
    DataSettings,
    Dtype,
    MachineSettings,
    model_settings,
)


@dataclass(frozen=True)
class BrittleSettings(MachineSettings):
    """What is scored: model and clips are the run's."""

    edits: int = flag(
        MOST_EDITS,
        "trivial edits of a prompt at most, of all kinds in turns; 0: its phrases alone",
        min=0,
        max=MOST_EDITS,
    )
    manifest: Path | None = flag(None, "manifest CSV or its folder (default: the run's)")
    dtype: Dtype | None = flag(None, "auto, float32, bfloat16 or float16 (default: the run's)")
    device: str | None = flag(None, "auto, cpu, cuda, cuda:1, mps (default: the run's)")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        BrittleSettings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument("run", type=Path, metavar="RUN", help="finished run"),
        config=False,
    )
    use_threads(settings.threads)
    run = RunFolder.read(space.run)
    summary = run.finished()
    out = run.path / BRITTLE
    check_file(out, BRITTLE)
    check_folder(settings.runs_dir, "--runs-dir")
    job = _open(run, settings)
    cached = max(0, job.evals - job.missing)
    time = time_of(job.model.evaluator, job.missing)
    print(f"scores  {job.evals:,} evals at most, {cached:,} of them cached, {time}")
    found = measure(job)
    write_json(out, found.model_dump())
    if found.brittleness:
        print(f"\n{render(brittle_sheet(found.brittleness, names_of(summary), found.metric))}")
        print(f"\n{render(kind_sheet(found.brittleness[0]))}")
    print(f"\n{render(phrase_sheet(found))}\n")
    for text in found.warnings:
        print(f"warning: {text}")
    print(f"written to {out}; python -m opro.report {run.path} shows it")
    hand_over({**found.model_dump(), "path": str(out)})
    return DONE


@dataclass(frozen=True)
class Job:
    """What is to be scored.

    Attributes:
        classifiers: The chosen one first, then baseline and finalists, each once.
        clips: The search half.
    """

    run: RunFolder
    classifiers: tuple[Classifier, ...]
    phrases: tuple[Phrase, ...]
    clips: ClipSet
    model: Model
    objective: Objective
    edits: int
    warnings: tuple[str, ...]

    @property
    def asked(self) -> Iterator[tuple[list[Prompt], ClipSet]]:
        """(Prompts, clips) of each call, at most."""
        for one in self.classifiers if self.edits else ():
            edits = trivial_edits(one.prompt, self.edits)
            yield [one.prompt, *(e.prompt for e in edits)], self.clips.first(CLIPS)
        shorter = [p.without for p in self.phrases if p.without is not None]
        yield [self.classifiers[0].prompt, *shorter], self.clips

    @property
    def evals(self) -> int:
        """At most, before the cache."""
        return sum(len(clips) * sum(map(evals_per_clip, prompts)) for prompts, clips in self.asked)

    @property
    def missing(self) -> int:
        """Of these, those that are not in the cache."""
        evaluator = self.model.evaluator
        return sum(evaluator.count_missing(prompts, clips) for prompts, clips in self.asked)


def _open(run: RunFolder, settings: BrittleSettings) -> Job:
    """Raises UserError for whatever would fail later; scores nothing."""
    made = run.history.selection or {}
    numbers = dict.fromkeys([made["chosen"], made["baseline"], *made["finalists"]])
    classifiers = tuple(run.history.trials[number].classifier for number in numbers)
    manifest = settings.manifest or Path(run.config["manifest"])
    data = open_data(DataSettings(run.task_flag, manifest))
    clips = search_half(run, data, classifiers[0].prompt)
    verify(clips)
    # What the run was allowed to hear it has said in its warnings.
    heard = run.config.get("heard", "refuse")
    how = dataclasses.replace(model_settings(settings, dict(run.config)), heard=heard)
    model = open_joint_model(how, run.checkpoints, data, [clips], machine=settings)
    header = run.history.header or {}
    warnings = list(model.warnings)
    if str(header.get("fingerprint")).removesuffix("-swap") != model.evaluator.fingerprint:
        warnings.append("the checkpoint, its precision or a library is not the one of the run")
    config = run.config
    return Job(
        run,
        classifiers,
        phrases(classifiers[0].prompt),
        clips,
        model,
        Objective(
            str(config.get("objective", "balanced_accuracy")),
            str(config.get("threshold", "argmax")),
        ),
        settings.edits,
        tuple(warnings),
    )


def search_half(run: RunFolder, data: Data, prompt: Prompt) -> ClipSet:
    """The clips that a run searched on, as its scores name them.

    Args:
        prompt: Of a complete trial.
    Raises:
        UserError: Its scores are missing, or the manifest has lost clips.
    """
    path = run.scores(prompt)
    if not path.is_file():
        raise UserError(f"{path} is missing, so it is unknown which clips the run searched on")
    names = read_own(path, run.task.labels).targets.clip_ids
    split = data.split(str(run.config.get("split", "dev")))
    if len(run.checkpoints) > 1:
        split = split.repeat(run.checkpoints)
    place = {clip.name: i for i, clip in enumerate(split)}
    if lost := [name for name in names if name not in place]:
        raise UserError(
            f"{len(lost)} of {len(names)} clips that the run searched on, as {lost[0]!r}, are not in"
            f" {str(data.manifest)!r}; restore it, or give --manifest"
        )
    return split.take(sorted(place[name] for name in names))


def measure(job: Job) -> Brittle:
    """Scores edits and phrases."""
    evaluator, seed = job.model.evaluator, int(job.run.config.get("seed", 0))
    before = evaluator.usage.requested
    how = How(job.edits, job.objective, seed)
    steady = list[BrittlePart]()
    with counting("prompts", len(job.classifiers) + 1) as step:
        for one in job.classifiers if job.edits else ():
            (found,) = brittleness(evaluator, [one], job.clips, how)
            steady.append(BrittlePart.of(found))
            step()
        worth = tuple(_phrases(job, evaluator, seed))
    targets = job.clips.targets
    return Brittle(
        run=job.run.name,
        chosen=job.classifiers[0].prompt_id,
        metric=job.objective.name,
        fitted=fits_anew(job.objective, job.clips),
        clips=len(job.clips),
        sources=len(set(targets.sources.tolist())),
        brittleness=tuple(steady),
        phrases=worth,
        evals=evaluator.usage.requested - before,
        warnings=job.warnings,
    )


def _phrases(job: Job, evaluator: Evaluator, seed: int) -> Iterator[PhrasePart]:
    whole = job.classifiers[0]
    asked = [one.without for one in job.phrases if one.without is not None]
    table = score_those_that_can(evaluator, [whole.prompt, *asked], job.clips)
    scored = [i for i, one in enumerate(job.phrases) if one.without in table.prompts]
    kept, fitted = list[Predictions](), list[Predictions]()
    for i in scored:
        rest = job.phrases[i].without
        assert rest is not None, "it was scored"
        kept.append(table.predict(Classifier(rest, whole.bias)))
        row = table.logp[table.prompts.index(rest)]
        fitted.append(table.predict(Classifier(rest, job.objective.measure(row, job.clips).bias)))
    own = table.predict(whole)

    def worth(rests: list[Predictions]) -> dict[int, Worth]:
        pairs = [(0, k) for k in range(1, len(rests) + 1)]
        found = compare_pairs([own, *rests], pairs=pairs, metric=job.objective.name, seed=seed)
        return {i: _worth(one) for i, one in zip(scored, found, strict=True)}

    anew, as_it_is = worth(fitted), worth(kept)
    for i, one in enumerate(job.phrases):
        why = one.why_not or ("" if i in anew else "the model cannot be asked without it")
        yield PhrasePart(
            kind=one.kind,
            start=one.start,
            end=one.end,
            text=one.text,
            without=one.without.text if one.without else None,
            why_not=why,
            worth=anew.get(i),
            as_it_is=as_it_is.get(i),
        )


def _worth(found: dict[str, Any]) -> Worth:
    return Worth(
        value=found["difference"], low=found["low"], high=found["high"], p_holm=found["p_holm"]
    )


if __name__ == "__main__":
    sys.exit(run_verb(main))
