"""Weights that are read in blocks are those of the file; 4-bit ones that are kept, too."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evaluators import files
from evaluators.audio_lm import kept_weights, loading, weight_reader
from evaluators.audio_lm.adapters import merge
from evaluators.audio_lm.checkpoint import POCKET, open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO
from evaluators.audio_lm.kept_weights import is_whole, keep, kept_folder
from evaluators.audio_lm.model_folder import read_model, shards, tensor_places
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.weight_reader import TYPES, WeightReader
from evaluators.errors import PauseError, UserError

BASE, CPU = POCKET / "base", torch.device("cpu")
FILES = [path for path, _ in shards(BASE, "the pocket checkpoint")]


@pytest.fixture(scope="module")
def stored():
    return {name: one for path in FILES for name, one in load_file(path).items()}


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_tensors_of_any_type_and_shape_are_those_of_the_file(tmp_path_factory, data):
    shapes = st.lists(st.integers(0, 7), max_size=3)
    drawn = data.draw(
        st.lists(st.tuples(st.sampled_from(sorted(TYPES)), shapes), min_size=1, max_size=5)
    )
    found = {
        f"{number}": torch.randint(0, 2, shape).to(TYPES[kind])
        for number, (kind, shape) in enumerate(drawn)
    }
    path = tmp_path_factory.mktemp("read") / "model.safetensors"
    save_file(found, path)
    reader = WeightReader([path], CPU)
    for name, tensor in found.items():
        read = reader.tensors[name]
        assert read.get_shape() == list(tensor.shape) and TYPES[read.get_dtype()] == tensor.dtype
        assert torch.equal(read[...], tensor) and read[...].dtype == tensor.dtype  # also twice
    reader.close()


def test_a_model_is_the_same_by_transformers_own_reading_and_by_blocks(stored, monkeypatch):
    monkeypatch.setattr(weight_reader, "BLOCK", 100_000)
    kind = transformers.Qwen2AudioForConditionalGeneration
    options = {"dtype": torch.bfloat16, "device_map": {"": CPU}}
    reader = WeightReader(FILES, CPU)
    assert reader.tensors.keys() == stored.keys()
    with torch.inference_mode():
        ours, theirs = (
            read_model(kind, BASE, reader.tensors, **options),
            read_model(kind, BASE, **options),
        )
    reader.close()
    one, other = ours.state_dict(), theirs.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert ours.name_or_path == theirs.name_or_path
    assert ours.config.to_dict() == theirs.config.to_dict()


@pytest.mark.parametrize("small", [0, 2**16])
@pytest.mark.parametrize("ahead", [0, 10**5, 10**9])
def test_tensors_that_are_read_ahead_are_those_of_the_file_in_any_order(
    stored, monkeypatch, ahead, small
):
    monkeypatch.setattr(weight_reader, "AHEAD", ahead)
    monkeypatch.setattr(weight_reader, "SMALL", small)
    begun = []
    begin = WeightReader._begin
    monkeypatch.setattr(
        WeightReader, "_begin", lambda self, place: (begun.append(1), begin(self, place))[1]
    )
    reader = WeightReader(FILES, CPU)
    names = sorted(stored, key=lambda name: (len(name), name))
    taken = reader.all(names)
    first = next(taken)
    assert (len(begun) == 1) == (ahead == 0)
    read = [first, *taken]
    reader.close()
    assert [name for name, _ in read] == names
    assert all(torch.equal(tensor, stored[name]) for name, tensor in read)


def test_a_scorer_of_weights_read_in_blocks_has_the_same_scores(seeds, dev_clips, monkeypatch):
    prompts, clips = seeds[:1], dev_clips[:3]
    expected = AudioScorer(open_checkpoint("pocket-lora"), "cpu").score(prompts, clips).logp
    made = []

    class Noted(WeightReader):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(kept_weights, "can_read", lambda *_: True)
    monkeypatch.setattr(kept_weights, "WeightReader", Noted)
    scorer = AudioScorer(open_checkpoint("pocket-lora"), "cpu")
    assert (scorer.score(prompts, clips).logp == expected).all()
    assert [reader._files for reader in made] == [{}]  # one, which is closed


def test_threads_may_write_to_a_tensor_that_is_read_while_scores_are_made(monkeypatch):
    given = []
    monkeypatch.setattr(weight_reader, "SMALL", 0)
    monkeypatch.setattr(
        WeightReader, "_copy", lambda self, place, first, into, free: given.append(into)
    )
    reader = WeightReader(FILES, CPU)
    with torch.inference_mode():
        next(iter(reader.tensors.values()))[...]
    reader.close()
    assert given and not any(block.is_inference() for block in given)


@pytest.mark.parametrize("small", [0, 2**30])
def test_a_file_that_becomes_shorter_is_one_sentence(tmp_path, monkeypatch, small):
    monkeypatch.setattr(weight_reader, "SMALL", small)
    path = shutil.copy(FILES[0], tmp_path / "model.safetensors")
    places = tensor_places(path)
    name = max(places, key=lambda name: places[name].end)
    reader = WeightReader([path], CPU)
    with path.open("r+b") as file:
        file.truncate(places[name].end - 1)
    with pytest.raises(UserError, match="became shorter while it was read"):
        reader.read(places[name])
    reader.close()


@pytest.mark.parametrize("small", [0, 2**30])
def test_a_disk_that_does_not_give_a_tensor_is_one_sentence(monkeypatch, small):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(weight_reader, "SMALL", small)
    monkeypatch.setattr(os, "preadv", fail)
    reader = WeightReader(FILES, CPU)
    with pytest.raises(PauseError, match=r"model.safetensors' cannot be read \(Input/output error"):
        next(reader.all(reader.tensors))
    reader.close()


def test_closing_waits_for_what_a_card_still_fetches(monkeypatch):
    reader, waited = WeightReader(FILES, CPU), []
    reader._device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    reader.close()
    assert waited == [reader._device]


def test_no_file_stays_open_where_another_cannot_be_opened(tmp_path, monkeypatch):
    opened, real = [], os.open

    def one_alone(path, flags):
        if opened:
            raise OSError(24, "Too many open files")
        opened.append(real(path, flags))
        return opened[0]

    for number in (1, 2):
        save_file({f"{number}": torch.zeros(1)}, tmp_path / f"{number}.safetensors")
    monkeypatch.setattr(os, "open", one_alone)
    with pytest.raises(PauseError, match=r"safetensors' cannot be read \(Too many open files"):
        WeightReader(sorted(tmp_path.iterdir()), CPU)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(*opened)


@pytest.fixture
def four_bits(monkeypatch, tmp_path):
    """A checkpoint whose 4-bit weights are worth keeping, in a cache of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_weights, "LEAST", 0)
    return replace(open_checkpoint("pocket-base"), quantization="nf4")


