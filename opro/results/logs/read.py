"""Which package wrote a log is told by how it begins, not by its name."""

from collections.abc import Mapping
from pathlib import Path

from evaluators.errors import UserError
from opro.results.logs.harness_log import read_lines, read_list
from opro.results.logs.inspect_log import read_eval, read_json_log
from opro.results.logs.sample_log import MOST_BYTES, SampleLog, parse_json

ZIP = b"PK"
JSON = (b"{", b"[")


def is_log(path: Path) -> bool:
    """Whether a file is a log of an evaluation, or means to be one; else it is a table."""
    return path.is_file() and _begin(path).startswith((ZIP, *JSON))


def read_log(path: Path) -> SampleLog:
    """The log of an evaluation by inspect_ai, lm-evaluation-harness or lmms-eval.

    Raises:
        UserError: It is none of these or damaged, in one sentence.
    """
    try:
        return _read(path, _begin(path))
    except RecursionError:
        raise UserError(f"{path}: mappings or lists are nested too deeply") from None


def _read(path: Path, begin: bytes) -> SampleLog:
    if begin.startswith(ZIP):
        return read_eval(path)
    if begin.startswith(b"{") and b'"doc_id"' in begin.partition(b"\n")[0]:
        return read_lines(path)
    with path.open("rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES and path.suffix == ".json":
        raise UserError(
            f"{path}: more than {MOST_BYTES / 1e6:,.0f} MB of JSON; of inspect_ai, convert it first: inspect log"
            " convert --to eval"
        )
    data = parse_json(raw, str(path))
    if isinstance(data, list):
        return read_list(path, data)
    if isinstance(data, Mapping) and isinstance(data.get("eval"), Mapping):
        return read_json_log(path, data)
    if isinstance(data, Mapping) and isinstance(data.get("results"), Mapping):
        raise UserError(
            f"{path}: holds results without samples; run again with --log_samples and give its samples_*.jsonl"
        )
    raise UserError(
        f"{path}: expected a log of inspect_ai (.eval, .json), or samples of lm-evaluation-harness or lmms-eval"
        " (.jsonl)"
    )


def _begin(path: Path) -> bytes:
    """The first bytes, without what editors put before them."""
    try:
        with path.open("rb") as file:
            return file.read(1 << 20).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror})") from None
