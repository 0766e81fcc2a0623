"""Which LoRA adapters score exactly; told by their files, before any weight is loaded.

What is exact is listed. A setting that is not on the list is refused by name once it is set, so that whatever peft
adds next is refused until somebody has looked at it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from evaluators.audio_lm.model_folder import (
    FLOATS,
    read_object,
    refuse_pointers,
    tensor_shapes,
    tensor_types,
)
from evaluators.errors import UserError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TOWER = (
    "audio_tower",
    "multi_modal_projector",
)  # in the names of all tensors that make embeddings of audio
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
)  # they take a part out of the base's weights, as peft does again
BIASES = ("none", "all", "lora_only")
_Alpha = Annotated[float, Field(ge=-1e6, le=1e6)]  # beyond it no precision holds what it scales
BEYOND_4_BIT = "use_dora", "lora_bias"  # would change when the weights beside them are expanded
MERGE_IT = (
    "if peft can merge it (merge_and_unload, then save_pretrained), give the merged folder as"
    " --checkpoint"
)


class _Settings(BaseModel):
    """Types of what peft applies, which looks at them late or never."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: PositiveInt = 8
    lora_alpha: _Alpha = 8
    lora_dropout: float = 0.0
    target_modules: str | list[str] | set[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str | None = True
    bias: str = "none"
    use_rslora: bool | None = False
    use_dora: bool | None = False
    lora_bias: bool | None = False
    fan_in_fan_out: bool | None = False


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
    try:
        _Settings.model_validate(dict(raw))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        said = str(first["msg"])
        raise UserError(
            f"{who} sets {first['loc'][0]} to {_short(first['input'])}: {said[0].lower()}{said[1:]}; save it again with"
            " peft"
        ) from None
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


def leaves_tower(folder: Path) -> bool:
    """Whether what an adapter's clips become for the language model is what they become in its base. Reads a header."""
    return not any(part in name for name in tensor_shapes(folder / WEIGHTS) for part in TOWER)


def own_numbers(folder: Path) -> int:
    """How many numbers the matrices have that an adapter is merged into or brings along. Reads a header."""
    sizes: dict[str, int] = {}
    for name, shape in tensor_shapes(folder / WEIGHTS).items():
        layer, lora, _ = name.partition(".lora_")
        if not lora:
            sizes[name] = math.prod(shape)
        elif len(shape) == 2:  # ``[rank, in]`` and ``[out, rank]``
            sizes[layer] = sizes.get(layer, 1) * max(shape)
    return sum(sizes.values())


def _peft_default(name: str) -> Any:
    """What peft takes where a field is not given; None for a field that this peft does not have."""
    from peft import LoraConfig

    return getattr(LoraConfig(), name, None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
