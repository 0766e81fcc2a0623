"""Whatever stands in a file or a reply, a reader gives data or one sentence, never anything else.

50 inputs of each kind; 1,000 with `pytest tests/test_fuzz.py --hypothesis-profile thorough`.
"""

import csv
import hashlib
import io
import json
import struct
import zipfile
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import soundfile
from common import LABELS
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_logs import ASSETS

from data.auditing.checks import audit_clips
from data.building.import_study import NEEDED as STUDY
from data.building.import_study import read_study
from data.building.readers import Collection, read_collection, read_rttm
from data.building.recipe import Import
from evaluators.audio import load, load_part, read_header, read_sound
from evaluators.errors import UserError
from evaluators.files import read_json, read_table, read_yaml
from evaluators.levels import measure_levels
from evaluators.manifest import NEEDED, read_manifest
from evaluators.prompts import Prompt, read_prompts
from evaluators.splits import load_registry
from evaluators.tasks import SPEECH_TASK
from opro.proposers.replies import check_proposal, parse
from opro.results.decisions import DECISIONS
from opro.results.logs.read import is_log, read_log
from opro.results.looks import USES, count_uses
from opro.results.predictions import read_foreign
from opro.results.scored import as_predictions, compare_logs, open_scored
from opro.results.spending import read_spent
from opro.search.history import Candidate, History
from opro.search.steering import read_requests

quietly = settings(
    max_examples=1000 if settings.get_current_profile_name() == "thorough" else 50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
REAL = [path.read_bytes() for path in sorted(ASSETS.glob("*/*"))]
anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def sentence(error):
    text = str(error)
    assert text and "\n" not in text and "\x1b" not in text, text


@quietly
@given(st.binary(max_size=400))
@example(b"\xff\xfe" + ",".join(NEEDED).encode())
@example(b"\x00")
def test_any_bytes_as_a_manifest(tmp_path, raw):
    path = tmp_path / "manifest.csv"
    path.write_bytes(raw)
    with pytest.raises(UserError) as caught:
        read_manifest(path, LABELS)
    sentence(caught.value)


COLUMNS = ("clip_id", "source_id", "label", "predicted", "score", "truth", "y_pred", "\x1b[2J\n")
cells = st.sampled_from(["SPEECH", "speech", "no", "1", "0", "0,5", "", "\x1b\n", "nan", "a_1"])


@quietly
@given(
    st.binary(max_size=200),
    st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=6),
    st.lists(st.lists(cells, min_size=6, max_size=6), max_size=5),
    st.sampled_from([",", ";", "\t"]),
)
def test_any_bytes_and_any_cells_as_predictions(tmp_path, raw, header, rows, separator):
    path, text = tmp_path / "p.csv", io.StringIO()
    csv.writer(text, delimiter=separator).writerows([header, *(r[: len(header)] for r in rows)])
    for content in (raw, text.getvalue().encode()):
        path.write_bytes(content)
        try:
            said, guessed = read_foreign(path, "SPEECH")
            assert len(said.decided) > 0 and all(isinstance(g, str) for g in guessed)
        except UserError as error:
            sentence(error)


def try_log(path, content):
    """Reads and compares a log, against itself; what it says of a hostile one is one sentence."""
    path.write_bytes(content)
    other = path.with_name("other")
    other.write_bytes(content)
    if not is_log(path):
        return
    try:
        logs = [read_log(path), read_log(other)]
        groups = open_scored(logs, {})
        (pair,) = compare_logs(groups, resamples=100, seed=0)["pairs"]
        assert pair["difference"] == 0 and pair["p"] == 1
        for one in groups[0]:
            assert all(t.isprintable() for t in one.told) and np.isfinite(one.scores.value).all()
            as_predictions(one, "yes", None)
    except UserError as error:
        sentence(error)


@quietly
@given(
    st.binary(max_size=300).map(lambda raw: b"{" + raw)
    | anything.map(lambda x: json.dumps({"doc_id": x}).encode())
    | anything.map(lambda x: json.dumps({"eval": {}, "samples": [x]}).encode())
    | anything.map(lambda x: json.dumps([x]).encode())
)
@example(b'{"doc_id": ' + b"[" * 100_000)
@example(b'{"doc_id": 1, "acc": 1' + b"0" * 400 + b"}")
@example(
    b'{"doc_id": 1, "doc": '
    + b'{"a":' * 900
    + b"1"
    + b"}" * 900
    + b', "target": '
    + b"[" * 900
    + b"]" * 900
    + b"}"
)
def test_any_json_as_a_log(tmp_path, raw):
    try_log(tmp_path / "log", raw)


