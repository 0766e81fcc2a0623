"""Command lines: a dataclass becomes flags, a YAML file may set the same names, errors are one sentence."""

import argparse
import dataclasses
import difflib
import importlib
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from evaluators.errors import PauseError, UserError
from evaluators.files import read_yaml
from evaluators.threads import wait_asleep

T = TypeVar("T")
DONE, FAULT, WRONG_USE = 0, 1, 2  # exit codes of all verbs


def flag(default: Any, text: str, **more: Any) -> Any:
    """A dataclass field that becomes a flag."""
    return dataclasses.field(default=default, metadata={"help": text, **more})


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence, with the nearest flag named."""

    def error(self, message: str) -> NoReturn:
        """Prints the sentence, exits with 2."""
        if message.startswith("unrecognized arguments:"):
            flag = message.split(":", 1)[1].split()[0]
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(flag.split("=")[0], known, 1)
            message = f"flag {flag!r} is unknown" + (
                f"; did you mean {near[0]}?" if near else "; --help lists the flags"
            )
        print(f"error: {message}", file=sys.stderr)
        sys.exit(WRONG_USE)


def parse(
    settings: type[T],
    argv: Sequence[str] | None,
    description: str,
    extra: Callable[[argparse.ArgumentParser], object] | None = None,
    config: bool = True,
) -> tuple[T, argparse.Namespace]:
    """Settings from flags over a --config file over defaults, and the namespace with any extra arguments.

    Each field of the dataclass is a flag; ``metadata["help"]`` is its help.

    Raises:
        UserError: An unknown or ill-typed key in the file, or a value that a flag does not take.
    """
    parser = Parser(
        prog=_prog(),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    fields = {f.name: f for f in dataclasses.fields(settings)}  # type: ignore[arg-type]
    if config:
        parser.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="YAML file with the same names as the flags, e.g. a run's config.yaml; flags win",
        )
    for group, names in _groups(settings):
        section = parser.add_argument_group(group)
        for name in names:
            _add_flag(section, name, fields[name])
    if extra:
        extra(parser)
    space = parser.parse_args(argv)
    values: dict[str, Any] = {}
    if config and space.config is not None:
        values = _from_file(space.config, fields)
    values |= {name: getattr(space, name) for name in fields if hasattr(space, name)}
    return settings(**values), space


def _prog() -> str | None:
    """How the command was given, as usage lines show it."""
    path = Path(sys.argv[0]) if sys.argv else Path()
    if path.suffix != ".py":
        return path.name or None
    path = path.parent if path.stem == "__main__" else path
    return f"python -m {path.parent.name}.{path.stem}"


def _groups(settings: type) -> list[tuple[str, list[str]]]:
    """(title, names of its fields) of the settings' classes, the verb's own last: what ``--help`` is grouped by."""
    out: list[tuple[str, list[str]]] = []
    seen: set[str] = set()
    classes = [c for c in reversed(settings.__mro__) if dataclasses.is_dataclass(c)]
    for one in classes:
        title = (one.__doc__ or one.__name__).split("\n")[0].rstrip(".").removeprefix("The ")
        own = [n for n in inspect.get_annotations(one) if n not in seen]
        seen |= set(own)
        known = next((names for name, names in out if name == title), None)
        if known is not None:
            known += own
        elif own:
            out.append((title, own))
    return out


def _add_flag(section: Any, name: str, field: Any) -> None:
    choices = get_args(_base(field.type)) if get_origin(_base(field.type)) is Literal else None
    default = field.default if field.default is not dataclasses.MISSING else None
    flag, text = f"--{name.replace('_', '-')}", field.metadata.get("help", "")
    if _base(field.type) is bool:
        section.add_argument(
            flag, dest=name, action="store_true", default=argparse.SUPPRESS, help=text
        )
        return
    section.add_argument(
        flag,
        dest=name,
        default=argparse.SUPPRESS,
        metavar=None if choices else _metavar(field),
        choices=choices,
        type=None if choices else _converter(name, field),
        help=text + ("" if default is None else f" (default: {default})"),
    )


def _metavar(field: Any) -> str:
    return {"int": "N", "float": "X", "Path": "PATH"}.get(_base(field.type).__name__, "TEXT")


def _base(kind: Any) -> Any:
    """The type without `| None`."""
    kinds = (
        [k for k in get_args(kind) if k is not type(None)]
        if get_origin(kind) in (Union, type(int | None))
        else [kind]
    )
    return kinds[0]


def _converter(name: str, field: Any) -> Callable[[str], Any]:
    low = field.metadata.get("min")

    def convert(text: str) -> Any:
        kind = _base(field.type)
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"is {text!r}; expected {'a whole number' if kind is int else 'a number'}"
            ) from None
        if low is not None and not value >= low:
            raise argparse.ArgumentTypeError(f"is {text!r}; expected at least {low}")
        return value

    return convert


def _from_file(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected names and values, one a line")
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            raise UserError(
                f"{path}: key {key!r} is unknown"
                + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(fields)}")
            )
        field = fields[name]
        if value is None:
            if type(None) not in get_args(field.type):
                raise UserError(f"{path}: {key} is empty; expected a value, or no such line")
            values[name] = None
            continue
        if _base(field.type) is bool:
            if not isinstance(value, bool):
                raise UserError(f"{path}: {key} is {value!r}; expected true or false")
            values[name] = value
            continue
        if get_origin(_base(field.type)) is Literal:
            if value not in get_args(_base(field.type)):
                raise UserError(
                    f"{path}: {key} is {value!r}; expected one of {', '.join(get_args(field.type))}"
                )
            values[name] = value
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UserError(f"{path}: {key} is {value!r}; expected a plain value")
        try:
            values[name] = _converter(name, field)(str(value))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{path}: {key} {error}") from None
    return values


VERBS = {  # of the `opro` command
    "optimize": "search prompts for a checkpoint on the dev split",
    "rescore": "score saved prompts on the test split",
    "predict": "label recordings with what a search found",
    "matrix": "prompts x checkpoints x detectors on a split",
    "leaderboard": "rank prompts over runs",
    "report": "one HTML page of a run or a matrix",
    "view": "one local page over all runs, to look at and to steer",
    "stats": "statistics of predictions made elsewhere",
    "power": "what gains a dev set can show",
    "doctor": "what usually goes wrong, before hours are spent",
    "finetune": "train a LoRA adapter on the train split",
    "build": "build a clip set from recordings, or of clips of your own",
    "audit": "find leaks, shortcuts and faults in a clip set",
}


def command() -> int:
    """The `opro` command: ``opro VERB ...`` is ``python -m opro.VERB ...``. Returns the exit code."""
    given = sys.argv[1:2]
    if given not in ([], ["-h"], ["--help"]) and given[0] in VERBS:
        sys.argv = [f"opro {given[0]}", *sys.argv[2:]]
        return run_verb(_verb(given[0]).main)
    lines = [f"  {name:12} {text}" for name, text in VERBS.items()]
    text = "\n".join(["usage: opro VERB [FLAGS]; opro VERB --help lists the flags", "", *lines])
    if given in (["-h"], ["--help"]):
        print(text)
        return DONE
    wrong = f"error: verb {given[0]!r} is unknown" if given else "error: no verb was given"
    near = difflib.get_close_matches(given[0], VERBS, 1) if given else []
    print(wrong + (f"; did you mean {near[0]}?" if near else ""), file=sys.stderr)
    print(text, file=sys.stderr)
    return WRONG_USE


def _verb(name: str) -> Any:
    """The module of a verb; the builders of clips are `data` in a checkout and `opro.data` where installed."""
    if name not in ("build", "audit"):
        return importlib.import_module("opro.view.__main__" if name == "view" else f"opro.{name}")
    try:
        return importlib.import_module(f"opro.data.{name}")
    except ModuleNotFoundError:
        return importlib.import_module(f"data.{name}")


def run_verb(main: Callable[[], int]) -> int:
    """Runs a verb: wrong use is one sentence and 2, a fault that a resume can continue one sentence and 1."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    wait_asleep()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    previous = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USE
    except PauseError as error:
        print(f"paused: {error}", file=sys.stderr)
        return FAULT
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stdout = open(os.devnull, "w")
        return DONE
    except KeyboardInterrupt:
        print("interrupted: nothing is lost, the same command goes on from here", file=sys.stderr)
        return FAULT
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)
