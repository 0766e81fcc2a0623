"""Looks for what usually goes wrong, before hours are spent: python -m opro.doctor --checkpoint my_lora

Checks the machine, what fits its memory, the clips and their splits, the tokens of the answer words, whether audio
really reaches the model (silence and shuffled samples must change its answers), the record of the training, and what
broken models show: one answer for everything, no confidence, missed classes or lengths. Each trouble is named with
what to do about it. Exit code 1 if something is broken.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluators.errors import UserError
from evaluators.files import resolve
from opro.cli import DONE, FAULT, ModelSettings, flag, parse, run_verb

if TYPE_CHECKING:
    import numpy as np

    from evaluators.audio_lm.checkpoint import Checkpoint
    from evaluators.clips import Clip
    from evaluators.evaluator import Evaluator
    from evaluators.prompts import Prompt, Task

ONE_ANSWER = 0.95  # share of clips with the same answer that no balanced set should give
GAP = 0.05  # confidence when right minus when wrong
CLASS_FLOOR = 0.60  # hit rate of a class
SHORT_FLOOR, SHORT_LAG = (
    0.60,
    0.15,
)  # accuracy at the shortest length, and how far behind the longest
HIGH_LOSS = 10.0  # loss of a training whose masking or template is wrong
REACHES = 0.01  # nats by which a control must move the answers on average
OUTSIDE = 0.5  # probability that may go to no answer


@dataclass(frozen=True)
class Settings(ModelSettings):
    """Settings of the checks."""

    task: str = flag("speech", "what is decided about a clip")
    manifest: Path = flag(Path("data/demo"), "manifest CSV, or the folder that holds manifest.csv")
    split: Literal["train", "dev"] = flag("dev", "split whose clips are tried")
    clips: int = flag(80, "how many of them, in a fixed balanced order", min=4)
    prompts: Path = flag(Path("prompts/seeds/baselines.yaml"), "prompt file to try")


@dataclass(frozen=True)
class Finding:
    """What a check found. `mend` is what to do about it."""

    level: Literal["ok", "look", "broken"]
    about: str
    text: str
    mend: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, _ = parse(Settings, argv, __doc__ or "")
    worst = DONE
    for finding in examine(settings):
        _print(finding)
        if finding.level == "broken":
            worst = FAULT
    return worst


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings in the order of the checks; a check that cannot run is a finding too."""
    from evaluators.build import build_evaluator
    from evaluators.prompts import TASKS, read_prompts

    if settings.task not in TASKS:
        raise UserError(f"--task is {settings.task!r}; expected one of {', '.join(TASKS)}")
    task = TASKS[settings.task]
    prompts = read_prompts(resolve(settings.prompts), task.labels)
    yield from _machine(settings)
    clips: list[Clip] = []
    try:
        clips = yield from _manifest(settings, task)
    except UserError as error:
        yield Finding("broken", "clips", str(error))
    try:
        evaluator, heard = build_evaluator(
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
    yield from _heard(settings, task, clips, heard)
    yield from _training(evaluator.about().checkpoint)
    try:
        yield from _answers(evaluator, prompts)
        if clips:
            yield from _scores(evaluator, task, prompts, clips)
    except UserError as error:
        yield Finding("broken", "scores", str(error))


def _machine(settings: Settings) -> Iterator[Finding]:
    import platform
    import shutil

    import torch
    import transformers

    yield Finding(
        "ok",
        "software",
        f"python {platform.python_version()}, torch {torch.__version__}, transformers"
        f" {transformers.__version__}",
    )
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
        mend = "" if settings.checkpoint.startswith("pocket") else "a 7B model needs a GPU here"
        yield Finding("look" if mend else "ok", "GPU", f"none, {threads} CPU threads", mend)


def _manifest(settings: Settings, task: "Task") -> "Iterator[Any]":
    """Checks the clips; the generator's value are those that are tried."""
    from evaluators import clips as clipset
    from evaluators.statistics.metrics import MIN_SOURCES

    manifest = resolve(settings.manifest)
    everything = clipset.read_manifest(manifest, task.labels)
    clipset.check_registry(everything, clipset.read_registry(manifest))
    clipset.verify(everything)
    for split in ("train", "dev", "test"):
        part = [c for c in everything if c.split == split]
        if not part:
            yield Finding("look", "clips", f"no {split} split", "rebuild the set with three splits")
            continue
        text = f"{split}: {len(part):,} clips, " + ", ".join(
            f"{len({c.source_id for c in part if c.label == label})} sources of {label}"
            for label in task.labels
        )
        yield Finding("ok", "clips", text)
    tried = [c for c in everything if c.split == settings.split]
    if not tried:
        raise UserError(f"{manifest}: no clip in split {settings.split!r}")
    fresh = clipset.halves(tried)[1]
    few = {
        label: count
        for label in task.labels
        if (count := len({c.source_id for c in fresh if c.label == label})) < MIN_SOURCES
    }
    if few:
        yield Finding(
            "look",
            "clips",
            "the half of dev that judges a search has "
            + ", ".join(f"{n} sources of {label}" for label, n in few.items()),
            f"no gain is claimed with fewer than {MIN_SOURCES} a class: add recordings",
        )
    return clipset.balanced_order(tried)[: settings.clips]


def _heard(
    settings: Settings, task: "Task", clips: "Sequence[Clip]", stored: frozenset[str] | None
) -> Iterator[Finding]:
    from evaluators import clips as clipset

    if settings.checkpoint == "fake" or not clips:
        return
    heard = clipset.heard_sources(
        settings.checkpoint,
        stored,
        resolve(settings.manifest),
        settings.train_manifest,
        task.labels,
    )
    try:
        unknown = clipset.check_unheard(clips, heard, settings.checkpoint, settings.heard)
    except UserError as error:
        yield Finding("broken", "training", str(error))
        return
    for text in unknown:
        yield Finding("look", "training", text)
    if not unknown:
        yield Finding("ok", "training", f"none of the {settings.split} sources was trained on")


def _training(checkpoint: "Checkpoint | None") -> Iterator[Finding]:
    """The losses that an adapter's folder tells of: of `opro.finetune`, or of transformers' Trainer."""
    if checkpoint is None or checkpoint.adapter is None:
        return
    losses: list[float] = []
    for name, key in (("training.json", "curve"), ("trainer_state.json", "log_history")):
        path = checkpoint.adapter / name
        if path.is_file() and not losses:
            raw = json.loads(path.read_text(encoding="utf-8")).get(key) or []
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


def _answers(evaluator: "Evaluator", prompts: "Sequence[Prompt]") -> Iterator[Finding]:
    if evaluator.about().checkpoint is None:
        return
    from evaluators.audio_lm.answer_tokens import find_answers
    from evaluators.audio_lm.scorer import AudioScorer

    assert isinstance(evaluator, AudioScorer), "About.checkpoint"
    tokenizer = evaluator.processor.tokenizer
    shown = set()
    for prompt in prompts:
        answers = find_answers(tokenizer, prompt)
        parts = []
        for (label, _), group in zip(prompt.answers, answers.sequences, strict=True):
            words = ", ".join(f"{tokenizer.decode(list(s))!r} {list(s)}" for s in group)
            parts.append(f"{label}: {words}")
        text = "; ".join(parts)
        if text not in shown:
            shown.add(text)
            yield Finding("ok", "answers", text)


def _scores(
    evaluator: "Evaluator", task: "Task", prompts: "Sequence[Prompt]", clips: "Sequence[Clip]"
) -> Iterator[Finding]:
    import numpy as np

    before = evaluator.about().batch_tokens
    table = evaluator.score(prompts, clips)
    for control in ("silence", "shuffled"):
        changed = [dataclasses.replace(c, audio=control) for c in clips]
        moved = float(np.abs(evaluator.score(prompts, changed).logp - table.logp).mean())
        if moved < REACHES:
            yield Finding(
                "broken",
                "audio",
                f"{control} in place of the clips moves the answers by {moved:.4f} nats: audio does"
                " not reach the model",
                "check the processor (audio= with sampling_rate) and the audio tower's weights",
            )
        else:
            yield Finding("ok", "audio", f"{control} moves the answers by {moved:.2f} nats")
    if (after := evaluator.about().batch_tokens) != before:
        yield Finding(
            "look",
            "memory",
            f"it ran out: batches went from {before} to {after} tokens",
            "free the card, or use --quantization nf4",
        )
    truth = np.array([task.labels.index(c.label) for c in clips])
    lengths = np.array([c.duration_ms for c in clips])
    for i, prompt in enumerate(prompts):
        found = list(symptoms(task, truth, lengths, table.logp[i]))
        accuracy = float(np.mean(table.logp[i].argmax(-1) == truth))
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
        name = f"prompt {prompt.prompt_id}"
        if not found:
            yield Finding("ok", name, f"{100 * accuracy:.0f} % right on {len(clips)} clips")
        for finding in found:
            yield dataclasses.replace(finding, about=name)


def symptoms(
    task: "Task", truth: "np.ndarray", lengths: "np.ndarray", logp: "np.ndarray"
) -> Iterator[Finding]:
    """What a prompt's answers show of the known troubles.

    Args:
        task: Its labels.
        truth: ``[clip]``, index of the right label.
        lengths: ``[clip]``, milliseconds.
        logp: ``[clip, label]`` in nats.
    """
    import numpy as np

    picked = logp.argmax(-1)
    right = picked == truth
    counts = np.bincount(picked, minlength=len(task.labels)) / len(picked)
    if counts.max() > ONE_ANSWER:
        yield Finding(
            "broken",
            "",
            f"{task.labels[int(counts.argmax())]} for {100 * counts.max():.0f} % of the clips",
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
    for k, label in enumerate(task.labels):
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
    if finding.mend:
        print(f"{'':30}  -> {finding.mend}")


if __name__ == "__main__":
    sys.exit(run_verb(main))
