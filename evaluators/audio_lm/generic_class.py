"""Which class of transformers a model without a packed path is, told by its folder; what is none is refused by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.audio_lm.identity import versions
from evaluators.audio_lm.model_folder import read_object
from evaluators.errors import UserError

ROUND = (
    "or serve it yourself (vLLM, for one) and give --checkpoint endpoint:MODEL, which takes any server with"
    " OpenAI's chat interface"
)


@dataclass(frozen=True)
class GenericClass:
    """A model that goes the generic way: its `model_type`, and its class in transformers."""

    model_type: str
    model_class: str


def generic_class(folder: Path, who: str) -> GenericClass:
    """The class that a folder's configuration names. Imports transformers, reads no weights.

    Args:
        folder: It holds config.json.
        who: How a sentence names the model.

    Raises:
        UserError: A class is unknown to transformers, or takes no audio.
    """
    config = read_object(folder / "config.json")
    kind, here = (
        config.get("model_type"),
        f"transformers {versions('transformers')['transformers']}",
    )
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    found = library_class(name) if isinstance(name, str) else None
    if found is None:
        raise UserError(
            f"{who} is a model of type {kind!r} and class {name!r}, which {here} does not have; update transformers,"
            f" {ROUND}"
        )
    takes = getattr(found, "input_modalities", ())
    if not {"audio", "text"} <= set(takes) or not hasattr(found, "generate"):
        raise UserError(
            f"{who} is a model of type {kind!r} and class {name!r}, which does not answer questions about audio in"
            f" {here}; give an audio language model, {ROUND}"
        )
    return GenericClass(str(kind), str(name))


def library_class(name: str) -> Any:
    """A class of transformers by its name; None where it has none. Imports transformers."""
    import transformers

    return getattr(transformers, name, None)
