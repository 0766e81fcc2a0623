"""Settings of verbs in groups: each flag stands here once, and a signature says which group a function may read."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluators.environment import checked_url
from evaluators.errors import UserError
from evaluators.statistics.metrics import METRICS
from opro.cli import check_values, flag

Quantization = Literal["none", "nf4"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
REPEATS = "repeats"  # in a run's folder, the folders of its searches
MOST_EDITS = 50  # trivial ones of a prompt
SEED_PROMPTS = Path("prompts/seeds/baselines.yaml")
ADDED = (
    "lm_separate",
    "lm_reply_tokens",
    "lm_effort",
    "presentations",
    "max_prompt_tokens",
    "renderings",
    "repeats",
    "brittleness",
)  # settings that runs of version 0.1 did not have


@dataclass(frozen=True)
class Strategy:
    """How a search goes.

    Attributes:
        batch: Prompts a round, where ``--candidates`` does not say.
        races: Losers are dropped early; otherwise every candidate is scored on all search clips.
        lm_alone: A language model, where one is configured, proposes without the rewriter.
    """

    batch: int = 10
    races: bool = False
    lm_alone: bool = False


STRATEGIES = {
    "race": Strategy(races=True),
    "opro": Strategy(batch=8, lm_alone=True),  # 8 a step in the paper (arXiv 2309.03409)
    "random": Strategy(),
}


@dataclass(frozen=True)
class ModelSettings:
    """The model."""

    checkpoint: str = flag(
        "pocket-base",
        "shipped name (pocket-base, pocket-lora), directory or hub id; endpoint:MODEL is behind a server"
        " (OPRO_AUDIO_BASE_URL), endpoint:MODEL#TAG tags its weights; 'fake' needs no weights",
    )
    adapter: Path | None = flag(None, "directory of a LoRA adapter made elsewhere")
    train_manifest: Path | None = flag(
        None, "manifest the adapter was trained on; its sources may not be scored"
    )
    heard: Literal["refuse", "allow"] = flag(
        "refuse",
        "clips of sources that the checkpoint was trained on; allow stands in every result",
    )
    quantization: Quantization = flag("none", "4-bit weights through bitsandbytes")
    dtype: Dtype = flag(
        "auto", "auto is bfloat16 on CUDA (float16 on cards without it), float32 elsewhere"
    )
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps")


def model_settings(given: object, config: Mapping[str, Any]) -> ModelSettings:
    """The model's settings: flags over a run's over defaults.

    Args:
        given: Settings of a verb, with names of `ModelSettings`; None stands for a flag that was not given.
        config: Of the run; empty where there is none.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(ModelSettings):
        value = getattr(given, field.name, None)
        value = value if value not in (None, "refuse") else config.get(field.name)
        if value is not None:
            is_path = field.name in ("adapter", "train_manifest")
            values[field.name] = Path(value) if is_path else value
    values["heard"] = getattr(given, "heard", "refuse")
    return ModelSettings(**values)


@dataclass(frozen=True)
class ThreadSettings:
    """The machine."""

    threads: int = flag(
        0,
        "threads on the CPU; 0 is what OMP_NUM_THREADS says, else one a core, or as many as the container lends",
        min=0,
        max=1024,
    )


@dataclass(frozen=True)
class MachineSettings(ThreadSettings):
    """The machine."""

    ray: str | None = flag(
        None,
        "score on a Ray cluster: auto (one that runs here, else one started for this run) or HOST:PORT",
    )
    ray_cpus: int = flag(1, "CPUs of a worker where the cluster has no GPU", min=1, max=1024)
    runs_dir: Path = flag(Path("runs"), "where run folders, scores and the count of test uses lie")


@dataclass(frozen=True)
class DataSettings:
    """The clips."""

    task: str = flag(
        "speech",
        "what is decided about a clip: speech, animal, choices, esc50, esc50-groups, keywords, or a task file",
    )
    manifest: Path = flag(Path("data/demo"), "manifest CSV, or the folder that holds manifest.csv")


