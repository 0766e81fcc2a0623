"""What any wording could reach: trains a soft prompt: python -m opro.ceiling --checkpoint pocket-base --prompt RUN

Vectors stand in the place of a prompt's words, as many as it has tokens, and learn from the train split by the loss at
the answer; all weights stay as they are. A wording of that length is one of the points that they may take, so what they
reach is about what words could. The epoch and the seed with the lowest loss on the search half of dev are kept, decided
with the threshold that is fitted there; the holdout (or --split test) judges, as of every prompt. The same command
continues after an interruption, from the last seed that was done. opro.matrix --soft DIR puts the result beside other
rows.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluators.audio_lm.checkpoint import Checkpoint, open_checkpoint
from evaluators.build import FEATURES
from evaluators.classifier import Classifier
from evaluators.clips import ClipSet
from evaluators.errors import UserError
from evaluators.evaluator import ScoreTable
from evaluators.files import check_folder, disk_faults, is_written, read_json, write_json
from evaluators.manifest import verify
from evaluators.prompts import Prompt
from evaluators.splits import check_trained_on
from evaluators.statistics.calibration import fit_shift
from evaluators.statistics.metrics import balanced_accuracy
from evaluators.targets import Predictions
from evaluators.threads import use_threads
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.problem import Data, Model, open_data, open_model, seeds_of
from opro.results.ceilings import LIMITS, RESULT, VECTORS, Reached, ceiling_of, ceiling_sheet
from opro.results.looks import look_id, record_use, said_of_uses
from opro.results.predictions import write_predictions
from opro.results.provenance import provenance
from opro.results.run_folder import RunFolder, open_run
from opro.results.sheet import render
from opro.results.shown import time_of
from opro.settings import (
    SEED_PROMPTS,
    DataSettings,
    MachineSettings,
    ModelSettings,
    SplitSettings,
    clip_count,
    file_name,
)

PASSES = 2  # evals' work of a clip in an epoch: forward, and backward without gradients of weights
NO_VERDICT = ("out", "runs_dir", "threads", "ray", "ray_cpus")  # settings that change no number


@dataclass(frozen=True)
class CeilingSettings(MachineSettings, ModelSettings, DataSettings):
    """The soft prompt."""

    prompt: Path | None = flag(
        None,
        "finished run (its prompt) or prompt file (the best on the search half): the vectors' number and start"
        " (default: the best hand-written one)",
    )
    split: Literal["dev", "test"] = flag(
        "dev", "what judges; of dev the holdout, for the other half is tuned on"
    )
    clips: str = flag(
        "all", "how many clips of the train split: all, or the first N in a fixed balanced order"
    )
    epochs: int = flag(5, "how often each train clip is shown at most", min=1, max=1_000)
    lr: float = flag(
        0.1,
        "highest learning rate, in root mean squares of the vocabulary's vectors",
        min=0,
        max=100,
    )
    batch: int = flag(16, "clips of an optimizer step", min=1, max=65_536)
    seeds: int = flag(3, "trainings, of which the one with the lowest loss is kept", min=1, max=100)
    seed: int = flag(0, "the first one's; also of the resamples", min=0)
    out: Path | None = flag(
        None, "folder of the result (default: RUNS_DIR/ceiling-..., made from the settings)"
    )


@dataclass(frozen=True)
class Plan:
    """What is trained on what; nothing is loaded yet.

    Attributes:
        hand: Prompts written by people, of which the best on the search half is the reference.
        searched: What a run found; None: no run was given.
    """

    data: Data
    checkpoint: Checkpoint
    model: Model
    train: ClipSet
    search: ClipSet
    judged: ClipSet
    hand: tuple[Prompt, ...]
    searched: Prompt | None


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(CeilingSettings, argv, __doc__ or "", _add_dry_run)
    use_threads(settings.threads)
    folder = settings.out or default_out(settings)
    check_folder(folder, "--out")
    check_folder(settings.runs_dir, "--runs-dir")
    plan = prepare(settings)
    if space.dry_run:
        lines = [f"{name:11} {text}" for name, text in describe(plan, settings, folder)]
        print("\n".join(lines))
        hand_over({"dry_run": True, "folder": str(folder), "plan": lines})
        return DONE
    with disk_faults(folder), open_run(folder, config_of(settings)):
        if not is_written(folder / RESULT):
            _run(plan, settings, folder)
        show(folder)
    return DONE


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and what it costs, and stop"
    )


def config_of(settings: CeilingSettings) -> dict[str, Any]:
    """The settings as plain data, as config.yaml holds them."""
    raw = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(settings).items()}
    return {k: v for k, v in raw.items() if k not in NO_VERDICT}


def default_out(settings: CeilingSettings) -> Path:
    """The result's folder, named after checkpoint and a digest of the settings."""
    raw = json.dumps(config_of(settings), sort_keys=True)
    short = hashlib.sha256(raw.encode()).hexdigest()[:6]
    model = file_name(Path(settings.checkpoint).name)
    return settings.runs_dir / f"ceiling-{model}-s{settings.seed}-{short}"


