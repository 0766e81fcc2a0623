"""Checkpoints: every part is in the digest, what they heard is read, and what cannot be trusted is refused."""

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from evaluators.audio_lm import checkpoint
from evaluators.audio_lm.identity import adapter_digest, base_digest, old_digest, weights_digest
from evaluators.errors import PauseError, UserError
from evaluators.prompts import Prompt

UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # making failures small takes minutes here

# What a redrawing may change stands here.
LABELS = ("SPEECH", "NONSPEECH")
PROMPT = Prompt("Speech? A or B")


def opened(folder, adapter=None, quantization="none"):
    return checkpoint.open_checkpoint(str(folder), adapter, quantization)


def digest(folder, adapter=None, quantization="none"):
    return opened(folder, adapter, quantization).digest


def weights(fill=b"\0\0\0\0", metadata=None):
    """A safetensors file of one tensor, written out."""
    tensor = {"dtype": "F32", "shape": [len(fill) // 4], "data_offsets": [0, len(fill)]}
    header = {"w": tensor} | ({} if metadata is None else {"__metadata__": metadata})
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + fill


def make_base(folder, kind="qwen2_audio", sources=None):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "model.safetensors").write_bytes(weights())
    for name in ("tokenizer.json", "merges.txt", "tokenizer.model", "README.md"):
        (folder / name).write_text(f"{name}\n")
    if sources is not None:
        (folder / "training.json").write_text(json.dumps({"sources": sources}))
    return folder


def make_adapter(folder, base, **training):
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(weights(b"abcd"))
    if training:
        (folder / "training.json").write_text(json.dumps({"sources": [], **training}))
    return folder


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path, base):
    return make_adapter(tmp_path / "lora", "../base")


PARTS = {
    "weights": ("base", "model.safetensors", None),
    "configuration": ("base", "config.json", {"audio_config": {"encoder_layers": 3}}),
    "tokenizer": ("base", "tokenizer.json", None),
    "merges": ("base", "merges.txt", None),
    "pieces": ("base", "tokenizer.model", None),
    "adapter's weights": ("lora", "adapter_model.safetensors", None),
    "adapter's configuration": ("lora", "adapter_config.json", {"r": 3}),
}


@pytest.mark.parametrize("part", PARTS)
def test_each_file_that_decides_a_score_changes_the_digest(tmp_path, base, adapter, part):
    before = digest(adapter)
    folder, name, change = PARTS[part]
    path = tmp_path / folder / name
    if part.endswith("weights"):
        path.write_bytes(weights(b"efgh"))
    elif change:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    else:
        path.write_text(path.read_text() + " ")
    assert digest(adapter) != before


@pytest.mark.parametrize("part", PARTS)
def test_a_file_that_is_missing_while_it_is_in_use_is_one_sentence(tmp_path, base, adapter, part):
    one = opened(base, adapter)
    known = checkpoint.Known.of(one)
    folder, name, _ = PARTS[part]
    (tmp_path / folder / name).unlink()
    with pytest.raises((PauseError, UserError), match=re.escape(str(tmp_path / folder))):
        known.again(one)


def test_a_folder_that_is_removed_while_it_is_in_use_hides_no_change_of_the_other(base, adapter):
    one = opened(base, adapter)
    known = checkpoint.Known.of(one)
    shutil.rmtree(adapter)
    assert known.again(one) == known
    (base / "model.safetensors").write_bytes(weights(b"efgh"))
    with pytest.raises((PauseError, UserError)):
        known.again(one)


def test_a_file_that_comes_and_goes_hides_no_change_of_another(base, monkeypatch):
    one = opened(base)
    known = checkpoint.Known.of(one)
    (base / ".model.safetensors.part").write_bytes(b"")
    (base / "model.safetensors").write_bytes(weights(b"efgh"))
    real = checkpoint.file_version

    def seen(path):
        if path.suffix == ".part":
            path.unlink(missing_ok=True)
        return real(path)

    monkeypatch.setattr(checkpoint, "file_version", seen)
    with pytest.raises(PauseError, match="were changed while they were in use"):
        known.again(one)


