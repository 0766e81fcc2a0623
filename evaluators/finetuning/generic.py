"""Training of models without a packed path: their own forward, processor and chat template, one sample at a time.

A sample is what the generic way scores by a whole forward, so the loss is of the numbers that are scored later. There
is no padding and no batch: what a processor makes of several clips differs from model to model. Samples of a step are
summed instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.generic import logits_at
from evaluators.audio_lm.generic_chat import Chat, extended
from evaluators.audio_lm.generic_class import generic_class
from evaluators.audio_lm.loading import load_model
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.finetuning.model import Adapted, with_adapter
from evaluators.finetuning.recipe import Loss, Recipe, TargetModules
from evaluators.finetuning.samples import ONCE, Schedule, answers_of, weigh
from evaluators.prompts import Prompt

# Names of classes in transformers tell what a layer is for; those that see pictures hear nothing.
ATTENTION, FEED_FORWARD = ("Attention",), ("MLP", "FeedForward")
SEES, HEARS = ("Vision", "Image", "Video"), ("Audio", "Speech", "Projector", "QFormer")


@dataclass(frozen=True)
class GenericModel(Adapted):
    """A model that goes the generic way, with an adapter. Calling `peft` gives what `answer_loss` returns."""

    forward: Any  # the model's own
    dtype: torch.dtype  # of its inputs

    def answer_loss(
        self,
        inputs: dict[str, Tensor],
        *,
        target_place: Tensor,
        target_id: Tensor,
        target_weight: Tensor,
    ) -> dict[str, Tensor]:
        """``loss``, the weighted loss at the supervised tokens, and ``logp``, their log-probabilities in nats."""
        given = {n: v.to(self.dtype) if v.is_floating_point() else v for n, v in inputs.items()}
        logits = logits_at(self.forward, given, target_place).logits[0].float()
        logp = -F.cross_entropy(logits, target_id, reduction="none")
        return {"loss": -(target_weight * logp).sum(), "logp": logp.detach()}

    def restore(self) -> Any:
        """The model with its own forward again, for scoring."""
        self.base.forward = self.forward
        return self.base


def generic_model(
    checkpoint: Checkpoint, recipe: Recipe, device: torch.device, dtype: torch.dtype
) -> GenericModel:
    """The base weights with a new adapter, or with the checkpoint's own, which is trained further.

    Raises:
        UserError: None of its layers is one that `recipe.targets` names.
    """
    plain = replace(checkpoint, adapter=None)
    who = f"checkpoint {checkpoint.name!r}"
    model = load_model(plain, generic_class(checkpoint.base, who), device, dtype)
    targets = target_names(model, recipe.targets)
    if not targets:
        raise UserError(
            f"--targets {recipe.targets}: {type(model).__name__} of {who} has no linear layers that are known for it"
            " by the names of their classes; train the adapter with peft itself, and give it by --adapter to score it"
        )
    forward = model.forward
    adapted = GenericModel(with_adapter(model, checkpoint, recipe, targets), forward, dtype)
    model.forward = adapted.answer_loss
    return adapted


def target_names(model: Any, targets: TargetModules) -> list[str]:
    """Names of the linear layers that are adapted, told by the classes of the modules around them.

    Attention of language model and audio tower, with ``attention+mlp`` the feed-forward too, or with ``llm-only`` the
    attention of the language model alone. What sees pictures is left out, and so are experts, which are no layers.
    """
    modules = dict(model.named_modules())
    decoder = model.get_decoder()
    inside = set(decoder.modules())
    whole = {module for module in modules.values() if decoder in set(module.modules())}
    wanted = ATTENTION + (FEED_FORWARD if targets == "attention+mlp" else ())
    left_out = SEES + (HEARS if targets == "llm-only" else ())
    out = []
    for name, module in modules.items():
        parts = name.split(".")
        around = [modules[".".join(parts[:i])] for i in range(1, len(parts))]
        kinds = [type(one).__name__ for one in around if one not in whole]
        fused = any(isinstance(one, torch.nn.MultiheadAttention) for one in around)
        if not isinstance(module, torch.nn.Linear) or fused:
            continue
        if targets == "llm-only" and module not in inside:
            continue
        if _names(wanted, kinds) and not _names(left_out, kinds):
            out.append(name)
    return out


def _names(words: Sequence[str], kinds: Sequence[str]) -> bool:
    return any(word in kind for word in words for kind in kinds)


class GenericSamples(Dataset[dict[str, Any]]):
    """The samples of a whole training, one epoch after the other: what the processor makes of each, made when asked.

    Args:
        clips: What is shown.
        prompts: In which words, in turns.
        labels: The task's labels.
        chat: How the model is asked.
        schedule: How often and in which order; without augmentation, which would have to know each front end.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        prompts: Sequence[Prompt],
        labels: Sequence[str],
        chat: Chat,
        *,
        schedule: Schedule = ONCE,
    ) -> None:
        self.clips, self.prompts, self.chat = list(clips), list(prompts), chat
        self.answers = [answers_of(p, labels, chat.processor.tokenizer) for p in prompts]
        self.label, self.weight = weigh(clips, labels)
        self.order = schedule.order(len(self.clips), len(self.prompts))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """``inputs`` of the model with all of the answer but its last token, the ``answer``, and its ``weight``."""
        c, w = self.order[number]
        answer = self.answers[w][self.label[c]]
        asked = self.chat.inputs(self.prompts[w], self.clips[c])
        return {
            "inputs": extended(asked, answer[:-1]),
            "answer": answer,
            "weight": self.weight[c],
        }


@dataclass(frozen=True)
class CollateOne:
    """A sample -> a batch of one."""

    audio_id: int  # the token that stands for the audio
    loss: Loss

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """``inputs``, and for each supervised token its ``target_place``, ``target_id`` and ``target_weight``.

        A place is that of the state that predicts the token.
        """
        (item,) = items
        inputs, answer = item["inputs"], item["answer"]
        following = [*inputs["input_ids"][0, 1:].tolist(), answer[-1]]  # what each state predicts
        first = len(following) - len(answer) if self.loss == "answer" else 0
        places = [p for p in range(first, len(following)) if following[p] != self.audio_id]
        weight = item["weight"] / len(places)
        return {
            "inputs": inputs,
            "target_place": torch.tensor(places),
            "target_id": torch.tensor([following[p] for p in places]),
            "target_weight": torch.full((len(places),), weight, dtype=torch.float32),
        }