def prepare(settings: CeilingSettings) -> Plan:
    """The plan that the settings ask for. Loads no weights, writes nothing.

    Raises:
        UserError: Whatever would fail later.
    """
    data = open_data(settings)
    if data.task.choices:
        raise UserError(
            f"task {data.task.name!r} asks each clip its own question; a soft prompt stands for one question alone"
        )
    if settings.checkpoint == "fake" or settings.checkpoint.startswith("endpoint:"):
        raise UserError(
            f"checkpoint {settings.checkpoint!r} has no weights here, through which a soft prompt could learn; give one"
            " that has"
        )
    if settings.ray is not None:
        raise UserError("--ray: a soft prompt is trained in one process; leave it out")
    checkpoint = open_checkpoint(settings.checkpoint, settings.adapter, settings.quantization)
    checkpoint.need_packed("a soft prompt", "compare with opro.finetune alone")
    search, judged = data.halves(SplitSettings(split="dev"))
    if settings.split == "test":
        judged = data.split("test")
    train = data.split("train")
    train = train.first(clip_count(settings.clips, len(train), "train"))
    if {c.label for c in train} < set(data.task.labels) or len(train) < settings.batch:
        raise UserError(
            f"the {len(train)} train clips lack a class or are fewer than a batch of {settings.batch}; take more clips"
        )
    hand, searched = _prompts(settings, data)
    verify([*train, *search, *judged])
    check_trained_on(
        [*search, *judged], frozenset(c.source_id for c in train), "the train split's soft prompt"
    )
    model = open_model(settings, data, [search, judged], machine=settings)
    return Plan(data, checkpoint, model, train, search, judged, hand, searched)


def _prompts(settings: CeilingSettings, data: Data) -> tuple[tuple[Prompt, ...], Prompt | None]:
    """(Prompts by people, what a run found)."""
    path = settings.prompt
    if path is None or not path.is_dir():
        return tuple(seeds_of(data.task, path or SEED_PROMPTS)), None
    run = RunFolder.read(path, "--prompt ")
    best = run.best  # of a finished run
    if run.task.labels != data.task.labels:
        raise UserError(
            f"--prompt {str(path)!r} decides between {', '.join(run.task.labels)}; expected"
            f" {', '.join(data.task.labels)}"
        )
    baseline = run.history.trials[int((run.history.selection or {})["baseline"])]
    return (baseline.prompt,), best.prompt


