"""Command lines: a dataclass becomes flags, a YAML file may set the same names, errors are one sentence."""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import gc
import importlib
import inspect
import io
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from evaluators.environment import keys_in, without_secrets
from evaluators.errors import PauseError, UserError
from evaluators.files import disk_is_full, json_text, read_yaml
from evaluators.plain_data import brief, inert
from evaluators.threads import wait_asleep

T = TypeVar("T")
DONE, FAULT, WRONG_USE = 0, 1, 2  # exit codes of all verbs
MOST = 10**12  # of a number where a flag names no other limit
LONGEST = 2000  # characters of a sentence
COLLECTED = (50_000, 10, 10)  # see `_rare_collections`
_handed = ContextVar[list[Any] | None]("_handed", default=None)  # None where nobody asked for JSON


def flag(default: Any, text: str, **more: Any) -> Any:
    """A dataclass field that becomes a flag. `more` may hold ``min`` and ``max`` of a number."""
    return dataclasses.field(default=default, metadata={"help": text, **more})


def hand_over(document: object) -> None:
    """Gives the verb's result, as plain data, to ``--json``, which prints the last one. Without it nothing happens."""
    held = _handed.get()
    if held is not None:
        held[:] = [document]


def _tell(word: str, sentence: str, code: int) -> int:
    """Says why a verb ended early, to people and to ``--json``. Returns the exit code."""
    sentence = shown(sentence, lines=False)
    if len(sentence) > LONGEST:
        sentence = sentence[:LONGEST] + "..."
    print(f"{word}: {sentence}", file=sys.stderr)
    hand_over({"error": sentence, "exit": code})
    return code


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence, with the nearest flag named; it knows ``--json``."""

    def __init__(self, **about: Any) -> None:
        super().__init__(**about)
        self.add_argument(
            "--json",
            action="store_true",
            help="standard output is one JSON document with the result, or {error, exit}; what is for people goes to"
            " standard error",
        )

    def error(self, message: str) -> NoReturn:
        """Prints the sentence, exits with 2."""
        if message.startswith("unrecognized arguments:"):
            flag = next(iter(message.split(":", 1)[1].split()), "")
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(flag.split("=")[0], known, 1)
            message = f"flag {flag!r} is unknown" + (
                f"; did you mean {near[0]}?" if near else "; --help lists the flags"
            )
        sys.exit(_tell("error", message, WRONG_USE))


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
    for name, value in values.items():
        for variable in keys_in(str(value)):
            raise UserError(
                f"--{name.replace('_', '-')} holds the key of {variable}, which would be written to files; keep it in"
                " the environment alone"
            )
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
    def convert(text: str) -> Any:
        kind = _base(field.type)
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"is {brief(text)}; expected {'a whole number' if kind is int else 'a number'}"
            ) from None
        if (expected := _wanted(value, field)) is not None:
            raise argparse.ArgumentTypeError(f"is {brief(text)}; expected {expected}")
        return value

    return convert


def _wanted(value: Any, field: Any) -> str | None:
    """What was expected in place of a value; None where it may be."""
    if isinstance(value, str | Path):
        text = str(value)
        if not text.strip() and field.default != value:
            return "a name, not an empty text"
        if inert(text, lines=False) != text:  # what is no UTF-8 comes as lone surrogates
            return "text in UTF-8 without control characters"
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    low, high = field.metadata.get("min"), field.metadata.get("max", MOST)
    if low is not None and not value >= low:
        return f"at least {low}"
    if math.isnan(value) or value > high:
        return f"at most {high:,}"
    return "a finite number" if value < -MOST else None


def check_names(given: Mapping[str, object], options: type) -> None:
    """Raises UserError for an option that a function does not take, with the nearest one that it does."""
    known = list(inspect.get_annotations(options))
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise UserError(f"option {name!r} is unknown; {hint}")


def check_values(settings: object) -> None:
    """What a command line checks as it is read, for settings that were made in Python.

    Raises:
        UserError: A value is not one of its choices, of another type, or below its least.
    """
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value, kind = vars(settings)[field.name], _base(field.type)
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        if value is None and type(None) in get_args(field.type):
            continue
        if choices:
            known = [*choices, *field.metadata.get("known", ())]
            if value not in known:
                names = ", ".join(dict.fromkeys(known))
                raise UserError(f"{field.name} is {value!r}; expected one of {names}")
        elif not isinstance(value, (int, float) if kind is float else kind):
            raise UserError(f"{field.name} is {value!r}; expected {kind.__name__}")
        elif (expected := _wanted(value, field)) is not None:
            raise UserError(f"{field.name} is {brief(value)}; expected {expected}")


def check_kinds(given: Mapping[str, Any], settings: type, where: str) -> None:
    """What a run kept of its settings, in any version: each is empty or of its flag's type.

    Raises:
        UserError: Names the first one that is not.
    """
    for field in dataclasses.fields(settings):
        value, kind = given.get(field.name), _base(field.type)
        kind = str if kind is Path or get_origin(kind) is Literal else kind
        if value is not None and type(value) not in ((int, float) if kind is float else (kind,)):
            raise UserError(
                f"{where}: {field.name} is {brief(value)}; expected {kind.__name__}, so restore the file"
            )


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
        if name in values:
            raise UserError(f"{path}: key {name!r} stands twice, with - and with _; keep one")
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
    "brittle": "how trivial edits move a prompt's score, and what each phrase is worth",
    "predict": "label recordings with what a search found",
    "seal": "one file with which a number can be made again",
    "verify": "score a sealed card again from the raw clips",
    "check": "hold a new checkpoint against a sealed card",
    "export": "take what a search found elsewhere: weights, template, scripts",
    "matrix": "prompts x checkpoints x detectors on a split",
    "leaderboard": "rank prompts over runs",
    "report": "one HTML page of a run or a matrix",
    "view": "one local page over all runs, to look at and to steer",
    "stats": "statistics of predictions made elsewhere",
    "power": "what gains a dev set can show",
    "profile": "how a checkpoint reacts to hundreds of wordings",
    "doctor": "what usually goes wrong, before hours are spent",
    "ceiling": "what any wording could reach: a soft prompt",
    "finetune": "train a LoRA adapter on the train split",
    "cotune": "search prompts and train in turns until fresh clips confirm no more",
    "curve": "what more training clips give, hand-written against searched prompt",
    "build": "build a clip set from recordings, or of clips of your own",
    "audit": "find leaks, shortcuts and faults in a clip set",
}


def command() -> int:
    """The `opro` command: ``opro VERB ...`` is ``python -m opro.VERB ...``. Returns the exit code."""
    return run_verb(_command)


def _command() -> int:
    given = sys.argv[1:2]
    if given not in ([], ["-h"], ["--help"]) and given[0] in VERBS:
        sys.argv = [f"opro {given[0]}", *sys.argv[2:]]
        return int(_verb(given[0]).main())
    lines = [f"  {name:12} {text}" for name, text in VERBS.items()]
    text = "\n".join(["usage: opro VERB [FLAGS]; opro VERB --help lists the flags", "", *lines])
    if given in (["-h"], ["--help"]):
        print(text)
        return DONE
    wrong = f"verb {given[0]!r} is unknown" if given else "no verb was given"
    near = difflib.get_close_matches(given[0], VERBS, 1) if given else []
    code = _tell("error", wrong + (f"; did you mean {near[0]}?" if near else ""), WRONG_USE)
    print(text, file=sys.stderr)
    return code


def _verb(name: str) -> Any:
    """The module of a verb; the builders of clips are `data` in a checkout and `opro.data` where installed."""
    if name not in ("build", "audit"):
        return importlib.import_module("opro.view.__main__" if name == "view" else f"opro.{name}")
    try:
        return importlib.import_module(f"opro.data.{name}")
    except ModuleNotFoundError:
        return importlib.import_module(f"data.{name}")


def shown(text: str, *, lines: bool = True) -> str:
    """A text as people may see it: without keys, and steering no terminal."""
    return inert(without_secrets(text), lines=lines)


class ShownFormatter(logging.Formatter):
    """Lines of a log without keys that steer no terminal and stay one line each; a trace follows in its own lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a trace if there is one."""
        return shown(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the library's name
        """The line, with control characters of the message escaped."""
        record.message = shown(record.message, lines=False)
        return super().formatMessage(record)


class _Shown(io.TextIOBase):
    """A stream for people: nothing from files and replies steers a terminal through it, and no key leaves by it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes the text without keys, and with its control characters escaped."""
        self.stream.write(shown(text))
        return len(text)

    def flush(self) -> None:
        """Hands on what was written."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        return bool(self.stream.isatty())

    def fileno(self) -> int:
        """Of the stream below."""
        return int(self.stream.fileno())

    @property
    def encoding(self) -> str | None:  # type: ignore[override]
        """Of the stream below; None where it has none, as one that keeps its text in memory."""
        return None if self.stream.encoding is None else str(self.stream.encoding)


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Lets the garbage collector look less often until the block ends.

    Importing torch and transformers makes a million objects that stay. To go through them again and again as they come
    was a quarter of the processor time of these imports.
    """
    before = gc.get_threshold()
    gc.set_threshold(*COLLECTED)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Interrupted(KeyboardInterrupt):
    """A signal asked the verb to end.

    A plain KeyboardInterrupt that passes an ``exec`` of text, as in imports, makes Python end itself by the signal,
    whatever the exit code (`unhandled_keyboard_interrupt` in CPython's pythonrun.c).
    """


def run_verb(main: Callable[[], int]) -> int:
    """Runs a verb: wrong use is one sentence and 2, a fault that a resume can continue one sentence and 1.

    With ``--json`` standard output holds the document that was handed over, and nothing else.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if "--json" in sys.argv[1:] and _handed.get() is None:
        return _run_for_json(main)

    def stop(*_: object) -> NoReturn:
        raise _Interrupted

    wait_asleep()
    if logging.lastResort is not None:  # what prints warnings where a verb keeps no log
        logging.lastResort.setFormatter(ShownFormatter("%(message)s"))
    stream = sys.stdout
    sys.stdout = _Shown(stream)
    previous = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _rare_collections():
            code = main()
        sys.stdout.flush()
        return code
    except UserError as error:
        return _tell("error", str(error), WRONG_USE)
    except PauseError as error:
        return _tell("paused", str(error), FAULT)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stdout = open(os.devnull, "w")
        return DONE
    except KeyboardInterrupt:
        return _tell("interrupted", "nothing is lost, the same command goes on from here", FAULT)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _tell(
                "error",
                f"path {brief(str(error.filename))} is too long; give a shorter one",
                WRONG_USE,
            )
        if isinstance(error, PermissionError) and error.filename is not None:
            return _tell(
                "error",
                f"path {brief(str(error.filename))} may not be used ({error.strerror}); give this user the right to it,"
                " or give another path",
                WRONG_USE,
            )
        if not disk_is_full(error):
            raise
        return _tell_of_full_disk(error)
    finally:
        if isinstance(sys.stdout, _Shown):
            sys.stdout = stream
        for one, handler in previous.items():
            signal.signal(one, handler)


def _tell_of_full_disk(error: Exception) -> int:
    """One sentence, whoever met the full disk: a library in its own words, or what the verb printed to."""
    sys.stdout = open(
        os.devnull, "w"
    )  # what was printed may be what is lost: Python would try again at its end
    name = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    return _tell(
        "paused",
        f"{'a file, or what is printed to,' if name is None else repr(str(name))} cannot be written (the disk is full);"
        " make room, then give the same command again, which goes on from what is on disk",
        FAULT,
    )


def _run_for_json(main: Callable[[], int]) -> int:
    """Runs a verb whose words all go to standard error, then prints its document."""
    held: list[Any] = []
    token = _handed.set(held)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return run_verb(main)
    except Exception as error:  # a fault of this program: its trace follows on standard error
        hand_over({"error": f"{type(error).__name__}: {error}", "exit": FAULT})
        raise
    finally:
        _handed.reset(token)
        if held:
            with contextlib.suppress(BrokenPipeError):
                sys.stdout.write(without_secrets(json_text(held[0])))
                sys.stdout.flush()