scores = (
    st.none() | st.booleans() | st.floats() | st.integers(0, 3) | st.sampled_from(["C", "I", "?"])
)
replies = st.text(max_size=6) | st.sampled_from(["yes", "no", "[invalid]"]) | anything


@quietly
@given(
    st.lists(
        st.fixed_dictionaries(
            {"doc_id": st.integers(0, 5), "filter": st.sampled_from(["none", "a"]), "acc": scores},
            optional={
                "target": replies, "filtered_resps": st.lists(replies, max_size=2) | replies, "doc": anything,
                "metrics": st.just(["acc"]) | anything, "arguments": anything, "doc_hash": anything, "f1": anything,
            },
        ),
        min_size=1, max_size=6, unique_by=lambda one: (one["doc_id"], one["filter"]),
    )
)  # fmt: skip
def test_any_values_in_the_lines_of_a_harness(tmp_path, lines):
    text = "".join(json.dumps(one) + "\n" for one in lines)
    try_log(tmp_path / "samples_t_2026-01-02T03-04-05.6.jsonl", text.encode())


@quietly
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "id": st.integers(0, 5) | st.text(max_size=4) | anything, "epoch": st.integers(1, 2),
                "scores": anything | st.dictionaries(
                    st.text(max_size=4) | st.just("match"),
                    st.fixed_dictionaries(
                        {"value": scores | anything}, optional={"answer": replies, "reason": anything}
                    ),
                    max_size=2,
                ),
            },
            optional={
                "target": replies, "input": anything, "metadata": anything, "error": anything, "choices": anything,
            },
        ),
        max_size=5,
    ),
    st.fixed_dictionaries(
        {"eval": anything}, optional={"status": anything, "results": anything, "invalidated": anything}
    ),
    st.data(),
)  # fmt: skip
def test_any_values_and_any_damage_in_a_log_of_inspect(tmp_path, samples, head, data):
    path = tmp_path / "log"
    with zipfile.ZipFile(path, "w", data.draw(st.sampled_from([0, zipfile.ZIP_DEFLATED]))) as file:
        file.writestr("header.json", json.dumps(head))
        file.writestr("summaries.json", json.dumps(samples))
    raw = path.read_bytes()
    try_log(path, raw)
    place = data.draw(st.integers(2, len(raw) - 1))
    try_log(path, raw[:place] + bytes([data.draw(st.integers(0, 255))]) + raw[place + 1 :])
    try_log(path, raw[:place])


@quietly
@given(st.data())
def test_any_damage_in_a_log_that_the_package_wrote(tmp_path, data):
    raw = bytearray(data.draw(st.sampled_from(REAL)))
    for place in data.draw(st.lists(st.integers(2, len(raw) - 1), min_size=1, max_size=3)):
        raw[place] = data.draw(st.integers(0, 255))
    try_log(tmp_path / "log", bytes(raw))


@quietly
@given(
    st.lists(st.fixed_dictionaries({name: st.text(max_size=12) for name in NEEDED}), max_size=3),
    st.data(),
)
def test_any_cells_in_a_manifest(tmp_path, rows, data):
    """Nearly right rows: some cells are what they should be."""
    right = {"label": "SPEECH", "split": "dev", "duration_ms": "200", "snr_db": "", "path": "a.wav"}
    for row in rows:
        row.update({k: v for k, v in right.items() if data.draw(st.booleans())})
    out = io.StringIO()
    writer = csv.DictWriter(out, NEEDED)
    writer.writeheader()
    writer.writerows(rows)
    path = tmp_path / "manifest.csv"
    path.write_bytes(out.getvalue().encode("utf-8", "replace"))
    try:
        clips = read_manifest(path, LABELS)
    except UserError as error:
        sentence(error)
    else:
        assert len(clips) == len({c.clip_id for c in clips}) == len(rows)
        for clip in clips:  # no path leaves the folder, no text steers a terminal
            assert clip.path.is_relative_to(tmp_path.resolve())
            assert all(str(v).isprintable() for v in vars(clip).values())


@quietly
@given(
    st.binary(max_size=200)
    | st.text(alphabet="SPEAKER 0123.-\tnaif\n<>", max_size=120).map(str.encode)
)
@example(b"SPEAKER a 1 0 inf <NA> <NA> b <NA>")
@example(b"SPEAKER a 1 -3 2 <NA> <NA> b <NA>")
def test_any_bytes_as_rttm(tmp_path, raw):
    path = tmp_path / "x.rttm"
    path.write_bytes(raw)
    try:
        turns = read_rttm(path)
    except UserError as error:
        sentence(error)
    else:
        for turn in turns:
            assert 0 <= turn.begin < turn.end < float("inf")


