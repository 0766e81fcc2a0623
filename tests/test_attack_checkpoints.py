"""Hostile folders of models and adapters: each ends in one sentence before anything is scored, kept or run.

A case is (what is done to a copy of the pocket model, what the sentence says). Where a case would take all memory, the
process may take little more than it has, so that the test fails and the machine goes on.
"""

import ast
import json
import os
import re
import shutil
import struct

import pytest
import torch
from common import ROOT, little_room
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evaluators.audio_lm import scorer
from evaluators.audio_lm.checkpoint import POCKET, open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.errors import UserError
from opro import optimize
from opro.proposers.language_model import Message
from opro.proposers.local_model import LocalModel

pytestmark = pytest.mark.tiny
ROOM = 3 * 2**30  # bytes of addresses, of which the loader's own libraries reserve most
BASE, LORA, INDEX = "model.safetensors", "adapter_model.safetensors", "model.safetensors.index.json"
Q_PROJ = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"


def edit(name, **values):
    """Other values in a JSON file; a dictionary is merged into the one that is there."""

    def change(folder):
        path = folder / name
        raw = json.loads(path.read_text()) if path.exists() else {}
        for key, value in values.items():
            both = isinstance(value, dict) and isinstance(raw.get(key), dict)
            raw[key] = raw[key] | value if both else value
        path.write_text(json.dumps(raw))

    return change


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def tensors(name, change):
    def write(folder):
        found = load_file(folder / name)
        change(found)
        save_file(found, folder / name, metadata={"format": "pt"})
        if name == LORA:  # which would notice at once
            (folder / "training.json").unlink()

    return write


def header(name, about, data=b"", length=None):
    """A safetensors file of this header, which claims to be so long."""

    def write(folder):
        raw = about if isinstance(about, bytes) else json.dumps(about).encode()
        size = len(raw) if length is None else length
        (folder / name).write_bytes(struct.pack("<Q", size) + raw + data)

    return write


def both(*changes):
    def write(folder):
        for change in changes:
            change(folder)

    return write


def half(found):
    for key in sorted(found)[::2]:
        del found[key]


def renamed(found):
    for key in list(found):
        found[f"other.{key}"] = found.pop(key)


def half_renamed(found):
    for key in sorted(found)[::2]:
        found[f"other.{key}"] = found.pop(key)


def pickled_index(name):
    """The tensors in a pickle that an index names."""

    def write(folder):
        found = load_file(folder / BASE)
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(found, target, metadata={"format": "pt"})
        else:
            torch.save(found, target)
        save_file({"x": torch.zeros(1)}, folder / "bait.safetensors")
        (folder / BASE).unlink()
        (folder / INDEX).write_text(
            json.dumps({"metadata": {}, "weight_map": dict.fromkeys(found, name)})
        )

    return write


def huge(part, **values):
    return edit("config.json", **{part: values})


