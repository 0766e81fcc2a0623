"""Takes what a search found elsewhere: python -m opro.export runs/NAME --to FOLDER

Into the folder go classifier.yaml (prompt, answers, decision threshold); the adapter, or base and adapter merged into a
plain model; the exact template as chat_template.jinja; score.py, which gives the same scores with transformers alone;
and request.json with ask.py for an OpenAI-compatible server. Servers such as vLLM take adapters of the language model
alone: one of the audio tower is merged. README.md in the folder says what is what.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators import presentation
from evaluators.build import build_evaluator
from evaluators.classifier import Classifier, dump_classifiers
from evaluators.endpoint import request_of
from evaluators.errors import UserError
from evaluators.files import check_folder, copy_file, json_text, replacing_folder, write_text
from evaluators.orders import orders_of
from evaluators.presentation import AS_IS
from evaluators.prompts import SPECIAL, Prompt
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.results.run_folder import RunFolder
from opro.settings import ModelSettings, model_settings

AUDIO = "BASE64 OF A WAV FILE"  # in request.json, where the clip goes
SCRIPTS = Path(__file__).resolve().parent / "exported"


@dataclass(frozen=True)
class ExportSettings:
    """The export."""

    to: Path = flag(Path("exported"), "new folder for what is taken elsewhere")
    merge: bool = flag(
        False, "merge the adapter into the base, where it could also be kept beside it"
    )
    served_as: str = flag("MODEL", "the model's name on the server, in request.json")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        ExportSettings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument("run", type=Path, metavar="RUN", help="finished run"),
        config=False,
    )
    told = export(space.run, settings)
    print("\n".join(told))
    files = sorted(str(p.relative_to(settings.to)) for p in settings.to.rglob("*") if p.is_file())
    hand_over({"folder": str(settings.to), "files": files, "told": told})
    return DONE


def export(run: Path, settings: ExportSettings) -> list[str]:
    """Writes the folder, which appears when it is whole. Returns what is to be known of it, a sentence each.

    Raises:
        UserError: The run is not finished, the folder exists, or the run's model cannot be taken elsewhere.
    """
    check_folder(settings.to, "--to", new=True)
    folder = RunFolder.read(run)
    best = folder.best
    if SPECIAL.search(best.prompt.text + best.prompt.system):
        raise UserError(
            "the prompt spells a control token, which other programs read as one; search without such seeds"
        )
    model = model_settings(None, folder.config)
    with replacing_folder(settings.to) as fresh:
        fresh.mkdir(parents=True)
        told = list(_write(fresh, settings, folder, best, model))
    return [*told, f"written to {settings.to}"]


def _write(
    fresh: Path,
    settings: ExportSettings,
    folder: RunFolder,
    best: Classifier,
    model: ModelSettings,
) -> Iterator[str]:
    labels = folder.task.labels
    if folder.task.choices:
        raise UserError(
            f"run {folder.name!r} asks each clip its own question, which an export has no room for; opro.rescore scores"
            " a manifest with its prompt"
        )
    write_text(fresh / "classifier.yaml", dump_classifiers([best]))
    told = []
    if len(folder.checkpoints) > 1:
        told.append(f"the prompt serves {', '.join(folder.checkpoints)}; this is the first of them")
    if model.checkpoint.startswith("endpoint:"):
        name = model.checkpoint.removeprefix("endpoint:").partition("#")[0]
        _write_request(fresh, labels, best, name, {})
        told.append("the model is behind a server, which has its weights")
    else:
        told += _write_model(fresh, settings, labels, best, model)
    text = [
        f"# What run {folder.name} found",
        "",
        "- `classifier.yaml`: prompt, answers and decision threshold.",
        *(f"- {line}" for line in _files(fresh)),
        "",
        *(f"{line[0].upper()}{line[1:]}." for line in told),
    ]
    write_text(fresh / "README.md", "\n".join(text) + "\n")
    yield from told


def _files(fresh: Path) -> Iterator[str]:
    about = {
        "adapter": "the adapter, for peft or a server",
        "model": "base and adapter as one plain model",
        "chat_template.jinja": "the template, with the prompt filled in where a message has no text",
        "presentation.py": "how the clip is given before it is scored",
        "score.py": "the same scores with transformers alone, by the token ids of export.json:"
        " `python score.py CLIP.wav`",
        "request.json": "requests for an OpenAI-compatible server, with the token ids of the answers; `ask.py` sends"
        " them: `OPENAI_BASE_URL=http://HOST:PORT/v1 python ask.py CLIP.wav`",
    }
    return (f"`{name}`: {text}." for name, text in about.items() if (fresh / name).exists())


def _write_model(
    fresh: Path,
    settings: ExportSettings,
    labels: Sequence[str],
    best: Classifier,
    model: ModelSettings,
) -> Iterator[str]:
    """Weights, template, script and request."""
    evaluator, _ = build_evaluator(
        model.checkpoint,
        adapter=model.adapter,
        quantization=model.quantization,
        device="cpu",
    )
    checkpoint = evaluator.about().checkpoint
    if checkpoint is None:
        raise UserError(
            f"checkpoint {model.checkpoint!r} has no weights that could be taken elsewhere; export the run of a"
            " checkpoint or an endpoint"
        )
    checkpoint.need_packed(
        "exporting", "take best.yaml of the run elsewhere, and the model's own folder"
    )
    from evaluators.finetuning import exported  # torch, transformers

    facts = exported.facts_of(checkpoint, best.prompt, settings.to)
    yield from exported.write_weights(checkpoint, best.prompt, fresh, settings.to, settings.merge)
    write_text(fresh / "chat_template.jinja", facts.chat_template)
    about = {
        "labels": labels,
        "bias": best.bias_of_each,
        "base": facts.base,
        "class": facts.model_class,
        "dtype": facts.dtype,
        "asked": facts.asked,
    }
    about |= _presentation(fresh, best.prompt)
    if facts.plain:
        write_text(fresh / "export.json", json_text(about))
        copy_file(SCRIPTS / "score.py", fresh / "score.py")
    else:
        yield f"score.py is for Qwen2-Audio, and this is {facts.model_class}"
    if checkpoint.quantization != "none":
        yield (
            "the run scored 4-bit weights; score.py and servers load full ones, whose scores differ a little"
        )
    ids = {prompt.text: ids for prompt, ids in zip(orders_of(best.prompt), facts.ids, strict=True)}
    if all(ids.values()):
        _write_request(fresh, labels, best, settings.served_as, ids)
    else:
        yield "an answer takes several tokens, so that no request of one token reads it: request.json is left out"


def _presentation(fresh: Path, prompt: Prompt) -> dict[str, Any]:
    """How a script is to give the clip, with the code that does it beside it; nothing of samples as they are."""
    how = prompt.presentation.sound
    if how == AS_IS:
        return {}
    copy_file(Path(presentation.__file__), fresh / "presentation.py")
    return {"presentation": how.to_dict()}


def _write_request(
    fresh: Path,
    labels: Sequence[str],
    best: Classifier,
    name: str,
    ids: Mapping[str, Sequence[int]],
) -> None:
    """request.json and ask.py: a request for each order of the options."""

    def one(prompt: Prompt) -> dict[str, Any]:
        return {
            "body": request_of(name, prompt, AUDIO, ids.get(prompt.text, ())),
            "answers": {label: list(words) for label, words in prompt.answers},
        }

    about = {
        "audio": AUDIO,
        "labels": list(labels),
        "bias": best.bias_of_each,
        "requests": [one(prompt) for prompt in orders_of(best.prompt)],
        **_presentation(fresh, best.prompt),
    }
    write_text(fresh / "request.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    copy_file(SCRIPTS / "ask.py", fresh / "ask.py")


if __name__ == "__main__":
    sys.exit(run_verb(main))
