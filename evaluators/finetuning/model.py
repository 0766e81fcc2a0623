"""The model that is trained: base weights, LoRA adapter, the loss at the answer.

It is the evaluator's model: the audio tower is cut to the clip, and hidden states go through the head only where
something is supervised.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor

from evaluators.audio_lm.adapters import attach, merge
from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.families import Family, audio_config, family_of, join_parts
from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.loading import load_model
from evaluators.clips import Clip
from evaluators.finetuning.line import Line
from evaluators.finetuning.packed import PackedDecoder, is_packable
from evaluators.finetuning.recipe import Recipe, target_modules
from evaluators.finetuning.samples import log_mel
from evaluators.finetuning.tower_layers import TowerLayers, has_plain_layers

EMBED_CLIPS = 16  # at once, where the audio tower is not trained


@dataclass(frozen=True)
class Adapted:
    """A model with an adapter."""

    peft: Any

    @property
    def base(self) -> Any:
        """The model of transformers, with LoRA layers in it."""
        return self.peft.get_base_model()

    def trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.peft.parameters() if p.requires_grad)


@dataclass(frozen=True)
class AdaptedModel(Adapted):
    """One of a packed family. Calling `peft` with a batch of `Collate` gives what `answer_loss` returns."""

    family: Family
    share: float | None = None  # of dropout, where layers are written out; None: autograd's
    max_graphs: int = 0  # of language model and audio tower each

    @functools.cached_property
    def packed(self) -> PackedDecoder | None:
        """The language model on packed tokens, if it is trained so. Made when the model is on its device."""
        return None if self.share is None else PackedDecoder(self.base, self.share, self.max_graphs)

    def answer_loss(
        self,
        ids: Tensor,
        groups: Sequence[dict[str, Any]],
        *,
        target_row: Tensor,
        target_place: Tensor,
        target_id: Tensor,
        target_weight: Tensor,
        packed: dict[str, Any],
    ) -> dict[str, Tensor]:
        """``loss``, the weighted loss at the supervised tokens, and ``logp``, their log-probabilities in nats.

        For the arguments see `Collate`.
        """
        if self.packed is None:
            hidden = self._hidden_of_rows(ids, groups)
            logits = self.base.lm_head(hidden[target_row, target_place]).float()
        else:
            # The layers say themselves what they round.
            with torch.autocast(ids.device.type, enabled=False):
                line = Line(**packed["line"])
                kept = self._logits_in_line(self.packed, line, groups, packed["keep"])
            logits = kept[packed["state"]]
        logp = -F.cross_entropy(logits, target_id, reduction="none")
        return {"loss": -(target_weight * logp).sum(), "logp": logp.detach()}

    def _logits_in_line(
        self, packed: PackedDecoder, line: Line, groups: Sequence[dict[str, Any]], keep: Tensor
    ) -> Tensor:
        """``[kept, vocabulary]`` float32."""
        x = self.base.model.language_model.embed_tokens(line.ids)
        for group, audio in zip(groups, self._audio(groups), strict=True):
            x = x.index_put((line.index[_places(group, audio)],), audio.to(x.dtype))
        return packed(x, line, keep)

    def _hidden_of_rows(self, ids: Tensor, groups: Sequence[dict[str, Any]]) -> Tensor:
        """``[sample, token, channel]`` last hidden states, by transformers' own layers."""
        lm = self.base.model.language_model
        x = lm.embed_tokens(ids)
        for group, audio in zip(groups, self._audio(groups), strict=True):
            x = x.index_put(_places(group, audio), audio.to(x.dtype))
        hidden: Tensor = lm(inputs_embeds=x, use_cache=False).last_hidden_state
        return hidden

    def _audio(self, groups: Sequence[dict[str, Any]]) -> list[Tensor]:
        """``[sample, token, channel]`` embeddings of each group's clips."""
        if "audio" in groups[0]:
            return [group["audio"] for group in groups]
        ends = self.family.ends
        if self.tower is None or ends is None:
            return [self.family.encode(self.base, g["mel"], g["frames"]) for g in groups]
        parts = [ends.front(self.base, group["mel"], group["frames"]) for group in groups]
        done = iter(self.tower([x for own in parts for x in own]))
        return [ends.back(self.base, join_parts([next(done) for _ in own])) for own in parts]

    @functools.cached_property
    def tower(self) -> TowerLayers | None:
        """The audio tower's layers, if they are trained so."""
        tower = self.base.model.audio_tower
        if self.share is None or self.family.ends is None or not has_plain_layers(tower):
            return None
        return TowerLayers(tower, self.share, self.max_graphs)


