"""Looks for what usually goes wrong, before hours are spent: python -m opro.doctor --checkpoint my_lora

Checks the machine, library versions that are known to be broken, what fits its memory, the clips and their splits, the
tokens of the answer words and the record of the training; then, with the real model, whether it hears: clear clips must
be told apart by their labels, silence and shuffled samples must change the answers, weights must not look untrained, an
adapter must give the scores that its folder tells of, and a clip must be scored alike alone and among others; and what
broken models show: one answer for everything, no confidence, missed classes or lengths. Each trouble is named with its
likely cause and what to do about it. Exit code 1 if something is broken.
"""

import math
import platform
import shutil
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.build import build_evaluator
from evaluators.classifier import Classifier
from evaluators.clip_checks import look_at_clips
from evaluators.clips import ClipSet
from evaluators.errors import PromptError, UserError
from evaluators.evaluator import Evaluator, ScoreTable
from evaluators.files import read_json, shipped
from evaluators.findings import Finding
from evaluators.known_broken import check_installed, check_trainer
from evaluators.manifest import manifest_digest, read_manifest, spelling_notes, verify
from evaluators.prompts import Prompt
from evaluators.splits import (
    balanced_order,
    check_registry,
    check_trained_on,
    clearest,
    halves,
    trained_sources,
)
from evaluators.statistics.resampling import MIN_SOURCES
from evaluators.tasks import SPEECH_TASK
from evaluators.threads import use_threads
from opro.cli import DONE, FAULT, flag, hand_over, parse, run_verb
from opro.problem import Data, open_data, seeds_of
from opro.settings import SEED_PROMPTS, DataSettings, ModelSettings, ThreadSettings

ONE_ANSWER = 0.95  # share of clips with the same answer that no balanced set should give
GAP = 0.05  # confidence when right minus when wrong
CLASS_FLOOR = 0.60  # hit rate of a class
SHORT_FLOOR, SHORT_LAG = (
    0.60,
    0.15,
)  # accuracy at the shortest length, and how far behind the longest
HIGH_LOSS = 10.0  # loss of a training whose masking or template is wrong
DEMO = "data/demo"  # the shipped clips
OUTSIDE = 0.5  # probability that may go to no answer


@dataclass(frozen=True)
class DoctorSettings(ThreadSettings, DataSettings, ModelSettings):
    """The checks."""

    split: Literal["train", "dev"] = flag("dev", "split whose clips are tried")
    clips: int = flag(80, "how many of them, in a fixed balanced order", min=4)
    prompts: Path = flag(SEED_PROMPTS, "prompt file to try")


@dataclass(frozen=True)
class Clips:
    """What the model is tried on.

    Attributes:
        tried: In balanced order.
        clear: The clearest of the split.
        reference: The clearest that are shipped, whose labels are right; None for a task that is not theirs.
    """

    tried: ClipSet
    clear: ClipSet
    reference: ClipSet | None


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, _ = parse(DoctorSettings, argv, __doc__ or "")
    use_threads(settings.threads)
    found = []
    for finding in examine(settings):
        _print(finding)
        found.append(finding)
    broken = any(one.level == "broken" for one in found)
    hand_over({"broken": broken, "findings": [asdict(one) for one in found]})
    return FAULT if broken else DONE


def examine(settings: DoctorSettings) -> Iterator[Finding]:
    """All findings in the order of the checks; a check that cannot run is a finding too."""
    data = open_data(settings)
    prompts = seeds_of(data.task, settings.prompts)
    yield from _machine(settings)
    clips: Clips | None = None
    try:
        clips = yield from _manifest(settings, data)
    except UserError as error:
        yield Finding("broken", "clips", str(error))
    try:
        evaluator, stored = build_evaluator(
            settings.checkpoint,
            adapter=settings.adapter,
            quantization=settings.quantization,
            device=settings.device,
            dtype=settings.dtype,
        )
        for line in evaluator.about().memory:
            yield Finding("ok", "memory", line)
    except UserError as error:
        yield Finding("broken", "checkpoint", str(error))
        return
    yield from _trained_on(settings, data, clips, stored)
    yield from _training(evaluator.about().checkpoint)
    try:
        if clips is not None:
            yield from _scores(evaluator, prompts, clips)
    except UserError as error:
        yield Finding("broken", "scores", str(error))


def _machine(settings: DoctorSettings) -> Iterator[Finding]:
    import torch

    yield Finding(
        "ok",
        "software",
        f"python {platform.python_version()}, torch {torch.__version__}, transformers"
        f" {metadata.version('transformers')}",
    )
    yield from check_installed()
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            name = torch.cuda.get_device_name(i)
            text = f"cuda:{i} {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
            if free < 0.5 * total:
                yield Finding("look", "GPU", text, "another process holds its memory: nvidia-smi")
            else:
                yield Finding("ok", "GPU", text)
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "broken",
            "GPU",
            f"there is an NVIDIA driver, but torch {torch.__version__} does not see a card",
            "install a CUDA build of torch (https://pytorch.org/get-started) or update the driver",
        )
    else:
        threads = torch.get_num_threads()
        fix = "" if settings.checkpoint.startswith("pocket") else "a 7B model needs a GPU here"
        yield Finding("look" if fix else "ok", "GPU", f"none, {threads} CPU threads", fix)