DEEP = "[" * 100_000 + "]" * 100_000
EVIL = {
    "AutoModel": "evil.Model",
    "AutoProcessor": "evil.Model",
    "AutoTokenizer": ["evil.Model", None],
}
SETTINGS_FILES = (
    "config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json",
    "generation_config.json", "video_preprocessor_config.json",
)  # fmt: skip
FIRST = "language_model.model.model.layers.0.mlp.up_proj.weight"  # in the file's own names, those of transformers 4
BASES = {
    **{f"auto_map in {name}": (edit(name, auto_map=EVIL), rf"{name}' .*auto_map") for name in SETTINGS_FILES},
    "auto_map in a part of a file": (
        edit("processor_config.json", feature_extractor={"auto_map": EVIL}), r"processor_config\.json' .*auto_map"),
    "code for attention": (edit("config.json", attn_implementation="evil/kernel"), "attn_implementation"),
    "code for a part's attention": (
        huge("text_config", _attn_implementation="evil/kernel@main"), "_attn_implementation"),
    "weights of another name": (
        both(edit("config.json", transformers_weights="other.safetensors.index.json"),
             lambda f: shutil.copy(f / BASE, f / "other.safetensors")), "transformers_weights"),
    "a second model": (
        edit("processor_config.json", audio_tokenizer={"audio_tokenizer_class": "DacModel",
                                                       "audio_tokenizer_name_or_path": "evil/dac"}),
        "audio_tokenizer_name_or_path"),
    "an adapter in the base": (
        lambda f: [shutil.copy(POCKET / "lora" / n, f) for n in ("adapter_config.json", LORA)],
        "is a base or an adapter"),
    "index of a .bin": (pickled_index("pytorch_model.bin"), r"names 'pytorch_model\.bin'; expected .*safetensors"),
    "index of a .pt": (pickled_index("weights.pt"), r"names 'weights\.pt'"),
    "index of a file elsewhere": (pickled_index("../elsewhere.safetensors"), r"names '\.\./elsewhere\.safetensors'"),
    "index of a file below": (pickled_index("sub/x.safetensors"), r"names 'sub/x\.safetensors'"),
    "index of numbers": (
        both(pickled_index("a.safetensors"), text(INDEX, '{"weight_map": {"a": 3}}')), "has no weight_map"),
    "half the tensors": (tensors(BASE, half), r"'lm_head\.weight' and \d+ more are missing"),
    "a tensor too many": (tensors(BASE, lambda t: t.update(junk=torch.zeros(2))), "'junk' is left over"),
    "tensors of other names": (tensors(BASE, renamed), r"and \d+ more are missing"),
    "half of other names": (tensors(BASE, half_renamed), r"and \d+ more are missing"),
    "no head": (tensors(BASE, lambda t: t.pop("language_model.lm_head.weight")), r"'lm_head\.weight' is missing"),
    "a row too few": (
        tensors(BASE, lambda t: t.update({FIRST: t[FIRST][1:].contiguous()})), r"layers\.0\.mlp\.up_proj\.weight' is"),
    "a vector for a matrix": (tensors(BASE, lambda t: t.update({FIRST: t[FIRST][0]})), r"up_proj\.weight' is"),
    "int8": (tensors(BASE, lambda t: t.update({FIRST: t[FIRST].to(torch.int8)})), r"up_proj\.weight' is of type I8"),
    "complex numbers": (
        tensors(BASE, lambda t: t.update({FIRST: t[FIRST].to(torch.complex64)})), r"up_proj\.weight' is of type C64"),
    "not a number": (
        tensors(BASE, lambda t: t.update({FIRST: t[FIRST] * float("nan")})), "not finite|NaN|no number"),
    "a header of 2^60 bytes": (header(BASE, b"{}", length=2**60), "truncated or no safetensors"),
    "a header of 2^63 bytes": (header(BASE, b"{}", length=2**63), "truncated or no safetensors"),
    "a header that is no JSON": (header(BASE, b"\xff" * 64), "truncated or no safetensors"),
    "a deep header": (header(BASE, DEEP.encode()), "truncated or no safetensors"),
    "a tensor of 2^60 numbers": (
        header(BASE, {"w": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}),
        "truncated or no safetensors"),
    "tensors that overlap": (
        header(BASE, {k: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in "ab"}, bytes(4)),
        "truncated or no safetensors"),
    "empty weights": (text(BASE, ""), "truncated or no safetensors"),
    "null configuration": (text("config.json", "null"), "type None"),
    "a list for a configuration": (text("config.json", "[1]"), "type None"),
    "deep configuration": (text("config.json", DEEP), r"config\.json: nested deeper"),
    "configuration in another code": (lambda f: (f / "config.json").write_bytes(b"\xff{}"), "is not UTF-8"),
    "a part that is null": (edit("config.json", text_config=None), "missing|cannot be used|another shape"),
    "a part that is a list": (edit("config.json", text_config=[1, 2]), "cannot be used"),
    "text for a size": (huge("text_config", hidden_size="many"), "cannot be used"),
    "a size of 0": (huge("text_config", hidden_size=0), "cannot be used|another shape"),
    "a size below 0": (huge("text_config", hidden_size=-256), "cannot be used"),
    "no heads": (huge("text_config", num_attention_heads=0), "cannot be used"),
    "NaN for a size": (huge("audio_config", d_model=float("nan")), "cannot be used"),
    "10^9 layers": (huge("text_config", num_hidden_layers=10**9), r"num_hidden_layers is 1,000,000,000"),
    "10^9 layers of the tower": (huge("audio_config", encoder_layers=10**9), r"encoder_layers is 1,000,000,000"),
    "10^9 words": (huge("text_config", vocab_size=10**9), r"another shape"),
    "10^18 words": (huge("text_config", vocab_size=10**18), r"vocab_size is 1,000,000,000,000,000,000"),
    "10^9 positions": (huge("audio_config", max_source_positions=10**9), "another shape"),
    "a width of 10^9": (huge("text_config", intermediate_size=10**9), "another shape"),
    "windows of 10^9 s": (edit("processor_config.json", feature_extractor={"chunk_length": 10**9}), "chunk_length"),
    "10^9 bins": (edit("processor_config.json", feature_extractor={"feature_size": 10**9}), "feature_size"),
    "a transform of 10^9": (edit("processor_config.json", feature_extractor={"n_fft": 10**9}), "n_fft"),
    "no hop": (edit("processor_config.json", feature_extractor={"hop_length": 0}), "hop_length"),
    "deep tokenizer": (text("tokenizer.json", DEEP), "cannot be read"),
    "deep tokenizer settings": (text("tokenizer_config.json", DEEP), "nested deeper|cannot be read"),
    "null training record": (text("training.json", "null"), "no list of source ids"),
    "deep training record": (text("training.json", DEEP), "nested deeper"),
}  # fmt: skip