def describe(plan: Plan, settings: CeilingSettings, folder: Path) -> list[tuple[str, str]]:
    """The plan as lines of (name, text)."""
    sources = len({c.source_id for c in plan.train})
    evals = PASSES * len(plan.train) * settings.epochs * settings.seeds
    start = "what the run found" if plan.searched is not None else "the best of these"
    return [
        ("result", str(folder)),
        ("checkpoint", f"{plan.checkpoint.name}, quantization {plan.checkpoint.quantization}"),
        (
            "clips",
            f"{len(plan.train):,} of {sources} train sources, validated on {len(plan.search)} of the search half of"
            f" dev, judged on {len(plan.judged)} of {_judged_on(settings)}",
        ),
        ("prompts", f"{len(plan.hand)} by hand; the vectors begin as {start}"),
        (
            "recipe",
            f"{settings.seeds} x at most {settings.epochs} epochs, rate {settings.lr:g}, batches of {settings.batch}",
        ),
        (
            "cost",
            "forward and backward over the suffix alone, after kept keys and values of what stands before it: at most"
            f" the work of {evals:,} evals, {time_of(plan.model.evaluator, evals)}",
        ),
        *(("memory", line) for line in plan.model.evaluator.about().memory),
        *(("warning", text) for text in plan.model.warnings),
    ]


def _judged_on(settings: CeilingSettings) -> str:
    return "holdout of dev" if settings.split == "dev" else settings.split


@dataclass(frozen=True, eq=False)
class Row:
    """A prompt, in words or not, with the threshold that is best on the search half.

    Attributes:
        search_half: Balanced accuracy there.
    """

    kind: str
    name: str
    tokens: int
    classifier: Classifier
    search_half: float
    said: Predictions

    def to_dict(self) -> dict[str, Any]:
        """As in ceiling.json."""
        words = {} if self.kind == "soft" else {"prompt": self.classifier.prompt.to_dict()}
        return {
            "kind": self.kind,
            "name": self.name,
            "tokens": self.tokens,
            "search_half": self.search_half,
            "bias": self.classifier.bias,
            **words,
            "predictions": f"{self.kind}.csv",
        }


def _row(
    kind: str, name: str, tokens: int, prompt: Prompt, tables: tuple[ScoreTable, ScoreTable]
) -> Row:
    """A row from the scores of (search half, judged clips)."""
    fitted, judged = tables
    one, score = _with_threshold(fitted, prompt)
    return Row(kind, name, tokens, one, score, judged.predict(one, name))


def _with_threshold(fitted: ScoreTable, prompt: Prompt) -> tuple[Classifier, float]:
    """(The prompt with its best threshold, balanced accuracy with it) of the clips of a table."""
    bias = fit_shift(fitted.targets.truth, fitted.logp[fitted.prompts.index(prompt)])
    said = fitted.predict(Classifier(prompt, bias))
    return Classifier(prompt, bias), balanced_accuracy(said.targets.kinds, said.right)


def _run(plan: Plan, settings: CeilingSettings, folder: Path) -> None:
    """Scores the words, trains, scores the vectors, and writes the result."""
    from evaluators.finetuning.soft_prompt import (
        SoftRecipe,
        SoftScorer,
        SoftTraining,
        save_soft,
        train_seeds,
    )

    begin = time.time()
    plain = plan.model.evaluator
    words = list(dict.fromkeys([*plan.hand, *([plan.searched] if plan.searched else [])]))
    fitted = plain.score(words, plan.search)
    hand = max(plan.hand, key=lambda p: _with_threshold(fitted, p)[1])
    start = plan.searched or hand
    scorer = SoftScorer(
        plan.checkpoint,
        None,
        settings.device,
        settings.dtype,
        features=settings.runs_dir / FEATURES,
    )
    asked = {"hand": hand, **({"searched": plan.searched} if plan.searched else {})}
    tokens = {kind: len(scorer.places(prompt)) for kind, prompt in asked.items()}
    plain.release()  # its memory is the training's
    recipe = SoftRecipe(settings.epochs, settings.lr, settings.batch, seed=settings.seed)
    training = SoftTraining(scorer, scorer.words(start), plan.train, plan.search, recipe)
    soft, seeds = train_seeds(training, folder, settings.seeds, _say)
    scorer.soft = soft
    uses = _note_use(plan, settings, [*asked.values()], (scorer.fingerprint, start))
    both = scorer.score([start], plan.search), scorer.score([start], plan.judged)
    scorer.release()  # a card need not hold the weights twice
    judged = plain.score([*dict.fromkeys(asked.values())], plan.judged)
    plain.release()
    names = {"hand": "best hand-written", "searched": "searched"}
    rows = [_row(k, names[k], tokens[k], asked[k], (fitted, judged)) for k in asked]
    count = len(soft.vectors)
    rows.append(_row("soft", f"soft prompt of {count} tokens", count, start, both))
    for row in rows:
        write_predictions(folder / f"{row.kind}.csv", row.said)
    save_soft(folder / VECTORS, soft)
    result = {
        **_about(plan, settings, start),
        "fingerprint": scorer.fingerprint,
        "tokens": count,
        "digest": soft.digest,
        "bias": rows[-1].classifier.bias,
        "test_openings": uses,
        "seeds": seeds,
        "rows": [row.to_dict() for row in rows],
        **ceiling_of(Reached(**{row.kind: row.said for row in rows}), settings.seed),
    }
    result["seconds"] = round(time.time() - begin, 1)
    write_json(folder / RESULT, result)


