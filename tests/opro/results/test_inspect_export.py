"""Our results as logs of inspect_ai: the package reads them, and so do we, with the same numbers."""

import json
import math
import zipfile
from pathlib import Path

import pytest

from opro import matrix, optimize, report, stats
from opro.cli import WRONG_USE, run_verb
from opro.results import inspect_export
from opro.results.run_folder import RunFolder


@pytest.fixture
def common(make_manifest, tmp_path, monkeypatch):
    """Flags of all verbs: the stand-in on a few clips."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    folder = make_manifest(sources=48, per_source=2)
    return ["--checkpoint", "fake", "--manifest", str(folder), "--runs-dir", str(tmp_path / "runs")]


@pytest.fixture
def run(common, tmp_path):
    """The folder of a finished search."""
    assert optimize.main([*common, "--name", "r", "--iterations", "1", "--candidates", "4"]) == 0
    return tmp_path / "runs" / "r"


def written(folder, out):
    files, notes = inspect_export.write_logs(folder, out)
    assert sorted(out.iterdir()) == sorted(files)  # and nothing half-written
    return files, notes


def described(files, capsys, *more):
    capsys.readouterr()
    assert stats.main([*map(str, files), "--format", "json", "--resamples", "200", *more]) == 0
    return json.loads(capsys.readouterr().out)


def without_names(data):
    if isinstance(data, dict):
        return {
            k: without_names(v) for k, v in data.items() if k not in ("file", "a", "b", "guessed")
        }
    return [without_names(v) for v in data] if isinstance(data, list) else data


def test_what_we_write_and_read_gives_the_numbers_of_the_run(run, tmp_path, capsys):
    files, notes = written(run, tmp_path / "logs")
    folder = RunFolder.read(run)
    held = {t.prompt.prompt_id: folder.holdout(t.prompt.prompt_id) for t in folder.ranking()}
    tables = [held[Path(f).stem.rpartition("-")[2]] for f in files]
    assert len(files) >= 2 and not notes
    theirs = described(files, capsys, "--map", "source_id=source_id")
    assert without_names(theirs) == without_names(described(tables, capsys))
    assert theirs["files"][0]["auroc"] and theirs["files"][0]["slices"]["duration_ms"]


def test_a_matrix_with_a_detector_too(run, common, tmp_path, capsys):
    argv = ["--prompts", str(run), "--split", "dev", "--baselines", "energy"]
    assert matrix.main([*common, *argv, "--out", str(tmp_path / "m")]) == 0
    files, _ = written(tmp_path / "m", tmp_path / "logs")
    result = json.loads((tmp_path / "m" / "matrix.json").read_text())
    assert len(files) == len(result["rows"]) == 2
    found = described(files, capsys, "--map", "source_id=source_id")
    assert [f["balanced_accuracy"]["value"] for f in found["files"]] == [
        row["balanced_accuracy"]["value"] for row in result["rows"]
    ]


def test_a_sample_is_one_finished_run_of_a_clip(run, tmp_path):
    """What the package asks of a sample, for where it is not installed."""
    files, _ = written(run, tmp_path / "logs")
    with zipfile.ZipFile(files[0]) as archive:
        header = json.loads(archive.read("header.json"))
        summaries = json.loads(archive.read("summaries.json"))
        samples = [json.loads(archive.read(f"samples/{s['id']}_epoch_1.json")) for s in summaries]
    right = [s["scores"]["right"]["value"] == "C" for s in samples]
    told = header["results"]["scores"][0]["metrics"]["accuracy"]["value"]
    assert header["status"] == "success" and told == pytest.approx(sum(right) / len(right))
    for sample, summary in zip(samples, summaries, strict=True):
        assert sample["epoch"] == summary["epoch"] == 1 and summary["completed"]
        fields = sample["metadata"]
        for label in sample["choices"]:
            assert fields[f"logp_{label}"] == pytest.approx(
                math.log(fields[f"p_{label}"]), abs=1e-6
            )
        asked, answer = sample["messages"][-2:]
        assert sample["input"] == sample["messages"][:-1] and answer["role"] == "assistant"
        assert (sample["scores"]["right"]["answer"] == sample["target"]) == (
            sample["scores"]["right"]["value"] == "C"
        )
        assert asked["content"][0]["audio"].removeprefix("attachment://") in sample["attachments"]


def test_the_same_command_writes_the_same_files_again(run, tmp_path):
    written(run, tmp_path / "logs")
    before = sorted(tmp_path.rglob("*.eval"))
    written(run, tmp_path / "logs")
    assert sorted(tmp_path.rglob("*.eval")) == before


def test_sound_has_a_limit_and_it_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_export, "MOST_SOUND", 50_000)
    (file, *_), notes = written(run, tmp_path / "logs")
    assert any("are told by their paths alone" in note for note in notes)
    with zipfile.ZipFile(file) as archive:
        names = [n for n in archive.namelist() if n.startswith("samples/")]
        samples = [json.loads(archive.read(n)) for n in names]
    told = [sample["messages"][-2]["content"][0]["audio"] for sample in samples]
    embedded = [sound for sample in samples for sound in sample["attachments"].values()]
    assert 0 < len(embedded) < len(told) and sum(map(len, embedded)) <= 50_000
    assert sum(Path(place).is_file() for place in told) == len(told) - len(embedded)


def test_the_verb_tells_of_them_and_refuses_an_unfinished_run(run, tmp_path, capsys, monkeypatch):
    argv = [str(run), "--out", str(tmp_path / "p.html"), "--inspect", str(tmp_path / "logs")]
    assert report.main(argv) == 0
    assert f"inspect view --log-dir {tmp_path / 'logs'}" in capsys.readouterr().out
    (tmp_path / "r").mkdir()
    for name in ("config.yaml", "trials.jsonl"):
        (tmp_path / "r" / name).write_bytes((run / name).read_bytes())
    argv = [str(tmp_path / "r"), "--inspect", str(tmp_path / "none")]
    assert run_verb(lambda: report.main(argv)) == WRONG_USE
    assert "is not finished" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_the_package_reads_them(run, tmp_path):
    log = pytest.importorskip("inspect_ai.log")
    files, _ = written(run, tmp_path / "logs")
    assert {Path(i.name).name for i in log.list_eval_logs(str(tmp_path / "logs"))} == {
        f.name for f in files
    }
    folder = RunFolder.read(run)
    chosen = next(f for f in files if "_chosen-" in f.name)
    found = log.read_eval_log(str(chosen), resolve_attachments=True)
    assert found.status == "success" and found.eval.model == folder.checkpoint
    best = folder.best.prompt
    assert len(found.samples) == folder.finished().gain.clips
    for sample in found.samples:
        audio, text = sample.input[-1].content
        assert text.text == best.text and audio.audio.startswith("data:audio/wav;base64,")
        answer = dict(best.answers)[sample.scores["right"].answer][0]
        assert sample.output.completion == answer and sample.target in dict(best.answers)
        assert {"source_id", "audio", "logp_SPEECH", "p_SPEECH"} <= set(sample.metadata)
    log.write_eval_log(found, str(tmp_path / "again.json"))  # it is whole enough to be written