def lora(**values):
    return edit("adapter_config.json", **values)


def pickled_adapter(folder):
    torch.save(load_file(folder / LORA), folder / "adapter_model.bin")
    (folder / LORA).unlink()


ADAPTERS = {
    "a pickle": (pickled_adapter, r"holds no adapter_model\.safetensors; convert it, pickled"),
    "auto_map": (lora(auto_map=EVIL), "auto_map"),
    "rank 0": (lora(r=0), "sets r to 0"),
    "rank -1": (lora(r=-1), "sets r to -1"),
    "rank 10^8": (lora(r=10**8), "100000000"),
    "rank in words": (lora(r="many"), "sets r to 'many'"),
    "rank 1.5": (lora(r=1.5), r"sets r to 1\.5"),
    "rank null": (lora(r=None), "sets r to None"),
    "rank true": (lora(r=True), "sets r to True"),
    "another rank": (lora(r=8), r"is \[16, \d+\] where \[8, \d+\] is expected"),
    "a rank pattern of 10^8": (lora(rank_pattern={"q_proj": 10**8}), "100000000"),
    "a rank pattern in words": (lora(rank_pattern={"q_proj": "x"}), "rank_pattern"),
    "a rank pattern that is a list": (lora(rank_pattern=[3]), "rank_pattern"),
    "alpha NaN": (lora(lora_alpha=float("nan")), "sets lora_alpha to nan"),
    "alpha infinite": (lora(lora_alpha=float("inf")), "sets lora_alpha to inf"),
    "alpha in words": (lora(lora_alpha="x"), "sets lora_alpha to 'x'"),
    "alpha null": (lora(lora_alpha=None), "sets lora_alpha to None"),
    "alpha 1e308": (lora(lora_alpha=1e308), "sets lora_alpha to 1e"),
    "an alpha pattern of NaN": (lora(alpha_pattern={"q_proj": float("nan")}), "alpha_pattern"),
    "targets of numbers": (lora(target_modules=[1, 2]), "target_modules"),
    "targets null": (lora(target_modules=None), "target_modules"),
    "no targets": (lora(target_modules=[]), "target_modules"),
    "targets that match nothing": (lora(target_modules=["nothing"]), "cannot join its base"),
    "targets that match half": (lora(target_modules=["q_proj", "k_proj"]), "fits nothing there"),
    "targets that match more": (lora(target_modules="all-linear"), f"lacks '{'base_model'}"),
    "a torn pattern": (lora(target_modules="(q_proj"), "cannot join its base|target_modules"),
    "layers in words": (lora(layers_to_transform=["a"]), "layers_to_transform"),
    "a layer that is none": (lora(layers_to_transform=[10**9]), "cannot join|fits nothing"),
    "modules of numbers": (lora(modules_to_save=[7]), "modules_to_save"),
    "a flag in words": (lora(use_rslora="no"), "sets use_rslora to 'no'"),
    "another kind": (lora(peft_type="IA3"), "peft_type 'IA3'"),
    "a kind that is a list": (lora(peft_type=["LORA"]), "peft_type"),
    "a bias that is a list": (lora(bias=["none"]), "bias"),
    "an init that is a list": (lora(init_lora_weights=["pissa"]), "init_lora_weights"),
    "null configuration": (text("adapter_config.json", "null"), "peft_type None|does not name its base"),
    "deep configuration": (text("adapter_config.json", DEEP), "nested deeper"),
    "a configuration that is a list": (text("adapter_config.json", "[]"), "peft_type None|does not name its base"),
    "torn configuration": (text("adapter_config.json", '{"r": 1'), "not readable as JSON|is not UTF-8"),
    "keys that match nothing": (tensors(LORA, renamed), "fits nothing there"),
    "keys that match half": (tensors(LORA, half_renamed), "fits nothing there"),
    "half the tensors": (tensors(LORA, half), "lacks 'base_model"),
    "a tensor too many": (tensors(LORA, lambda t: t.update(junk=torch.zeros(2))), "'junk' fits nothing"),
    "a column too few": (
        tensors(LORA, lambda t: t.update({Q_PROJ: t[Q_PROJ][:, 1:].contiguous()})),
        r"is \[16, 255\] where \[16, 256\]"),
    "int8": (tensors(LORA, lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.int8)})), "is of type I8"),
    "integers": (tensors(LORA, lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.int64)})), "is of type I64"),
    "complex numbers": (tensors(LORA, lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.complex64)})), "of type C64"),
    "not a number": (
        tensors(LORA, lambda t: t.update({Q_PROJ: t[Q_PROJ] * float("nan")})), "not finite|NaN|no number"),
    "an empty tensor": (
        both(tensors(LORA, lambda t: t.update({Q_PROJ: torch.zeros(10**9, 0)})), lora(r=10**9)), "1000000000"),
    "truncated": (lambda f: os.truncate(f / LORA, 5000), "truncated or no safetensors"),
    "no bytes": (text(LORA, ""), "truncated or no safetensors"),
    "a header of 2^60 bytes": (header(LORA, b"{}", length=2**60), "truncated or no safetensors"),
    "no tensor": (header(LORA, b"{}"), "truncated or no safetensors"),
    "a header with other keys": (header(LORA, {"w": {"dtype": "F32"}}), "truncated or no safetensors"),
    "a record of null": (text("training.json", "null"), "training.json"),
    "a record with another self-test": (edit("training.json", self_test={"dtype": 3, "logp": "x"}), "training.json"),
    "a record with another prompt": (edit("training.json", prompt={"text": 3}), "training.json"),
}  # fmt: skip
CASES = {
    **{f"base: {k}": ("base", *v) for k, v in BASES.items()},
    **{f"adapter: {k}": ("lora", *v) for k, v in ADAPTERS.items()},
}


