"""The model that is trained: base weights, LoRA adapter, the loss at the answer, CUDA graphs of its parts.

It is the evaluator's model: the audio tower is cut to the clip, and hidden states go through the head only where
something is supervised.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from evaluators.finetuning.packed import Line, PackedDecoder, is_packable
from evaluators.finetuning.recipe import Recipe, target_modules
from evaluators.finetuning.samples import log_mel
from evaluators.finetuning.tower_layers import TowerLayers, has_plain_layers

EMBED_CLIPS = 16  # at once, where the audio tower is not trained


class _Decoder(torch.nn.Module):
    """Embeddings ``[sample, token, channel]`` -> last hidden states."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lm(inputs_embeds=x, use_cache=False).last_hidden_state
        return out


class _Tower(torch.nn.Module):
    """Features ``[sample, bin, frame]`` of clips of one length -> audio embeddings."""

    def __init__(self, model: Any, family: Family, frames: int) -> None:
        super().__init__()
        self.tower = model.model.audio_tower  # its parameters are the graph's
        self.encode = functools.partial(family.encode, model)
        self.frames = frames

    def forward(self, mel: Tensor) -> Tensor:
        return self.encode(mel, self.frames)


class Graphs:
    """CUDA graphs of decoder and audio tower, forward and backward, for shapes that come again.

    The layers of a LoRA step are thousands of small kernels: launched one by one they keep the card waiting for the
    host. Only without gradient accumulation, since a graph's gradients lie in memory that the next replay overwrites.

    Args:
        limit: Graphs that are kept; each holds the activations of its shape. 0: none.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._seen: dict[Any, int] = {}
        self._graphs: dict[Any, Any] = {}

    def run(self, key: Any, make: Callable[[], torch.nn.Module], x: Tensor) -> Tensor:
        """``make()(x)``; from the second time that a shape comes, by a graph."""
        key = (key, tuple(x.shape))
        if not self.limit or not torch.is_grad_enabled():
            return make()(x)
        self._seen[key] = self._seen.get(key, 0) + 1
        if key not in self._graphs:
            if self._seen[key] < 2 or len(self._graphs) >= self.limit:
                return make()(x)
            sample = torch.zeros_like(x).requires_grad_(x.requires_grad)
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                module = make().train()
                self._graphs[key] = torch.cuda.make_graphed_callables(module, (sample,))
        return self._graphs[key](x)


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
    graphs: Graphs = field(default_factory=Graphs)
    share: float | None = (
        None  # of dropout, where layers are written out; None: they are autograd's
    )

    @functools.cached_property
    def packed(self) -> PackedDecoder | None:
        """The language model on packed tokens, if it is trained so. Made when the model is on its device."""
        return None if self.share is None else PackedDecoder(self.base, self.share)

    def answer_loss(
        self,
        ids: Tensor,
        groups: Sequence[dict[str, Any]],
        *,
        target_row: Tensor,
        target_place: Tensor,
        target_id: Tensor,
        target_weight: Tensor,
        line: dict[str, Any],
        keep: Tensor,
        state: Tensor,
    ) -> dict[str, Tensor]:
        """``loss``, the weighted loss at the supervised tokens, and ``logp``, their log-probabilities in nats.

        For the arguments see `Collate`.
        """
        if self.packed is None:
            hidden = self._hidden_of_rows(ids, groups)
            logits = self.base.lm_head(hidden[target_row, target_place]).float()
        else:
            with torch.autocast(
                ids.device.type, enabled=False
            ):  # the layers say themselves what they round
                logits = self._logits_in_line(self.packed, Line(**line), groups, keep)[state]
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
        return self.graphs.run("decoder", functools.partial(_Decoder, lm), x)

    def _audio(self, groups: Sequence[dict[str, Any]]) -> list[Tensor]:
        """``[sample, token, channel]`` embeddings of each group's clips."""
        if "audio" in groups[0]:
            return [group["audio"] for group in groups]
        ends = self.family.ends
        if self.tower is None or ends is None:
            return [self._encoded(group["mel"], group["frames"]) for group in groups]
        parts = [ends.front(self.base, group["mel"], group["frames"]) for group in groups]
        done = iter(self.tower([x for own in parts for x in own]))
        return [ends.back(self.base, join_parts([next(done) for _ in own])) for own in parts]

    def _encoded(self, mel: Tensor, frames: int) -> Tensor:
        """Embeddings by the tower's own modules."""
        tower = functools.partial(_Tower, self.base, self.family, frames)
        return self.graphs.run(("tower", frames), tower, mel)

    @functools.cached_property
    def tower(self) -> TowerLayers | None:
        """The audio tower's layers, if they are trained so."""
        tower = self.base.model.audio_tower
        if self.share is None or self.family.ends is None or not has_plain_layers(tower):
            return None
        return TowerLayers(tower, self.share)


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
    graphs: Graphs | None = None,
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
        graphs: CUDA graphs of its parts. None: every kernel is launched by itself.
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
    adapted = AdaptedModel(peft, family, graphs or Graphs(), share)
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