@quietly
@given(st.binary(max_size=300) | anything.map(lambda x: json.dumps(x).encode()))
def test_any_bytes_as_a_prompt_file(tmp_path, raw):
    path = tmp_path / "prompts.yaml"
    path.write_bytes(raw)
    try:
        prompts = read_prompts(path, LABELS)
    except UserError as error:
        assert str(error).startswith(str(path)) or str(path) in str(error)
        assert "\x1b" not in str(error)
    else:
        assert all(isinstance(p, Prompt) for p in prompts) and prompts


@quietly
@given(
    st.text(max_size=300)
    | anything.map(json.dumps)
    | anything.map(lambda x: json.dumps({"prompts": [x]}))
)
@example("[" * 100_000)
@example('{"prompts": [{"text": "\\u001b[2J A B"}, {"text": "=cmd|\' /C calc\'!A0 A B"}]}')
@example(
    '{"prompts": [{"text": "<script>alert(1)</script> A B", "answers": {"SPEECH": {"x": 1}}}]}'
)
def test_any_reply_gives_plain_prompts_or_reasons(reply):
    for raw in parse(reply):
        found = check_proposal(raw, SPEECH_TASK, set())
        if isinstance(found, Prompt):
            assert all(ch.isprintable() or ch == "\n" for ch in found.text)
            assert "<|" not in found.text and [label for label, _ in found.answers] == list(LABELS)
        else:
            assert found and "\x1b" not in found


FORMATS = (
    "WAV-PCM_16 WAV-PCM_24 WAV-FLOAT WAV-ULAW WAV-IMA_ADPCM WAVEX-PCM_16 RF64-PCM_16 W64-PCM_16 AIFF-PCM_16"
    " AU-PCM_16 CAF-PCM_16 FLAC-PCM_16 OGG-VORBIS OGG-OPUS MP3-MPEG_LAYER_III".split()
)


@cache
def encoded(kind: str, channels: int) -> bytes:
    form, _, sub = kind.partition("-")
    out = io.BytesIO()
    wave = 0.1 * np.random.default_rng(channels).standard_normal((2400, channels))
    soundfile.write(out, wave, 16000, format=form, subtype=sub)
    return out.getvalue()


@st.composite
def damaged(draw):
    """A small file of some format with a few numbers of its header, or other bytes, changed, and cut or grown."""
    raw = bytearray(encoded(draw(st.sampled_from(FORMATS)), draw(st.sampled_from([1, 2]))))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, min(len(raw), draw(st.sampled_from([80, 1000]))) - 5))
        number = draw(
            st.sampled_from([0, 1, 2, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000])
            | st.integers(0, 0xFFFFFFFF)
        )
        raw[place : place + 4] = struct.pack(draw(st.sampled_from("<>")) + "I", number)
    cut = draw(st.none() | st.integers(0, len(raw)))
    front = draw(
        st.sampled_from([b"", b"ID3\x04\0\0\0\0\0\x0a" + bytes(10), b"ID3\x04\0\0\x7f\x7f\x7f\x7f"])
    )
    return front + bytes(raw[:cut]) + draw(st.sampled_from([b"", b"LIST", b"TAG" + bytes(125)]))


ENDINGS = st.sampled_from([".wav", ".flac", ".mp3", ".raw", ".ogg", ""])


@quietly
@given(st.binary(max_size=200) | damaged(), ENDINGS)
def test_any_bytes_as_audio(tmp_path, raw, ending):
    path = tmp_path / f"x{ending}"
    path.write_bytes(raw)
    try:
        header, sound = read_header(path), read_sound(path)
    except UserError as error:
        sentence(error)
        return
    assert np.isfinite(sound.wave).all() and len(sound.wave) > 0 and sound.wave.dtype == np.float32
    assert header.samples > 0 and header.channels == sound.header.channels
    assert np.array_equal(load(path), sound.wave)  # read twice, it is the same
    measure_levels(sound)
    try:
        part = load_part(path, header.seconds / 3, header.seconds / 2)
    except UserError as error:
        sentence(error)
    else:
        assert len(part) <= len(sound.wave) + 1