def _about(plan: Plan, settings: CeilingSettings, start: Prompt) -> dict[str, Any]:
    """What was trained on what, judged on what, as in ceiling.json."""
    return {
        "checkpoint": plan.checkpoint.name,
        "weights": plan.checkpoint.digest,
        "prompt": start.to_dict(),
        "prompt_id": start.prompt_id,
        "manifest": plan.data.digest,
        "train": {
            "clips": len(plan.train),
            "sources": sorted({c.source_id for c in plan.train}),
        },
        "judged_on": _judged_on(settings),
        "clips": len(plan.judged),
        "sources": len({c.source_id for c in plan.judged}),
        "limits": list(LIMITS),
        "warnings": [*plan.model.warnings, *_flattered(plan, settings)],
        "provenance": provenance({"settings": config_of(settings)}),
    }


def _flattered(plan: Plan, settings: CeilingSettings) -> list[str]:
    """A warning where the clips that judge have chosen what was searched."""
    if plan.searched is None or settings.split != "dev":
        return []
    return [
        "the holdout chose what was searched, if the search was of these clips: its score is flattered, and what is"
        " left is understated; --split test judges both alike"
    ]


def _note_use(
    plan: Plan, settings: CeilingSettings, words: Sequence[Prompt], soft: tuple[str, Prompt]
) -> int | None:
    """Counts the look at the test split, before it is scored; None of the holdout."""
    if settings.split != "test":
        return None
    own = plan.model.evaluator.fingerprint
    shows = [look_id("ceiling", own, Classifier(p)) for p in words]
    shows.append(look_id("ceiling", soft[0], Classifier(soft[1])))
    about = f"ceiling of {plan.checkpoint.name}"
    return record_use(settings.runs_dir, plan.data.digest, "ceiling", about, shows)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(folder: Path) -> None:
    """Prints what a finished folder holds."""
    result = read_json(folder / RESULT)
    kept = min(result["seeds"], key=lambda one: float(one["best"]["loss"]))
    print(render(ceiling_sheet(result)))
    print(
        f"\nceiling   {result['sentence']}\ntrained   {len(result['seeds'])} seeds on {result['train']['clips']} train"
        f" clips; seed {kept['seed']}, epoch {kept['best']['epoch']} kept"
    )
    for text in (*result["limits"], *result["warnings"]):
        print(f"note      {text}")
    if result["test_openings"] is not None:
        print(said_of_uses(result["test_openings"]))
    print(
        f"saved     {folder / RESULT}, {VECTORS}\n"
        f"next      python -m opro.matrix --checkpoint {result['checkpoint']} --soft {folder}"
    )
    hand_over({**result, "paths": {"folder": str(folder), "ceiling": str(folder / RESULT)}})


if __name__ == "__main__":
    sys.exit(run_verb(main))
