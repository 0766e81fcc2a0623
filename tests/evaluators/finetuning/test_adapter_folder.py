"""An adapter's folder tells its story, and whatever does not fit it is refused by name."""

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.errors import UserError
from evaluators.finetuning.adapter_folder import base_name, copy_adapter, is_finished, licences
from evaluators.finetuning.plain_code import public_name

pytestmark = pytest.mark.tiny
KEYS = (
    "prompt prompts recipe quantisation base_weights trainable manifest clips sources versions steps best_step"
    " dev_loss seconds dev_search_half self_test curve adapter_sha256"
)


def test_the_folder_holds_what_users_parse(adapter):
    names = {"adapter_config.json", "adapter_model.safetensors", "training.json", "README.md"}
    assert {p.name for p in adapter.iterdir() if p.is_file()} == names
    assert " ".join(json.loads((adapter / "training.json").read_text())) == KEYS
    card = (adapter / "README.md").read_text()
    assert "# LoRA for pocket-base" in card and "32 clips, 1 epochs, rate 0.002, rank 16" in card
    modules = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(modules)  # the same in every process


def test_the_base_is_named_so_that_it_is_found_again(adapter, tmp_path):
    checkpoint = open_checkpoint("pocket-base")
    assert base_name(checkpoint, tmp_path / "lora") == "pocket-base"
    assert base_name(checkpoint, checkpoint.base.parent / "lora") == "../base"
    hub = replace(checkpoint, base=tmp_path / "models--A--b" / "snapshots" / "123")
    assert base_name(hub, tmp_path / "lora") == "A/b"
    other = replace(checkpoint, base=tmp_path / "elsewhere" / "base")
    assert base_name(other, tmp_path / "lora") == str(other.base)
    (tmp_path / "copy").mkdir()
    copy_adapter(adapter, tmp_path / "copy", checkpoint)
    assert is_finished(tmp_path / "copy")
    assert open_checkpoint(str(tmp_path / "copy")).base == checkpoint.base


def test_licences_are_counted(train_clips):
    one, two = train_clips[:2]
    clips = [replace(one, licence="CC0"), replace(two, licence=""), replace(two, licence="CC0")]
    assert licences(clips) == "CC0 (2), not stated (1)"


def test_wrong_adapters_are_refused_by_name(adapter, tmp_path, dev_clips, seeds):
    def copy(name):
        shutil.copytree(adapter, tmp_path / name)
        return tmp_path / name

    with pytest.raises(UserError, match="quantization none, not nf4; give"):
        open_checkpoint(str(adapter), None, "nf4")
    torn = copy("torn") / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:5000])
    with pytest.raises(UserError, match="is truncated or no safetensors file"):
        open_checkpoint(str(torn.parent))
    changed = copy("changed") / "adapter_model.safetensors"
    weights = load_file(changed)
    save_file({k: v + 1e-3 for k, v in weights.items()}, changed, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"not the one that training\.json tells of"):
        open_checkpoint(str(changed.parent))
    other = tmp_path / "other-base"
    shutil.copytree(open_checkpoint("pocket-base").base, other)
    tensors = load_file(other / "model.safetensors")
    save_file({k: v * 1.01 for k, v in tensors.items()}, other / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    moved = copy("moved")
    config = json.loads((moved / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(other)
    (moved / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="trained on other base weights"):
        AudioScorer(open_checkpoint(str(moved)), "cpu").fingerprint  # noqa: B018
    wrong = open_checkpoint(str(moved))
    with pytest.raises(UserError, match="does not load as the model that was trained"):
        AudioScorer(wrong, "cpu").score(seeds[:1], dev_clips[:1])


def test_a_copied_card_names_the_base_as_it_is_seen_from_there(adapter, tmp_path):
    (tmp_path / "base").mkdir()
    checkpoint = replace(open_checkpoint("pocket-base"), base=tmp_path / "base")
    source, folder = tmp_path / "study" / "trial", tmp_path / "best"
    shutil.copytree(adapter, source)
    folder.mkdir()
    card = f'base = "{public_name(checkpoint, source)}"'
    assert card == f'base = "{tmp_path.resolve() / "base"}"'
    (source / "README.md").write_text(card)
    copy_adapter(source, folder, checkpoint)
    assert (folder / "README.md").read_text() == 'base = "../base"'
    assert (
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "../base"
    )
