"""A base is its tensors and its configuration, wherever it lies; what was hashed once is not hashed again."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
import torch
from common import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evaluators.audio_lm import identity
from evaluators.audio_lm.checkpoint import POCKET, open_checkpoint
from evaluators.audio_lm.identity import adapter_digest, base_digest, old_digest, weights_digest
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.errors import UserError

BASE, LORA = POCKET / "base", POCKET / "lora"
OLD_RECORD = "ae4fa8feb9a52721d8887b7ca6452c30ab7f558f2b3ef5dd5d1f5c6f724a4560"  # of version 0.1


@pytest.fixture
def base(tmp_path):
    return Path(shutil.copytree(BASE, tmp_path / "base"))


@pytest.fixture
def lora(tmp_path):
    return Path(shutil.copytree(LORA, tmp_path / "lora"))


@pytest.fixture
def hashed(monkeypatch, tmp_path):
    """The parts of files that are hashed from here on; files of any size are remembered, in a folder of the test."""
    seen = []
    real = identity._hash_part
    monkeypatch.setattr(identity, "SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "_hash_part", lambda *part: seen.append(part) or real(*part))
    return seen


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_part(path, part, **changes):
    raw = json.loads(path.read_text())
    raw[part] |= changes
    path.write_text(json.dumps(raw))


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def on_the_hub(folder, at):
    """The folder as the hub's client lays it out: a snapshot of links to files named by their content."""
    snapshot = at / "models--org--name" / "snapshots" / ("0123456789" * 4)
    blobs = at / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / f"{number:064}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{number:064}")
    return snapshot


def saved_again(folder, at, size="3MB"):
    """Model and configuration as transformers saves them, in shards; the other files beside them."""
    from transformers import Qwen2AudioForConditionalGeneration

    model = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype="auto")
    model.save_pretrained(at, max_shard_size=size)
    for path in folder.iterdir():
        if path.suffix != ".safetensors" and not (at / path.name).exists():
            shutil.copy(path, at)
    return at


def with_few_settings(folder):
    """A configuration as the hub has it: what equals a default is left out, and names are those of transformers 4."""
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    text = raw["text_config"]
    for name in (
        "attention_dropout",
        "hidden_act",
        "layer_types",
        "max_window_layers",
        "use_cache",
    ):
        del text[name]
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    text["torch_dtype"] = raw["torch_dtype"] = raw.pop("dtype")
    raw["transformers_version"] = "4.38.1"
    path.write_text(json.dumps(raw))


@pytest.mark.tiny
def test_hub_snapshot_local_copy_and_copies_in_other_shards_are_one(base, tmp_path):
    with_few_settings(base)
    places = [
        BASE,
        base,
        on_the_hub(base, tmp_path / "hub"),
        saved_again(base, tmp_path / "shards"),
        saved_again(base, tmp_path / "whole", "1GB"),
    ]
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    for found in (base_digest, weights_digest):
        assert len({found(place) for place in places}) == 1
    checkpoints = [open_checkpoint(str(place)) for place in places]
    assert len({c.digest for c in checkpoints}) == 1
    assert len({AudioScorer(c, "cpu").fingerprint for c in checkpoints}) == 1
    assert len({open_checkpoint(str(place), LORA).digest for place in places}) == 1


def one_number(tensors):
    name = next(n for n in tensors if n.endswith("o_proj.weight"))
    tensors[name][0, 0] += 1


def one_type(tensors):
    name = next(n for n in tensors if n.endswith("o_proj.weight"))
    tensors[name] = tensors[name].bfloat16()


def one_shape(tensors):
    name = next(n for n in tensors if n.endswith("norm.weight"))
    tensors[name] = tensors[name][None].contiguous()


def one_name(tensors):
    name = next(n for n in tensors if n.endswith("norm.weight"))
    tensors["other"] = tensors.pop(name)


