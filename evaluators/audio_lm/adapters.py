"""LoRA adapters: which of them score exactly, their files and keys, how they join a base model, and merge into it.

What is exact is listed. A setting that is not on the list is refused by name once it is set, so that whatever peft
adds next is refused until somebody has looked at it. torch and peft are imported where they are needed, as a
checkpoint is opened without them.
"""

import copy
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evaluators.audio_lm.model_folder import FLOATS, read_object, refuse_pointers, tensor_types
from evaluators.errors import UserError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Fields of peft's LoraConfig that no score depends on once the adapter is trained.
HARMLESS = frozenset(
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode lora_dropout"
    " eva_config megatron_core qalora_group_size runtime_config".split()  # the last three: of what is refused
)
# Those that peft applies when the adapter joins its base; tests hold each of them against plain peft.
APPLIED = frozenset(
    "r lora_alpha target_modules exclude_modules layers_to_transform layers_pattern rank_pattern alpha_pattern"
    " use_rslora use_dora lora_bias bias modules_to_save fan_in_fan_out init_lora_weights".split()
)
INITS = (True, False, None, "gaussian", "orthogonal", "eva")  # they decide where training begins
RESIDUAL_INITS = (
    "pissa",
    "olora",
)  # they take a part out of the base's weights: peft takes it out again
BIASES = ("none", "all", "lora_only")
BEYOND_4_BIT = "use_dora", "lora_bias"  # would change when the weights beside them are expanded
MERGE_IT = (
    "if peft can merge it (merge_and_unload, then save_pretrained), give the merged folder as"
    " --checkpoint"
)
# (transformers 4, transformers 5): where the parts of Qwen2-Audio lie below ``base_model.model.``
LAYOUTS = (
    ("language_model.lm_head", "lm_head"),
    ("language_model.model", "model.language_model"),
    ("audio_tower", "model.audio_tower"),
    ("multi_modal_projector", "model.multi_modal_projector"),
)
PREFIX = "base_model.model."


def check_adapter(folder: Path, quantization: str) -> None:
    """Raises UserError for an adapter whose files are damaged, or that is of a kind that is not scored exactly."""
    refuse_pointers([folder / CONFIG, folder / WEIGHTS])
    if not (folder / CONFIG).is_file():
        raise UserError(f"adapter {str(folder)!r} holds no {CONFIG}; give a folder that peft wrote")
    check_kind(read_object(folder / CONFIG), folder, quantization)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise UserError(
            f"adapter {str(folder)!r} holds no {WEIGHTS}; convert it, pickled weights are not read"
        )
    for key, kind in tensor_types(weights).items():
        if kind not in FLOATS:
            raise UserError(
                f"adapter file {str(weights)!r}: tensor {key!r} is of type {kind}; expected one of"
                f" {', '.join(FLOATS)}: save it again in one of these"
            )


def check_kind(raw: Mapping[str, Any], folder: Path, quantization: str) -> None:
    """Raises UserError for an adapter_config.json that asks for something that is not known to be exact."""
    who, kind = f"adapter {str(folder)!r}", raw.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{who} is of peft_type {kind!r}; expected LORA; {MERGE_IT}")
    for name, value in raw.items():
        if name not in HARMLESS | APPLIED and value and value != _peft_default(name):
            raise UserError(
                f"{who} sets {name} to {_short(value)}, which is not known to be scored exactly;"
                f" {MERGE_IT}"
            )
    init, bias = raw.get("init_lora_weights", True), raw.get("bias", "none")
    if init not in (*INITS, *RESIDUAL_INITS):
        raise UserError(
            f"{who} sets init_lora_weights to {init!r}, which changes the base's weights in a way"
            " that cannot be repeated; save it with path_initial_model_for_weight_conversion"
        )
    if bias not in BIASES:
        raise UserError(f"{who} sets bias to {bias!r}; expected one of {', '.join(BIASES)}")
    set_here = [name for name in BEYOND_4_BIT if raw.get(name)]
    if init in RESIDUAL_INITS:
        set_here.append("init_lora_weights")
    if quantization != "none" and set_here:
        raise UserError(
            f"{who} sets {set_here[0]}, which is not exact on weights with --quantization"
            f" {quantization}; use none"
        )