@dataclass(frozen=True)
class SearchSettings:
    """The search."""

    iterations: int = flag(5, "rounds of proposals", min=0, max=10_000)
    candidates: int = flag(
        0, "prompts a round; 0 is 10, with --strategy opro the paper's 8", min=0, max=10_000
    )
    strategy: Literal["race", "opro", "random"] = flag(
        "race",
        "race drops losers early; opro is the paper's algorithm and scores everything; random"
        " paraphrases the seeds",
    )
    objective: Literal["balanced_accuracy", "accuracy", "auroc", "nll", "worst_slice"] = flag(
        "balanced_accuracy", "what the search climbs", known=METRICS
    )
    threshold: Literal["argmax", "dev"] = flag(
        "dev",
        "dev fits each prompt's decision threshold on the search half, so that wording must gain beyond it;"
        " argmax takes the likeliest answer",
    )
    swap: bool = flag(
        False, "score each prompt with its options in both orders and average the probabilities"
    )
    max_evals: int | None = flag(
        None,
        "evals of search and selection at most (controls, first seed prompt and --brittleness come on top)",
        min=1,
    )
    max_prompt_tokens: int | None = flag(
        None,
        "tokens of a candidate at most, system message and text, by the checkpoint's own tokenizer (words where it has"
        " none here)",
        min=1,
    )
    brittleness: int = flag(
        0,
        "trivial edits (a blank, a line break, case, a synonym, a typo) of each finalist that are scored on up to 200"
        " clips of the search half, 50 for all; of finalists that tie the less brittle one is then handed over",
        min=0,
        max=MOST_EDITS,
    )
    seed: int = flag(0, "makes the search repeatable", min=0)
    repeats: int = flag(
        1,
        "searches, from --seed on one a seed, with one decision over all; --max-evals, --max-cost and --max-tokens are"
        " for the whole and divided evenly",
        min=1,
        max=100,
    )


@dataclass(frozen=True)
class ProposerSettings:
    """The proposer."""

    proposer: Literal["auto", "lm", "rewriter"] = flag(
        "auto",
        "auto takes a language model, beside the built-in rewriter, when one is configured, else the"
        " rewriter alone; lm the language model alone",
    )
    lm_model: str | None = flag(
        None,
        "name of the language model, or directory of a transformers model to run in this process",
    )
    lm_base_url: str | None = flag(
        None, "base URL of an OpenAI-compatible server; the key comes from OPENAI_API_KEY"
    )
    lm_separate: bool = flag(
        False, "ask for each prompt in a call of its own, as OPRO's paper does, and for none again"
    )
    lm_reply_tokens: int = flag(
        0,
        "tokens of a reply, thoughts included; 0 is as many as needed, and 16384 once a model is seen to think"
        " first",
        min=0,
    )
    lm_effort: Literal["low", "medium", "high"] | None = flag(
        None, "how much the language model is to think first, where it can be told"
    )
    lm_concurrency: int = flag(4, "calls to the language model under way at once", min=1, max=256)
    max_cost: float | None = flag(None, "US dollars the language model may cost", min=0)
    max_tokens: int | None = flag(None, "tokens the language model may take, in and out", min=0)
    seeds: Path = flag(SEED_PROMPTS, "prompt file to start from")
    prompt_spec: Path | None = flag(
        None, "prompt file the adapter was trained with; its prompts join the seeds"
    )
    presentations: Path | None = flag(
        None,
        "YAML file of ways to give a clip (repeated, levelled, padded, after the question) that are searched beside the"
        " wording; prompts/presentations/common.yaml is shipped",
    )
    share: str | None = flag(
        None,
        "folders of runs and of profiles (opro.profile), with commas between, whose best prompts are tried in the first"
        " round: of another checkpoint, say; a language model is told what a profile knows",
    )


@dataclass(frozen=True)
class SplitSettings(DataSettings):
    """The clips."""

    split: Literal["train", "dev"] = flag(
        "dev", "split to search on; halved by source into search and holdout clips"
    )
    clips: str = flag("all", "how many clips: all, or the first N in a fixed balanced order")
    renderings: str = flag(
        "1",
        "in how many renderings search and decision hear each source: all, or N; 1 is the manifest alone, further ones"
        " stand in renderings.csv beside it",
    )