def test_what_decides_nothing_is_no_part_of_the_digest(base, adapter):
    before = digest(adapter)
    for folder in (base, adapter):
        (folder / "training.json").write_text(json.dumps({"sources": ["a"]}))
        for name in ("README.md", "notes.yaml", "notes.txt", "notes.json"):
            (folder / name).write_text("other words")
        (folder / "generation_config.json").write_text('{"other": "words"}')
    (adapter / "tokenizer.json").write_text("the base's is read")
    assert digest(adapter) == before
    (base / "merges.txt").rename(base / "vocab.json")
    assert digest(adapter) != before


def test_base_adapter_and_quantisation_are_each_in_the_digest(base, adapter):
    found = {digest(base), digest(adapter), digest(base, quantization="nf4")}
    found.add(digest(adapter, quantization="nf4"))
    assert len(found) == 4
    assert digest(base, adapter) == digest(adapter)  # by flag or by its own folder
    parts = "|".join([base_digest(base), adapter_digest(adapter), "none"])
    assert digest(adapter) == hashlib.sha256(parts.encode()).hexdigest()


def test_the_old_digest_of_a_folder_is_over_names_and_contents_in_order(base):
    names = ["config.json", "merges.txt", "model.safetensors", "tokenizer.json", "tokenizer.model"]
    text = "".join(f"{n}:{hashlib.sha256((base / n).read_bytes()).hexdigest()};" for n in names)
    assert old_digest(base) == hashlib.sha256(text.encode()).hexdigest()
    (base / "training.json").write_text("{}")
    assert old_digest(base) == hashlib.sha256(text.encode()).hexdigest()


def test_a_copy_under_another_name_has_the_same_digest(tmp_path, base):
    shutil.copytree(base, tmp_path / "copy")
    assert digest(tmp_path / "copy") == digest(base)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (f"models--q--x/snapshots/{'0123456789' * 4}", True),
        (f"models--q--x/snapshots/{'a' * 39}", False),
        (f"models--q--x/snapshots/{'A' * 40}", False),
        (f"models--q--x/other/{'a' * 40}", False),
        (f"q--x/snapshots/{'a' * 40}", False),
    ],
)
def test_only_a_snapshot_of_the_hub_was_told_by_its_commit(tmp_path, path, named):
    folder = make_base(tmp_path / path)
    before, now = old_digest(folder), weights_digest(folder)
    assert (before == folder.name) == named
    (folder / "model.safetensors").write_bytes(weights(b"efgh"))
    assert (old_digest(folder) == before) == named
    assert weights_digest(folder) != now  # no name is trusted any more


@pytest.mark.parametrize(
    ("key", "rule"), [("base_weights", weights_digest), ("base_digest", old_digest)]
)
def test_an_adapter_on_other_base_weights_is_refused_when_it_is_to_score(tmp_path, base, key, rule):
    own = rule(base)
    right = make_adapter(tmp_path / "right", "../base", **{key: own})
    assert len(digest(right)) == 64
    wrong = make_adapter(tmp_path / "wrong", "../base", **{key: "0" * 64})
    found = opened(wrong)
    with pytest.raises(UserError, match=f"other base weights .* 000000000000 and {own[:12]}"):
        _ = found.digest
    (base / "model.safetensors").write_bytes(weights(b"efgh"))
    with pytest.raises(UserError, match="other base weights"):
        _ = opened(right).digest


def test_of_two_records_of_the_base_the_newer_one_counts(tmp_path, base):
    both = {"base_weights": weights_digest(base), "base_digest": "0" * 64}
    assert len(digest(make_adapter(tmp_path / "a", "../base", **both))) == 64


known = st.none() | st.lists(st.sampled_from("abcdef"), max_size=4)


@settings(max_examples=30, deadline=None, phases=UNSHRUNK, derandomize=True)
@given(known, known)
def test_what_was_heard_is_the_union_of_base_and_adapter(tmp_path_factory, of_base, of_adapter):
    folder = tmp_path_factory.mktemp("heard")
    base = make_base(folder / "base", sources=of_base)
    adapter = make_adapter(folder / "lora", "../base")
    if of_adapter is not None:
        (adapter / "training.json").write_text(json.dumps({"sources": of_adapter}))
    lists = [s for s in (of_base, of_adapter) if s is not None]
    expected = frozenset().union(*lists) if lists else None
    assert opened(adapter).trained_on == expected
    assert opened(base, adapter).trained_on == expected
    assert opened(base).trained_on == (None if of_base is None else frozenset(of_base))


