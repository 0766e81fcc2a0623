"""summary.json: what was written is read, older and newer ones too, and damage is one sentence."""

import json
import re
from dataclasses import replace

import pytest
from common import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluators.errors import UserError
from evaluators.evaluator import Work
from opro.results.summary import Speed, Summary, read_summary

FROZEN = ROOT / "tests" / "assets" / "run-v1"
quietly = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def raw():
    return json.loads((FROZEN / "replaced" / "summary.json").read_text())


def read(tmp_path, raw, renamed=None):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(raw))
    return read_summary(path, renamed)


@pytest.mark.parametrize("name", ["replaced", "finished"])
def test_summaries_of_version_0_1_are_read_as_they_stand(name):
    path = FROZEN / name / "summary.json"
    raw, found = json.loads(path.read_text()), read_summary(path).model_dump()

    def same(old, new, where=""):
        if isinstance(old, dict):
            for key, value in old.items():
                same(value, new[key], f"{where}.{key}")
        elif isinstance(old, list):
            assert len(old) == len(new), where
            for i, (a, b) in enumerate(zip(old, new, strict=True)):
                same(a, b, f"{where}[{i}]")
        else:
            assert old == new, where

    same(raw, found)
    assert found["chosen"]["bias"] == 0.0  # which that version left out


def test_what_is_written_is_read_back_equal(tmp_path, raw):
    one = read(tmp_path, raw)
    assert read(tmp_path, one.model_dump()) == one
    assert read(tmp_path, json.loads(one.model_dump_json())) == one


def test_the_speed_of_a_run_is_told_and_left_out_where_nobody_counted(tmp_path, raw):
    assert Speed.of(None) is None and Speed.of(Work()) is None
    assert "speed" not in read(tmp_path, raw).model_dump()
    work = Work(evals=5000, seconds=5.5, flop=3e15, rate=6.5e14)
    told = raw | {"speed": Speed.of(work).model_dump()}
    assert told["speed"] == {"evals": 5000, "ms_per_eval": 1.1, "share": 0.8392, "tflops": 650.0}
    speed = read(tmp_path, told).speed
    line = "1.10 ms an eval through the model (5,000 in the last process)"
    rate = "84 % of the devices' matrix rate (650 TFLOP/s as the run ended)"
    assert speed.line() == f"{line}, {rate}"
    assert Speed.of(replace(work, rate=0.0)).line() == line


def test_keys_of_a_later_version_are_left_aside(tmp_path, raw):
    raw["chosen"]["colour"] = "red"
    assert read(tmp_path, raw | {"moon": 1}) == read(tmp_path, raw)


def test_no_file_is_no_summary(tmp_path):
    assert read_summary(tmp_path / "summary.json") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.pop("chosen"), "chosen: Field required"),
        (
            lambda r: r["chosen"].update(score="high"),
            "chosen.score: Input should be a valid number",
        ),
        (lambda r: r["finalists"][0].pop("p_holm"), "finalists.0.p_holm: Field required"),
        (lambda r: r.update(status="running"), "status: Input should be 'complete'"),
        (lambda r: r["gain"].update(low="x"), "gain.low: "),
    ],
)
def test_damage_is_one_sentence_with_its_place(tmp_path, raw, change, words):
    change(raw)
    with pytest.raises(UserError) as caught:
        read(tmp_path, raw)
    text = str(caught.value)
    assert words in text and "\n" not in text
    assert text.endswith("delete it and give the run's command again")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000, "\x00"])
def test_what_is_no_summary_is_one_sentence(tmp_path, text):
    path = tmp_path / "summary.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{path}: damaged (")) as caught:
        read_summary(path)
    assert "\n" not in str(caught.value)


@quietly
@given(st.binary(max_size=300))
def test_any_bytes_are_data_or_one_sentence(tmp_path, raw):
    path = tmp_path / "summary.json"
    path.write_bytes(raw)
    with pytest.raises(UserError, match="damaged"):
        read_summary(path)


def test_ids_are_renamed_everywhere_or_nowhere(tmp_path, raw):
    old = {raw["baseline"]["prompt_id"], raw["chosen"]["prompt_id"]}
    old |= {f["prompt_id"] for f in raw["finalists"]}
    one = read(tmp_path, raw, {k: f"new-{k}" for k in old})
    found = {one.baseline.prompt_id, one.chosen.prompt_id, *one.controls}
    found |= {f.prompt_id for f in one.finalists}
    assert found == {f"new-{k}" for k in old}
    back = {f"new-{k}": k for k in old}
    assert read(tmp_path, one.model_dump(), back) == read(tmp_path, raw)


def test_a_summary_cannot_be_changed(tmp_path, raw):
    one = read(tmp_path, raw)
    assert isinstance(one, Summary)
    with pytest.raises(ValueError, match="frozen"):
        one.seed = 3
