"""Trains a soft prompt: the vectors alone, by the loss at the answer, with all weights frozen."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluators.audio_lm.device import device_faults
from evaluators.audio_lm.soft import (
    SoftPrompt,
    SoftScorer,
    answer_logp,
    hear,
    load_soft,
    save_soft,
)
from evaluators.classifier import Classifier, among_labels, shifted
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.evaluator import ScoreTable
from evaluators.files import is_written, read_json, write_json
from evaluators.finetuning.samples import weigh
from evaluators.prompts import Prompt
from evaluators.statistics.calibration import fit_shift
from evaluators.statistics.metrics import balanced_accuracy

ROOM = 0.4  # of a card's free memory; the store of keys and values may take half of it
__all__ = [
    "SoftEpoch",
    "SoftRecipe",
    "SoftScorer",
    "SoftTrained",
    "SoftTraining",
    "save_soft",
    "train_seeds",
    "train_soft",
]  # with what a verb needs beside it
PATIENCE = 2  # epochs without a lower validation loss before the training ends


@dataclass(frozen=True)
class SoftRecipe:
    """Hyperparameters of a soft prompt's training."""

    epochs: int = 10
    lr: float = 0.1  # the highest, of Adam, in root mean squares of the vocabulary's vectors; a half cosine leads to 0
    batch: int = 16  # clips of an optimizer step
    micro: int | None = None  # of them at once; None: as many as memory allows
    warmup: float = 0.1  # share of the steps
    seed: int = 0


@dataclass(frozen=True)
class SoftEpoch:
    """How far a training was: of epoch 0 the words that it began with.

    Attributes:
        train_loss: Mean over the epoch's steps; None before the first.
        loss: On the validation clips, in nats, of the right label among the labels, with the threshold that is best
            there: as it is decided, so that the words that it began with, too, are judged with theirs.
        score: Balanced accuracy there, with the same threshold.
    """

    epoch: int
    train_loss: float | None
    loss: float
    score: float

    def line(self) -> str:
        """As text."""
        train = "" if self.train_loss is None else f"loss {self.train_loss:.4f}  "
        return (
            f"epoch {self.epoch}  {train}search half: loss {self.loss:.4f}, balanced accuracy"
            f" {100 * self.score:.1f}"
        )


@dataclass(frozen=True, eq=False)
class SoftTraining:
    """All that a training depends on.

    Attributes:
        scorer: Of the checkpoint; its weights stay, its `soft` is changed.
        start: Where it begins.
        clips: The train split.
        validation: Clips whose loss decides which epoch is kept.
        recipe: How.
    """

    scorer: SoftScorer
    start: SoftPrompt
    clips: Sequence[Clip]
    validation: Sequence[Clip]
    recipe: SoftRecipe = SoftRecipe()


@dataclass(frozen=True, eq=False)
class SoftTrained:
    """The vectors of the epoch with the lowest validation loss."""

    soft: SoftPrompt
    best: SoftEpoch
    curve: tuple[SoftEpoch, ...]


def train_seeds(
    training: SoftTraining, folder: Path, seeds: int, tell: Callable[[str], None]
) -> tuple[SoftPrompt, list[dict[str, Any]]]:
    """Trains with seeds from the recipe's on, or goes on after those that are done.

    Args:
        folder: Each seed leaves its vectors and its curve there.
        tell: Is told of every epoch.

    Returns:
        (The vectors of the seed with the lowest validation loss; seed, best epoch, curve and digest of each.)
    """
    done: list[dict[str, Any]] = []
    for seed in range(training.recipe.seed, training.recipe.seed + seeds):
        kept = folder / f"seed-{seed}.json"
        if not is_written(kept):
            one = replace(training, recipe=replace(training.recipe, seed=seed))

            def told(epoch: SoftEpoch, seed: int = seed) -> None:
                tell(f"seed {seed}  {epoch.line()}")

            found = train_soft(one, told)
            save_soft(kept.with_suffix(".safetensors"), found.soft)
            about = {"seed": seed, "best": asdict(found.best), "digest": found.soft.digest}
            write_json(kept, {**about, "curve": [asdict(epoch) for epoch in found.curve]})
        done.append(read_json(kept))
    best = min(done, key=lambda one: float(one["best"]["loss"]))
    path = folder / f"seed-{best['seed']}.safetensors"
    return load_soft(path, training.start.prompt, best["digest"]), done


