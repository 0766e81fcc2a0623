"""Files that somebody damaged or made with intent: plain data, or one sentence with the place."""

import json
import os
import shutil
import sys
import tracemalloc
from dataclasses import replace

import pytest
from common import LABELS, ROOT

from evaluators.errors import UserError
from evaluators.files import read_json, read_yaml
from evaluators.plain_data import DEEPEST, MOST_NODES, json_lines, parse_json, parse_yaml
from evaluators.prompts import Prompt, prompt_from
from opro import leaderboard, optimize, report, rescore, seal
from opro.cli import run_verb
from opro.results.looks import count_uses, record_use
from opro.search.history import Candidate, History, Outcome

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "aliases that multiply": (BOMB, f"more than {MOST_NODES:,} values"),
    "aliases that deepen": (
        "".join(f"- &n{i} [{f'*n{i - 1}' if i else ''}]\n" for i in range(200)),
        f"nested deeper than {DEEPEST}",
    ),
    "an alias of itself": ("a: &a [*a]\n", f"nested deeper than {DEEPEST}"),
    "lists in lists": ("[" * 5000 + "]" * 5000, f"nested deeper than {DEEPEST}"),
    "lists in lists, fewer": ("[" * 100 + "]" * 100, f"nested deeper than {DEEPEST}"),
    "one list too many": (
        "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
        f"nested deeper than {DEEPEST}",
    ),
    "mappings in lists": ("- " * 4000 + "x", f"nested deeper than {DEEPEST}"),
    "a tag that makes an object": ("!!python/object/apply:os.system [ls]", "not readable as YAML"),
    "a key twice": ("a: 1\na: 2\n", "line 2: key 'a' stands twice"),
    "an alias as a key": ("? &a [1]\n: 1\n", "not readable as YAML"),
    "a control character": ("a: \x07", "not readable as YAML"),
    "an escape code in a key": ('"\\e[2J": 1\n"\\e[2J": 2', r"key '\x1b[2J' stands twice"),
    "an integer that cannot be written out": ("a: 0x" + "f" * 5000, "a number of 5,002 characters"),
    "the same in base 60": ("a: " + ":".join(["59"] * 3000), "a number of 8,999 characters"),
    "two documents": ("a: 1\n---\nb: 2\n", "not readable as YAML"),
    "a date that is none": ("a: 2026-13-45", "not readable as YAML"),
}
JSON = {
    "lists in lists": (b"[" * 10**6, f"nested deeper than {DEEPEST}"),
    "brackets in texts are none": (json.dumps(["[" * 1000]).encode(), None),
    "no UTF-8": (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "is not UTF-8"),
    "a byte order mark": (b"\xef\xbb\xbf{}", None),
    "NaN": (b"[NaN]", "NaN is no number"),
    "infinity": (b"[-Infinity]", "-Infinity is no number"),
    "beyond a float": (b"[1e999]", "1e999 is beyond what a number can be"),
    "beyond an integer": (b"[" + b"9" * 10_000 + b"]", "not readable as JSON"),
    "a key twice": (b'{"a": 1, "a": 2}', "key 'a' stands twice"),
    "cut": (b'{"a": [1, 2', "not readable as JSON"),
    "nothing": (b"", "not readable as JSON"),
    "zeros of a crash": (b"\x00" * 64, "not readable as JSON"),
}


def test_yaml_as_deep_as_is_allowed_is_read():
    value = parse_yaml("[" * DEEPEST + "]" * DEEPEST, "it")
    for _ in range(DEEPEST - 1):
        (value,) = value
    assert value == []


@pytest.mark.parametrize("name", YAML)
def test_yaml(name, tmp_path):
    text, sentence = YAML[name]
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "it")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    said = str(caught.value)
    assert said.startswith("it: ") and sentence in said
    assert said.isprintable() and len(said) < 300
    path = tmp_path / "it.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"it\.yaml: "):
        read_yaml(path)


