"""LoRA adapters: their keys in the layouts of transformers 4 and 5, how they join a base model, and merge into it.

`adapter_kinds` says which of them come this far.
"""

import copy
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from evaluators.audio_lm.adapter_kinds import CONFIG, RESIDUAL_INITS, WEIGHTS
from evaluators.audio_lm.adapter_names import PREFIX, new_name, old_name
from evaluators.audio_lm.model_folder import read_object, tensor_shapes
from evaluators.audio_lm.plain_lora import merge_plain
from evaluators.errors import UserError


def _peft() -> Any:
    """peft, whose import a model without an adapter need not wait for."""
    import peft

    return peft


def attach(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """The base model with the adapter in it, as a PeftModel. Every tensor of the adapter is in its place.

    On the meta device nothing but the places is made, so that whether all fit is known without memory.

    Keys of transformers 4 are renamed, and the modules that their configuration names are found by their old names.

    Raises:
        UserError: A tensor is missing, is left over or has another shape, or peft refuses the configuration.
    """
    tensors = load_file(folder / WEIGHTS)
    named = {new_name(key): key for key in tensors}
    in_old_layout = any(new != key for new, key in named.items())
    try:
        joined = _join(model, folder, trainable, in_old_layout)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of many kinds, as peft looks at its settings when it uses them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
        raise UserError(
            f"adapter {str(folder)!r} cannot join its base ({reason}); give the base it was trained on"
        ) from None
    every, get_peft_model_state_dict = joined.state_dict(), _peft().get_peft_model_state_dict
    wanted = get_peft_model_state_dict(joined, every, save_embedding_layers=False)
    # peft may save the embeddings of the base, too
    places = get_peft_model_state_dict(joined, every, save_embedding_layers=True)
    missing = [key for key in wanted if key not in named]
    extra = [key for key in tensors if named[new_name(key)] != key or new_name(key) not in places]
    misshapen = [
        f"{key!r} is {list(tensors[key].shape)} where {list(places[new].shape)} is expected"
        for new, key in named.items()
        if new in places and tensors[key].shape != places[new].shape
    ]
    if missing or extra or misshapen:
        parts = [
            f"{WEIGHTS} lacks {_first(map(repr, missing))}" if missing else "",
            f"{_first(map(repr, extra))} fits nothing there" if extra else "",
            _first(misshapen) if misshapen else "",
        ]
        raise UserError(
            f"adapter {str(folder)!r} does not fit its base: {'; '.join(filter(None, parts))}; give"
            " the base it was trained on, or save the adapter again"
        )
    with torch.no_grad():
        for new, key in named.items():  # the places are the model's own tensors
            places[new].copy_(tensors[key])
    return joined


def _join(model: Any, folder: Path, trainable: bool, in_old_layout: bool) -> Any:
    """The base model with an adapter of the folder's configuration in it, whose weights are not yet those of its file.

    peft warns here of what `attach` and `merge` take care of, such as layers that peft itself could not merge.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = _peft().LoraConfig.from_pretrained(str(folder))
        config.inference_mode = not trainable
        if model.device.type == "meta":
            config.init_lora_weights = False  # the others compute with the base's weights
        if in_old_layout:
            _resolve(config, model)
        return _peft().PeftModel(model, config)


def beside(base: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A base with an adapter, merged as `merge` does it; whatever the adapter does not change is the base's tensors.

    Args:
        base: Loaded, without 4-bit layers. It stays as it is.
        folder: Of the adapter.
        dtype: Of merged weights.

    Raises:
        UserError: As `attach`.
    """
    model = _on_same_weights(base, frozenset())
    if merge_plain(model, folder, dtype):
        return model.eval().requires_grad_(False)
    model = attach(_on_same_weights(base, _written(folder)), folder).get_base_model()
    merge(model, dtype, dequantize=False)
    return model.eval().requires_grad_(False)


def _written(folder: Path) -> frozenset[str]:
    """The tensors of a base that `attach` writes to."""
    written = {new_name(key).removeprefix(PREFIX) for key in tensor_shapes(folder / WEIGHTS)}
    if read_object(folder / CONFIG).get("init_lora_weights") in RESIDUAL_INITS:
        written |= {f"{name.partition('.lora_')[0]}.weight" for name in written}
    return frozenset(name.replace(".base_layer.", ".") for name in written)


def _on_same_weights(base: Any, written: frozenset[str]) -> Any:
    """The modules of a base anew, over the same tensors, but for some that are copied."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in base.buffers()}
    for name, weight in base.named_parameters():
        values = weight.data.clone() if name in written else weight.data
        memo[id(weight)] = torch.nn.Parameter(values, requires_grad=False)
    return copy.deepcopy(base, memo)


def merge(module: Any, dtype: torch.dtype, dequantize: bool) -> None:
    """Merges adapters (and, with `dequantize`, 4-bit layers) into equivalent plain layers, in place.

    4-bit weights become the numbers that bitsandbytes dequantizes them to for every batch. LoRA is added in float32, by
    peft's own merge, and rounded once; where weights stay 4-bit it cannot be added, and stays beside them.
    """
    for name, child in list(module.named_children()):
        plain = _plain(child, dtype, dequantize)
        if plain is None:
            merge(child, dtype, dequantize)
        elif plain is not child:
            setattr(module, name, plain)


def _plain(child: Any, dtype: torch.dtype, dequantize: bool) -> Any:
    """What stands in for a layer: itself, a plain one of the same function, or None for what is no single layer."""
    if hasattr(child, "modules_to_save"):  # peft's wrapper round a module that was trained whole
        return child.modules_to_save[child.active_adapters[0]]
    adapted = hasattr(child, "lora_A")  # peft's; not imported without need
    base = child.get_base_layer() if adapted else child
    if hasattr(getattr(base, "weight", None), "quant_state"):
        return _expanded(child, base, adapted, dtype) if dequantize else child
    if not adapted:
        return child if type(child) is torch.nn.Linear else None
    exact = copy.deepcopy(base).float()  # a copy: the head's weight may be the embedding's, too
    if any(child.lora_bias.get(a) for a in child.active_adapters) and exact.bias is None:
        exact.bias = torch.nn.Parameter(torch.zeros(len(exact.weight), device=exact.weight.device))
    child.base_layer = exact
    child.merge()
    return exact.to(dtype).requires_grad_(False)


def _expanded(child: Any, base: Any, adapted: bool, dtype: torch.dtype) -> Any:
    """A plain linear layer in place of a 4-bit one and the LoRA beside it."""
    import bitsandbytes as bnb

    weight = bnb.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)
    if adapted:
        weight = weight.float() + sum(child.get_delta_weight(a) for a in child.active_adapters)
    plain = torch.nn.Linear(
        base.in_features, base.out_features, base.bias is not None, device="meta"
    )
    plain.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
    if base.bias is not None:
        plain.bias = torch.nn.Parameter(base.bias.data.to(dtype), requires_grad=False)
    return plain


def _resolve(config: Any, model: Any) -> None:
    """Puts the modules' full names into a configuration that was written for those of transformers 4, in place."""
    if config.target_modules == "all-linear":
        return  # peft finds them by their type
    names = [name for name, _ in model.named_modules() if name]
    exists = _peft().tuners.tuners_utils.check_target_module_exists
    targets = [name for name in names if exists(config, old_name(name))]
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(config, field)
        find = _peft().utils.other.get_pattern_key
        keys = {name: find(pattern, old_name(name)) for name in targets}
        by_name = {re.escape(name): pattern[k] for name, k in keys.items() if k in pattern}
        setattr(config, field, by_name)
    saved = tuple(config.modules_to_save or ())
    whole = [name for name in names if saved and old_name(name).endswith(saved)]
    config.modules_to_save = whole or None
    config.target_modules, config.exclude_modules = targets, None
    config.layers_to_transform = config.layers_pattern = None


def _first(items: Iterable[str]) -> str:
    first, *rest = items
    return f"{first} and {len(rest)} more" if rest else first
