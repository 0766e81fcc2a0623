import json
import math
import zipfile

import pytest
import zstandard
from made_logs import header, real, summary, write_eval

from evaluators.errors import UserError
from opro.results.logs import inspect_log, sample_log
from opro.results.logs.inspect_log import read_eval
from opro.results.logs.read import read_log

WORSE, BETTER = real("*.eval")


def members(path):
    """What a log of the package holds, by its own compression."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        out = {}
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            lengths = file.read(4)
            file.seek(sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2)), 1)
            raw = zstandard.ZstdDecompressor().stream_reader(file.read(info.compress_size))
            out[info.filename] = json.loads(raw.read())
        return out


def test_a_log_of_the_package_is_read():
    log = read_log(BETTER)
    assert (log.kind, log.task, log.model) == ("inspect_ai", "toy_speech", "mockllm/better")
    assert [(s.id, s.epoch) for s in log.samples] == [
        (f"s{i}", e) for e in (1, 2) for i in range(4)
    ]
    first = log.samples[0]
    assert (first.target, first.fields, first.answers["match"]) == ("yes", {"speaker": "p0"}, "yes")
    assert first.scores == {"match": 1.0, "judged.loud": 3.0, "judged.clear": 0.5}
    down, unscored = log.samples[1], log.samples[2]
    assert "judged.loud" not in down.scores and down.trouble == "ValueError('the judge is down')"
    assert math.isnan(unscored.scores["judged"]) and unscored.trouble == "no reply"
    assert log.notes == () and first.asked == read_log(WORSE).samples[0].asked != down.asked


@pytest.mark.parametrize("path", [WORSE, BETTER])
def test_means_are_the_figures_of_the_package(path):
    log = read_log(path)
    assert set(log.reported) == {"match", "judged.loud", "judged.clear"}
    for name, value in log.reported.items():
        held = [s.scores[name] for s in log.samples if name in s.scores]
        assert sum(held) / len(held) == pytest.approx(value, abs=1e-12), name


def test_every_form_of_a_log_gives_the_same(tmp_path):
    held = members(BETTER)
    log = read_log(BETTER)
    whole = [v for k, v in held.items() if k.startswith("samples/")]
    plain = tmp_path / "log.json"
    plain.write_text(json.dumps(held["header.json"] | {"samples": whole}))
    other = write_eval(tmp_path / "a.eval", held["summaries.json"], held["header.json"])
    begun = tmp_path / "begun.eval"
    with zipfile.ZipFile(begun, "w") as archive:
        archive.writestr("_journal/start.json", json.dumps(held["_journal/start.json"]))
        for i in range(8):
            archive.writestr(
                f"_journal/summaries/{i + 3}.json", json.dumps(held["summaries.json"][i])
            )
    for path in (plain, other, begun):
        found = read_log(path)
        assert [(s.id, s.epoch) for s in found.samples] == [(s.id, s.epoch) for s in log.samples]
        for a, b in zip(found.samples, log.samples, strict=True):
            assert (a.target, a.fields, a.asked, a.trouble) == (
                b.target,
                b.fields,
                b.asked,
                b.trouble,
            )
            assert str(a.scores) == str(b.scores) and a.answers == b.answers
        assert (found.task, found.model) == (log.task, log.model)
    assert read_log(begun).notes == ("its status is 'started', not 'success': samples may be missing",)  # fmt: skip
    assert read_log(begun).reported == {}


def test_scores_by_the_words_of_the_package():
    words = {"C": 1, "I": 0, "P": 0.5, "N": 0, "yes": 1, "False": 0, "0.25": 0.25, True: 1, 3: 3}
    assert {w: sample_log.number(w) for w in words} == words
    strange = ["B", "1_0", "\u0661", "inf", [1], {"a": 1}, None, float("inf"), 1e200, 10**400]
    assert [sample_log.number(w) for w in strange] == [None] * len(strange)
    assert math.isnan(sample_log.number(float("nan"))) and math.isnan(sample_log.number("nan"))


def test_a_grade_that_is_no_number_is_told_as_the_reason(tmp_path):
    log = read_eval(write_eval(tmp_path / "a.eval", [summary(1, "C"), summary(2, "good")]))
    assert log.samples[1].scores == {} and log.samples[1].trouble == "match is 'good'"
    assert log.samples[0].id == "1"


def test_of_a_sample_that_was_run_again_the_last_counts(tmp_path):
    log = read_eval(write_eval(tmp_path / "a.eval", [summary("a", "I"), summary("a", "C")]))
    assert [s.scores for s in log.samples] == [{"match": 1.0}]


def test_long_ids_stay_different(tmp_path):
    log = read_eval(write_eval(tmp_path / "a.eval", [summary("x" * 300 + c, "C") for c in "ab"]))
    assert len({s.id for s in log.samples}) == 2 and max(len(s.id) for s in log.samples) < 200


def test_ids_of_messages_are_no_part_of_the_question(tmp_path):
    asked = [[{"id": i, "role": "user", "content": "speech?"}] for i in "ab"]
    paths = [
        write_eval(tmp_path / f"{i}.eval", [summary("a", "C", input=asked[i])]) for i in (0, 1)
    ]
    a, b = (read_eval(path).samples[0].asked for path in paths)
    assert a == b


def test_what_a_log_says_of_itself_is_told(tmp_path):
    head = header(status="error", invalidated=True)
    notes = read_eval(write_eval(tmp_path / "a.eval", [summary(1, "C")], head)).notes
    assert "'error', not 'success'" in notes[0] and "invalidated" in notes[1]


@pytest.mark.parametrize(
    ("samples", "head", "words"),
    [
        ([], None, "holds no samples"),
        ([1], None, "sample 1: is int"),
        ([summary(1.5, "C")], None, "id is 1.5"),
        ([summary("a", "C"), summary("b", "C", epoch=0)], None, "sample 2: epoch is 0"),
        ([summary(True, "C")], None, "id is True"),
    ],
)
def test_what_is_no_sample_is_refused(tmp_path, samples, head, words):
    with pytest.raises(UserError, match=words):
        read_eval(write_eval(tmp_path / "a.eval", samples, head))


def test_archives_that_are_no_log_are_refused(tmp_path):
    path = tmp_path / "a.eval"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.xml", "")
    with pytest.raises(UserError, match=r"without header\.json"):
        read_log(path)


def test_a_log_that_was_cut_or_damaged_is_refused(tmp_path):
    raw, path = BETTER.read_bytes(), tmp_path / "a.eval"
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match=r"cannot be read as a ZIP archive .* was cut"):
        read_log(path)
    with zipfile.ZipFile(BETTER) as archive:
        info = archive.getinfo("summaries.json")
    at = info.header_offset + 60 + len("summaries.json")
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 255]) + raw[at + 1 :])
    with pytest.raises(UserError, match=r"damaged|cannot be read"):
        read_log(path)


@pytest.mark.parametrize("packing", ["deflate", "zstandard"])
def test_bombs_are_refused_before_they_fill_memory(tmp_path, monkeypatch, packing):
    """By the size that the archive names, and by what comes out where it lies."""
    monkeypatch.setattr(inspect_log, "MOST_BYTES", 10_000)
    path, bomb = tmp_path / "a.eval", b" " * 1_000_000
    if packing == "deflate":
        write_eval(path, [" " * 1_000_000])
        with pytest.raises(UserError, match="expected at most"):
            read_eval(path)
        return
    squeezed = zstandard.compress(bomb)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps(header()))
        archive.writestr("summaries.json", squeezed)
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02")  # the last entry of the directory: summaries.json
    raw[at + 10 : at + 12] = (93).to_bytes(2, "little")
    raw[at + 24 : at + 28] = (500).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(UserError, match="is damaged"):
        read_eval(path)
