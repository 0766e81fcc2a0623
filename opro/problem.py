"""Data, models and problems: what a verb works on, opened once from settings and checked before anything is scored."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.build import build_evaluator
from evaluators.choices import in_orders
from evaluators.classifier import read_classifiers
from evaluators.clips import ClipSet
from evaluators.errors import LeakError, UserError
from evaluators.evaluator import Evaluator, share
from evaluators.files import resolve
from evaluators.manifest import manifest_digest, read_manifest, verify
from evaluators.names import shared_names
from evaluators.prompts import Prompt
from evaluators.renderings import read_renderings, renderings_path
from evaluators.several import PerCheckpoint
from evaluators.splits import (
    Registry,
    balanced_order,
    check_registry,
    check_trained_on,
    halves,
    read_registry,
    trained_sources,
)
from evaluators.tasks import SPEECH_TASK, Task, task_named
from opro.settings import (
    SEED_PROMPTS,
    DataSettings,
    MachineSettings,
    ModelSettings,
    OptimizeSettings,
    SplitSettings,
    clip_count,
    rendering_count,
)

log = logging.getLogger(__name__)
OWN = "python:"  # before the class of an evaluator that was given as an object
CACHE = ".cache"  # scores, under the runs folder, shared by all runs


@dataclass(frozen=True)
class Data:
    """A manifest with its task and its project's split registry."""

    task: Task
    manifest: Path
    registry: Registry | None

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest: uses of the test split are counted by it."""
        return manifest_digest(self.manifest)

    def split(self, name: str) -> ClipSet:
        """The clips of a split in balanced order.

        Raises:
            UserError: The manifest cannot be read, a source has another split in the registry, or all clips are of one
                class.
        """
        clips = balanced_order(read_manifest(self.manifest, self.task, name))
        check_registry(clips, self.registry)
        if len(labels := {clip.label for clip in clips}) < 2 and not self.task.choices:
            lacking = ", ".join(label for label in self.task.labels if label not in labels)
            raise UserError(
                f"split {name!r} of {str(self.manifest)!r} holds clips of {labels.pop()} alone, so nothing can be told"
                f" apart there; add clips of {lacking}, or give another --split"
            )
        return ClipSet(self.task, tuple(clips), self.manifest)

    def halves(self, settings: SplitSettings) -> tuple[ClipSet, ClipSet]:
        """(search half, holdout) of a split, halved by source and then cut down to ``--clips``.

        In this order, so that a source that is held out in one run is never searched by another. Both are heard in as
        many renderings as ``--renderings`` says, their first clips those of the manifest.

        Raises:
            UserError: A half lacks a class, or as `split` and `again`.
        """
        everything = self.split(settings.split)
        count = clip_count(settings.clips, len(everything), settings.split)
        search, holdout = halve(everything, count)
        if settings.renderings == "1":
            return search, holdout
        if count < len(everything):
            raise UserError(
                f"--renderings {settings.renderings} with --clips {settings.clips}: renderings are of all clips;"
                " leave one of the two out"
            )
        return self.again(search, settings.renderings), self.again(holdout, settings.renderings)

    def heard(self, name: str) -> ClipSet:
        """The clips of a split, those of the manifest first, then those of all further renderings.

        Raises:
            UserError: As `split` and `again`.
        """
        return self.again(self.split(name))

    def again(self, first: ClipSet, asked: str = "all") -> ClipSet:
        """Clips of one split, then further renderings of their sources, each in balanced order.

        Args:
            first: As the manifest has them.
            asked: Value of ``--renderings``.
        Raises:
            UserError: There are not so many, or they cannot be read.
        """
        sources = {clip.source_id for clip in first}
        every = read_renderings(self.manifest, self.task, first[0].split)
        taken = every[: rendering_count(asked, len(every) + 1) - 1]
        own = (balanced_order([c for c in one if c.source_id in sources]) for one in taken)
        more = (clip for one in own for clip in one)
        return dataclasses.replace(first, clips=(*first.clips, *more))

    def renderings(self, split: str) -> int:
        """How many renderings of a split there are, the manifest's own included."""
        return 1 + len(read_renderings(self.manifest, self.task, split))


