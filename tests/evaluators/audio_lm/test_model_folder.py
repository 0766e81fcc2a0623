"""Whatever is broken in a model's folder is one sentence with the file and the cure; no weight is ever random."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluators.audio_lm.checkpoint import POCKET, open_checkpoint
from evaluators.audio_lm.model_folder import INDEX
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.errors import UserError
from opro.doctor import main as doctor
from opro.proposers.language_model import Message
from opro.proposers.local_model import LocalModel

pytestmark = pytest.mark.tiny
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 123\n".format("0" * 64)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
WEIGHT = "multi_modal_projector.linear.weight"  # as the file names it


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def split(folder):
    """The weights in two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = dict(zip(SHARDS, (names[:50], names[50:]), strict=True))
    for name, keys in parts.items():
        save_file({k: tensors[k] for k in keys}, folder / name, metadata={"format": "pt"})
    placed = {key: name for name, keys in parts.items() for key in keys}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def no_shard(folder):
    split(folder)
    (folder / SHARDS[1]).unlink()


def no_index(folder):
    split(folder)
    (folder / INDEX).unlink()


def torn_shard(folder):
    split(folder)
    path = folder / SHARDS[0]
    path.write_bytes(path.read_bytes()[:-100])


def shard_without_a_tensor(folder):
    split(folder)
    tensors = load_file(folder / SHARDS[0])
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / SHARDS[0], metadata={"format": "pt"})


def pointer(name):
    return lambda folder: (folder / name).write_text(POINTER)


def without(name):
    return lambda folder: (folder / name).unlink()


def torn(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:300])


def quantized(method):
    about = {"quantization_config": {"quant_method": method, "bits": 4}}
    return lambda folder: edit_json(folder / "config.json", **about)


def without_control_tokens(folder):
    raw = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(raw.replace("<|audio_bos|>", "<|no_more|>"))
    for name in ("tokenizer_config.json", "processor_config.json"):
        (folder / name).write_text(
            (folder / name).read_text().replace("<|audio_bos|>", "<|no_more|>")
        )


def cast(kind):
    return lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].to(kind)})


BROKEN = {
    "pointer weights": (pointer("model.safetensors"), r"model\.safetensors' is a Git LFS pointer.*git lfs pull"),
    "pointer config": (pointer("config.json"), r"config\.json' is a Git LFS pointer"),
    "pointer tokenizer": (pointer("tokenizer.json"), r"tokenizer\.json' is a Git LFS pointer"),
    "no config": (without("config.json"), r"holds no config\.json"),
    "torn config": (torn("config.json"), r"config\.json: not readable as JSON"),
    "no weights": (without("model.safetensors"), "holds no safetensors file"),
    "torn weights": (torn("model.safetensors"), r"model\.safetensors' is truncated .*300 bytes.*restore"),
    "missing shard": (no_shard, rf"{SHARDS[1]}' is missing, which {INDEX} names; download the model again"),
    "missing index": (no_index, rf"holds neither model\.safetensors nor {INDEX}"),
    "torn shard": (torn_shard, rf"{SHARDS[0]}' is truncated"),
    "shard without a tensor": (shard_without_a_tensor, rf"{SHARDS[0]}' lacks tensor 'audio_tower\S*', which"),
    "index without map": (lambda f: (split(f), (f / INDEX).write_text("{}")), "has no weight_map"),
    "missing tensor": (lambda f: edit_weights(f, lambda t: t.pop(WEIGHT)), rf"'model\.{WEIGHT}' is missing or of"),
    "tensors of another shape": (
        lambda f: edit_json(f / "config.json", text_config=json.loads((f / "config.json").read_text())["text_config"]
                            | {"intermediate_size": 64}),
        r"mlp\S*' and \d+ more are missing or of another shape; download"),
    "integers": (lambda f: edit_weights(f, cast(torch.int8)), rf"'{WEIGHT}' is of type I8; expected one of"),
    "8-bit floats": (lambda f: edit_weights(f, cast(torch.float8_e4m3fn)), "is of type F8_E4M3"),
    **{m: (quantized(m), f"weights quantized by {m}.*give the unquantized weights")
       for m in ("awq", "gptq", "fp8", "compressed-tensors", "bitsandbytes", "a later one")},
    "no tokenizer": (without("tokenizer.json"), r"holds no tokenizer\.json; download"),
    "torn tokenizer": (torn("tokenizer.json"), "tokenizer or processor in .* cannot be read"),
    "no front end": (without("processor_config.json"), r"no preprocessor_config\.json, no processor_config\.json"),
    "torn front end": (torn("processor_config.json"), r"processor_config\.json: not readable as JSON"),
    "another tokenizer": (without_control_tokens, r"does not know <\|audio_bos\|>, which the chat template needs"),
}  # fmt: skip