def _places(group: dict[str, Any], audio: Tensor) -> tuple[Tensor, Tensor]:
    """(Row, place) of each audio token of a group."""
    within = torch.arange(audio.shape[1], device=audio.device)
    return group["row"][:, None], group["place"][:, None] + within


def adapted_model(
    checkpoint: Checkpoint,
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype,
    *,
    expand: bool = False,
    loaded: Any = None,
    max_graphs: int = 0,
    packed: bool | None = None,
) -> AdaptedModel:
    """The base weights with a new adapter, or with the checkpoint's own, which is trained further.

    Args:
        checkpoint: What is trained.
        recipe: How.
        device: Where.
        dtype: Of the frozen weights; the adapter is float32.
        expand: Expand 4-bit weights once, to what every product would expand them to.
        loaded: A base model in memory, instead of the checkpoint's files. It is changed.
        max_graphs: CUDA graphs that may be kept, of language model and audio tower each. 0: none is made.
        packed: Whether its layers' gradients are written out. None: where they can be.
    """
    family = family_of(loaded.config if loaded is not None else audio_config(checkpoint.base))
    model = loaded
    if model is None:
        model = load_model(replace(checkpoint, adapter=None), family, device, dtype)
    if expand:
        merge(model, dtype, True)
    peft = with_adapter(model, checkpoint, recipe, target_modules(recipe.targets))
    if packed is None:
        packed = is_packable(model)
    share = recipe.dropout if packed else None
    adapted = AdaptedModel(peft, family, share, max_graphs)
    model.forward = adapted.answer_loss
    return adapted


def with_adapter(
    model: Any, checkpoint: Checkpoint, recipe: Recipe, targets: list[str] | str
) -> Any:
    """The model, frozen, with the checkpoint's adapter or a new one, in float32, which is trained; as a PeftModel."""
    model.requires_grad_(False)
    if checkpoint.adapter is not None:
        peft = attach(model, checkpoint.adapter, trainable=True)
    else:
        torch.manual_seed(recipe.seed)
        lora = LoraConfig(
            r=recipe.rank,
            lora_alpha=2 * recipe.rank,
            lora_dropout=recipe.dropout,
            target_modules=targets,
        )
        peft = get_peft_model(model, lora)
    for weight in peft.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    model.accepts_loss_kwargs = False
    return peft


def embed_clips(
    adapted: AdaptedModel, store: FeatureStore, clips: Sequence[Clip], device: torch.device
) -> dict[str, Tensor]:
    """Audio embeddings ``[token, channel]`` by clip id, by a tower that is not trained. Moves the model to `device`."""
    model = adapted.base.to(device)
    by_frames: dict[int, list[tuple[str, Tensor]]] = {}
    for clip in clips:
        mel, frames = log_mel(store, clip)
        by_frames.setdefault(frames, []).append((clip.clip_id, torch.from_numpy(mel)))
    out: dict[str, Tensor] = {}
    with torch.no_grad():
        for frames, same_length in by_frames.items():
            for i in range(0, len(same_length), EMBED_CLIPS):
                names, mels = zip(*same_length[i : i + EMBED_CLIPS], strict=True)
                embedded = adapted.family.encode(model, torch.stack(mels).to(device), frames)
                out |= {n: e.clone() for n, e in zip(names, embedded, strict=True)}
    return out
