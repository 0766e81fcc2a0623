"""Command lines: a dataclass becomes flags, a YAML file may set the same names, errors are one sentence."""

import argparse
import dataclasses
import difflib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from evaluators.errors import PauseError, UserError
from evaluators.files import read_yaml

T = TypeVar("T")
DONE, FAULT, WRONG_USE = 0, 1, 2  # exit codes of all verbs


def flag(default: Any, text: str, **more: Any) -> Any:
    """A dataclass field that becomes a flag."""
    return dataclasses.field(default=default, metadata={"help": text, **more})


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The model that a verb scores with."""

    checkpoint: str = flag(
        "pocket-base",
        "shipped name (pocket-base, pocket-lora), directory or hub id; endpoint:MODEL is behind a server"
        " (OPRO_AUDIO_BASE_URL); 'fake' needs no weights",
    )
    adapter: Path | None = flag(None, "directory of a LoRA adapter made elsewhere")
    train_manifest: Path | None = flag(
        None, "manifest the adapter was trained on; its sources may not be scored"
    )
    heard: Literal["refuse", "allow"] = flag(
        "refuse",
        "clips of sources that the checkpoint was trained on; allow stands in every result",
    )
    quantization: Literal["none", "nf4"] = flag("none", "4-bit weights through bitsandbytes")
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "auto", "auto is bfloat16 on CUDA, float32 elsewhere"
    )
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps")


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
    extra: Callable[[argparse.ArgumentParser], None] | None = None,
    config: bool = True,
) -> tuple[T, argparse.Namespace]:
    """Settings from flags over a --config file over defaults, and the namespace with any extra arguments.

    Each field of the dataclass is a flag; ``metadata["help"]`` is its help.

    Raises:
        UserError: An unknown or ill-typed key in the file, or a value that a flag does not take.
    """
    parser = Parser(
        prog=Path(sys.argv[0]).stem if sys.argv else None,
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
    for name, field in fields.items():
        choices = get_args(_base(field.type)) if get_origin(_base(field.type)) is Literal else None
        default = field.default if field.default is not dataclasses.MISSING else None
        shown = "" if default is None else f" (default: {default})"
        if _base(field.type) is bool:
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                dest=name,
                action="store_true",
                default=argparse.SUPPRESS,
                help=field.metadata.get("help", ""),
            )
            continue
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=argparse.SUPPRESS,
            metavar=None if choices else _metavar(field),
            choices=choices,
            type=None if choices else _converter(name, field),
            help=field.metadata.get("help", "") + shown,
        )
    if extra:
        extra(parser)
    space = parser.parse_args(argv)
    values: dict[str, Any] = {}
    if config and space.config is not None:
        values = _from_file(space.config, fields)
    values |= {name: getattr(space, name) for name in fields if hasattr(space, name)}
    return settings(**values), space


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


def run_verb(main: Callable[[], int]) -> int:
    """Runs a verb: wrong use is one sentence and 2, a fault that a resume can continue one sentence and 1."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    previous = signal.signal(signal.SIGTERM, stop)
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
        signal.signal(signal.SIGTERM, previous)