def attach(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """The base model with the adapter in it, as a PeftModel. Every tensor of the adapter is in its place.

    Keys of transformers 4 are renamed, and the modules that their configuration names are found by their old names.

    Raises:
        UserError: A tensor is missing, is left over or has another shape, or peft refuses the configuration.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = load_file(folder / WEIGHTS)
    named = {new_name(key): key for key in tensors}
    try:
        config: Any = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = not trainable
        if any(new != key for new, key in named.items()):
            _resolve(config, model)
        with (
            warnings.catch_warnings()
        ):  # what peft warns of (layers it could not merge, say) is handled here
            warnings.simplefilter("ignore")
            joined: Any = PeftModel(model, config)
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"adapter {str(folder)!r} cannot join its base ({reason}); give the base it was trained on"
        ) from None
    wanted = get_peft_model_state_dict(joined, save_embedding_layers=False)
    places = get_peft_model_state_dict(
        joined, save_embedding_layers=True
    )  # peft may save these too
    missing = [key for key in wanted if key not in named]
    extra = [key for new, key in named.items() if new not in places]
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


def merge(module: Any, dtype: Any, dequantize: bool) -> None:
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


def _plain(child: Any, dtype: Any, dequantize: bool) -> Any:
    """What stands in for a layer: itself, a plain one of the same function, or None for what is no single layer."""
    import torch

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


def _expanded(child: Any, base: Any, adapted: bool, dtype: Any) -> Any:
    """A plain linear layer in place of a 4-bit one and the LoRA beside it."""
    import bitsandbytes as bnb
    import torch

    weight = bnb.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)  # type: ignore[attr-defined]
    if adapted:
        weight = weight.float() + sum(child.get_delta_weight(a) for a in child.active_adapters)
    plain = torch.nn.Linear(*weight.shape[::-1], base.bias is not None, device="meta")
    plain.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
    if base.bias is not None:
        plain.bias = torch.nn.Parameter(base.bias.data.to(dtype), requires_grad=False)
    return plain


def new_name(key: str) -> str:
    """A tensor's name in transformers 5, of its name there or in transformers 4."""
    inner = key.removeprefix(PREFIX)
    for old, new in LAYOUTS:
        if inner.startswith(f"{old}."):
            return f"{PREFIX}{new}{inner.removeprefix(old)}"
    return key


def _old_name(name: str) -> str:
    """A module's name in transformers 4, of its name in transformers 5."""
    for old, new in LAYOUTS:
        if f"{name}.".startswith(f"{new}."):
            return old + name.removeprefix(new)
    return name


def _resolve(config: Any, model: Any) -> None:
    """Puts the modules' full names into a configuration that was written for those of transformers 4, in place."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    if config.target_modules == "all-linear":
        return  # peft finds them by their type
    names = [name for name, _ in model.named_modules() if name]
    targets = [name for name in names if check_target_module_exists(config, _old_name(name))]
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(config, field)
        keys = {name: get_pattern_key(pattern, _old_name(name)) for name in targets}
        by_name = {re.escape(name): pattern[k] for name, k in keys.items() if k in pattern}
        setattr(config, field, by_name)
    saved = tuple(config.modules_to_save or ())
    whole = [name for name in names if saved and _old_name(name).endswith(saved)]
    config.modules_to_save = whole or None
    config.target_modules, config.exclude_modules = targets, None
    config.layers_to_transform = config.layers_pattern = None


def _peft_default(name: str) -> Any:
    """What peft takes where a field is not given; None for a field that this peft does not have."""
    from peft import LoraConfig

    return getattr(LoraConfig(), name, None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first(items: Iterable[str]) -> str:
    first, *rest = items
    return f"{first} and {len(rest)} more" if rest else first