@pytest.mark.parametrize("change", [one_number, one_type, one_shape, one_name])
def test_each_change_of_a_tensor_is_another_base(base, change):
    edit_tensors(base / "model.safetensors", change)
    assert weights_digest(base) != weights_digest(BASE)
    assert base_digest(base) != base_digest(BASE)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("text_config", {"rms_norm_eps": 1e-5}),
        ("text_config", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
        ("text_config", {"num_attention_heads": 8, "num_key_value_heads": 8}),
        ("text_config", {"hidden_act": "gelu"}),
        ("text_config", {"tie_word_embeddings": True}),
        ("audio_config", {"encoder_attention_heads": 6}),
        ("audio_config", {"scale_embedding": True}),
        ("audio_config", {"activation_function": "relu"}),
    ],
)
def test_a_setting_that_decides_what_is_computed_is_another_base(base, part, changes):
    edit_part(base / "config.json", part, **changes)
    assert base_digest(base) != base_digest(BASE)
    assert weights_digest(base) == weights_digest(BASE)


def test_what_decides_nothing_is_the_same_base(base):
    path = base / "config.json"
    origin = {"_name_or_path": "/elsewhere", "transformers_version": "4.1", "architectures": ["X"]}
    edit(path, dtype="bfloat16", use_cache=False, **origin)
    edit_part(path, "text_config", dtype="float32", initializer_range=0.5, attention_dropout=0.1)
    edit_part(path, "audio_config", encoder_layerdrop=0.1, dropout=0.1, activation_dropout=0.1)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    edit(base / "generation_config.json", temperature=2.0)
    (base / "chat_template.jinja").write_text("other words")
    for name in ("README.md", "notes.json", "model.safetensors.index.json", "training.json"):
        (base / name).write_text("{}")
    edit_tensors(base / "model.safetensors", lambda tensors: None)  # another order of the file
    assert base_digest(base) == base_digest(BASE)


@pytest.mark.parametrize("name", identity.FRONT_FILES)
def test_each_file_of_tokenizer_and_features_is_a_part_of_the_base(base, name):
    path = base / name
    path.write_text((path.read_text() if path.exists() else "{}") + " ")
    assert base_digest(base) != base_digest(BASE)
    assert weights_digest(base) == weights_digest(BASE)


TYPES = {"F32": 4, "BF16": 2, "U8": 1}
tensor = st.tuples(st.sampled_from(sorted(TYPES)), st.binary(min_size=4, max_size=12))