def halve(clips: ClipSet, count: int | None = None) -> tuple[ClipSet, ClipSet]:
    """(search half, holdout): halved by source, then cut down to those of the first `count` clips.

    Raises:
        UserError: A half lacks a class.
    """
    taken = {c.clip_id for c in clips[:count]}
    both = [tuple(c for c in half if c.clip_id in taken) for half in halves(clips.clips)]
    for half, kind in zip(both, ("search", "holdout"), strict=True):
        held = {c.label for c in half}
        lacking = [label for label in clips.task.labels if label not in held]
        if lacking and not (clips.task.choices and held):
            raise UserError(
                f"the {kind} half of the {len(taken)} clips lacks a class: take more clips, of at least two sources a"
                f" class; there is none of {', '.join(map(repr, lacking[:6]))}"
            )
    search, holdout = (dataclasses.replace(clips, clips=half) for half in both)
    return search, holdout


def open_data(settings: DataSettings) -> Data:
    """The data that the settings name.

    Raises:
        UserError: The task, the manifest or the registry cannot be used.
    """
    return data_of(task_named(settings.task), resolve(settings.manifest))


def data_of(task: Task, manifest: Path) -> Data:
    """The data of a task and a manifest.

    Raises:
        UserError: The registry cannot be used.
    """
    return Data(task, manifest, read_registry(manifest))


@dataclass(frozen=True)
class Model:
    """A checkpoint behind an evaluator. Nothing is loaded before the first score.

    Attributes:
        name: As it was asked for.
        checkpoint: Its files; None where it has none here.
        warnings: They belong into every result.
    """

    name: str
    evaluator: Evaluator
    checkpoint: Checkpoint | None
    warnings: tuple[str, ...] = ()


def open_model(
    settings: ModelSettings,
    data: Data,
    clips: Sequence[ClipSet],
    *,
    machine: MachineSettings | None = None,
) -> Model:
    """The model that the settings name, and what it was trained on compared with the clips it will score.

    Args:
        clips: All clip sets that will be scored.
        machine: Where scores are kept and computed; None: nowhere, and in this process.
    Raises:
        UserError: There is no such checkpoint, or it was trained on sources of the clips and that is refused.
    """
    evaluator, stored = build_evaluator(
        settings.checkpoint,
        adapter=settings.adapter,
        quantization=settings.quantization,
        device=settings.device,
        dtype=settings.dtype,
        cache=machine.runs_dir / CACHE if machine else None,
        ray=machine.ray if machine else None,
        ray_cpus=machine.ray_cpus if machine else 1,
    )
    known = trained_sources(
        settings.checkpoint, stored, data.manifest, settings.train_manifest, data.task
    )
    scored = [clip for part in clips for clip in part]
    warnings = check_trained_on(scored, known, settings.checkpoint, settings.heard)
    checkpoint = evaluator.about().checkpoint
    return Model(settings.checkpoint, evaluator, checkpoint, tuple(warnings))


def open_joint_model(
    settings: ModelSettings,
    names: Sequence[str],
    data: Data,
    clips: Sequence[ClipSet],
    *,
    machine: MachineSettings,
) -> Model:
    """The model of a checkpoint; several ones as one that scores the clips of `ClipSet.repeat`.

    Args:
        settings: Of the first one; an adapter is its alone.
        names: The checkpoints.
    Raises:
        UserError: As `open_model`.
    """
    models = []
    for name in names:
        adapter = settings.adapter if name == settings.checkpoint else None
        own = dataclasses.replace(settings, checkpoint=name, adapter=adapter)
        models.append(open_model(own, data, clips, machine=machine))
    if len(models) == 1:
        return models[0]
    share([model.evaluator for model in models])
    evaluator = PerCheckpoint({m.name: m.evaluator for m in models})
    warnings = tuple(text for model in models for text in model.warnings)
    return Model(", ".join(names), evaluator, None, warnings)


