"""Searches and trainings as steps of one verb: the settings they share, and steps that are taken as they are."""

import contextlib
import dataclasses
import gc
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluators.audio_lm.adapter_kinds import CONFIG
from evaluators.classifier import Classifier
from evaluators.clips import ClipSet
from evaluators.evaluator import share
from evaluators.files import is_written, read_json
from evaluators.orders import evals_per_clip
from evaluators.targets import Predictions
from opro import finetune
from opro.cli import flag
from opro.finetune import FinetuneSettings
from opro.problem import Data, Model, open_model
from opro.results.progress import spelled
from opro.results.run_folder import RunFolder
from opro.results.spending import read_spent
from opro.settings import (
    SEED_PROMPTS,
    DataSettings,
    MachineSettings,
    ModelSettings,
    OptimizeSettings,
    Quantization,
    SearchSettings,
    file_name,
)

ELSEWHERE = ("runs_dir", "out", "ray", "ray_cpus", "threads")  # no result depends on


@dataclass(frozen=True)
class TuneSettings(MachineSettings, SearchSettings, DataSettings):
    """The model."""

    checkpoint: str = flag(
        "pocket-base",
        "shipped name, directory or hub id; a folder that finetune wrote is trained further",
    )
    seeds: Path = flag(SEED_PROMPTS, "prompt file with the hand-written prompts")
    lm_model: str | None = flag(None, "language model that proposes, as of opro.optimize")
    lm_base_url: str | None = flag(None, "base URL of its OpenAI-compatible server")
    quantization: Quantization = flag("none", "4-bit weights through bitsandbytes")
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "auto", "auto is bfloat16 on CUDA cards that have it, float32 elsewhere"
    )
    device: Literal["auto", "cpu", "cuda"] = flag("auto", "where to search and to train")
    targets: Literal["attention", "attention+mlp", "llm-only"] = flag(
        "attention", "layers that are adapted, as of opro.finetune"
    )
    epochs: int | None = flag(
        None, "of each training (default: that of opro.finetune)", min=1, max=1_000
    )
    lr: float | None = flag(
        None, "highest learning rate (default: that of opro.finetune)", min=0, max=1
    )
    rank: int | None = flag(
        None, "rank of the adapter (default: that of opro.finetune)", min=1, max=4096
    )
    batch: int = flag(16, "samples of an optimizer step", min=1, max=65_536)
    out: Path | None = flag(
        None, "folder of the result (default: in RUNS_DIR, named after the settings)"
    )

    def config_without(self, *more: str) -> dict[str, Any]:
        """Plain data, as config.yaml holds it: all that a result depends on."""
        raw = dataclasses.asdict(self)
        return {
            k: str(v) if isinstance(v, Path) else v
            for k, v in raw.items()
            if k not in (*ELSEWHERE, *more)
        }

    def folder_of(self, verb: str, config: dict[str, Any]) -> Path:
        """The result's folder, named after verb, checkpoint, seed and a digest of the settings."""
        short = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:6]
        model = file_name(Path(self.checkpoint).name)
        return self.out or self.runs_dir / f"{verb}-{model}-s{self.seed}-{short}"

    def search_on(
        self, checkpoint: str, spec: Path | None = None, before: Sequence[str] = ()
    ) -> OptimizeSettings:
        """A search on a checkpoint.

        Args:
            spec: Prompts that it was trained with, which join the seeds.
            before: Run folders whose best prompts are tried first.
        """
        names = {f.name for f in dataclasses.fields(OptimizeSettings)} - {"name", "split"}
        own = {k: v for k, v in vars(self).items() if k in names}
        own |= {"checkpoint": checkpoint, "prompt_spec": spec, "share": ",".join(before) or None}
        return OptimizeSettings(**own).checked()

    def training_of(
        self, checkpoint: str, prompts: Path | None, out: Path, clips: str = "all"
    ) -> FinetuneSettings:
        """A training of a checkpoint on prompts and the first clips of the train split."""
        names = {f.name for f in dataclasses.fields(FinetuneSettings)}
        own = {k: v for k, v in vars(self).items() if k in names}
        own |= {"checkpoint": checkpoint, "prompts": prompts, "out": out, "clips": clips}
        return FinetuneSettings(**own)

    @property
    def flags(self) -> str:
        """What commands with its checkpoints need besides, where it is not the default."""
        own = TuneSettings()
        names = ("task", "quantization", "dtype", "device")
        given = {n: v for n in names if (v := vars(self)[n]) != vars(own)[n]}
        return "".join(f" --{name} {value}" for name, value in given.items())