def test_what_is_kept_goes_by_all_that_it_is_made_of(four_bits, monkeypatch, tmp_path):
    def folder(checkpoint=four_bits, dtype=torch.bfloat16):
        return kept_folder(checkpoint, dtype, CPU)

    copied = shutil.copytree(BASE, tmp_path / "elsewhere")
    found = folder()
    assert found.is_relative_to(tmp_path / "cache")
    assert folder(replace(four_bits, base=copied)) == found
    assert folder(dtype=torch.float16) != found
    assert folder(replace(four_bits, quantization="none")) is None
    with monkeypatch.context() as other:
        other.setattr(kept_weights, "versions", lambda *names: dict.fromkeys(names, "another"))
        assert folder() != found
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-5
    (copied / "config.json").write_text(json.dumps(config))
    assert folder(replace(four_bits, base=copied)) != found
    monkeypatch.setattr(kept_weights, "LEAST", 10**9)
    assert folder() is None


class Saved:
    """Saves as a model does; in between another thing happens."""

    def __init__(self, meanwhile=lambda: None):
        self.meanwhile = meanwhile

    def save_pretrained(self, folder, max_shard_size):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        self.meanwhile()


def kept_beside(folder):
    """What lies beside kept weights but the lock."""
    return [
        path for path in folder.parent.iterdir() if path not in (folder, folder.with_name("lock"))
    ]


def test_only_what_is_whole_is_used_and_a_full_disk_only_costs_time(four_bits, caplog):
    def full():
        raise OSError(28, "No space left on device")

    folder = kept_folder(four_bits, torch.bfloat16, CPU)
    assert not is_whole(folder)
    keep(Saved(full), folder)
    assert not folder.exists() and "No space left" in caplog.text
    keep(Saved(), folder)
    assert is_whole(folder) and f"4-bit weights are kept in {folder}" in caplog.text
    (folder / "model.safetensors").write_bytes(b"weight")
    assert not is_whole(folder)
    keep(Saved(), folder)
    assert is_whole(folder)
    (folder / "made.json").write_text("{")
    assert not is_whole(folder)
    keep(Saved(), folder)
    assert is_whole(folder) and not kept_beside(folder)