def write_shards(folder, tensors, place):
    """A folder of made-up tensors, each in the file that `place` says."""
    folder.mkdir()
    files = {}
    for name, (kind, raw) in tensors.items():
        header, body = files.setdefault(place[name], ({}, b""))
        raw = raw[: len(raw) // TYPES[kind] * TYPES[kind]]
        header[name] = {
            "dtype": kind,
            "shape": [len(raw) // TYPES[kind]],
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        files[place[name]] = header, body + raw
    for name, (header, body) in files.items():
        text = json.dumps(header).encode()
        (folder / name).write_bytes(len(text).to_bytes(8, "little") + text + body)
    index = {"weight_map": place, "metadata": {"total_size": len(folder.name)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text('ab.é"\n', min_size=1, max_size=4), tensor, min_size=1), st.data())
def test_tensors_in_any_files_and_order_are_one_and_each_changed_byte_is_another(
    tmp_path_factory, tensors, data
):
    folder = tmp_path_factory.mktemp("shards")
    files = st.sampled_from(["x.safetensors", "y.safetensors", "z.safetensors"])
    places = [{name: data.draw(files) for name in tensors} for _ in range(2)]
    shuffled = dict(data.draw(st.permutations(sorted(tensors.items()))))
    one = weights_digest(write_shards(folder / "one", tensors, places[0]))
    assert weights_digest(write_shards(folder / "other", shuffled, places[1])) == one
    name = data.draw(st.sampled_from(sorted(tensors)))
    kind, raw = tensors[name]
    changed = tensors | {name: (kind, bytes([raw[0] ^ 1]) + raw[1:])}
    assert weights_digest(write_shards(folder / "changed", changed, places[0])) != one


def test_a_tensor_of_no_or_many_blocks_is_read_whole(tmp_path, monkeypatch):
    for number in (0, 1, 1023, 1024, 1025, 4096):
        place = tmp_path / f"{number}"
        place.mkdir()
        save_file({"w": torch.arange(number).to(torch.uint8)}, place / "model.safetensors")
    before = [weights_digest(place) for place in sorted(tmp_path.iterdir())]
    monkeypatch.setattr(identity, "BLOCK", 1024)
    assert [weights_digest(place) for place in sorted(tmp_path.iterdir())] == before
    assert len(set(before)) == 6


def test_a_torn_file_is_one_sentence_and_not_remembered(base, hashed, tmp_path):
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is truncated or no safetensors file"):
        weights_digest(base)
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_file_that_becomes_shorter_while_it_is_read_is_one_sentence(base):
    path = base / "model.safetensors"
    with pytest.raises(UserError, match="became shorter while it was read"):
        identity._hash_part(path, path.stat().st_size - 10, path.stat().st_size + 1)


# What was hashed once.


def test_a_second_time_no_tensor_is_read(base, hashed, tmp_path):
    first = weights_digest(base)
    count = len(load_file(base / "model.safetensors"))
    assert len(hashed) == count
    hashed.clear()
    assert weights_digest(base) == first == weights_digest(BASE)
    assert len(hashed) == count  # of BASE alone, another file
    hashed.clear()
    snapshot = on_the_hub(base, tmp_path / "hub")
    assert weights_digest(snapshot) == first and len(hashed) == count
    again = snapshot.with_name("9876543210" * 4)  # another commit with the same weights
    shutil.copytree(snapshot, again, symlinks=True)
    assert weights_digest(again) == weights_digest(base) == first and len(hashed) == count
    assert {p.suffix for p in (tmp_path / "cache" / "opro-audio" / "digests").iterdir()} == {
        ".json",
        ".lock",
    }


def test_small_files_are_not_worth_a_record(base, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert weights_digest(base) == weights_digest(BASE)
    assert not (tmp_path / "cache").exists()


def test_it_is_said_once_that_a_large_file_is_hashed(base, hashed, monkeypatch, caplog):
    weights_digest(base)
    assert not caplog.messages
    monkeypatch.setattr(identity, "TOLD", 0.012)
    os.utime(base / "model.safetensors", ns=(1, 1))
    for _ in range(2):
        weights_digest(base)
        assert caplog.messages == [
            "model.safetensors: 0.0 GB are hashed, once for this version of the file"
        ]


def test_it_is_said_that_another_process_is_waited_for(base, hashed, monkeypatch, tmp_path):
    first = weights_digest(base)
    (lock,) = (tmp_path / "cache").rglob("*.lock")
    said = []
    monkeypatch.setattr(identity, "PATIENCE", 0)
    with filelock.FileLock(lock) as held:
        monkeypatch.setattr(
            identity.log, "warning", lambda text: (said.append(text), held.release())
        )
        assert weights_digest(base) == first
    assert said == ["another process hashes the same weights; this one waits for it"]


def test_another_version_of_a_file_is_hashed_again(base, hashed):
    path = base / "model.safetensors"
    first = weights_digest(base)
    count = len(hashed)
    os.utime(path, ns=(1, 1))
    assert weights_digest(base) == first and len(hashed) == 2 * count
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    os.utime(path, ns=(1, 1))  # size and time of change as before, as archives are unpacked
    second = weights_digest(base)
    assert second != first and len(hashed) == 3 * count
    edit_tensors(path, lambda tensors: tensors.update(more=torch.zeros(3)))
    assert weights_digest(base) not in (first, second) and len(hashed) == 4 * count + 1


def test_where_the_system_sets_no_time_of_change_size_and_time_tell(base, hashed, monkeypatch):
    real = Path.stat

    def as_on_windows(path, **options):
        about = real(path, **options)
        names = ("st_mode", "st_size", "st_mtime_ns")
        return SimpleNamespace(st_ctime_ns=0, **{name: getattr(about, name) for name in names})

    monkeypatch.setattr(Path, "stat", as_on_windows)
    path = base / "model.safetensors"
    first = weights_digest(base)
    assert weights_digest(base) == first and len(hashed) == 117
    edit_tensors(path, one_number)
    second = weights_digest(base)
    assert second != first and len(hashed) == 2 * 117
    kept = real(path)
    edit_tensors(path, lambda tensors: tensors.update(more=torch.zeros(3)))
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert weights_digest(base) not in (first, second)


def test_a_link_that_leads_elsewhere_meanwhile_is_not_remembered_of_its_first_file(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second, link = tmp_path / "first", tmp_path / "second", tmp_path / "link"
    first.write_text("1")
    second.write_text("2")
    link.symlink_to(first)

    def turned():
        link.unlink()
        link.symlink_to(second)
        return [link.read_text()]

    assert identity.recalled([link], "text", turned) == ["2"]
    assert identity.recalled([first], "text", lambda: [first.read_text()]) == ["1"]


DAMAGE = {
    "cut": lambda text: text[:-20],
    "empty": lambda text: "",
    "no JSON": lambda text: "x" + text,
    "another kind": lambda text: "[]",
    "a list that is none": lambda text: json.dumps(json.loads(text) | {"found": 3}),
    "a changed digest": lambda text: text.replace('"F16"', '"F32"'),
    "a tensor less": lambda text: json.dumps(
        json.loads(text) | {"found": json.loads(text)["found"][1:]}
    ),
    "no check": lambda text: json.dumps(
        {k: v for k, v in json.loads(text).items() if k != "check"}
    ),
    "bytes": lambda text: "\udcff",
}


@pytest.mark.parametrize("title", DAMAGE)
def test_a_damaged_record_is_made_anew(base, hashed, tmp_path, title):
    first = weights_digest(base)
    count = len(hashed)
    (record,) = (tmp_path / "cache").rglob("*.json")
    whole = record.read_text()
    damaged = DAMAGE[title](whole)
    assert damaged != whole
    record.write_text(damaged, errors="surrogateescape")
    assert weights_digest(base) == first and len(hashed) == 2 * count
    assert record.read_text() == whole
    assert weights_digest(base) == first and len(hashed) == 2 * count


def test_without_a_place_to_remember_digests_are_made_each_time(
    base, hashed, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(base / "config.json"))  # a file
    assert weights_digest(base) == weights_digest(base) and len(hashed) == 2 * 117
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless():
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr(Path, "home", homeless)
    assert weights_digest(base) == weights_digest(BASE)


def test_a_full_disk_costs_time_and_no_result(base, hashed, monkeypatch):
    from evaluators.errors import PauseError

    def full(path, text):
        raise PauseError("no space left")

    monkeypatch.setattr(identity, "write_text", full)
    assert weights_digest(base) == weights_digest(base) and len(hashed) == 2 * 117


COUNTING = """
import sys
from pathlib import Path
from evaluators.audio_lm import identity
identity.SMALL, seen, real = 0, [], identity._hash_part
identity._hash_part = lambda *part: seen.append(part) or real(*part)
print(identity.weights_digest(Path(sys.argv[1])), len(seen))
"""


def test_of_several_processes_one_hashes_and_the_others_wait_for_it(base, tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTING, str(base)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [process.communicate()[0].split() for process in started]
    assert {digest for digest, _ in said} == {weights_digest(BASE)}
    assert sorted(int(count) for _, count in said) == [0, 0, 117]


def test_what_is_sent_to_another_machine_brings_no_digest_along(base):
    """A worker finds out for itself which weights lie in its folder."""
    checkpoint = open_checkpoint(str(base))
    here = checkpoint.digest
    sent = pickle.dumps(checkpoint)
    assert here not in str(sent)
    edit_tensors(base / "model.safetensors", one_number)  # the folder there
    there = pickle.loads(sent)
    assert there.digest != here
    scorers = AudioScorer(open_checkpoint("pocket-base"), "cpu"), AudioScorer(there, "cpu")
    assert scorers[0].fingerprint != scorers[1].fingerprint


# Adapters.


def test_how_an_adapter_names_its_base_and_what_peft_wrote_beside_is_no_part_of_it(lora):
    path = lora / "adapter_config.json"
    edit(path, base_model_name_or_path="org/name", revision="main", peft_version="0.18.0")
    edit(path, inference_mode=False, lora_dropout=0.3, auto_mapping=None, task_type="CAUSAL_LM")
    raw = json.loads(path.read_text())
    raw["target_modules"] = raw["target_modules"][::-1]  # a set, when peft writes it
    path.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    (lora / "training.json").unlink()
    (lora / "README.md").write_text("other words")
    assert adapter_digest(lora) == adapter_digest(LORA)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": 16},
        {"use_rslora": True},
        {"target_modules": ["k_proj", "q_proj"]},
        {"rank_pattern": {"q_proj": 4}},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"layers_to_transform": [0, 2]},
    ],
)
def test_a_setting_that_peft_applies_is_another_adapter(lora, changes):
    edit(lora / "adapter_config.json", **changes)
    assert adapter_digest(lora) != adapter_digest(LORA)


def test_a_changed_weight_is_another_adapter(lora):
    def change(tensors):
        next(iter(tensors.values()))[0, 0] += 1

    edit_tensors(lora / "adapter_model.safetensors", change)
    assert adapter_digest(lora) != adapter_digest(LORA)


def test_an_adapter_of_version_01_goes_on_with_the_base_of_its_record(lora, base, tmp_path):
    path = lora / "training.json"
    raw = json.loads(path.read_text())
    del raw["base_weights"]
    path.write_text(json.dumps(raw | {"base_digest": OLD_RECORD}))
    assert old_digest(BASE) == OLD_RECORD
    old = open_checkpoint(str(base), lora)
    assert old.digest == open_checkpoint("pocket-lora").digest
    hub = on_the_hub(base, tmp_path / "hub")
    with pytest.raises(UserError, match=f"digests are {OLD_RECORD[:12]} and 012345678901"):
        _ = open_checkpoint(str(hub), lora).digest
    path.write_text(json.dumps(raw | {"base_digest": hub.name}))
    assert open_checkpoint(str(hub), lora).digest == old.digest
    edit_tensors(base / "model.safetensors", one_number)
    with pytest.raises(UserError, match="trained on other base weights"):
        _ = open_checkpoint(str(base), lora).digest


def test_the_files_of_an_old_record_are_hashed_once(base, hashed, monkeypatch):
    files = []
    real = identity._sha256
    monkeypatch.setattr(identity, "_sha256", lambda path: files.append(path) or real(path))
    assert old_digest(base) == OLD_RECORD and files
    files.clear()
    assert old_digest(base) == OLD_RECORD and not files


def test_an_adapter_opens_on_any_copy_of_its_base_and_on_no_other(base, tmp_path):
    assert open_checkpoint("pocket-lora").base_weights == weights_digest(BASE)
    shards = saved_again(base, tmp_path / "shards")
    edit_part(shards / "config.json", "text_config", rms_norm_eps=1e-5)
    (shards / "tokenizer_config.json").write_text("{}")
    # Whether settings are those of the training is told by its self-test.
    assert len(open_checkpoint(str(shards), LORA).digest) == 64
    edit_tensors(base / "model.safetensors", one_number)
    with pytest.raises(UserError, match="trained on other base weights"):
        _ = open_checkpoint(str(base), LORA).digest


def test_a_base_is_known_again_without_its_configuration_until_one_of_its_files_changes(
    base, hashed, monkeypatch
):
    read, calls = identity.plain_config, []
    monkeypatch.setattr(identity, "plain_config", lambda folder: (calls.append(1), read(folder))[1])
    first = base_digest(base)
    assert base_digest(base) == first and len(calls) == 1
    for number, name in enumerate(("config.json", "tokenizer.json", "model.safetensors"), 2):
        os.utime(base / name, (number, number))  # the same bytes
        assert base_digest(base) == first and len(calls) == number
    monkeypatch.setattr(identity, "versions", lambda *names: dict.fromkeys(names, "another"))
    assert base_digest(base) == first and len(calls) == 5