@dataclass(frozen=True)
class Problem:
    """What a search works on.

    Attributes:
        search_clips, holdout_clips: The halves; no source is in both.
        identity: What a resumed run must find again.
        warnings: They stand in every result.
    """

    task: Task
    seed_prompts: tuple[Prompt, ...]
    search_clips: ClipSet
    holdout_clips: ClipSet
    evaluator: Evaluator
    identity: Mapping[str, str | int]
    warnings: tuple[str, ...] = ()


def open_problem(settings: OptimizeSettings, beside: Sequence[Evaluator] = ()) -> Problem:
    """The problem of a search. Raises UserError for whatever would fail later; scores nothing, writes nothing.

    Args:
        beside: Evaluators that hold, or will hold, what this one can share with them.
    """
    data = open_data(settings)
    search, holdout = data.halves(settings)
    seeds = open_seeds(settings, data.task)
    names = settings.checkpoints
    model = open_joint_model(settings, names, data, [search, holdout], machine=settings)
    share([*beside, model.evaluator])
    warnings = list(model.warnings)
    if settings.adapter is not None and settings.prompt_spec is None:
        warnings.append("the prompt the adapter was trained with is unknown: give --prompt-spec")
    verify([*search, *holdout])
    evaluator = model.evaluator
    if len(names) > 1:
        search, holdout = search.repeat(names), holdout.repeat(names)
    identity: dict[str, str | int] = {
        "fingerprint": evaluator.fingerprint + ("-swap" if settings.swap else ""),
        **asked_identity(settings, data),
    }
    return Problem(data.task, seeds, search, holdout, evaluator, identity, tuple(warnings))


def asked_identity(settings: OptimizeSettings, data: Data) -> dict[str, str | int]:
    """What a resumed run must find again, but for who scores and who proposes."""
    return {
        "data": data.digest,
        "task": task_id(data.task),
        "seed": settings.seed,
        "seeds": _seeds_digest(open_seeds(settings, data.task)),
        **renderings_identity(settings),
    }


def open_evaluator(
    given: Evaluator | str | Path,
    runs_dir: Path = Path("runs"),
    model: ModelSettings | None = None,
) -> tuple[str, Evaluator, frozenset[str] | None]:
    """(Name, evaluator, source ids it was trained on) of a checkpoint, with its cache, or of an evaluator as it is.

    An evaluator of one's own goes by ``python:`` and the name of its class; what it was trained on is unknown.

    Args:
        model: Adapter, precision and device of a checkpoint; None: as they are by default.
    Raises:
        UserError: There is no such checkpoint.
    """
    if isinstance(given, str | Path):
        how = model or ModelSettings()
        evaluator, stored = build_evaluator(
            str(given),
            adapter=how.adapter,
            quantization=how.quantization,
            device=how.device,
            dtype=how.dtype,
            cache=runs_dir / CACHE,
        )
        return str(given), evaluator, stored
    if isinstance(given, type) or not isinstance(given, Evaluator):
        what = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        raise UserError(
            f"evaluator is {what}; expected the name of a checkpoint, or an object with all that Evaluator has, as a"
            " subclass of opro.Uncached: see opro/examples/evaluator.py"
        )
    if model is not None and (model.adapter or model.quantization != "none"):
        raise UserError(
            "adapter and quantization go with the name of a checkpoint; an evaluator given as an object has its own"
        )
    checkpoint = given.about().checkpoint
    both = in_orders(given)
    if checkpoint is None:
        return f"{OWN}{type(given.innermost).__name__}", both, None
    return checkpoint.name, both, checkpoint.trained_on