def test_a_kept_file_that_another_took_the_place_of_is_not_used(four_bits):
    folder = kept_folder(four_bits, torch.bfloat16, CPU)
    keep(Saved(), folder)
    path = folder / "model.safetensors"
    before = path.stat()
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as archives are unpacked
    assert not is_whole(folder)


def test_one_process_keeps_and_another_says_nothing_of_it(four_bits, caplog):
    folder = kept_folder(four_bits, torch.bfloat16, CPU)
    second = []

    def another():
        keep(Saved(lambda: second.append("wrote")), folder)

    keep(Saved(another), folder)
    keep(Saved(lambda: second.append("wrote")), folder)  # it is whole
    assert is_whole(folder) and not second and not kept_beside(folder)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("left", ["new", "5642"])
def test_what_an_interrupted_or_killed_process_was_keeping_takes_no_room(four_bits, left):
    def interrupted():
        raise KeyboardInterrupt

    folder = kept_folder(four_bits, torch.bfloat16, CPU)
    with pytest.raises(KeyboardInterrupt):
        keep(Saved(interrupted), folder)
    assert not folder.exists() and not kept_beside(folder)
    Saved().save_pretrained(folder.with_name(f"{'0' * 32}.{left}"), "")
    keep(Saved(), folder)
    assert is_whole(folder) and not kept_beside(folder)


def test_kept_weights_are_on_disk_before_they_have_their_name(four_bits, monkeypatch):
    seen, folder = [], kept_folder(four_bits, torch.bfloat16, CPU)
    monkeypatch.setattr(files, "_sync", lambda path: seen.append((path.name, folder.exists())))
    keep(Saved(), folder)
    assert {("model.safetensors", False), ("made.json", False)} <= {*seen} and is_whole(folder)


class Read(torch.nn.Linear):
    """A model that was read; it counts how often it is saved."""

    def __init__(self, saved):
        super().__init__(1, 1)
        self.saved = saved

    def save_pretrained(self, folder, max_shard_size):
        Saved().save_pretrained(folder, max_shard_size)
        self.saved.append(folder)


def test_weights_that_are_changed_while_they_are_read_are_not_kept_under_their_earlier_name(
    four_bits, monkeypatch, tmp_path
):
    copied = Path(shutil.copytree(BASE, tmp_path / "base"))
    path, saved = copied / "model.safetensors", []
    whole, checkpoint = path.read_bytes(), replace(four_bits, base=copied)
    monkeypatch.setattr(transformers, "BitsAndBytesConfig", dict)
    monkeypatch.setattr(loading, "check_once", lambda *_: None)
    meanwhile = [whole[:-1] + bytes([whole[-1] ^ 1]), whole]

    def read(*_, **__):
        path.write_bytes(meanwhile.pop(0))
        return Read(saved)

    monkeypatch.setattr(loading, "read_model", read)
    for count in (0, 1):
        path.write_bytes(whole)
        loading.load_model(checkpoint, QWEN2_AUDIO, CPU, torch.bfloat16)
        assert len(saved) == count


def test_kept_4_bit_weights_are_those_that_are_made_anew(four_bits, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(kept_weights, "SHARD", "3MB")
    made = []
    for blocks in (False, False, True):
        with monkeypatch.context() as reading:
            reading.setattr(kept_weights, "can_read", lambda *_, blocks=blocks: blocks)
            made.append(loading.load_model(four_bits, QWEN2_AUDIO, CPU, torch.bfloat16))
        merge(made[-1], torch.bfloat16, True)
    assert is_whole(kept_folder(four_bits, torch.bfloat16, CPU))
    states = [model.state_dict() for model in made]
    assert all(
        torch.equal(state[name], tensor)
        for state in states[1:]
        for name, tensor in states[0].items()
    )


@pytest.mark.parametrize("blocks", [False, True])
def test_what_says_how_to_read_a_weight_comes_first_though_it_lies_in_a_later_file(
    tmp_path, monkeypatch, blocks
):
    monkeypatch.setattr(kept_weights, "can_read", lambda *_: blocks)
    files = {"a.weight": "model-1.safetensors", "a.weight.absmax": "model-2.safetensors"}
    for name, file in files.items():
        save_file({name: torch.zeros(4)}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    names = [name for name, _ in kept_weights.stored_tensors(tmp_path, CPU)]
    assert names == ["a.weight.absmax", "a.weight"]
