"""Readers of what other tools keep: each layout as its tool writes it, and whatever else stands in such a file."""

import json
import os
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_clips import clip, folder, rows_of, two_folders

from data.building.finished import Names, read_finished
from data.building.json_lines import MAX_LINE, read_records
from evaluators.errors import UserError

# `pytest --hypothesis-profile thorough` tries 1,000 each.
examples = settings(
    max_examples=1000 if settings.get_current_profile_name() == "thorough" else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def clips(tmp_path) -> list[tuple[str, str]]:
    """(path below tmp_path, kind) of ten clips of two kinds each."""
    two_folders(tmp_path)
    return [(f"{kind}/{i}.wav", kind) for kind in ("speech", "noise") for i in range(10)]


def written(path: Path, records, array=False) -> Path:
    text = json.dumps(records) if array else "".join(json.dumps(r) + "\n" for r in records)
    path.write_text(text, encoding="utf-8")
    return path


def built(place, out: Path, *flags) -> Counter:
    """(label, category) -> clips."""
    assert folder("--clips", place, "--out", out, *flags) == 0
    return Counter((r["label"], r["category"]) for r in rows_of(out))


def said(kind, a="A", b="B"):
    return a if kind == "speech" else b


def test_nemo_with_labels(tmp_path, clips):
    rows = [
        {
            "audio_filepath": path,
            "duration": 0.2,
            "label": kind,
            "text": "_",
            "speaker": f"s{i % 8}",
        }
        for i, (path, kind) in enumerate(clips)
    ]
    made = built(written(tmp_path / "m.json", rows), tmp_path / "out")
    assert made == {("SPEECH", "speech"): 10, ("NONSPEECH", "noise"): 10}
    assert {r["source_id"] for r in rows_of(tmp_path / "out")} == {f"s{i}" for i in range(8)}


def test_nemo_with_transcripts_is_all_of_one_kind(tmp_path, clips):
    for kind in ("speech", "noise"):
        rows = [
            {"audio_filepath": str(tmp_path / path), "duration": 0.2, "text": f"word {path}"}
            for path, k in clips
            if k == kind
        ]
        written(tmp_path / f"{kind}.jsonl", rows)
    flags = ["--speech", tmp_path / "speech.jsonl", "--other", tmp_path / "noise.jsonl"]
    assert folder(*flags, "--out", tmp_path / "out") == 0
    assert len(rows_of(tmp_path / "out")) == 20


def test_nemo_with_text_that_says_the_kind(tmp_path, clips):
    rows = [{"audio_filepath": path, "text": kind} for path, kind in clips]
    assert built(written(tmp_path / "m.jsonl", rows), tmp_path / "out").total() == 20
    commands = [{"audio_filepath": path, "text": said(k, "yes", "no")} for path, k in clips]
    with pytest.raises(UserError, match="no column 'label'"):  # words that were spoken
        read_finished(str(written(tmp_path / "c.jsonl", commands)), Names(), labelled=True)


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("shape", ["swift", "parts", "sharegpt", "alpaca", "query"])
def test_chats_with_audio(tmp_path, clips, shape, array):
    def record(path, kind):
        question, answer = "<audio>Is there speech?", said(kind)
        user, assistant = (
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        )
        if shape == "parts":
            parts = [{"type": "audio", "audio": path}, {"type": "text", "text": "Is there speech?"}]
            answer = [{"type": "text", "text": answer}]
            return {
                "messages": [{"role": "user", "content": parts}, assistant | {"content": answer}]
            }
        if shape == "sharegpt":
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            return {"conversations": turns, "audios": [path]}
        if shape == "alpaca":
            return {"instruction": question, "input": "", "output": answer, "audios": [path]}
        if shape == "query":
            return {"query": question, "response": answer, "audios": [path]}
        return {
            "messages": [{"role": "system", "content": "Listen."}, user, assistant],
            "audios": [path],
        }

    place = written(tmp_path / "m.jsonl", [record(*c) for c in clips], array)
    with pytest.raises(UserError, match=r"cannot be told from 'A' \(10\), 'B' \(10\)"):
        built_of = read_finished(str(place), Names(), labelled=True)
        from data.building.folder import speech_labels

        speech_labels(Counter(c.label for c in built_of.clips), (), "m")
    made = built(place, tmp_path / "out", "--positive", "A")
    assert made == {("SPEECH", "speech"): 10, ("NONSPEECH", "other"): 10}


def test_paths_of_another_machine_are_found_with_a_root(tmp_path, clips):
    rows = [
        {"audio": f"speech data\\{path}".split("\\", 1)[1], "label": kind} for path, kind in clips
    ]
    (tmp_path / "lists").mkdir()
    place = written(tmp_path / "lists" / "m.jsonl", rows)
    with pytest.raises(UserError, match="--root DIR"):
        read_finished(str(place), Names(), labelled=True)
    assert built(place, tmp_path / "out", "--root", tmp_path).total() == 20


@pytest.mark.parametrize(("there", "listed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_found_in_the_other_unicode_form(tmp_path, there, listed):
    rows = []
    for k, kind in enumerate(("speech", "noise")):
        for i in range(6):
            name = f"J\u00fcrgen {kind}{i}.wav"
            clip(tmp_path / unicodedata.normalize(there, name), 10 * k + i)
            rows.append({"path": unicodedata.normalize(listed, name), "label": kind})
    assert built(written(tmp_path / "m.jsonl", rows), tmp_path / "out").total() == 12


def test_some_files_that_are_missing_and_addresses_are_left_out(tmp_path, clips):
    rows = [{"path": path, "label": kind} for path, kind in clips]
    rows += [
        {"path": "speech/99.wav", "label": "speech"},
        {"path": "s3://x/1.wav", "label": "speech"},
    ]
    built(written(tmp_path / "m.jsonl", rows), tmp_path / "out")
    reasons = [r["reason"] for r in rows_of(tmp_path / "out", "rejected.csv")]
    assert ["no such file" in reasons[0], "download it first" in reasons[1]] == [True, True]


@pytest.mark.parametrize("name", ["manifest.csv", "metadata.csv"])
def test_a_folder_that_lists_its_clips_is_read_by_its_list(tmp_path, clips, name, capsys):
    rows = ["file_name,label,source_id,category,split,licence"]
    rows += [f"{p},{k.upper()},s{i % 10},{k} 1,test,CC0" for i, (p, k) in enumerate(clips)]
    (tmp_path / name).write_text("\n".join(rows) + "\n")
    out = tmp_path.parent / f"{tmp_path.name} out"
    assert built(tmp_path, out) == {("SPEECH", "speech 1"): 10, ("NONSPEECH", "noise 1"): 10}
    assert f"{name}: its own splits are not kept" in capsys.readouterr().out
    rows = rows_of(out)
    assert {r["source_id"] for r in rows} == {f"s{i}" for i in range(10)}
    assert {r["split"] for r in rows} == {"train", "dev", "test"}
    assert {r["licence"] for r in rows} == {"CC0"}


def kaldi(root: Path, clips, segments=False, label="utt2label") -> Path:
    folder = root / "data" / "train"
    folder.mkdir(parents=True)
    waves = {f"rec{i}": path for i, (path, _) in enumerate(clips)}
    (folder / "wav.scp").write_text("".join(f"{n} {root / p}\n" for n, p in waves.items()))
    utterances = {f"{n}-a" if segments else n: n for n in waves}
    if segments:
        text = "".join(f"{u} {n} 0.05 0.15\n" for u, n in utterances.items())
        (folder / "segments").write_text(text)
    (folder / "utt2spk").write_text(
        "".join(f"{u}\tspk{i // 2}\n" for i, u in enumerate(utterances))
    )
    kinds = dict(zip(utterances, (k for _, k in clips), strict=True))
    (folder / label).write_text("".join(f"{u} {k}\n" for u, k in kinds.items()))
    return folder


@pytest.mark.parametrize("label", ["utt2label", "text"])
@pytest.mark.parametrize("segments", [False, True])
def test_kaldi_directories(tmp_path, clips, segments, label):
    made = built(kaldi(tmp_path, clips, segments, label), tmp_path / "out")
    assert made == {("SPEECH", "speech"): 10, ("NONSPEECH", "noise"): 10}
    rows = rows_of(tmp_path / "out")
    assert {r["source_id"] for r in rows} == {f"spk{i}" for i in range(10)}
    assert {r["duration_ms"] for r in rows} == {"100" if segments else "200"}


def test_own_splits_of_a_folder_are_told_and_not_kept(tmp_path, capsys):
    for k, split in enumerate(("train", "test")):
        for n, kind in enumerate(("speech", "noise")):
            for i in range(8):
                clip(tmp_path / "in" / split / kind / f"{i}.wav", 100 * k + 10 * n + i)
    assert built(tmp_path / "in", tmp_path / "out").total() == 32
    assert "its own splits (test, train) are not kept" in capsys.readouterr().out


def test_datasets_need_their_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "dataset_info.json").write_text("{}")
    for place in (str(tmp_path), "hub:me/mine"):
        with pytest.raises(
            UserError, match=r"pip install datasets, or this project's extra 'datasets'"
        ):
            read_finished(place, Names(), labelled=True)


@pytest.mark.parametrize("kept", ["bytes", "paths", "splits", "parquet"])
def test_datasets(tmp_path, clips, kept, capsys):
    datasets = pytest.importorskip("datasets")
    files = [{"path": str(tmp_path / path), "bytes": None} for path, _ in clips]
    if kept != "paths":
        files = [
            {"path": os.path.basename(f["path"]), "bytes": Path(f["path"]).read_bytes()}
            for f in files
        ]
    data = datasets.Dataset.from_dict(
        {
            "audio": files,
            "label": [int(kind == "speech") for _, kind in clips],
            "speaker": [f"s{i // 2}" for i in range(20)],
        }
    )
    data = data.cast_column("audio", datasets.Audio())
    data = data.cast_column("label", datasets.ClassLabel(names=["noise", "speech"]))
    place = tmp_path / "set"
    if kept == "parquet":
        place.mkdir()
        data.to_parquet(str(place / "train.parquet"))
    elif kept == "splits":
        parts = {"train": data.select(range(0, 20, 2)), "test": data.select(range(1, 20, 2))}
        datasets.DatasetDict(parts).save_to_disk(str(place))
    else:
        data.save_to_disk(str(place))
    made = built(f"hub:{place}" if kept == "parquet" else place, tmp_path / "out")
    assert made == {("SPEECH", "speech"): 10, ("NONSPEECH", "noise"): 10}
    assert ("its own splits (train, test) are not kept" in capsys.readouterr().out) == (
        kept == "splits"
    )
    rows = rows_of(tmp_path / "out")
    assert {r["source_id"] for r in rows} == {f"s{i}" for i in range(10)}
    for row in rows[:3]:
        assert (tmp_path / "out" / row["path"]).read_bytes() in {
            (tmp_path / path).read_bytes() for path, _ in clips
        }


def test_a_data_set_that_cannot_be_opened_is_one_sentence(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "dataset_info.json").write_text("{")
    for place in (str(tmp_path), f"hub:{tmp_path / 'nothing'}"):
        with pytest.raises(UserError, match="cannot be opened by datasets") as caught:
            read_finished(place, Names(), labelled=True)
        assert "\n" not in str(caught.value)


# Whatever stands in a file.

anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip
KEYS = ("audio_filepath", "audio", "audios", "path", "label", "text", "duration", "offset", "messages",
        "conversations", "output", "speaker")  # fmt: skip
value = (
    st.sampled_from(["0.wav", "1.wav", "speech", "noise", "A", "", "\x1b[2J", "\ud800", 0.1, 1, -1, None, True])
    | st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", 3]), "content": anything}))
    | anything
)  # fmt: skip
record = st.dictionaries(st.sampled_from(KEYS), value, max_size=6) | anything


def sentence(error: UserError) -> None:
    text = str(error)
    assert text and "\n" not in text and "\x1b" not in text, text


def two_clips(root: Path) -> None:
    for i in range(2):
        if not (root / f"{i}.wav").exists():
            clip(root / f"{i}.wav", i)


@examples
@given(st.lists(record, max_size=5), st.sampled_from(["jsonl", "json"]), st.booleans())
def test_any_records_give_clips_or_one_sentence(tmp_path, records, ending, labelled):
    two_clips(tmp_path)
    path = tmp_path / f"m.{ending}"
    text = json.dumps(records) if ending == "json" else "\n".join(map(json.dumps, records))
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        found = read_finished(str(path), Names(), labelled)
    except UserError as error:
        sentence(error)
    else:
        for one in found.clips:
            assert one.path.is_file() and bool(one.label) == labelled
            assert (one.name + one.label + one.source + one.category).isprintable()
        for name, reason in found.rejected:
            assert (name + reason).isprintable()


@examples
@given(st.binary(max_size=300), st.sampled_from(["m.jsonl", "m.csv", "m.tsv", "wav.scp"]))
def test_any_bytes_give_clips_or_one_sentence(tmp_path, raw, name):
    path = tmp_path / "any" / name
    path.parent.mkdir(exist_ok=True)
    for old in path.parent.iterdir():
        old.unlink()
    path.write_bytes(raw)
    try:
        read_finished(str(path.parent if name == "wav.scp" else path), Names(), labelled=True)
    except UserError as error:
        sentence(error)


@examples
@given(
    st.lists(st.dictionaries(st.text(max_size=8), anything, max_size=4), min_size=1, max_size=5),
    st.data(),
)
def test_records_are_read_as_they_were_written(tmp_path, records, data):
    """In lines with blank ones between, with any line ends, with a byte order mark, and as an array."""
    path = tmp_path / "m.jsonl"
    ends = st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"])
    texts = [json.dumps(r) for r in records]
    if any("NaN" in t or "Infinity" in t for t in texts):
        return
    text = "".join(t + data.draw(ends) for t in texts)
    mark = data.draw(st.sampled_from(["", "\ufeff"]))
    path.write_text(mark + text, encoding="utf-8", newline="")
    assert [r for _, r in read_records(path)] == records
    path.write_text(mark + f" [{','.join(texts)}]", encoding="utf-8")
    assert [r for _, r in read_records(path)] == records


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}\n{"a": "' + "x" * MAX_LINE + '"}', "m.jsonl:2: longer than 1,048,576 bytes"),
        ('{"a": ' + "[" * 100_000, "m.jsonl:1: nested deeper than 64"),
        ('{"a": ' + "9" * 5000 + "}", "m.jsonl:1: not readable as JSON"),
        ('{"a": 1}\n\n{"a": Infinity}', "m.jsonl:3: .*Infinity is no number"),
        ('{"a": {"b": 1, "b": 2}}', "m.jsonl:1: .*key 'b' stands twice"),
        ('"text"', "m.jsonl:1: 'text' is no object"),
        ("[1, 2]", "m.jsonl: entry 1: 1 is no object"),
        ("[{}", "m.jsonl: not readable as JSON"),
    ],
)
def test_what_is_no_record_is_named_by_its_line(tmp_path, text, words):
    path = tmp_path / "m.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        list(read_records(path))
    sentence(caught.value)