def copied(kind, change, where):
    """A copy of the pocket's base, or of its adapter beside a base, to which something was done."""
    for name in {
        "base",
        kind,
    }:  # no hard links: they would change the times of the files that others read
        shutil.copytree(POCKET / name, where / name)
    folder = where / kind
    change(folder)
    return folder


def search(folder, where):
    argv = ["--checkpoint", str(folder), "--iterations", "1", "--candidates", "2", "--clips", "24",
            "--name", "run", "--runs-dir", str(where / "runs"), "--heard", "allow"]  # fmt: skip
    return optimize.run_verb(lambda: optimize.main(argv))


@pytest.fixture(autouse=True)
def tidy(tmp_path):
    """Copies of the pocket take room: they go when the test has ended."""
    yield
    shutil.rmtree(tmp_path)


def see(case, where):
    kind, change, _ = case
    return search(copied(kind, change, where), where)


@pytest.fixture(scope="module", autouse=True)
def imported():
    """Libraries are loaded before addresses are few."""
    import peft  # noqa: F401
    import transformers

    assert transformers.Qwen2AudioForConditionalGeneration


@pytest.mark.parametrize("title", CASES)
def test_a_hostile_folder_is_one_sentence_and_nothing_is_written(title, tmp_path, capsys):
    case = CASES[title]
    with little_room(ROOM):
        code = see(case, tmp_path)
    said = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1, said[-3:]
    assert re.search(case[2], errors[0]), errors[0]
    assert len(errors[0]) < 1000 and not list(tmp_path.glob("**/evil*"))
    if not title.endswith("not a number"):  # which only scores can show
        assert said == errors and not (tmp_path / "runs").exists()