@dataclass(frozen=True)
class OptimizeSettings(
    MachineSettings, ProposerSettings, SearchSettings, SplitSettings, ModelSettings
):
    """The run."""

    also: str | None = flag(
        None, "further checkpoints, with commas between, that the same prompt is to serve"
    )
    name: str | None = flag(
        None, "run name (default: made from the settings, so the same command resumes the same run)"
    )

    report_to: str | None = flag(
        None,
        "trackers that follow the search: wandb, mlflow, tensorboard, with commas between, or all that are installed;"
        " mlflow gets the chosen prompt in its registry, too",
    )

    @property
    def checkpoints(self) -> list[str]:
        """The checkpoints that the prompt is to serve."""
        return checkpoint_names(self.checkpoint, self.also)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.runs_dir / str(self.name)

    def searches(self) -> list["OptimizeSettings"]:
        """Of ``--repeats`` the settings of each search: a run of its own, with a seed and a share of every limit.

        Without it these settings alone. To be asked of checked settings.

        Raises:
            UserError: A limit does not go round.
        """
        count = self.repeats
        if count == 1:
            return [self]
        limits: dict[str, Any] = {
            "max_cost": None if self.max_cost is None else self.max_cost / count
        }
        for name, whole in (("max_evals", self.max_evals), ("max_tokens", self.max_tokens)):
            if whole is not None and 0 < whole < count:
                raise UserError(
                    f"--{name.replace('_', '-')} is {whole} for {count} repeats; expected at least {count}"
                )
            limits[name] = None if whole is None else whole // count
        return [
            dataclasses.replace(
                self,
                seed=seed,
                repeats=1,
                name=f"{self.name}-seed{seed}",
                runs_dir=self.folder / REPEATS,
                report_to=None,
                **limits,
            )
            for seed in range(self.seed, self.seed + count)
        ]

    @property
    def config(self) -> dict[str, Any]:
        """Plain data, as config.yaml holds it: all that a result depends on.

        What later versions added is left out where it is not given, so that older runs keep their names and go on.
        """
        raw = dataclasses.asdict(self)
        elsewhere = ("runs_dir", "ray", "ray_cpus", "threads", "lm_concurrency", "report_to")
        added = {
            f.name for f in dataclasses.fields(self) if f.name in ADDED and raw[f.name] == f.default
        }
        return {
            k: str(v) if isinstance(v, Path) else v
            for k, v in raw.items()
            if k not in elsewhere and k not in added
        }

    def checked(self) -> "OptimizeSettings":
        """With every default filled in, the run's name too.

        Raises:
            UserError: A value cannot be used.
        """
        check_values(self)
        batch = self.candidates or STRATEGIES[self.strategy].batch
        out = dataclasses.replace(self, candidates=batch)
        out = dataclasses.replace(out, name=out.name or default_name(out))
        name = str(out.name)
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}", name) or name.endswith(".jsonl"):
            raise UserError(
                f"--name {name!r} is no run name; use up to 100 letters, digits, - and _"
            )
        if self.lm_base_url:
            checked_url(self.lm_base_url, "--lm-base-url")
        for i, one in enumerate(self.checkpoints):
            if not one or "|" in one or one in self.checkpoints[:i]:
                raise UserError(
                    f"--also is {self.also!r}; expected checkpoints other than --checkpoint, with commas between"
                )
        return out


def default_name(settings: OptimizeSettings) -> str:
    """The run's name by its settings: task, model, strategy, seed and a digest of all."""
    raw = {k: v for k, v in settings.config.items() if k != "name"}
    short = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:6]
    return f"{_begin_of_name(settings)}{short}"


def named_by_default(settings: OptimizeSettings) -> bool:
    """Whether the name that settings carry looks like one that they were given, by this version or another."""
    begin = re.escape(_begin_of_name(settings))
    return re.fullmatch(f"{begin}[0-9a-f]{{6}}", settings.name or "") is not None


def _begin_of_name(settings: OptimizeSettings) -> str:
    model = file_name(Path(settings.checkpoint).name)
    task = file_name(Path(settings.task).stem)
    return f"{task}-{model}-{settings.strategy}-s{settings.seed}-"


def checkpoint_names(checkpoint: str, also: str | None) -> list[str]:
    """The checkpoints of a run: the first one, and those of ``--also``."""
    names = [checkpoint, *(also.split(",") if also else [])]
    return [name.strip() for name in names]


def file_name(text: str) -> str:
    """A text as a part of a file's name: letters, digits, - and _."""
    return "".join(ch if ch.isalnum() or ch in "-_" else "-" for ch in text)


def rendering_count(text: str, most: int) -> int:
    """How many renderings ``--renderings`` asks for, the manifest's own included.

    Args:
        most: That there are.
    Raises:
        UserError: It is no number, or more than there are.
    """
    if text == "all":
        return most
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", text) or int(text) > most:
        has = "the manifest alone is there" if most == 1 else f"there are {most}"
        raise UserError(
            f"--renderings is {text!r}; expected all, or a number up to {most}: {has}, and data.build makes more where"
            " its recipe says renderings"
        )
    return int(text)


def clip_count(text: str, most: int, split: str) -> int:
    """How many clips ``--clips`` asks for.

    Raises:
        UserError: It is no number, or more than there are.
    """
    if text == "all":
        return most
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text) or int(text) > most:
        raise UserError(
            f"--clips is {text!r}; expected all, or a number up to {most}, the clips of the {split} split"
        )
    return int(text)