@pytest.mark.parametrize("title", BROKEN)
def test_a_broken_base_is_one_sentence_with_the_file_and_the_cure(
    title, tmp_path, seeds, dev_clips, capsys, make_manifest
):
    breaks, message = BROKEN[title]
    folder = tmp_path / "base"
    shutil.copytree(POCKET / "base", folder)
    breaks(folder)
    with pytest.raises(UserError, match=message) as caught:
        AudioScorer(open_checkpoint(str(folder)), "cpu").score(seeds[:1], dev_clips[:1])
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    few = str(make_manifest(sources=4))  # the shipped clips take longer to check than the folder
    assert doctor(["--checkpoint", str(folder), "--manifest", few, "--clips", "4"]) == 1
    assert re.search("BROKEN  (checkpoint|scores)", capsys.readouterr().out)


def test_a_base_in_shards_is_the_base(tmp_path, seeds, dev_clips):
    folder = tmp_path / "base"
    shutil.copytree(POCKET / "base", folder)
    split(folder)
    one, two = (
        AudioScorer(open_checkpoint(str(f)), "cpu").score(seeds[:1], dev_clips[:2])
        for f in (POCKET / "base", folder)
    )
    assert (one.logp == two.logp).all()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_pointer_in_place_of_an_adapter_is_named(tmp_path, name):
    folder = tmp_path / "lora"
    shutil.copytree(POCKET / "lora", folder)
    pointer(name)(folder)
    with pytest.raises(UserError, match=f"{name}' is a Git LFS pointer"):
        open_checkpoint("pocket-base", folder)
    with pytest.raises(UserError, match=r"Git LFS pointer|--checkpoint BASE --adapter"):
        open_checkpoint(str(folder))


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(POCKET / "base")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("chat")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PROPOSER = {
    "pointer": (pointer("model.safetensors"), "is a Git LFS pointer"),
    "no weights": (without("model.safetensors"), "--lm-model .* holds no safetensors file"),
    "torn weights": (torn("model.safetensors"), "is truncated"),
    "missing tensor": (
        lambda f: edit_weights(f, lambda t: t.pop("model.layers.1.mlp.up_proj.weight")),
        r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing or of another shape",
    ),
    "other configuration": (
        lambda f: edit_json(f / "config.json", intermediate_size=32),
        r"and \d+ more are missing or of another shape",
    ),
    "no tokenizer": (without("tokenizer.json"), r"holds no tokenizer\.json"),
    "torn tokenizer": (torn("tokenizer.json"), "cannot be read"),
    "no template": (without("chat_template.jinja"), "its tokenizer has no chat template"),
}


@pytest.mark.parametrize("title", PROPOSER)
def test_a_broken_proposer_is_one_sentence_too(title, tmp_path, chat_model):
    breaks, message = PROPOSER[title]
    folder = tmp_path / "chat"
    shutil.copytree(chat_model, folder)
    breaks(folder)
    with pytest.raises(UserError, match=message) as caught:
        LocalModel(folder)([Message("user", "Hello")], temperature=0.0, max_tokens=2)
    assert "\n" not in str(caught.value)
