"""Searches prompts for a checkpoint on the dev split: python -m opro.optimize --iterations 5

With no other flag it runs offline, on a CPU, on the shipped clips and the shipped pocket checkpoint, with the built-in
rewriter. The same command resumes an interrupted run and shows a finished one again. The run's folder holds
leaderboard.csv, best.yaml, summary.json and the journal.
"""

import dataclasses
import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluators.errors import UserError
from evaluators.files import resolve
from opro.cli import DONE, ModelSettings, flag, parse, run_verb

if TYPE_CHECKING:
    from evaluators.clips import Clip
    from evaluators.prompts import Prompt, Task
    from opro.proposers.lm_proposer import Proposer
    from opro.proposers.openai_model import LanguageModel, Ledger

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings(ModelSettings):
    """Settings of a search; each is a flag and a key of config.yaml."""

    also: str | None = flag(
        None, "further checkpoints, with commas between, that the same prompt is to serve"
    )
    share: str | None = flag(
        None,
        "run folders, with commas between, whose best prompts are tried in the first round: of another"
        " checkpoint, say",
    )
    iterations: int = flag(5, "rounds of proposals", min=0)
    candidates: int = flag(0, "prompts a round; 0 is 10, with --strategy opro the paper's 8", min=0)
    prompt_spec: Path | None = flag(
        None, "prompt file the adapter was trained with; its prompts join the seeds"
    )
    task: str = flag("speech", "what is decided about a clip")
    manifest: Path = flag(Path("data/demo"), "manifest CSV, or the folder that holds manifest.csv")
    split: Literal["train", "dev"] = flag(
        "dev", "split to search on; halved by source into search and fresh clips"
    )
    clips: str = flag("all", "how many clips: all, or the first N in a fixed balanced order")
    seeds: Path = flag(Path("prompts/seeds/baselines.yaml"), "prompt file to start from")
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
    max_cost: float | None = flag(None, "US dollars the language model may cost", min=0)
    max_tokens: int | None = flag(None, "tokens the language model may take, in and out", min=0)
    strategy: Literal["race", "opro", "random"] = flag(
        "race",
        "race drops losers early; opro is the paper's algorithm and scores everything; random"
        " paraphrases the seeds",
    )
    objective: Literal["balanced_accuracy", "accuracy", "auroc", "nll", "worst_slice"] = flag(
        "balanced_accuracy", "what the search climbs"
    )
    threshold: Literal["argmax", "dev"] = flag(
        "argmax", "dev fits each prompt's decision threshold on the search half"
    )
    swap: bool = flag(
        False, "score each prompt with its options in both orders and average the probabilities"
    )
    seed: int = flag(0, "makes the search repeatable", min=0)
    max_evals: int | None = flag(
        None, "evals of search and selection at most (the controls come on top)", min=1
    )
    ray: str | None = flag(
        None,
        "score on a Ray cluster: auto (one that runs here, else one started for this run) or HOST:PORT",
    )
    ray_cpus: int = flag(1, "CPUs of a worker where the cluster has no GPU", min=1)
    name: str | None = flag(
        None, "run name (default: made from the settings, so the same command resumes the same run)"
    )
    runs_dir: Path = flag(Path("runs"), "where run folders lie")

    @property
    def batch(self) -> int:
        """Prompts a round, with the strategy's default."""
        return self.candidates or (8 if self.strategy == "opro" else 10)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        Settings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument(
            "--dry-run",
            action="store_true",
            help="print the plan, the evals and an estimate of time and tokens; score nothing",
        ),
    )
    run(settings, space.dry_run)
    return DONE


def run(settings: Settings, dry_run: bool = False) -> Path:
    """A whole search, or what is left of it, or the showing of a finished one. Returns the run's folder."""
    settings = dataclasses.replace(settings, candidates=settings.batch)
    settings = dataclasses.replace(settings, name=settings.name or _default_name(settings))
    _check(settings)
    _run(settings, dry_run)
    return settings.runs_dir / str(settings.name)


def _check(settings: Settings) -> None:
    name = str(settings.name)
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}", name) or name.endswith(".jsonl"):
        raise UserError(f"--name {name!r} is no run name; use up to 100 letters, digits, - and _")
    if settings.lm_base_url and "@" in settings.lm_base_url:
        raise UserError(
            "--lm-base-url holds a user or password, which would be written to files; use OPENAI_API_KEY"
        )
    if settings.clips != "all" and not re.fullmatch(r"0*[1-9][0-9]{0,8}", settings.clips):
        raise UserError(f"--clips is {settings.clips!r}; expected all, or a whole number above 0")


def config_of(settings: Settings) -> dict[str, Any]:
    """The settings as plain data, as config.yaml holds them."""
    raw = dataclasses.asdict(settings)
    where = ("runs_dir", "ray", "ray_cpus")  # no result depends on them
    return {k: str(v) if isinstance(v, Path) else v for k, v in raw.items() if k not in where}


