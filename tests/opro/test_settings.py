"""Settings: each flag once, names made from what a result depends on, and what cannot be used is said."""

import dataclasses
import inspect
import json

import pytest
from common import ROOT
from hypothesis import given
from hypothesis import strategies as st

from evaluators.errors import UserError
from evaluators.files import read_yaml
from opro import settings as groups
from opro.settings import OptimizeSettings, clip_count, default_name, file_name

FROZEN = ROOT / "tests" / "assets"


def test_a_flag_stands_in_one_group():
    kinds = [
        kind
        for kind in vars(groups).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    ]
    owners = {}
    for kind in kinds:
        for name in inspect.get_annotations(kind):
            owners.setdefault(name, []).append(kind.__name__)
    flags = {f.name for f in dataclasses.fields(OptimizeSettings)}
    assert flags and all(len(owners[name]) == 1 for name in flags)
    assert all(kind.__dataclass_params__.frozen for kind in kinds)


def test_every_flag_has_a_help():
    for field in dataclasses.fields(OptimizeSettings):
        text = field.metadata["help"]
        assert text and not text.endswith("."), field.name


@pytest.mark.parametrize("path", sorted(FROZEN.rglob("config.yaml")), ids=lambda p: p.parent.name)
def test_configs_of_version_0_1_name_the_same_settings(path):
    raw = read_yaml(path)
    config = OptimizeSettings().checked().config
    assert set(raw) == set(config)
    for name, value in raw.items():
        if name not in ("name", "iterations", "candidates", "seed", "clips", "seeds", "strategy"):
            default = config[name]
            assert value == default or name in ("checkpoint", "threshold", "swap"), name


def test_where_and_with_what_a_run_is_computed_is_no_part_of_it():
    plain = OptimizeSettings().checked()
    there = OptimizeSettings(
        runs_dir=plain.runs_dir / "x", ray="auto", ray_cpus=4, threads=3
    ).checked()
    assert plain.config == there.config and plain.name == there.name
    assert there.folder == plain.runs_dir / "x" / plain.name
    json.dumps(plain.config)  # plain data


def test_every_other_setting_changes_the_default_name():
    plain = OptimizeSettings().checked()
    changed = {
        "iterations": 6, "candidates": 3, "swap": True, "threshold": "argmax", "objective": "auroc",
        "clips": "8", "heard": "allow", "max_evals": 7, "also": "pocket-lora", "split": "train",
        "lm_model": "m", "max_cost": 1.0, "seeds": FROZEN, "share": "x", "quantization": "nf4",
    }  # fmt: skip
    names = {dataclasses.replace(OptimizeSettings(), **{k: v}).checked().name for k, v in changed.items()}  # fmt: skip
    assert len(names) == len(changed) and plain.name not in names
    assert plain.name.startswith("speech-pocket-base-race-s0-")
    assert default_name(dataclasses.replace(plain, name="other")) == plain.name


def test_defaults_are_filled_in_once():
    assert OptimizeSettings().checked().candidates == 10
    assert OptimizeSettings(strategy="opro").checked().candidates == 8
    assert OptimizeSettings(candidates=3, strategy="opro").checked().candidates == 3
    once = OptimizeSettings(name="n").checked()
    assert once.checked() == once and once.name == "n"


def test_what_was_added_later_leaves_older_runs_their_names():
    plain = OptimizeSettings().config
    assert not {"lm_reply_tokens", "lm_effort", "lm_concurrency"} & set(plain)
    assert OptimizeSettings(lm_concurrency=9).config == plain  # no result depends on it
    thinks = OptimizeSettings(lm_effort="low", lm_reply_tokens=9000).config
    assert thinks == {**plain, "lm_effort": "low", "lm_reply_tokens": 9000}
    assert default_name(OptimizeSettings(lm_effort="low")) != default_name(OptimizeSettings())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../up"}, "--name '../up' is no run name"),
        ({"name": "a" * 101}, "is no run name"),
        ({"name": "test_openings.jsonl"}, "is no run name"),
        ({"name": ".x"}, "is no run name"),
        ({"name": "x\n"}, "without control characters"),
        ({"lm_base_url": "http://me:pw@host/v1"}, "holds a user or password"),
        ({"also": "pocket-base"}, "--also is 'pocket-base'"),
        ({"also": "a,,b"}, "--also is"),
        ({"also": "a|b"}, "--also is"),
        ({"also": "a, a"}, "--also is"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(change, words):
    with pytest.raises(UserError) as caught:
        OptimizeSettings(**change).checked()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_in_an_address_is_not_repeated():
    with pytest.raises(UserError) as caught:
        OptimizeSettings(lm_base_url="http://me:secret@host/v1").checked()
    assert "secret" not in str(caught.value)


def test_the_checkpoints_are_the_first_and_the_further_ones():
    assert OptimizeSettings(checkpoint="a", also="b, c").checkpoints == ["a", "b", "c"]
    assert OptimizeSettings(checkpoint="a").checkpoints == ["a"]


@given(st.text(max_size=40))
def test_a_file_name_is_one_part_of_a_path(text):
    name = file_name(text)
    assert len(name) == len(text) and not set(name) & set("/\\. :\0\n")


@pytest.mark.parametrize(("text", "count"), [("all", 40), ("1", 1), ("40", 40), ("007", 7)])
def test_how_many_clips(text, count):
    assert clip_count(text, 40, "dev") == count


@pytest.mark.parametrize("text", ["", "0", "-1", "1.0", "ALL", "1e3", "9" * 20, "٣"])
def test_what_is_no_count_of_clips(text):
    with pytest.raises(UserError, match="expected all, or a number up to 40, the clips of the dev"):
        clip_count(text, 40, "dev")
    with pytest.raises(UserError, match="--clips is '41'; expected all, or a number up to 40"):
        clip_count("41", 40, "dev")
