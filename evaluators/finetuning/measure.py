"""What a checkpoint's files say of a training before weights are read: processor, longest row, the plan of memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig

from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.families import audio_config, family_of
from evaluators.audio_lm.generic_chat import Chat, read_chat
from evaluators.audio_lm.generic_class import generic_class
from evaluators.audio_lm.model_folder import weight_count
from evaluators.clips import ClipSet
from evaluators.errors import UserError
from evaluators.finetuning.memory import TrainingPlan, plan_generic, plan_training
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.samples import in_orders, longest_row, tokenize_prompts
from evaluators.prompts import Prompt


@dataclass(frozen=True)
class Room:
    """What a training may take.

    Attributes:
        gib: Memory of the card; None for a CPU, where everything fits.
        batch: Samples of an optimizer step on this device.
        micro: Samples at once, if that is decided already.
    """

    gib: float | None
    batch: int
    micro: int | None = None


@dataclass(frozen=True)
class Measured:
    """The checkpoint's processor, the plan, and, where it has no packed path, how it is asked."""

    processor: Any
    plan: TrainingPlan
    chat: Chat | None = None


def measure(
    checkpoint: Checkpoint, recipe: Recipe, clips: ClipSet, prompts: Sequence[Prompt], room: Room
) -> Measured:
    """Measures a training of a checkpoint with clips and prompts.

    Raises:
        UserError: It has no layers of `recipe.targets`, it cannot be asked a prompt, or memory does not suffice.
    """
    one = measure_packed if checkpoint.is_packed else measure_generic
    return one(checkpoint, recipe, clips, prompts, room)


def measure_packed(
    checkpoint: Checkpoint, recipe: Recipe, clips: ClipSet, prompts: Sequence[Prompt], room: Room
) -> Measured:
    """As `measure`, on a packed path."""
    config = audio_config(checkpoint.base)
    experts: int = getattr(config.text_config, "num_experts", 0)
    if experts and recipe.targets == "attention+mlp":
        raise UserError(
            "--targets attention+mlp: the feed-forward of this model is made of experts, which have"
            " no adapters; use attention"
        )
    family = family_of(config)
    processor = family.processor(checkpoint.base)
    labels = clips.task.labels
    wordings = tokenize_prompts(prompts, labels, processor.tokenizer, family, recipe.swap)
    plan = plan_training(
        config,
        longest_row(clips, wordings, family, config, processor.feature_extractor),
        room.gib,
        batch=room.batch,
        quantization="none" if room.gib is None else checkpoint.quantization,
        loss=recipe.loss,
        micro_batch_size=room.micro,
    )
    mend = "" if checkpoint.quantization == "nf4" else "; try --quantization nf4"
    return Measured(processor, _fitting(plan, checkpoint, room, mend))


def measure_generic(
    checkpoint: Checkpoint, recipe: Recipe, clips: ClipSet, prompts: Sequence[Prompt], room: Room
) -> Measured:
    """As `measure`, the generic way."""
    who = f"checkpoint {checkpoint.name!r}"
    if room.micro not in (None, 1):
        raise UserError(
            f"--micro is {room.micro}; a model without a packed path is trained one sample at a time: expected 1"
        )
    generic_class(checkpoint.base, who)
    chat = read_chat(checkpoint.base, who)
    longest, tokens = max(clips, key=lambda clip: clip.duration_ms), 0
    for number, prompt in enumerate(in_orders(prompts, recipe.swap)):
        head = max(len(row.head) for row in chat.rows(number, prompt))
        inputs = chat.inputs(prompt, longest)
        chat.check_end(prompt, longest, inputs)
        tokens = max(tokens, inputs["input_ids"].shape[1] + head)
    config = AutoConfig.from_pretrained(checkpoint.base, trust_remote_code=False)
    plan = plan_generic(config, weight_count(checkpoint.base, who), tokens, room.gib)
    return Measured(chat.processor, _fitting(plan, checkpoint, room, ""), chat)


def _fitting(
    plan: TrainingPlan | None, checkpoint: Checkpoint, room: Room, mend: str
) -> TrainingPlan:
    """The plan. Raises UserError, with what to try, where there is none."""
    if plan is None:
        raise UserError(f"{checkpoint.name!r} cannot be trained in {room.gib:.1f} GiB{mend}")
    return plan