def _manifest(settings: DoctorSettings, data: Data) -> Generator[Finding, None, Clips]:
    """Checks the clips; the generator's value are those that the model is tried on."""
    labels = data.task.labels
    everything = read_manifest(data.manifest, data.task)
    check_registry(everything, data.registry)
    verify(everything)
    for split in ("train", "dev", "test"):
        part = [c for c in everything if c.split == split]
        if not part:
            yield Finding("look", "clips", f"no {split} split", "rebuild the set with three splits")
            continue
        text = f"{split}: {len(part):,} clips, " + ", ".join(
            f"{len({c.source_id for c in part if c.label == label})} sources of {label}"
            for label in labels
        )
        yield Finding("ok", "clips", text)
    tried = [c for c in everything if c.split == settings.split]
    if not tried:
        raise UserError(f"{data.manifest}: no clip in split {settings.split!r}")
    holdout = halves(tried)[1]
    few = {
        label: count
        for label in labels
        if (count := len({c.source_id for c in holdout if c.label == label})) < MIN_SOURCES
    }
    if few:
        yield Finding(
            "look",
            "clips",
            "the holdout, the half of dev that decides a search, has "
            + ", ".join(f"{n} sources of {label}" for label, n in few.items()),
            f"no gain is claimed with fewer than {MIN_SOURCES} a class: add recordings",
        )
    clips = tuple(balanced_order(tried)[: settings.clips])
    yield from (Finding("look", "clips", text) for text in spelling_notes(data.manifest))
    yield from (Finding("look", "clips", *found) for found in look_at_clips(everything, clips))
    clear = ClipSet(data.task, clearest(tried, labels, settings.clips))
    return Clips(ClipSet(data.task, clips), clear, _reference(settings, data, clear))


def _reference(settings: DoctorSettings, data: Data, clear: ClipSet) -> ClipSet | None:
    """The clearest of the shipped clips, where their task is asked about."""
    if data.task != SPEECH_TASK:
        return None
    if data.digest == manifest_digest(shipped(DEMO)):
        return clear
    clips = read_manifest(shipped(DEMO), data.task, "dev")
    return ClipSet(data.task, clearest(clips, data.task.labels, settings.clips))


def _trained_on(
    settings: DoctorSettings, data: Data, clips: Clips | None, stored: frozenset[str] | None
) -> Iterator[Finding]:
    if settings.checkpoint == "fake" or clips is None:
        return
    sources = trained_sources(
        settings.checkpoint, stored, data.manifest, settings.train_manifest, data.task
    )
    try:
        unknown = check_trained_on(clips.tried, sources, settings.checkpoint, settings.heard)
    except UserError as error:
        yield Finding("broken", "training", str(error))
        return
    for text in unknown:
        yield Finding("look", "training", text)
    if not unknown:
        yield Finding("ok", "training", f"none of the {settings.split} sources was trained on")


def _training(checkpoint: Checkpoint | None) -> Iterator[Finding]:
    """The losses that an adapter's folder tells of: of `opro.finetune`, or of transformers' Trainer."""
    if checkpoint is None or checkpoint.adapter is None:
        return
    yield from check_trainer(checkpoint.adapter)
    losses: list[float] = []
    for name, key in (("training.json", "curve"), ("trainer_state.json", "log_history")):
        path = checkpoint.adapter / name
        if path.is_file() and not losses:
            raw = read_json(path, finite=False).get(key) or []
            losses += [float(entry["loss"]) for entry in raw if "loss" in entry]
    if not losses:
        yield Finding("look", "training", "the adapter tells nothing of its losses")
        return
    text = f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} at last"
    if not all(map(math.isfinite, losses)):
        yield Finding(
            "broken",
            "training",
            f"{text}, not a number in between",
            "lower --lr, or train in bfloat16",
        )
    elif max(losses) > HIGH_LOSS:
        yield Finding(
            "broken",
            "training",
            f"{text}, {max(losses):.1f} at most",
            "above 10 the loss is taken over padding or audio tokens: train with --loss answer",
        )
    else:
        yield Finding("ok", "training", text)


