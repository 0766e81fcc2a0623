"""How a checkpoint reacts to wording as a whole: python -m opro.profile --checkpoint pocket-base pocket-lora

Scores hundreds of sensible wordings on the search half of dev (the holdout stays fresh): a balanced sample of the
rewriter's grammar, held-out human phrasings, the hand-written prompts, and those of --prompts (a language model's list,
say). Told are how accuracy, AUROC and bias spread over wordings, how often two wordings give a clip the same answer,
and which parts of a wording move hits and false alarms; of several checkpoints, such as one before and after
fine-tuning, all of it side by side on the same wordings. Intervals resample wordings and sources together. Written to
--out: profile.json, wordings.csv, effects.csv, report.html, and best-CHECKPOINT.yaml with the best wordings.
opro.optimize --share FOLDER starts a search from them and tells its language model what moves what. What was scored
before comes from the cache, so an interrupted profile goes on. --predict NEW predicts the leaderboard of a relative of
two or more --checkpoint, such as another epoch, from their scores and 2 % of its own; --share starts from that, too.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluators.clips import ClipSet
from evaluators.errors import UserError
from evaluators.evaluator import share
from evaluators.files import (
    check_folder,
    csv_text,
    json_text,
    resolve,
    shipped,
    write_json,
    write_text,
)
from evaluators.manifest import verify
from evaluators.orders import evals_per_clip
from evaluators.prompts import dump_prompts, prompt_from, read_prompts
from evaluators.tasks import SPEECH_TASK, Task
from evaluators.threads import use_threads
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.problem import Model, open_data, open_model, seeds_of
from opro.profiling.document import Heard, Setting, document
from opro.profiling.effects import can_tell
from opro.profiling.page import page_of
from opro.profiling.predicted import SHARE, check, predicted
from opro.profiling.scoring import score, telling
from opro.profiling.tables import (
    all_sheets,
    effect_rows,
    forecast_rows,
    hand_lines,
    length_lines,
    rows_of,
)
from opro.profiling.wordings import (
    GIVEN,
    GRAMMAR,
    HAND,
    HELD_OUT,
    Design,
    Wording,
    has_grammar,
    sample,
    united,
)
from opro.results.provenance import provenance
from opro.results.sheet import render
from opro.results.shown import time_of
from opro.search.lengths import length_of, unit_of
from opro.settings import (
    SEED_PROMPTS,
    Dtype,
    MachineSettings,
    ModelSettings,
    Quantization,
    SplitSettings,
    file_name,
)

HELD_OUT_PROMPTS = Path("prompts/heldout.yaml")  # of the task `speech`
DOCUMENT = "profile.json"


@dataclass(frozen=True)
class ProfileSettings(MachineSettings, SplitSettings):
    """The profile."""

    wordings: int = flag(300, "wordings of the grammar", min=1, max=100_000)
    prompts: Path | None = flag(
        None, "prompt file with further wordings, such as a language model's list"
    )
    seed: int = flag(0, "seed of the sample and of the resamples", min=0)
    quantization: Quantization = flag("none", "4-bit weights through bitsandbytes")
    dtype: Dtype = flag(
        "auto", "auto is bfloat16 on CUDA (float16 on cards without it), float32 elsewhere"
    )
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps")
    heard: Literal["refuse", "allow"] = flag(
        "refuse", "clips of sources that a checkpoint was trained on; allow stands in its profile"
    )
    out: Path | None = flag(
        None, "folder for the results (default: in RUNS_DIR, named by task, checkpoints and seed)"
    )
    format: Literal["table", "csv", "markdown", "json"] = flag("table", "how to print it")

    def model(self, checkpoint: str) -> ModelSettings:
        """The settings of one of its models."""
        return ModelSettings(
            checkpoint=checkpoint,
            heard=self.heard,
            quantization=self.quantization,
            dtype=self.dtype,
            device=self.device,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(ProfileSettings, argv, __doc__ or "", _extra_flags, config=False)
    use_threads(settings.threads)
    names = space.checkpoint
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"--checkpoint {twice[0]!r} is given twice")
    out = settings.out or settings.runs_dir / _name(settings, [*names, *space.predict])
    check_folder(out, "--out")
    check_folder(settings.runs_dir, "--runs-dir")
    data = open_data(settings)
    if data.task.choices:
        raise UserError(
            f"task {data.task.name!r} has a question and options of each clip's own, so there is nothing to profile it"
            " with; give a --task whose labels are the same for all clips"
        )
    check(names, space.predict, data.task.labels)
    design, wordings = _wordings(data.task, settings)
    clips, _ = data.halves(settings)
    models, new = (
        [open_model(settings.model(n), data, [clips], machine=settings) for n in some]
        for some in (names, space.predict)
    )
    share([model.evaluator for model in (*models, *new)])
    verify(clips)
    plan = list(_plan(settings, models, wordings, clips, design))
    for model in new:
        evals = round(SHARE * len(wordings) * len(clips))
        plan.append(f"{model.name}: predicted, from about {evals:,} evals of its own")
    print("\n".join(plan), file=sys.stdout if space.dry_run else sys.stderr)
    if space.dry_run:
        hand_over({"dry_run": True, "folder": str(out), "plan": plan})
        return DONE
    setting = Setting(clips, design, wordings, settings.seed)
    found = _written(out, _measured(settings, models, new, setting))
    _show(found, settings, out)
    hand_over(found)
    return DONE


def _extra_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=["pocket-base"],
        metavar="TEXT",
        help="shipped names, directories or hub ids; differences are to the first one (default: pocket-base)",
    )
    parser.add_argument(
        "--predict",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="checkpoints whose leaderboard is predicted from 2 %% of their evals and the scores of those of"
        " --checkpoint, two or more relatives of theirs",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and its cost; score nothing"
    )


def _name(settings: ProfileSettings, names: Sequence[str]) -> str:
    """Of the folder."""
    models = "-".join(file_name(Path(n).name) for n in names)[:80]
    return f"profile-{file_name(Path(settings.task).stem)}-{models}-s{settings.seed}"


def _wordings(task: Task, settings: ProfileSettings) -> tuple[Design, list[Wording]]:
    """The grammar's design, and all wordings: its own first.

    Raises:
        UserError: There is nothing to profile with, or the file of further prompts cannot be used.
    """
    given = [] if settings.prompts is None else read_prompts(resolve(settings.prompts), task.labels)
    design = Design((), ())
    if has_grammar(task):
        design = sample(task, settings.wordings, settings.seed)
    elif not given:
        raise UserError(
            f"task {task.name!r} has no fragments to build wordings from; give `fragments` in a task file, or wordings"
            " with --prompts FILE"
        )
    speech = task == SPEECH_TASK
    held_out = read_prompts(shipped(HELD_OUT_PROMPTS), task.labels) if speech else []
    hand = seeds_of(task, SEED_PROMPTS) if speech or task.prompts else []
    return design, united(design, [(GIVEN, given), (HAND, hand), (HELD_OUT, held_out)])


def _plan(
    settings: ProfileSettings,
    models: Sequence[Model],
    wordings: Sequence[Wording],
    clips: ClipSet,
    design: Design,
) -> Iterator[str]:
    """What will be scored, how much of it is in the cache, and how long it takes."""
    yield f"clips       {len(clips)} of {settings.split}: the half that a search works on; its holdout is not heard"
    counts = {g: sum(w.group == g for w in wordings) for g in (GRAMMAR, HELD_OUT, HAND, GIVEN)}
    parts = [f"{count} {group}" for group, count in counts.items() if count]
    yield f"wordings    {len(wordings)}: {', '.join(parts)}"
    if why := can_tell(design):
        yield f"note        what parts of wordings do is left out: {why}"
    prompts = [w.prompt for w in wordings]
    asked = sum(map(evals_per_clip, prompts)) * len(clips)
    for model in models:
        missing = model.evaluator.count_missing(prompts, clips)
        time = time_of(model.evaluator, missing)
        yield f"{model.name}: {asked:,} evals, {asked - missing:,} cached; {time}"
        for line in model.evaluator.about().memory:
            yield f"memory      {line}"
        for text in model.warnings:
            yield f"warning     {text}"


def _measured(
    settings: ProfileSettings, models: Sequence[Model], new: Sequence[Model], setting: Setting
) -> dict[str, Any]:
    """The document: every checkpoint asked with every wording, the new ones with a few."""
    prompts, heard = [w.prompt for w in setting.wordings], []
    for model in models:
        evaluator = model.evaluator
        scored = score(evaluator, prompts, setting.clips, telling(model.name, len(prompts)))
        lengths = tuple(length_of(evaluator, p) for p in prompts)
        unit = unit_of(evaluator, prompts[0])
        heard.append(
            Heard(model.name, evaluator.fingerprint, model.warnings, scored, lengths, unit)
        )
        evaluator.release()  # its memory is the next one's
    forecasts = [_predicted(model, heard, setting) for model in new]
    print("statistics", file=sys.stderr, flush=True)
    found = document(setting, heard)
    about = {k: str(v) for k, v in dataclasses.asdict(settings).items()}
    return {
        **found,
        "predicted": forecasts,
        "judged_on": f"search half of {settings.split}",
        "provenance": provenance({"settings": about}),
    }


def _predicted(model: Model, heard: Sequence[Heard], setting: Setting) -> dict[str, Any]:
    """What the document says of a checkpoint that is predicted."""
    failed = {i for one in heard for i in one.scored.failed}
    kept = [i for i in range(len(setting.wordings)) if i not in failed]
    bank = [one.scored.logp[kept] for one in heard]
    asked = [setting.wordings[i].prompt for i in kept], setting.clips
    found = predicted(model.evaluator, bank, asked, setting.seed)
    model.evaluator.release()
    return {
        "name": model.name,
        "fingerprint": model.evaluator.fingerprint,
        "warnings": list(model.warnings),
        **found,
    }


def _written(out: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The document with the paths of its files, which are written."""
    write_json(out / DOCUMENT, found)
    tables = {"wordings.csv": rows_of(found), "effects.csv": effect_rows(found)}
    if found["predicted"]:
        tables["predicted.csv"] = forecast_rows(found)
    for name, rows in tables.items():
        write_text(out / name, csv_text(rows, tuple(rows[0]) if rows else ()))
    write_text(out / "report.html", page_of(found))
    best = {}
    for one in (*found["checkpoints"], *found["predicted"]):
        path = out / f"best-{file_name(Path(one['name']).name)}.yaml"
        prompts = [prompt_from(raw, found["labels"], "best") for raw in one["best"]]
        write_text(path, dump_prompts(prompts))
        best[one["name"]] = str(path)
    paths = {"folder": out, "profile": out / DOCUMENT, "report": out / "report.html"}
    return {**found, "paths": {**{k: str(v) for k, v in paths.items()}, "best": best}}


def _show(found: dict[str, Any], settings: ProfileSettings, out: Path) -> None:
    if settings.format == "json":
        print(json_text(found), end="")
        return
    if settings.format == "csv":
        rows = rows_of(found)
        print(csv_text(rows, tuple(rows[0])), end="")
        return
    for sheet in all_sheets(found):
        if settings.format == "markdown" or not sheet.rows:
            print(sheet.title + "\n" * bool(sheet.rows))
        if sheet.rows:
            print(render(sheet, settings.format), end="\n\n")
    for text in (*hand_lines(found), *length_lines(found)):
        print(text)
    for text in found["notes"]:
        print(f"note: {text}")
    for text in dict.fromkeys(
        w for one in (*found["checkpoints"], *found["predicted"]) for w in one["warnings"]
    ):
        print(f"warning: {text}")
    print(f"written to {out}; open {out / 'report.html'}, start a search with --share {out}")


if __name__ == "__main__":
    sys.exit(run_verb(main))