@quietly
@given(
    st.binary(max_size=200),
    st.lists(st.sampled_from(["a", "A ", "b", "c", "\ufeffa", ""]), max_size=4),
    st.lists(st.lists(cells, max_size=5), max_size=4),
    st.sampled_from([",", ";", "\t"]),
)
def test_any_bytes_and_any_cells_as_a_table(tmp_path, raw, header, rows, separator):
    path, text = tmp_path / "t.csv", io.StringIO()
    csv.writer(text, delimiter=separator).writerows([header, *rows])
    for content in (raw, text.getvalue().encode()):
        path.write_bytes(content)
        try:
            found = list(read_table(path, ("a", "b")))
        except UserError as error:
            sentence(error)
        else:
            assert all(
                {"a", "b"} <= set(row) and where.startswith(str(path)) for where, row in found
            )


PATHS = ["a.wav", "A.WAV", ".\\a.wav", "../x.wav", "/etc/hostname", "no.wav", "link.wav"]
ROW = {
    "path": st.sampled_from([*PATHS, "\x1b", "x" * 300, "\0"]),
    "label": st.sampled_from(["SPEECH", "NONSPEECH", "speech"]),
    "category": st.sampled_from(["speech", "noise", "x"]),
    "source_id": st.sampled_from(["a", "A ", "", "J\u00fc", "Ju\u0308", "\x1b[2J"]),
    "est_snr_db": cells,
}


@quietly
@given(st.lists(st.fixed_dictionaries(ROW), max_size=4), st.sampled_from([",", ";"]))
def test_any_table_of_recordings(tmp_path, rows, separator):
    (tmp_path / "a.wav").write_bytes(encoded("WAV-PCM_16", 1))
    if not (tmp_path / "link.wav").is_symlink():
        (tmp_path / "link.wav").symlink_to("/etc/hostname")
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROW), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    try:
        found = read_collection(Collection("csv", tmp_path))
    except UserError as error:
        sentence(error)
    else:
        for recording in found:
            assert recording.path.is_relative_to(tmp_path) and recording.source_id
            assert recording.path.is_file() or recording.fault


ESC50 = ["filename", "category", "1-2-A-3.wav", "dog", "../x", "1-2-A.wav", ",", "\n"]


@quietly
@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from(ESC50), max_size=12).map(
        lambda parts: ("filename,category\n" + "".join(parts)).encode()
    )
)
def test_any_bytes_as_the_table_of_esc50(tmp_path, raw):
    (tmp_path / "meta").mkdir(exist_ok=True)
    (tmp_path / "audio").mkdir(exist_ok=True)
    (tmp_path / "meta" / "esc50.csv").write_bytes(raw)
    try:
        assert read_collection(Collection("esc50", tmp_path))
    except UserError as error:
        sentence(error)


FMA = ",artist,artist,track,track\n,id,name,genre_top,license\ntrack_id,,,,\n"


@quietly
@given(
    st.binary(max_size=200)
    | st.lists(
        st.sampled_from(["artist", "id", "track", "2", "x", "nan", "1e99", ",", "\n", '"']),
        max_size=20,
    ).map(lambda parts: (FMA + "".join(parts)).encode())
)
def test_any_bytes_as_the_table_of_fma(tmp_path, raw):
    (tmp_path / "000002.mp3").write_bytes(b"x")
    (tmp_path / "tracks.csv").write_bytes(raw)
    try:
        assert read_collection(Collection("fma", tmp_path))
    except UserError as error:
        sentence(error)