def _scores(evaluator: Evaluator, prompts: Sequence[Prompt], clips: Clips) -> Iterator[Finding]:
    from evaluators.functional import (  # with torch
        ask_stock,
        check_company,
        check_hearing,
        check_loaded,
    )

    stock = ask_stock(evaluator, prompts, clips.tried)  # first: its weights do not lie beside ours
    before = evaluator.about().batch_tokens
    evaluator = yield from check_loaded(evaluator, prompts)
    try:
        table = evaluator.score(prompts, clips.tried)
    except PromptError:
        prompts = yield from _scorable(evaluator, prompts, clips.tried)
        if not prompts:
            return
        table = evaluator.score(prompts, clips.tried)
    checkpoint = evaluator.about().checkpoint
    own = checkpoint.prompt if checkpoint is not None else None
    if own is not None and [label for label, _ in own.answers] == list(clips.tried.task.labels):
        prompts = tuple(dict.fromkeys((*prompts, own)))  # it may know with no other one
    arrives = yield from check_hearing(evaluator, prompts, clips.clear, clips.reference)
    yield from check_company(evaluator, table, stock, arrives)
    after = evaluator.about().batch_tokens
    if after != before:
        yield Finding(
            "look",
            "memory",
            f"it ran out: batches went from {before} to {after} tokens",
            "free the card, or use --quantization nf4",
        )
    yield from _prompts(table)


def _prompts(table: ScoreTable) -> Iterator[Finding]:
    """What each prompt's answers show of the known troubles."""
    clips = table.clips
    lengths = np.array([c.duration_ms for c in clips])
    for i, prompt in enumerate(table.prompts):
        found = list(symptoms(table.targets.labels, table.targets.truth, lengths, table.logp[i]))
        lost = float(np.clip(table.outside[i], 0, 1).mean())
        if lost > OUTSIDE:
            found.append(
                Finding(
                    "look",
                    "",
                    f"{100 * lost:.0f} % of the probability goes to no answer",
                    "say in the prompt how to answer, or change the answer words",
                )
            )
        if unlisted := float(table.unlisted[i].mean()):
            found.append(
                Finding(
                    "look",
                    "",
                    f"{100 * unlisted:.0f} % of its answers are not among the tokens that the server lists: their"
                    " scores are upper bounds",
                    "say in the prompt how to answer, or change the answer words",
                )
            )
        name = f"prompt {prompt.prompt_id}"
        if not found:
            right = table.predict(Classifier(prompt)).right.mean()
            yield Finding("ok", name, f"{100 * right:.0f} % right on {len(clips)} clips")
        for finding in found:
            yield replace(finding, about=name)


def _scorable(
    evaluator: Evaluator, prompts: Sequence[Prompt], clips: ClipSet
) -> Generator[Finding, None, Sequence[Prompt]]:
    """The prompts that this model can score; what is wrong with each other one is a finding."""
    scored = []
    for prompt in prompts:
        try:
            evaluator.score([prompt], clips)
            scored.append(prompt)
        except PromptError as error:
            yield Finding("broken", "answers", str(error))
    return scored


def symptoms(
    labels: Sequence[str],
    truth: NDArray[np.integer],
    lengths: NDArray[np.floating],
    logp: NDArray[np.floating],
) -> Iterator[Finding]:
    """What a prompt's answers show of the known troubles.

    Args:
        labels: Of the task.
        truth: ``[clip]``, index of the right label.
        lengths: ``[clip]``, milliseconds.
        logp: ``[clip, label]`` in nats.
    """
    picked = logp.argmax(-1)
    right = picked == truth
    counts = np.bincount(picked, minlength=len(labels)) / len(picked)
    if counts.max() > ONE_ANSWER:
        yield Finding(
            "broken",
            "",
            f"{labels[int(counts.argmax())]} for {100 * counts.max():.0f} % of the clips",
            "try other wordings (python -m opro.optimize), --swap, or --threshold dev; after a"
            " fine-tuning check the labels and that --loss is answer",
        )
        return
    share = np.exp(logp - np.logaddexp.reduce(logp, -1, keepdims=True)).max(-1)
    if right.any() and not right.all():
        gap = float(share[right].mean() - share[~right].mean())
        if gap < GAP:
            yield Finding(
                "look",
                "",
                f"as sure when wrong as when right: confidence gap {gap:.3f}",
                "its probabilities say little; calibrate, or fine-tune on more sources",
            )
    for k, label in enumerate(labels):
        if (truth == k).any() and (rate := float(right[truth == k].mean())) < CLASS_FLOOR:
            yield Finding(
                "look",
                "",
                f"{label} is right in {100 * rate:.0f} % only",
                "try --threshold dev, or more clips of that class in training",
            )
    short, long = lengths == lengths.min(), lengths == lengths.max()
    if lengths.min() < lengths.max():
        low, high = float(right[short].mean()), float(right[long].mean())
        if low < SHORT_FLOOR and high - low > SHORT_LAG:
            yield Finding(
                "look",
                "",
                f"{100 * low:.0f} % right at {lengths.min():.0f} ms, {100 * high:.0f} % at"
                f" {lengths.max():.0f} ms",
                "say in the prompt that clips are short, and train on short ones",
            )


def _print(finding: Finding) -> None:
    mark = {"ok": "ok    ", "look": "look  ", "broken": "BROKEN"}[finding.level]
    print(f"{mark}  {finding.about:20}  {finding.text}")
    if finding.fix:
        print(f"{'':30}  -> {finding.fix}")


if __name__ == "__main__":
    sys.exit(run_verb(main))