def train_soft(
    training: SoftTraining, tell: Callable[[SoftEpoch], None] = lambda _: None
) -> SoftTrained:
    """Trains a soft prompt from a start. Repeatable; the epoch with the lowest validation loss is kept.

    Args:
        training: What, on what.
        tell: Is told of every epoch.
    Raises:
        UserError: The loss became NaN or infinite.
    """
    scorer, start, recipe = training.scorer, training.start, training.recipe
    clips, validation = training.clips, training.validation
    scorer.forget()  # the same bits, whatever was scored or trained before
    table: Any = scorer.decoder.model.model.language_model.embed_tokens  # outside of inference mode
    unit = float(table.weight.float().square().mean().sqrt())
    vectors = start.vectors.to(scorer.device).clone().requires_grad_()
    steps = max(1, len(clips) // recipe.batch)
    optimizer = torch.optim.Adam([vectors], lr=recipe.lr * unit)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate(step, steps * recipe.epochs, recipe.warmup)
    )
    micro = recipe.micro or _at_once(scorer, start.prompt, clips, recipe.batch)
    best, curve = start, [_validate(scorer, start, validation, SoftEpoch(0, None, 0.0, 0.0))]
    tell(curve[0])
    kept = curve[0]
    for epoch in range(1, recipe.epochs + 1):
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(clips))
        losses = []
        for step in range(steps):
            batch = [clips[i] for i in order[step * recipe.batch : (step + 1) * recipe.batch]]
            loss, micro = _fitting(training, vectors, batch, micro)
            losses.append(loss)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        if not math.isfinite(sum(losses)):
            raise UserError(f"the loss is no number in epoch {epoch}: lower --lr")
        now = SoftPrompt(start.prompt, vectors.detach().float().cpu().clone())
        at = _validate(scorer, now, validation, SoftEpoch(epoch, float(np.mean(losses)), 0.0, 0.0))
        curve.append(at)
        tell(at)
        if at.loss < kept.loss:
            best, kept = now, at
        elif epoch - kept.epoch >= PATIENCE:
            break
    return SoftTrained(best, kept, tuple(curve))


def _at_once(scorer: SoftScorer, prompt: Prompt, clips: Sequence[Clip], batch: int) -> int:
    """Clips of a batch whose activations take `ROOM` of the card's free memory together; on a CPU all of them."""
    if scorer.device.type != "cuda":
        return batch
    longest = max(clips, key=lambda clip: clip.duration_ms)
    heard = next(hear(scorer, prompt.system, [longest]))
    free, _ = torch.cuda.mem_get_info(scorer.device)
    text, heads, row = scorer.config.text_config, scorer.decoder.heads, scorer.row(prompt)
    # As `evaluators.finetuning.memory` counts a layer of stock; keys and values are kept with those of the clip.
    layer = len(row.ids) * (40 * text.hidden_size + 6 * text.intermediate_size)
    layer += (int(heard.length[0]) + len(row.ids)) * 8 * heads.key_width
    each = layer * len(scorer.decoder.layers) + row.kept * text.vocab_size * 12
    fitting = [n for n in range(1, batch + 1) if batch % n == 0 and n * each <= ROOM * free]
    return max(fitting, default=1)


def _rate(step: int, steps: int, warmup: float) -> float:
    """Share of the highest rate: a ramp, then half a cosine."""
    ramp = max(1, round(warmup * steps))
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - ramp) / max(1, steps - ramp))))


def _fitting(
    training: SoftTraining, vectors: torch.Tensor, clips: Sequence[Clip], micro: int
) -> tuple[float, int]:
    """(The loss, whose gradient is added; how many clips at once did fit the memory: `micro`, or halves of it)."""
    with device_faults():
        while True:
            try:
                return _backward(training.scorer, training.start, vectors, clips, micro), micro
            except torch.OutOfMemoryError:
                if micro == 1:
                    raise
            micro //= 2
            vectors.grad = None
            if training.scorer.device.type == "cuda":
                torch.cuda.empty_cache()


def _backward(
    scorer: SoftScorer,
    start: SoftPrompt,
    vectors: torch.Tensor,
    clips: Sequence[Clip],
    micro: int,
) -> float:
    """Adds the gradient of a batch, `micro` clips at once. Returns the loss: that of each label weighs the same."""
    labels = [label for label, _ in start.prompt.answers]
    truth, weight = weigh(clips, labels)
    total = 0.0
    for first in range(0, len(clips), micro):
        part = slice(first, first + micro)
        logp = answer_logp(scorer, start.prompt, vectors, clips[part])
        right = logp[torch.arange(len(logp)), torch.from_numpy(truth[part])]
        loss = -(right * torch.from_numpy(weight[part]).to(right)).sum() / len(clips)
        loss.backward()
        total += float(loss.detach())
    return total


def _validate(
    scorer: SoftScorer, soft: SoftPrompt, clips: Sequence[Clip], epoch: SoftEpoch
) -> SoftEpoch:
    """The epoch with loss and score on the validation clips."""
    scorer.soft = soft
    table = scorer.score([soft.prompt], clips)
    labels = [label for label, _ in soft.prompt.answers]
    truth, weight = weigh(clips, labels)
    one = fitted(soft, table)
    said = table.predict(one)
    among = among_labels(shifted(table.logp[0], one.bias))
    loss = float(-(weight * among[np.arange(len(clips)), truth]).mean())
    return replace(epoch, loss=loss, score=balanced_accuracy(said.targets.kinds, said.right))


def fitted(soft: SoftPrompt, table: ScoreTable) -> Classifier:
    """The prompt with the threshold that is best on the clips of a table."""
    return Classifier(soft.prompt, fit_shift(table.targets.truth, table.logp[0]))