@pytest.mark.parametrize("name", JSON)
def test_json(name, tmp_path):
    raw, sentence = JSON[name]
    path = tmp_path / "it.json"
    path.write_bytes(raw)
    if sentence is None:
        assert read_json(path) == parse_json(raw.decode(), "it")
        return
    with pytest.raises(UserError) as caught:
        read_json(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and sentence in said and said.isprintable()


def test_a_text_that_is_too_long_is_not_parsed():
    with pytest.raises(UserError, match="11 bytes of JSON; expected at most 10"):
        parse_json("[1, 2, 3,4]", "it", most=10)


def test_a_log_ends_where_a_crash_cut_it(tmp_path):
    path = tmp_path / "it.jsonl"
    path.write_bytes('{"a": "\u2028"}\n{"a": 2}\n{"a": 3'.encode())
    assert [row["a"] for _, row in json_lines(path, "mend it")] == ["\u2028", 2]
    assert list(json_lines(tmp_path / "none.jsonl", "mend it")) == []


# Lines of a journal: what is changed in it, and what is said of the line.
def _same(event):
    return [event, event]


def _set(name, value):
    return lambda event: [{**event, name: value}]


def _lose(name):
    return lambda event: [{k: v for k, v in event.items() if k != name}]


def _candidate(**change):
    return lambda event: [{**event, "candidates": [{**event["candidates"][0], **change}]}]


JOURNAL = [
    ("start", _same, "the start stands elsewhere"),
    ("start", _set("schema", "1"), "schema is '1'"),
    ("start", _set("schema", True), "schema is True"),
    ("start", _lose("schema"), "schema is None"),
    ("propose", _same, "iteration 0 was proposed before"),
    ("propose", _set("iteration", -1), "iteration is -1"),
    ("propose", _set("iteration", "0"), "iteration is '0'"),
    ("propose", _set("candidates", {}), "candidates is {}"),
    ("propose", _set("moon", 1), "moon is 1"),
    ("propose", _lose("candidates"), "candidates: field required"),
    ("propose", _candidate(number=5), "trial 5 stands where 0 is expected"),
    ("propose", _candidate(number=-1), "candidates.0.number is -1"),
    ("propose", _candidate(number=0.0), "candidates.0.number is 0.0"),
    ("propose", _candidate(origin="\x1b[2J"), r"candidates.0.origin is '\x1b[2J'"),
    ("propose", _candidate(origin=["seed"]), "candidates.0.origin is ['seed']"),
    ("propose", _candidate(parents="abc"), "candidates.0.parents is 'abc'"),
    ("propose", _candidate(prompt={"text": "a\x1b[2J"}), "control character"),
    ("propose", _candidate(prompt={"text": ""}), "text is ''"),
    ("tell", _same, "trial 0 was told before"),
    ("tell", _set("number", 7), "trial 7 was not proposed"),
    ("tell", _set("number", True), "number is True"),
    ("tell", _set("state", "won"), "state is 'won'"),
    ("tell", _set("state", None), "state is None"),
    ("tell", _set("reward", "0.5"), "reward is '0.5'"),
    ("tell", _set("reward", True), "reward is True"),
    ("tell", _set("sd", -0.1), "sd is -0.1"),
    ("tell", _set("nll", -1.0), "nll is -1.0"),
    ("tell", _set("clips", -1), "clips is -1"),
    ("tell", _set("clips", 1.5), "clips is 1.5"),
    ("tell", _set("blocks", [0.5, "x"]), "blocks.1 is 'x'"),
    ("tell", _set("slices", {"a\x1b": [0.5, 3]}), "control character"),
    ("tell", _set("slices", {"a": [0.5, 3, 4]}), "slices.a"),
    ("tell", _set("outside", 1.5), "outside is 1.5"),
    ("tell", _set("error", "\x1b]0;owned\x07"), "control character"),
    ("tell", _set("bias", {"a": 1}), "bias"),
    ("select", _set("chosen", 9), "trial 9 was not proposed"),
    ("select", _set("finalists", [0, -1]), "finalists.1 is -1"),
    ("select", _set("reason", "kept\x1b[0m"), "control character"),
    ("select", _set("event", "elect"), "event"),
]


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    history = History(tmp_path_factory.mktemp("journal") / "trials.jsonl", LABELS)
    history.begin({"task": "speech"})
    (trial,) = history.add(0, [Candidate(Prompt("Is it speech? A) yes B) no"), "seed")])
    history.tell(_complete(trial))
    history.close({"chosen": 0, "baseline": 0, "reason": "kept", "finalists": []})
    return [json.loads(line) for line in history.path.read_text().splitlines()]


def _complete(trial):
    outcome = Outcome(0.5, 0.0, 0.5, loss=0.7, n_scored=8, blocks=(0.5,), slices={"a": (0.5, 8)})
    return replace(trial, state="complete", outcome=outcome)


@pytest.mark.parametrize(("kind", "change", "sentence"), JOURNAL)
def test_a_journal_that_was_changed_is_refused_with_its_line(
    kind, change, sentence, events, tmp_path
):
    number = next(i for i, event in enumerate(events) if event["event"] == kind)
    lines = [*events[:number], *change(events[number]), *events[number + 1 :]]
    path = tmp_path / "trials.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError) as caught:
        History(path, LABELS)
    said = str(caught.value)
    place = number + (2 if change is _same else 1)
    assert said.startswith(f"{path}:{place}: ")
    assert sentence in said and said.isprintable() and "pydantic" not in said
    path.write_text("".join(json.dumps(line) + "\n" for line in events))
    assert History(path, LABELS).selection["chosen"] == 0


# Files of a run besides its journal: what is written to one, the verb that reads it, part of the sentence.
FILES = [
    ("config.yaml", "[]", optimize, "config.yaml: no settings; restore the file"),
    ("config.yaml", "5", optimize, "config.yaml: no settings; restore the file"),
    ("config.yaml", "null", optimize, "config.yaml: no settings; restore the file"),
    ("config.yaml", "also: 0.5", seal, "config.yaml: also is 0.5; expected str"),
    ("config.yaml", "also: 0.5", leaderboard, "config.yaml: also is 0.5; expected str"),
    ("config.yaml", "manifest: -1", rescore, "config.yaml: manifest is -1; expected str"),
    ("config.yaml", "manifest:", rescore, "config.yaml: no settings of a run"),
    ("config.yaml", "train_manifest: {a: 1}", rescore, "train_manifest is {'a': 1}; expected str"),
    ("config.yaml", "seed: true", seal, "config.yaml: seed is True; expected int"),
    ("provenance.json", "[]", rescore, "scored_with is []; expected libraries"),
    ("provenance.json", '{"scored_with": "x"}', seal, "scored_with is 'x'; expected libraries"),
    ("provenance.json", '{"scored_with": {"torch": 2}}', rescore, "scored_with is {'torch': 2}"),
    ("provenance.json", "[]", report, "provenance.json: no names with values; restore the file"),
    ("trials.jsonl", os.mkdir, optimize, "trials.jsonl' is a folder; expected a regular file"),
    ("trials.jsonl", os.mkfifo, optimize, "trials.jsonl' is a pipe; expected a regular file"),
    ("log.txt", os.mkdir, optimize, "log.txt' is a folder; expected a regular file"),
    ("log.txt", os.mkfifo, optimize, "log.txt' is a pipe; expected a regular file"),
    ("log.txt", lambda path: path.symlink_to("a/b"), optimize, "is a link that leads nowhere"),
]
SEARCH = ["--checkpoint", "fake", "--iterations", "0", "--clips", "40", "--name", "run"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    assert optimize.main([*SEARCH, "--runs-dir", str(folder)]) == 0
    return folder / "run"


@pytest.mark.parametrize(("name", "change", "verb", "sentence"), FILES)
def test_a_damaged_file_of_a_run_is_one_sentence(
    name, change, verb, sentence, searched, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    shutil.copytree(searched, run)
    if callable(change):
        (run / name).unlink()
        change(run / name)
    elif ":" in change and name == "config.yaml":
        key = change.split(":")[0]
        kept = (run / name).read_text().splitlines()
        (run / name).write_text("\n".join([*(x for x in kept if x.split(":")[0] != key), change]))
    else:
        (run / name).write_text(change)
    flags = {
        optimize: [*SEARCH, "--runs-dir", str(tmp_path)],
        rescore: [str(run), "--split", "dev"],
    }
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["verb", *flags.get(verb, [str(run)])])
    assert run_verb(verb.main) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ") and sentence in said


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_count_of_uses_that_is_no_file_neither_hangs_nor_traces(make, tmp_path):
    make(tmp_path / "test_openings.jsonl")
    for use in (lambda: count_uses(tmp_path, "a"), lambda: record_use(tmp_path, "a", "v", "x", [])):
        with pytest.raises(UserError, match="expected a regular file or a new name"):
            use()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text": "x" * 50_001}, "the prompt has 50,001 characters"),
        ({"system": "x" * 50_001}, "expected at most 50,000"),
        ({"answers": {"SPEECH": ["A"] * 1001, "NONSPEECH": "B"}}, "SPEECH has 1,001 answers"),
        ({"text": "Is it\u200f speech?"}, r"control character U\+200F"),
        ({"text": "Is it\u2028 speech?"}, r"control character U\+2028"),
    ],
)
def test_a_prompt_that_no_one_means_is_refused(change, sentence):
    with pytest.raises(UserError, match=sentence):
        prompt_from({"text": "Is it speech?", **change}, LABELS, "it")
