"""A checkpoint's own defaults are read with care; an adapter keeps its rank."""

import json
import re

import pytest

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.errors import UserError
from evaluators.finetuning.recipe import Recipe, adapter_rank, own_defaults, target_modules


def test_the_pocket_base_sets_its_own_defaults(tmp_path):
    assert own_defaults(open_checkpoint("pocket-base").base) == {
        "epochs": 1,
        "lr": 0.0001,
        "rank": 16,
    }
    assert own_defaults(tmp_path) == {}
    (tmp_path / "finetune.yaml").write_text("epochs: 2\nspeed: 3\n")
    with pytest.raises(UserError, match=r"finetune\.yaml: key 'speed' is unknown"):
        own_defaults(tmp_path)


def test_an_adapter_keeps_its_rank(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8}))
    assert adapter_rank(tmp_path, None) == adapter_rank(tmp_path, 8) == 8
    with pytest.raises(UserError, match=r"--rank is 4; the adapter .* has rank 8"):
        adapter_rank(tmp_path, 4)


def test_targets_name_the_layers():
    assert target_modules("attention") == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert target_modules("attention+mlp")[4:] == ["gate_proj", "up_proj", "down_proj"]
    pattern = target_modules("llm-only")
    assert re.fullmatch(pattern, "model.language_model.layers.0.self_attn.q_proj")
    assert not re.fullmatch(pattern, "model.audio_tower.layers.0.self_attn.q_proj")


def test_the_repr_that_names_the_folders_of_a_study_stays():
    assert repr(Recipe()) == (
        "Recipe(epochs=3, lr=0.0002, rank=16, targets='attention', loss='answer', swap=False,"
        " batch=16, dropout=0.05, warmup=0.1, seed=0, augment=True)"
    )