@dataclass(frozen=True)
class Step:
    """A finished search or training.

    Attributes:
        kind: ``search`` or ``train``.
        folder: That it left: a run, or an adapter.
        seconds: That it took; of a training those of the process that ended it.
        evals: That a search asked for, found in the cache or not.
        steps: Of the optimizer.
        prompts: That were searched, or trained on.
    """

    round: int
    kind: str
    folder: str
    seconds: float
    evals: int = 0
    steps: int = 0
    prompts: int = 0


def is_trained(folder: Path) -> bool:
    """Whether a training has left its result in a folder."""
    return is_written(folder / CONFIG)


def train(training: FinetuneSettings, folder: Path, number: int) -> Step:
    """Trains, or goes on; what is finished is taken as it is. What the training tells goes to standard error."""
    if not is_trained(folder):
        with contextlib.redirect_stdout(sys.stderr):
            finetune.run(training, finetune.prepare(training), folder)
        gc.collect()  # a Trainer is held by cycles, and with it the model on the device
    made = read_json(folder / "training.json")
    seconds, steps, prompts = made["seconds"], made["steps"], len(made["prompts"])
    return Step(number, "train", str(folder), seconds, steps=steps, prompts=prompts)


def step_of(run: RunFolder, number: int) -> Step:
    """What a search came to."""
    trials = run.history.trials
    seconds = round(read_spent(run.usage, repair=False).total, 1)
    evals = sum(t.n_scored * evals_per_clip(t.prompt) for t in trials)
    return Step(number, "search", str(run.path), seconds, evals=evals, prompts=len(trials))


@contextlib.contextmanager
def opened(
    settings: TuneSettings, checkpoints: Sequence[str], data: Data, clips: Sequence[ClipSet]
) -> Iterator[list[Model]]:
    """Checkpoints to score these clips with, one after another; their memory is the next step's."""
    s = settings
    models = []
    for name in checkpoints:
        how = ModelSettings(name, quantization=s.quantization, dtype=s.dtype, device=s.device)
        models.append(open_model(how, data, clips, machine=s))
    share([model.evaluator for model in models])
    yield models
    for model in models:
        model.evaluator.release()


def said_by(model: Model, classifier: Classifier, clips: ClipSet) -> Predictions:
    """What a model with a classifier says of clips."""
    table = model.evaluator.score([classifier.prompt], clips)
    return table.predict(classifier, f"{model.name}, {classifier.prompt_id}")


def time_left(taken: Sequence[Step], rest: Sequence[tuple[str, int]]) -> str:
    """How long the steps that are left may take, by those that were taken; "" before each kind was.

    Args:
        rest: Kind of each, and its optimizer steps, of a search 0.

    >>> taken = [Step(0, "search", "", 60.0), Step(1, "train", "", 30.0, steps=10)]
    >>> time_left(taken, [("search", 0), ("train", 20)])
    '; about 2 min left'
    """
    pace = {}
    for kind in {kind for kind, _ in rest}:
        own = [s for s in taken if s.kind == kind]
        if not own:
            return ""
        pace[kind] = sum(s.seconds for s in own) / sum(s.steps or 1 for s in own)
    return f"; about {spelled(sum(pace[kind] * (steps or 1) for kind, steps in rest))} left"


def say(text: str) -> None:
    """To people, while it goes on."""
    print(text, file=sys.stderr, flush=True)
