"""A merged checkpoint is a plain model of the same scores, and the lines on a card load what they promise."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from adapters import BASE, EXACT, in_old_layout, make_adapter, plain_peft, plain_scores
from safetensors.torch import load_file, save_file
from transformers import Qwen2AudioForConditionalGeneration

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.clips import clip_wave
from evaluators.errors import UserError
from evaluators.finetuning import merged_folder
from evaluators.finetuning.merged_folder import write_merged
from evaluators.prompts import Prompt
from opro.finetune import main as finetune

pytestmark = pytest.mark.tiny


@pytest.fixture(scope="module")
def exact_base(tmp_path_factory):
    """The pocket base with its files in float32."""
    folder = tmp_path_factory.mktemp("exact") / "base"
    shutil.copytree(BASE, folder)
    tensors = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "title",
    [
        "DoRA",
        "all three, by full name",
        *(
            pytest.param(title, marks=pytest.mark.slow)
            for title in ("LoRA", "lora_bias", "LoRA on head and embeddings")
        ),
    ],
)
def test_a_merged_model_is_plain_and_scores_as_the_adapter_beside_its_base(
    title, exact_base, tmp_path, seeds, dev_clips
):
    kind = EXACT[title]
    if title == "lora_bias":  # on layers that have one
        kind = replace(kind, settings=kind.settings | {"target_modules": ["q_proj", "v_proj"]})
    new = make_adapter(kind, tmp_path / "new")
    old = in_old_layout(kind, new, tmp_path / "old")
    plain = plain_scores(plain_peft(new), seeds[0], dev_clips[:2])
    for folder in (new, old):
        out = tmp_path / f"{folder.name}-merged"
        checkpoint = open_checkpoint(str(exact_base), folder)
        apart, dtype = write_merged(checkpoint, out, seeds[0], "cpu", "float32")
        assert apart < 2e-4 and dtype == "float32"
        model, about = Qwen2AudioForConditionalGeneration.from_pretrained(
            out, dtype=torch.float32, output_loading_info=True
        )
        assert not about["missing_keys"] and not about["unexpected_keys"]
        assert np.abs(plain_scores(model, seeds[0], dev_clips[:2]) - plain).max() < 2e-4


def test_the_verb_says_how_far_the_scores_lie_apart(tmp_path, capsys, seeds, dev_clips):
    out = tmp_path / "merged"
    assert finetune(["--checkpoint", "pocket-lora", "--merge", str(out)]) == 0
    said = capsys.readouterr().out
    apart = float(re.search(r"differ by (\S+) nats", said)[1])
    assert "float16" in said and 0 < apart < 0.01
    merged, beside = open_checkpoint(str(out)), open_checkpoint("pocket-lora")
    assert merged.trained_on == beside.trained_on and merged.adapter is None
    one, two = (
        AudioScorer(c, "cpu").score(seeds[:1], dev_clips[:4]).logp for c in (merged, beside)
    )
    assert 0 < np.abs(one - two).max() < 0.02  # rounded once, to what the base is stored in
    assert not list(tmp_path.glob("*.new"))
    with pytest.raises(UserError, match="exists; give a folder that does not"):
        finetune(["--checkpoint", "pocket-lora", "--merge", str(out)])


def test_what_cannot_be_merged_is_refused(tmp_path, seeds):
    with pytest.raises(UserError, match="'pocket-base' has no adapter to merge"):
        finetune(["--merge", str(tmp_path / "x")])
    packed = replace(open_checkpoint("pocket-lora"), quantization="nf4")
    with pytest.raises(UserError, match="was trained on 4-bit weights"):
        write_merged(packed, tmp_path / "x", seeds[0], "cpu", "float32")


def test_a_bias_where_a_plain_model_has_none_is_not_lost_in_silence(tmp_path, seeds):
    checkpoint = open_checkpoint("pocket-base", make_adapter(EXACT["lora_bias"], tmp_path / "a"))
    with pytest.raises(UserError, match=r"adds '\S+k_proj\.bias', which this kind of model"):
        write_merged(checkpoint, tmp_path / "x", seeds[0], "cpu", "float32")


def test_a_merge_that_changes_the_scores_is_not_handed_over(tmp_path, seeds, monkeypatch):
    def forgetful(model, dtype, dequantize):
        for layer in model.modules():
            if hasattr(layer, "lora_A"):
                layer.scaling["default"] = -3.0
        merge(model, dtype, dequantize)

    merge = merged_folder.merge
    monkeypatch.setattr(merged_folder, "merge", forgetful)
    with pytest.raises(UserError, match="merged model does not load as the model"):
        write_merged(open_checkpoint("pocket-lora"), tmp_path / "x", seeds[0], "cpu", "float32")
    assert not (tmp_path / "x").exists()


def run_card(folder: Path, clip) -> dict[str, float]:
    """What the lines on a folder's card print, in a process that knows nothing of this project."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    soundfile.write(folder / "clip.wav", clip_wave(clip), 16000, subtype="FLOAT")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True
    )
    (folder / "clip.wav").unlink()
    assert done.returncode == 0, done.stderr[-2000:]
    assert sum(map(bool, code.splitlines())) <= 15 and "evaluators" not in code
    return ast.literal_eval(done.stdout.splitlines()[-1])


def test_the_lines_on_an_adapters_card_give_our_scores(adapter, seeds, dev_clips):
    ours = AudioScorer(open_checkpoint(str(adapter)), "cpu").score(seeds[:1], dev_clips[:1])
    said = run_card(adapter, dev_clips[0])
    assert list(said) == [label for label, _ in seeds[0].answers]
    assert np.abs(np.array(list(said.values())) - ours.logp[0, 0]).max() < 2e-4


@pytest.mark.slow
def test_the_shipped_card_loads_the_base_beside_it_wherever_both_lie(tmp_path, seeds, dev_clips):
    """It once held the path of the machine that trained it."""
    lora = open_checkpoint("pocket-lora")
    shutil.copytree(lora.base.parent / "lora", tmp_path / "lora")
    (tmp_path / "base").symlink_to(lora.base)
    ours = AudioScorer(lora, "cpu").score(seeds[:1], dev_clips[:1])
    said = run_card(tmp_path / "lora", dev_clips[0])
    assert np.abs(np.array(list(said.values())) - ours.logp[0, 0]).max() < 2e-4


@pytest.mark.slow
def test_the_lines_on_a_merged_models_card_give_its_scores(exact_base, tmp_path, dev_clips):
    """Of answers of several tokens they give the first token."""
    prompt = Prompt(
        "Is it?", (("SPEECH", ("A",)), ("NONSPEECH", ("other sounds",))), system="Hear."
    )
    lora = make_adapter(EXACT["LoRA"], tmp_path / "new")
    out = tmp_path / "merged"
    write_merged(open_checkpoint(str(exact_base), lora), out, prompt, "cpu", "float32")
    said = run_card(out, dev_clips[0])
    ours = AudioScorer(open_checkpoint(str(out)), "cpu").score([prompt], dev_clips[:1])
    assert said["SPEECH"] == pytest.approx(float(ours.logp[0, 0, 0]), abs=2e-4)
    assert "of the first tokens of each answer" in (out / "README.md").read_text()
    assert not (out / "training.json").exists() or json.loads((out / "training.json").read_text())