def _default_name(settings: Settings) -> str:
    raw = {k: v for k, v in config_of(settings).items() if k != "name"}
    short = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:6]
    model = "".join(
        ch if ch.isalnum() or ch in "-_" else "-" for ch in Path(settings.checkpoint).name
    )
    return f"{settings.task}-{model}-{settings.strategy}-s{settings.seed}-{short}"


def _run(settings: Settings, dry_run: bool) -> int:
    from evaluators import clips as clipset
    from evaluators.build import build_evaluator
    from evaluators.prompts import TASKS, read_prompts
    from evaluators.several import PerCheckpoint, spread
    from opro.proposers.shared import shared_candidates
    from opro.results import run_folder
    from opro.search.loop import affordable_clips
    from opro.search.objective import Reward

    if settings.task not in TASKS:
        raise UserError(f"--task is {settings.task!r}; expected one of {', '.join(TASKS)}")
    task = TASKS[settings.task]
    manifest = resolve(settings.manifest)
    registry = clipset.read_registry(manifest)
    everything = clipset.read_manifest(manifest, task.labels, settings.split)
    clips = clipset.balanced_order(everything)
    if settings.clips != "all":
        if int(settings.clips) > len(clips):
            raise UserError(
                f"--clips is {settings.clips}; the {settings.split} split holds {len(clips)}"
            )
        clips = clips[: int(settings.clips)]
    clipset.check_registry(clips, registry)
    # Halved before it is cut down: a source that judges one run is never searched by another.
    taken = {c.clip_id for c in clips}
    search, fresh = ([c for c in half if c.clip_id in taken] for half in clipset.halves(everything))
    for half, kind in ((search, "search"), (fresh, "fresh")):
        if len({c.label for c in half}) < len(task.labels):
            raise UserError(
                f"the {kind} half of the {len(clips)} clips lacks a class: take more clips, of at"
                " least two sources a class"
            )
    seeds = read_prompts(resolve(settings.seeds), task.labels)
    warnings = []
    if settings.prompt_spec is not None:
        known = {p.digest for p in seeds}
        seeds += [
            p for p in read_prompts(settings.prompt_spec, task.labels) if p.digest not in known
        ]
    names = _checkpoints(settings)
    evaluators = {}
    for name in names:
        one, heard = build_evaluator(
            name,
            adapter=settings.adapter if name == settings.checkpoint else None,
            quantization=settings.quantization,
            device=settings.device,
            dtype=settings.dtype,
            cache=settings.runs_dir / run_folder.CACHE,
            swap=settings.swap,
            ray=settings.ray,
            ray_cpus=settings.ray_cpus,
        )
        heard = clipset.heard_sources(name, heard, manifest, settings.train_manifest, task.labels)
        warnings += clipset.check_unheard(clips, heard, name, settings.heard)
        evaluators[name] = one
    evaluator: Any = (
        evaluators[settings.checkpoint] if len(names) == 1 else PerCheckpoint(evaluators)
    )
    if settings.adapter is not None and settings.prompt_spec is None:
        warnings.append("the prompt the adapter was trained with is unknown: give --prompt-spec")
    clipset.verify(clips)
    tried = shared_candidates(settings.share, task.labels, fresh, settings.batch)
    if len(names) > 1:
        search, fresh = spread(search, names), spread(fresh, names)
    whole = len(search), len(fresh)
    search, fresh = affordable_clips(search, fresh, task, settings.max_evals)
    if (len(search), len(fresh)) != whole:
        warnings.append(
            f"with --max-evals {settings.max_evals} the search works on {len(search)} of its {whole[0]} clips, the"
            f" selection on {len(fresh)} of {whole[1]}"
        )
    reward = Reward(settings.objective, settings.threshold)
    _check_budget(settings, task, len(seeds), search, fresh)
    pairs = count_evals(len(seeds), settings, len(search), len(fresh))
    lm = _language_model(settings)
    if dry_run:
        return _print_plan(settings, evaluator, seeds, search, fresh, pairs, warnings)
    folder = settings.runs_dir / str(settings.name)
    with run_folder.open_run(folder, config_of(settings)):
        return _search(
            settings,
            folder,
            task,
            seeds,
            search,
            fresh,
            reward,
            evaluator,
            pairs,
            warnings,
            clipset.manifest_digest(manifest),
            lm,
            tried,
        )


def _checkpoints(settings: Settings) -> list[str]:
    names = [settings.checkpoint, *(settings.also.split(",") if settings.also else [])]
    names = [name.strip() for name in names]
    for i, name in enumerate(names):
        if not name or "|" in name or name in names[:i]:
            raise UserError(
                f"--also is {settings.also!r}; expected checkpoints other than --checkpoint, with commas between"
            )
    return names