def loads(path):
    """(Line, whether it is told to run no code of a folder) of whatever reads one by transformers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        for part in (call.func, *call.args):
            if isinstance(part, ast.Attribute) and part.attr == "from_pretrained":
                keys = {word.arg: ast.unparse(word.value) for word in call.keywords}
                yield call.lineno, keys.get("trust_remote_code") == "False", ast.unparse(part.value)


def test_no_call_leaves_it_to_the_library_whether_code_of_a_folder_is_run():
    others = (
        "LoraConfig",
        "_peft().LoraConfig",
        "peft.PeftModel",
        "package.Model",
    )  # peft's and pyannote's, which have no such code
    spread = {
        "opro/exported/score.py": ("getattr(transformers, about['class'])",)
    }  # in its options
    found = [
        (name, line, made)
        for folder in ("evaluators", "opro", "data")
        for path in (ROOT / folder).rglob("*.py")
        if (name := str(path.relative_to(ROOT)))
        for line, told, made in loads(path)
        if not told and made not in (*others, *spread.get(name, ()))
    ]
    assert found == []
    assert sum(len(list(loads(p))) for p in (ROOT / "evaluators").rglob("*.py")) > 10


@pytest.fixture(scope="module")
def places():
    """The tensors of the pocket model, and where it lies in a folder whose weights may be written anew."""
    return load_file(POCKET / "base" / BASE)


@settings(max_examples=8, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
@given(data=st.data())
def test_whichever_tensor_is_missing_cut_or_too_many_is_named(data, places, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    for path in (POCKET / "base").glob("*.json"):
        shutil.copy(path, folder)
    name = data.draw(st.sampled_from(sorted(places)))
    how = data.draw(st.sampled_from(["missing", "cut", "too many"]))
    found = dict(places)
    tensor = found.pop(name)
    if how == "cut":
        found[name] = tensor[:-1].clone()
    if how == "too many":
        found |= {name: tensor, f"{name}.more": tensor[:1].clone()}
    save_file(found, folder / BASE, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=re.escape(name.rpartition("layers.")[2].removeprefix("language_model."))
    ):
        AudioScorer(open_checkpoint(str(folder)), "cpu").about()


def test_what_has_passed_is_looked_at_again_when_it_has_changed(tmp_path, monkeypatch):
    """And by the loader in any case, so that no record lets a weight be drawn at random."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, look, calls = copied("base", lambda folder: None, tmp_path), scorer.fitting_model, []
    monkeypatch.setattr(scorer, "fitting_model", lambda *args: (calls.append(1), look(*args))[1])
    for _ in range(2):
        assert AudioScorer(open_checkpoint(str(folder)), "cpu").config
    assert len(calls) == 1
    known = AudioScorer(open_checkpoint(str(folder)), "cpu")
    assert known.config
    tensors(BASE, half)(folder)
    for again in (lambda: known.decoder, AudioScorer(open_checkpoint(str(folder)), "cpu").about):
        with pytest.raises(UserError, match=r"'lm_head\.weight' and \d+ more are missing"):
            again()
    for record in (tmp_path / "cache").rglob("*.json"):  # a damaged record counts for nothing
        record.write_text("{")
    with pytest.raises(UserError, match="more are missing"):
        AudioScorer(open_checkpoint(str(folder)), "cpu").about()


def test_what_may_be_absent_or_old_still_loads(tmp_path):
    """A head that is tied to the embeddings, and a table of positions that older versions stored."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(POCKET / "base")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    config = Qwen2Config(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = load_file(tmp_path / BASE)
    assert "lm_head.weight" not in found
    found["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(found, tmp_path / BASE, metadata={"format": "pt"})
    ask = LocalModel(tmp_path)
    assert ask([Message("user", "Hm.")], temperature=0.0, max_tokens=2).tokens_out > 0
    for title, name, values in (
        ("auto_map", "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}),
        ("num_hidden_layers is 10,000,000", "config.json", {"num_hidden_layers": 10**7}),
    ):
        copy = shutil.copytree(tmp_path, tmp_path / title)
        edit(name, **values)(copy)
        with pytest.raises(UserError, match=title):
            LocalModel(copy)
    copy = shutil.copytree(tmp_path, tmp_path / "writes")
    edit("generation_config.json", penalty_alpha=0.6, top_k=4, num_beams="many")(copy)
    with pytest.raises(UserError, match=r"cannot write .* generation_config"):
        LocalModel(copy)([Message("user", "Hm.")], temperature=0.0, max_tokens=2)
    edit("config.json", vocab_size=10**9)(tmp_path)
    with (
        little_room(ROOM),
        pytest.raises(UserError, match=r"'model\.embed_tokens\.weight' is missing or of another"),
    ):
        LocalModel(tmp_path)([Message("user", "Hm.")], temperature=0.0, max_tokens=2)