def problem_of(
    evaluator: Evaluator | str | Path,
    seeds: Sequence[Prompt],
    search: ClipSet,
    holdout: ClipSet,
    settings: OptimizeSettings,
) -> Problem:
    """The problem of a search over objects; the same one as `open_problem` finds for their names.

    Raises:
        UserError: As `open_problem`, or a source is in both clip sets.
    """
    name, opened, stored = open_evaluator(evaluator, settings.runs_dir, settings)
    both = shared_names({c.source_id for c in search}, {c.source_id for c in holdout})
    if both:
        raise LeakError(f"source {both[0]!r} is searched on and held out; give disjoint clip sets")
    known = trained_sources(name, stored, search.manifest, settings.train_manifest, search.task)
    clips = [*search, *holdout]
    warnings = check_trained_on(clips, known, name, settings.heard)
    verify(clips)
    identity: dict[str, str | int] = {
        "fingerprint": opened.fingerprint + ("-swap" if settings.swap else ""),
        "data": _digest_of(search, holdout, settings.manifest),
        "task": task_id(search.task),
        "seed": settings.seed,
        "seeds": _seeds_digest(seeds),
        **renderings_identity(settings),
    }
    return Problem(search.task, tuple(seeds), search, holdout, opened, identity, tuple(warnings))


def renderings_identity(settings: OptimizeSettings) -> dict[str, str]:
    """Digest of the table of further renderings, where the decision hears some of them."""
    path = renderings_path(resolve(settings.manifest)) if settings.renderings != "1" else None
    if path is None or not path.is_file():
        return {}
    return {"renderings": hashlib.sha256(path.read_bytes()).hexdigest()}


def _digest_of(search: ClipSet, holdout: ClipSet, manifest: Path) -> str:
    """Of the manifest where the run's settings name one, as on the command line; else of the clips themselves."""
    if not str(manifest).startswith(OWN):
        return manifest_digest(resolve(manifest))
    parts = [
        [(c.clip_id, c.label, c.source_id, c.sha256) for c in half] for half in (search, holdout)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _seeds_digest(seeds: Sequence[Prompt]) -> str:
    return hashlib.sha256("".join(_plain_digest(p) for p in seeds).encode()).hexdigest()


def seeds_of(task: Task, path: Path) -> list[Prompt]:
    """The prompts of a file; of the default one, which is of the task `speech`, the task's own.

    A file may be a run's best.yaml: its decision rules are not taken, and it is said.

    Raises:
        UserError: The file is no prompt file, or neither file nor task has any.
    """
    if path != SEED_PROMPTS or task == SPEECH_TASK:
        return _prompts_of(resolve(path), task)
    if not task.prompts:
        raise UserError(
            f"task {task.name!r} has no prompts of its own; give some with --seeds FILE, or as prompts in its file"
        )
    return list(task.prompts)


def _prompts_of(path: Path, task: Task) -> list[Prompt]:
    found = read_classifiers(path, task.labels)
    if any(any(one.bias_of_each) or one.calibration for one in found):
        log.warning("%s: thresholds and calibration of these prompts are not taken here", path)
    return [one.prompt for one in found]


def task_id(task: Task) -> str:
    """What a resumed run must find again: the name of a shipped task, a digest of any other one's file."""
    if task == SPEECH_TASK:
        return task.name
    return f"{task.name}-{hashlib.sha256(task.text().encode()).hexdigest()[:12]}"


def open_seeds(settings: OptimizeSettings, task: Task) -> tuple[Prompt, ...]:
    """The seed prompts, each once; with ``--swap`` in both orders."""
    found = seeds_of(task, settings.seeds)
    if settings.prompt_spec is not None:
        found += _prompts_of(settings.prompt_spec, task)
    unique = {p.digest: p for p in found}.values()
    return tuple(dataclasses.replace(p, both_orders=p.both_orders or settings.swap) for p in unique)


def _plain_digest(prompt: Prompt) -> str:
    return dataclasses.replace(prompt, both_orders=False).digest