@pytest.mark.parametrize("sources", [None, "a", {"a": 1}, ["a", 3], [["a"]]])
def test_a_list_of_sources_that_is_none_is_refused_not_forgotten(base, sources):
    (base / "training.json").write_text(json.dumps({"sources": sources}))
    with pytest.raises(UserError, match="'sources' is no list of source ids"):
        opened(base)
    (base / "training.json").write_text("{}")
    with pytest.raises(UserError, match="'sources' is no list of source ids"):
        opened(base)
    (base / "training.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        opened(base)


def test_an_adapters_folder_finds_its_base(tmp_path, base, monkeypatch):
    beside = opened(make_adapter(tmp_path / "a", "../base"))
    assert beside.base.resolve() == base and beside.adapter == tmp_path / "a"
    assert opened(make_adapter(tmp_path / "b", str(base))).base == base
    assert opened(make_adapter(tmp_path / "c", "pocket-base")).base == checkpoint.POCKET / "base"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    assert opened(make_adapter(tmp_path / "deep" / "d", "base")).base == Path("base")
    with pytest.raises(UserError, match="neither one of pocket-base, pocket-lora"):
        opened(make_adapter(tmp_path / "e", "nothing/here"))


def test_a_checkpoint_is_what_was_asked_for(base, adapter):
    plain = opened(base)
    assert (plain.name, plain.base, plain.adapter) == (str(base), base, None)
    assert (plain.quantization, plain.trained_on, plain.prompt) == ("none", None, None)
    assert (plain.base_weights, plain.base_digest, plain.self_test) == (None, None, None)
    both = opened(base, adapter, "nf4")
    assert (both.base, both.adapter, both.quantization) == (base, adapter, "nf4")


def test_the_prompt_and_the_self_test_of_an_adapter_are_read(tmp_path, base):
    test = {"dtype": "float32", "logp": [[-1.0, -2.0], [-3.0, -4.0]]}
    about = {
        "prompt": PROMPT.to_dict(),
        "self_test": test,
        "base_weights": "w",
        "base_digest": "d",
        "quantisation": "none",
    }
    found = opened(make_adapter(tmp_path / "a", "../base", **about))
    assert (found.prompt, found.base_weights, found.base_digest) == (PROMPT, "w", "d")
    assert found.self_test.prompt == PROMPT and found.self_test.dtype == "float32"
    assert found.self_test.logp == ((-1.0, -2.0), (-3.0, -4.0))
    del about["prompt"]
    bare = opened(make_adapter(tmp_path / "b", "../base", **about))
    assert bare.prompt is None and bare.self_test is None
    about = {"prompt": PROMPT.to_dict()}
    assert opened(make_adapter(tmp_path / "c", "../base", **about)).self_test is None


def test_two_adapters_at_once_are_refused(tmp_path, base, adapter):
    with pytest.raises(UserError, match="carries an adapter already"):
        opened(adapter, make_adapter(tmp_path / "other", "../base"))


def test_pickled_weights_are_never_read(tmp_path, base, adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors"):
        opened(base, adapter)
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no safetensors file"):
        opened(base)
    (base / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds no config\.json"):
        opened(base)


@pytest.mark.parametrize("kind", ["qwen2_audio", "qwen3_omni_moe", "qwen3_omni_moe_thinker"])
def test_the_kinds_of_model_that_can_be_scored_are_opened(tmp_path, kind):
    assert opened(make_base(tmp_path / "m", kind)).quantization == "none"


@pytest.mark.parametrize("kind", ["bert", None, "qwen2_audio_2"])
def test_another_kind_of_model_is_refused(tmp_path, kind):
    with pytest.raises(UserError, match="is a model of type"):
        opened(make_base(tmp_path / "m", kind))


@pytest.mark.parametrize("kind", ["qwen3_omni_moe", "qwen3_omni_moe_thinker"])
def test_quantisation_that_would_not_reach_the_experts_is_refused(tmp_path, kind):
    with pytest.raises(UserError, match="does not reach the experts"):
        opened(make_base(tmp_path / "m", kind), quantization="nf4")


@settings(max_examples=40, deadline=None, phases=UNSHRUNK, derandomize=True)
@given(st.integers(0, 200), st.sampled_from([None, {"format": "pt"}]))
def test_an_adapter_cut_anywhere_or_with_a_byte_too_many_is_refused(tmp_path_factory, cut, about):
    folder = tmp_path_factory.mktemp("cut")
    base = make_base(folder / "base")
    adapter = make_adapter(folder / "lora", "../base")
    path, whole = adapter / "adapter_model.safetensors", weights(b"abcdefgh", about)
    path.write_bytes(whole)
    assert opened(base, adapter).adapter == adapter
    for damaged in (whole[: min(cut, len(whole) - 1)], whole + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is truncated or no safetensors file"):
            opened(base, adapter)


@pytest.mark.parametrize(
    "header",
    [b"[]", b"{}", b'{"w": 3}', b'{"w": {"dtype": "U8", "shape": [0], "data_offsets": [0]}}'],
)
def test_an_adapter_without_a_tensor_in_its_header_is_refused(base, adapter, header):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="is truncated or no safetensors file"):
        opened(base, adapter)


def test_weights_that_are_not_those_that_were_written_are_refused(tmp_path, base):
    sha = hashlib.sha256(weights(b"abcd")).hexdigest()
    adapter = make_adapter(tmp_path / "a", "../base", adapter_sha256=sha)
    assert opened(adapter).adapter == adapter
    (adapter / "adapter_model.safetensors").write_bytes(weights(b"abce"))
    with pytest.raises(UserError, match=r"is not the one that training\.json tells of"):
        opened(adapter)
    with pytest.raises(UserError, match=r"is not the one that training\.json tells of"):
        opened(base, adapter)
    (adapter / "training.json").unlink()
    assert opened(adapter).trained_on is None  # of unknown origin


@pytest.mark.parametrize(("trained", "asked"), [("none", "nf4"), ("nf4", "none")])
def test_an_adapter_is_scored_on_the_precision_it_was_trained_on(tmp_path, base, trained, asked):
    adapter = make_adapter(tmp_path / "a", "../base", quantisation=trained)
    assert opened(adapter, quantization=trained).quantization == trained
    with pytest.raises(UserError, match=f"quantization {trained}, not {asked}"):
        opened(adapter, quantization=asked)


def test_shipped_names_are_folders_that_open():
    assert opened("pocket-base").base == checkpoint.POCKET / "base"
    lora = opened("pocket-lora")
    assert lora.adapter == checkpoint.POCKET / "lora" and lora.name == "pocket-lora"
    assert lora.base.resolve() == (checkpoint.POCKET / "base").resolve()
    assert lora.trained_on and lora.prompt is not None and len(lora.digest) == 64
    assert lora.base_weights == weights_digest(checkpoint.POCKET / "base")


def test_what_is_opened_cannot_be_changed():
    for kind in (checkpoint.Checkpoint, checkpoint.SelfTest):
        assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen


def test_a_configuration_that_is_no_json_is_one_sentence(base):
    (base / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not readable as JSON"):
        opened(base)
    (base / "config.json").write_text("[]")
    with pytest.raises(UserError, match="is a model of type None"):
        opened(base)


def test_only_what_can_be_scored_is_downloaded(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}
    there = make_base(tmp_path / "hub")

    def download(name, **options):
        asked[name] = options
        return str(there)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert opened("org/model").base == there
    assert set(asked["org/model"]["allow_patterns"]) == {
        "*.jinja",
        "*.json",
        "*.safetensors",
        "*.txt",
        "*.model",
    }
    assert asked["org/model"]["ignore_patterns"] == ["consolidated*"]


def test_what_the_hub_says_is_told_whole_and_with_a_remedy(monkeypatch):
    """Of an error of two lines the second is the reason; of a long one the first sentence, not 160 letters."""
    import huggingface_hub

    text = "401 Client Error. (Request ID: Root=1)\n\nRepository Not Found for url: https://x. Check it.\nLog in."

    def refuse(*args, **kwargs):
        raise OSError(text)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match="401 Client Error; Repository Not Found for url") as caught:
        checkpoint.open_checkpoint("someone/model")
    assert not re.search(
        "Request ID|Log in", str(caught.value)
    ) and "connect to download it once" in str(caught.value)