def _check_budget(
    settings: Settings,
    task: "Task",
    seeds: int,
    search: Sequence["Clip"],
    fresh: Sequence["Clip"],
) -> None:
    from opro.search.loop import least_evals

    if settings.max_evals is None:
        return
    least = least_evals(settings.strategy, task, seeds, search, fresh)
    if settings.max_evals < least:
        raise UserError(
            f"--max-evals is {settings.max_evals}; the seeds and the selection on {len(fresh)} fresh clips take"
            f" {least}, so give more, or fewer --clips"
        )


def count_evals(seeds: int, settings: Settings, search: int, fresh: int) -> int:
    """Evals of a search at most: before racing and the cache. The controls stand beside --max-evals."""
    from opro.search.select import FINALISTS

    each = (seeds + settings.iterations * settings.batch) * search + (FINALISTS + 1) * fresh
    if settings.max_evals is not None:
        each = min(each, settings.max_evals)
    return (each + 5 * fresh) * (2 if settings.swap else 1)  # first seed, and two controls of two


def _search(
    settings: Settings,
    folder: Path,
    task: "Task",
    seeds: Sequence["Prompt"],
    search: Sequence["Clip"],
    fresh: Sequence["Clip"],
    reward: Any,
    evaluator: Any,
    pairs: int,
    warnings: Sequence[str],
    data_digest: str,
    lm: "LanguageModel | None",
    tried: Sequence[Any],
) -> int:
    from evaluators.files import write_json
    from opro.proposers.lm_proposer import Shared
    from opro.results import run_folder
    from opro.results.optuna_study import write_study
    from opro.results.progress import Progress
    from opro.results.summary import finish, print_summary, save_scores
    from opro.results.table import read_summary
    from opro.search.history import History
    from opro.search.loop import Clock, Search, optimize

    _log_to(folder / "log.txt")
    history = History(folder / "trials.jsonl", task.labels, repair=True)
    header = {
        "fingerprint": evaluator.fingerprint,
        "data": data_digest,
        "task": task.name,
        "seed": settings.seed,
        "proposer": _proposer_name(settings, lm),
        "seeds": hashlib.sha256("".join(p.digest for p in seeds).encode()).hexdigest(),
    }
    if history.header is None:
        history.start(header)
    elif history.header != header:
        changed = next(k for k in header if history.header.get(k) != header[k])
        raise UserError(
            f"run {folder.name!r} was made with another {changed} (checkpoint, clips, seeds, precision"
            " or language model changed); give another --name"
        )
    finished = read_summary(folder)
    if finished is not None:
        print_summary(folder, finished)
        return DONE
    if not (folder / "provenance.json").exists():
        about = {**header, "warnings": list(warnings), "device": evaluator.about().device}
        write_json(folder / "provenance.json", run_folder.provenance(about))
    for text in warnings:
        log.warning(text)
    ledger, proposer = _proposer(settings, task, reward, folder, lm, search)
    if tried:
        proposer = Shared(proposer, tried)
    clock, begin = Clock(), time.perf_counter()
    plan = Search(
        evaluator,
        proposer,
        task,
        seeds,
        search,
        fresh,
        reward,
        settings.iterations,
        settings.candidates,
        settings.strategy,
        settings.seed,
        settings.max_evals,
    )
    with Progress(pairs, evaluator, settings.iterations) as display:
        try:
            selection = optimize(
                plan,
                history,
                display,
                clock,
                lambda trial, result: save_scores(
                    folder, trial, [search[i] for i in result.seen], result.logp, task
                ),
            )
        finally:
            if history.trials:
                write_study(history, folder / "optuna.log", folder.name)
    finish(
        config_of(settings),
        folder,
        task,
        history,
        selection,
        evaluator,
        ledger,
        clock,
        time.perf_counter() - begin,
        warnings,
        fresh,
    )
    return DONE


def _language_model(settings: Settings) -> "LanguageModel | None":
    """The model that proposes, or None for the rewriter; wrong use is found before a folder is made."""
    from opro.proposers.openai_model import connect

    if settings.proposer == "rewriter" or settings.strategy == "random":
        return None
    lm = connect(settings.lm_model, settings.lm_base_url, settings.seed, settings.max_cost)
    if lm is None and settings.proposer == "lm":
        raise UserError(
            "--proposer lm: no language model is configured; give --lm-base-url and --lm-model, or"
            " set OPENAI_API_KEY and give --lm-model"
        )
    return lm


def _proposer_name(settings: Settings, lm: "LanguageModel | None") -> str:
    if lm is None:
        return "rewriter"
    alone = settings.proposer == "lm" or settings.strategy == "opro"
    return f"lm {lm.name}" + ("" if alone else " and rewriter")


