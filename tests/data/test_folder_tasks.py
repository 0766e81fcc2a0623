"""Finished clips of other tasks than speech: words, and questions of MMAU's layout."""

import csv
import json
import shutil

import pytest

from data import audit, build
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.tasks import task_named

DEMO = shipped("data/demo")


@pytest.fixture(scope="module")
def sounds():
    with (DEMO / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return [DEMO / row["path"] for row in csv.DictReader(file)][:132]


def build_folder(*argv):
    return build.main(["folder", *map(str, argv)])


def test_folders_of_words_become_a_manifest_of_the_keyword_task(sounds, tmp_path, capsys):
    words = ["Yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "cat"]
    for i, path in enumerate(sounds):
        place = tmp_path / "words" / words[i % 11] / f"spk{i // 11:02d}_nohash_0.flac"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    argv = ["--task", "keywords", "--clips", tmp_path / "words", "--source", "(spk[0-9]+)_"]
    assert build_folder(*argv, "--out", tmp_path / "set") == 0
    told = capsys.readouterr().out
    assert "12 clips are of no class of task 'keywords' and left out: 'cat' (12)" in told
    clips = read_manifest(tmp_path / "set", task_named("keywords"))
    assert len(clips) == 120 and {c.label for c in clips} == set(task_named("keywords").labels)
    assert {c.source_id for c in clips} == {f"spk{i:02d}" for i in range(12)}
    argv = [str(tmp_path / "set"), "--task", "keywords", "--page", str(tmp_path / "p.html")]
    assert audit.main(argv) in (
        0,
        1,
    )  # the shipped clips are not the recordings they are named after
    assert "not looked for where there are more than two labels" in capsys.readouterr().out
    assert build_folder("--task", "keywords", "--speech", tmp_path, "--out", tmp_path / "x") == 2
    assert "clips of task 'keywords' are given by --clips" in capsys.readouterr().err


def test_a_label_without_clips_is_named(sounds, tmp_path, capsys):
    for i, path in enumerate(sounds[:40]):
        place = tmp_path / "words" / ("yes", "no")[i % 2] / f"s{i}.flac"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    argv = ["--task", "keywords", "--clips", tmp_path / "words", "--source", "file"]
    assert build_folder(*argv, "--out", tmp_path / "set") == 2
    assert "no clip is of label 'UP' of task 'keywords'" in capsys.readouterr().err


def test_questions_of_mmaus_layout_become_a_manifest(sounds, tmp_path, capsys):
    folder, rows = tmp_path / "mmau", []
    (folder / "test-mini-audios").mkdir(parents=True)
    options = ["a person", "an instrument", "an animal", "B"]
    for i, path in enumerate(sounds[:40]):
        shutil.copyfile(path, folder / "test-mini-audios" / f"{i}.flac")
        rows.append(
            {
                "id": f"q{i}", "audio_id": f"./test-mini-audios/{i}.flac", "question": "What is heard?",
                "choices": options[i % 3 :] + options[: i % 3], "answer": options[i % 4],
                "dataset": "x", "task": ("sound", "music")[i % 2], "split": "test-mini",
                "category": "Reasoning", "sub-category": "x", "difficulty": "easy",
            }
        )  # fmt: skip
    rows.append(rows[0] | {"question": "Is it loud?", "choices": ["yes", "no"], "answer": "no"})
    rows.append(rows[1] | {"answer": "a ghost"})
    rows.append(rows[2] | {"choices": ["a\nb", "c"], "answer": "c"})  # no verb reads these two
    rows.append(rows[3] | {"choices": ["", "c"], "answer": "c"})
    (folder / "mmau.json").write_text(json.dumps(rows))
    argv = ["--task", "choices", "--clips", folder / "mmau.json", "--map", "category=task"]
    argv += ["--source", "file", "--splits", "dev=0.5,test=0.5", "--out", tmp_path / "set"]
    assert build_folder(*argv) == 0
    told = capsys.readouterr().out
    assert "1 times: the answer is none of the options" in told
    assert "2 times: an option is empty, or holds a line break" in told
    task = task_named("choices")
    clips = read_manifest(tmp_path / "set", task)
    assert len(clips) == 41 and {c.category for c in clips} == {"sound", "music"}
    right = {c.path.stem: c.options[task.labels.index(c.label)] for c in clips}
    assert {"a person", "an instrument", "an animal", "B", "no"} == set(right.values())
    both = [c for c in clips if c.path.read_bytes() == sounds[0].read_bytes()]
    assert {c.question for c in both} == {"What is heard?", "Is it loud?"}
    assert len({c.source_id for c in both}) == 1  # one recording, which is in one split