@quietly
@given(st.lists(st.fixed_dictionaries({name: cells for name in STUDY}), max_size=3), st.data())
def test_any_cells_in_a_table_of_the_first_study(tmp_path, rows, data):
    (tmp_path / "a.wav").write_bytes(encoded("WAV-PCM_16", 1))
    good = {"audio_path": "a.wav", "ground_truth": "SPEECH", "duration_ms": "150", "snr_db": "5"}
    for row in rows:
        row.update({k: v for k, v in good.items() if data.draw(st.booleans())})
    with (tmp_path / "x_metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, STUDY)
        writer.writeheader()
        writer.writerows(rows)
    recipe = Import("import", (tmp_path / "x_metadata.csv",), tmp_path)
    try:
        assert read_study(recipe, tmp_path / "out").rows
    except UserError as error:
        sentence(error)


splits = st.dictionaries(st.text(max_size=4), st.sampled_from(["train", "dev", "test"]))


@quietly
@given(
    st.binary(max_size=200)
    | anything.map(lambda x: json.dumps(x).encode())
    | st.fixed_dictionaries(
        {"splits": splits | anything, "trained_on": st.just({}) | anything}
    ).map(lambda x: json.dumps(x).encode())
)
def test_any_bytes_as_a_registry(tmp_path, raw):
    path = tmp_path / "registry.json"
    path.write_bytes(raw)
    try:
        registry = load_registry(path)
    except UserError as error:
        sentence(error)
    else:
        assert all(registry.split_of(name) == split for name, split in registry.splits.items())


@quietly
@given(st.lists(st.binary(max_size=60) | damaged(), min_size=1, max_size=4), st.data())
def test_any_clips_are_audited(tmp_path, files, data):
    rows = []
    for i, raw in enumerate(files):
        (tmp_path / f"{i}.wav").write_bytes(raw)
        row = dict.fromkeys(NEEDED, "x") | {"clip_id": f"c{i}", "path": f"{i}.wav"}
        row |= {
            "label": data.draw(st.sampled_from(LABELS)),
            "split": data.draw(st.sampled_from(["dev", "test"])),
        }
        row |= {
            "duration_ms": data.draw(st.sampled_from(["0", "0.15", "150", "1e300"])),
            "snr_db": "",
        }
        row["sha256"] = hashlib.sha256(raw).hexdigest()
        rows.append(row)
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, NEEDED)
        writer.writeheader()
        writer.writerows(rows)
    try:
        audit = audit_clips(tmp_path, LABELS, with_voice=False)
    except UserError as error:
        assert not {"0", "1e300"}.isdisjoint(row["duration_ms"] for row in rows)
        sentence(error)
        return
    for finding in audit.findings:
        assert finding.text and "\x1b" not in finding.text
    assert len(audit.measures) + sum("audio file" in f.text for f in audit.faults) >= 1


@pytest.fixture
def journal(tmp_path, seeds):
    history = History(tmp_path / "made.jsonl", LABELS)
    history.begin({"task": "speech"})
    for trial in history.add(0, [Candidate(p, "seed") for p in seeds]):
        history.tell(replace(trial, state="failed", error="no answer"))
    return (tmp_path / "made.jsonl").read_bytes()


@quietly
@given(st.data())
def test_a_journal_with_any_damage_is_whole_cut_or_reported_with_its_line(tmp_path, journal, data):
    place = data.draw(st.integers(0, len(journal) - 1))
    raw = {
        "cut": lambda: journal[:place],
        "flip": lambda: journal[:place] + bytes([data.draw(st.integers(0, 255))]) + journal[place + 1 :],
        "insert": lambda: journal[:place] + data.draw(st.binary(min_size=1, max_size=20)) + journal[place:],
    }[data.draw(st.sampled_from(["cut", "flip", "insert"]))]()  # fmt: skip
    path = tmp_path / "trials.jsonl"
    path.write_bytes(raw)
    try:
        history = History(path, LABELS, repair=True)
    except UserError as error:
        assert str(path) in str(error) and "\x1b" not in str(error)
    else:
        # What was read is read again: nothing but a torn last line has gone.
        assert raw.startswith(path.read_bytes())
        assert b"\n" not in raw[len(path.read_bytes()) :]
        again = History(path, LABELS)
        assert again.trials == history.trials


@quietly
@given(st.lists(anything, min_size=1, max_size=4))
def test_any_json_as_a_journal(tmp_path, events):
    path = tmp_path / "trials.jsonl"
    path.write_text("".join(json.dumps(e) + "\n" for e in events))
    with pytest.raises(UserError, match=r"trials\.jsonl"):
        History(path, LABELS)


shapes = st.text("[]{}\"',:&*!|>-?#%@ \n\t0123456789.eE+-aN\\u\x1b\u2028", max_size=120)


@quietly
@given(st.binary(max_size=120) | shapes.map(lambda text: text.encode()) | anything.map(
    lambda data: json.dumps(data).encode()
))  # fmt: skip
def test_any_bytes_as_json_and_yaml(tmp_path, raw):
    path = tmp_path / "any"
    path.write_bytes(raw)
    for read in (read_json, read_yaml):
        try:
            read(path)
        except UserError as error:
            sentence(error)
            assert str(error).startswith(f"{path}: ")


@quietly
@given(st.lists(shapes | anything.map(json.dumps), max_size=4))
def test_any_lines_as_a_log_of_a_folder(tmp_path, lines):
    raw = "\n".join(lines).encode()
    for name in (USES, DECISIONS, "steering.jsonl", "usage.jsonl"):
        (tmp_path / name).write_bytes(raw)
    assert count_uses(tmp_path, "m") >= 0
    assert read_requests(tmp_path / "steering.jsonl", LABELS) is not None
    for read in (
        lambda: read_spent(tmp_path / "usage.jsonl", repair=False),
        lambda: History(tmp_path / "steering.jsonl", LABELS),
    ):
        try:
            read()
        except UserError as error:
            sentence(error)
