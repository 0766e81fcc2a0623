"""Which class of transformers a model without a packed path is, told by its folder; what is none is refused by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.audio_lm.identity import versions
from evaluators.audio_lm.model_folder import SETTINGS, read_object
from evaluators.errors import UserError

# Where the files name classes; `auto_map` beside them points to code that the folder brings along.
NAMED = "processor_class", "feature_extractor_type", "image_processor_type", "tokenizer_class"
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
        UserError: It needs code that is not transformers' own, or the class is unknown there, or takes no audio.
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
        _refuse_remote_code(config, folder / "config.json", who, name)
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
    for path in (folder / file for file in SETTINGS):
        if path.is_file():
            settings = read_object(path)
            for named in (settings[key] for key in NAMED if isinstance(settings.get(key), str)):
                if library_class(named) is None:
                    _refuse_remote_code(settings, path, who, named)
    return GenericClass(str(kind), str(name))


def library_class(name: str) -> Any:
    """A class of transformers by its name; None where it has none. Imports transformers."""
    import transformers

    return getattr(transformers, name, None)


def _refuse_remote_code(settings: dict[str, Any], path: Path, who: str, name: Any) -> None:
    """Raises UserError where a file brings its own code for a class that transformers lacks."""
    if settings.get("auto_map"):
        raise UserError(
            f"{who}: {str(path)!r} names class {name!r}, which is code that the folder brings along (auto_map) and that"
            f" is never run here; give a version of the model that transformers itself knows, {ROUND}"
        )