def _proposer(
    settings: Settings,
    task: "Task",
    reward: Any,
    folder: Path,
    lm: "LanguageModel | None",
    search: Sequence["Clip"],
) -> tuple["Ledger", "Proposer"]:
    from evaluators.files import append_line, cut_torn_line
    from opro.proposers.lm_proposer import LMProposer, Mixed
    from opro.proposers.openai_model import Ledger, OpenAIModel, Reply
    from opro.proposers.rewriter import Rewriter

    ledger = Ledger(settings.max_tokens, settings.max_cost, getattr(lm, "prices", None))
    path = folder / "proposals.jsonl"
    paid = {}
    if path.exists():  # what an interrupted run has spent counts, and what it got is used
        cut_torn_line(path)
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                raw = json.loads(line)
                if "lost" in raw:
                    ledger.lose(raw["tokens_in"], raw["tokens_out"])
                if "reply" in raw:
                    reply = Reply(
                        raw["reply"],
                        raw["tokens_in"],
                        raw["tokens_out"],
                        raw["cost"],
                        raw["model"],
                        raw["finish"],
                    )
                    ledger.add(reply)
                    ledger.refused += len(raw["refused"])
                    paid[raw["iteration"], raw["call"], raw["meta_prompt"]] = reply
            except (ValueError, KeyError, TypeError):
                continue  # damaged: that reply is asked for again

    def record(entry: dict[str, Any]) -> None:
        append_line(path, json.dumps(entry) + "\n")  # plain ASCII: a reply may hold anything
        for refused in entry.get("refused", []):
            log.info("refused (%s): %r", refused["reason"], refused["text"])
        if "stopped" in entry:
            log.warning("no further call to the language model: %s", entry["stopped"])

    def lose(tokens_in: int, tokens_out: int, why: str) -> str:
        cost = ledger.lose(tokens_in, tokens_out)
        record({"lost": why, "tokens_in": tokens_in, "tokens_out": tokens_out, "cost": cost})
        return ledger.spent(tokens_in, tokens_out)

    if isinstance(lm, OpenAIModel):
        lm.on_loss = lose
    rewriter = Rewriter(task, settings.seed, learn=settings.strategy != "random")
    if lm is not None:
        asked = LMProposer(
            lm,
            task,
            reward,
            search,
            ledger,
            record,
            strategy=settings.strategy,
            seed=settings.seed,
            paid=paid,
        )
        alone = settings.proposer == "lm" or settings.strategy == "opro"
        return ledger, asked if alone else Mixed(asked, rewriter)
    if settings.strategy != "random" and settings.proposer == "auto":
        print(
            "proposals come from the built-in rewriter; to use a language model set OPENAI_API_KEY"
            " (and --lm-base-url for another server) and give --lm-model NAME",
            file=sys.stderr,
        )
    return ledger, rewriter


def _print_plan(
    settings: Settings,
    evaluator: Any,
    seeds: Sequence["Prompt"],
    search: Sequence["Clip"],
    fresh: Sequence["Clip"],
    pairs: int,
    warnings: Sequence[str],
) -> int:
    from opro.results.summary import estimate_seconds

    def about(half: Sequence["Clip"]) -> str:
        return f"{len(half)} clips of {len({c.source_id for c in half})} sources"

    cached = len(seeds) * len(search) - evaluator.count_missing(seeds, search)
    print(f"run         {settings.runs_dir / str(settings.name)}")
    print(
        f"checkpoint  {', '.join(_checkpoints(settings))}, quantization {settings.quantization}, fingerprint"
        f" {evaluator.fingerprint[:12]}"
    )
    print(
        f"search      {len(seeds)} seeds + {settings.iterations} x {settings.candidates} candidates"
        f" on {about(search)}, strategy {settings.strategy}"
    )
    print(f"selection   on {about(fresh)}")
    print(f"evals       at most {pairs:,}; {cached:,} of the seeds' are cached")
    print(f"time        about {estimate_seconds(evaluator, pairs - cached)}")
    for line in evaluator.about().memory:
        print(f"memory      {line}")
    if settings.lm_model:
        calls = settings.iterations * (settings.candidates if settings.strategy == "opro" else 3)
        print(
            f"tokens      at most about {calls * 4000:,} for {calls} calls of {settings.lm_model}"
        )
    for text in warnings:
        print(f"warning     {text}")
    return DONE


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    screen = logging.StreamHandler()
    screen.setLevel(logging.WARNING)
    screen.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.raiseExceptions = False  # a full disk is reported once, by the journal
    root = logging.getLogger()
    root.handlers = [handler, screen]
    root.setLevel(logging.INFO)
    for noisy in ("httpx", "httpcore", "openai", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(run_verb(main))
