"""Scorers on one base: scores to the bit as by itself, there and back; what depends on an adapter is not shared."""

import gc
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from adapters import BASE, EXACT, lora, make_adapter
from safetensors.torch import load_file, save_file

from evaluators.audio_lm import scorer
from evaluators.audio_lm.adapter_kinds import leaves_tower, own_numbers
from evaluators.audio_lm.adapters import beside, merge
from evaluators.audio_lm.checkpoint import POCKET, open_checkpoint
from evaluators.audio_lm.decoder import Decoder
from evaluators.audio_lm.families import QWEN2_AUDIO
from evaluators.audio_lm.loading import load_model
from evaluators.audio_lm.memory import can_share
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.shared_base import SharedBase
from evaluators.audio_lm.stock import config_7b
from evaluators.audio_lm.tower import AudioTower
from evaluators.errors import PauseError
from evaluators.evaluator import share

pytestmark = pytest.mark.tiny
CPU = torch.device("cpu")
LANGUAGE = lora(target_modules=r"model\.language_model\..*\.(q|down)_proj")
# It writes to most of what a base has; OLoRA, one of the slow ones, to its matrices.
QUICK = ("bias of all layers",)


def opened(name, **options):
    return AudioScorer(open_checkpoint(str(name)), "cpu", "bfloat16", **options)


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An adapter that brings a projector, a head and embeddings of its own."""
    return make_adapter(EXACT["all three, by full name"], tmp_path_factory.mktemp("whole") / "a")


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """An adapter of the language model alone."""
    return make_adapter(LANGUAGE, tmp_path_factory.mktemp("language") / "a", seed=1)


@pytest.fixture(scope="module")
def base():
    model = load_model(open_checkpoint(str(BASE)), QWEN2_AUDIO, CPU, torch.float32)
    Decoder(model)
    return model


@pytest.fixture(scope="module")
def alone(whole, language, seeds, dev_clips):
    """What each checkpoint says where it is loaded by itself."""
    names = (whole, "pocket-base", language)  # an adapter comes first
    return {name: opened(name).score(seeds[:1], dev_clips[:2]).logp for name in names}


@pytest.mark.parametrize(
    "title", [t if t in QUICK else pytest.param(t, marks=pytest.mark.slow) for t in EXACT]
)
def test_weights_beside_a_base_are_those_of_a_load_and_the_base_stays(title, base, tmp_path):
    folder = make_adapter(EXACT[title], tmp_path / "a")
    before = values(base)
    loaded = load_model(open_checkpoint(str(folder)), QWEN2_AUDIO, CPU, torch.float32)
    merge(loaded, torch.float32, False)
    made = beside(base, folder, torch.float32)
    Decoder(made)
    assert equal(values(made), values(loaded))
    assert equal(values(base), before)
    assert not equal(values(made), before)
    assert not made.training and not any(w.requires_grad for w in made.parameters())


def test_what_an_adapter_leaves_alone_is_the_bases_own_memory(base, language):
    made = beside(base, language, torch.float32)
    Decoder(made)
    first, other = (m.model.language_model.layers[0] for m in (base, made))
    for part in ("mlp.gate_proj", "mlp.up_proj", "self_attn.o_proj", "input_layernorm"):
        one, two = (layer.get_submodule(part).weight for layer in (first, other))
        assert one.data_ptr() == two.data_ptr()
    for part in ("mlp.down_proj", "self_attn.q_proj"):
        one, two = (layer.get_submodule(part).weight for layer in (first, other))
        assert one.data_ptr() != two.data_ptr()
    assert made.lm_head.weight.data_ptr() == base.lm_head.weight.data_ptr()


def test_scores_on_a_shared_base_are_those_by_itself_there_and_back(
    alone, seeds, dev_clips, monkeypatch
):
    names = list(alone)
    loads, real = [], scorer.load_plain
    monkeypatch.setattr(scorer, "load_plain", lambda *a: loads.append(a[0].adapter) or real(*a))
    scorers = {name: opened(name) for name in names}
    share(list(scorers.values()))
    for name in [*names, *names[::-1]]:
        got = scorers[name].score(seeds[:1], dev_clips[:2]).logp
        assert np.array_equal(got, alone[name]), name
        scorers[name].unload()  # as where a card has no room
    assert loads == [None]
    for name in names[:-1]:
        scorers[name].release()
    scorers[names[-1]].score(seeds[:1], dev_clips[:1])
    assert loads == [None]


def test_the_last_release_frees_the_base_and_a_later_score_loads_again(
    alone, language, seeds, dev_clips
):
    one, two = opened("pocket-base"), opened(language)
    share([one, two])
    weight, _ = weakref.ref(one.decoder.model.lm_head.weight), two.decoder
    one.release()
    gc.collect()
    assert weight() is not None
    two.release()
    gc.collect()
    assert weight() is None
    again = two.score(seeds[:1], dev_clips[:2]).logp
    assert np.array_equal(again, alone[language])


def test_audio_is_heard_once_by_one_tower_and_anew_by_another(
    alone, language, whole, seeds, dev_clips, monkeypatch
):
    heard, real = [], AudioTower.embed
    monkeypatch.setattr(
        AudioTower, "embed", lambda self, keys, *a: heard.extend(keys) or real(self, keys, *a)
    )
    counts = {}
    scorers = {name: opened(name) for name in ("pocket-base", language, whole)}
    share(list(scorers.values()))
    for name, one in scorers.items():
        before = len(heard)
        assert np.array_equal(one.score(seeds[:1], dev_clips[:2]).logp, alone[name])
        counts[name] = len(heard) - before
        one.release()
    assert list(counts.values()) == [2, 0, 2]


def test_two_checkpoints_of_different_bases_precisions_or_models_share_nothing(language):
    base = opened("pocket-base")
    same = [opened(language), opened("pocket-lora"), opened("pocket-base")]
    other = [
        AudioScorer(open_checkpoint("pocket-base"), "cpu", "float32"),
        opened("pocket-base", loaded=(object(), object())),
        opened("pocket-base", dequantize=True),
    ]
    four_bit = [
        AudioScorer(open_checkpoint("pocket-base", quantization="nf4"), "cpu") for _ in range(2)
    ]
    assert not four_bit[0].share_with(four_bit[1])  # they stay 4-bit on a CPU
    assert [base.share_with(one) for one in [*same, *other]] == [True] * 3 + [False] * 3


def test_a_scorer_that_shares_with_nobody_loads_its_adapter_into_its_weights(language, monkeypatch):
    monkeypatch.setattr(scorer, "beside", None)  # it needs more memory
    assert opened(language).decoder.model is not None


def test_where_a_card_has_no_room_the_others_give_theirs_back(monkeypatch):
    class User:
        unloaded = 0

        def unload(self):
            self.unloaded += 1

    base, users = SharedBase(), [User(), User(), User()]
    for user in users:
        base.join(user)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40, 100))
    base.make_room(users[1], 50, torch.device("cuda"))
    assert [user.unloaded for user in users] == [0, 0, 0]
    base.make_room(users[1], 51, CPU)
    assert [user.unloaded for user in users] == [0, 0, 0]
    base.make_room(users[1], 51, torch.device("cuda"))
    assert [user.unloaded for user in users] == [1, 0, 1]


def test_a_base_is_shared_where_it_fits_with_what_an_adapter_has_for_itself(monkeypatch):
    config = config_7b()
    assert can_share(config, "none", 80, 12.0) and not can_share(config, "none", 24, 3.0)
    assert can_share(config, "nf4", 80, 12.0)
    monkeypatch.setattr(scorer, "card_gib", lambda device: 1.0)
    fits = []
    monkeypatch.setattr(scorer, "can_share", lambda *a: fits.append(a[1:]) or False)
    assert not opened("pocket-lora").share_with(opened("pocket-base"))
    own = 2 * own_numbers(POCKET / "lora") / 2**30
    assert ("none", 1.0, own) in fits and ("none", 1.0, 0.0) in fits


def test_the_plan_says_what_is_held_once_and_what_is_a_checkpoints_own(monkeypatch):
    monkeypatch.setattr(scorer, "card_gib", lambda device: 80.0)
    monkeypatch.setattr(scorer, "own_numbers", lambda folder: 3 * 2**28)
    base, tuned = opened("pocket-base"), opened("pocket-lora")
    assert not any("once" in line for line in tuned.about().memory)
    share([base, tuned])
    said = (
        "the base's weights lie there once for 2 checkpoints, beside them 1.5 GiB of this one's own"
    )
    assert said in tuned.about().memory
    base.release()
    assert said not in tuned.about().memory


def test_what_is_an_adapters_own_is_known_from_its_files(language, whole, base):
    layer = base.model.language_model.layers[0]
    count = len(base.model.language_model.layers)
    sizes = layer.self_attn.q_proj.weight.numel() + layer.mlp.down_proj.weight.numel()
    assert own_numbers(language) == count * sizes
    assert leaves_tower(language) and not leaves_tower(whole)
    assert not leaves_tower(POCKET / "lora")


def test_who_came_after_the_base_was_changed_does_not_score_on_the_earlier_one(
    tmp_path, seeds, dev_clips
):
    path = Path(shutil.copytree(POCKET / "base", tmp_path / "base")) / "model.safetensors"
    scorers = [opened(path.parent) for _ in range(2)]
    share(scorers)
    earlier = scorers[0].fingerprint
    scorers[0].score(seeds[:1], dev_clips[:1])
    weights = {name: one.flip(-1) for name, one in load_file(path).items()}
    path.unlink()  # who has the earlier one open keeps it
    save_file(weights, path, metadata={"format": "pt"})
    assert scorers[1].fingerprint != earlier
    with pytest.raises(PauseError, match="were changed while they were in use"):
        scorers[1].score(seeds[:1], dev_clips[:1])


def test_what_one_scorer_made_of_a_changed_base_is_not_taken_by_the_others(
    tmp_path, seeds, dev_clips
):
    path = Path(shutil.copytree(POCKET / "base", tmp_path / "base")) / "model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})  # as it is computed: the file is mapped
    whole = path.read_bytes()
    expected = opened(path.parent).score(seeds[:1], dev_clips[1:2]).logp
    scorers = [opened(path.parent) for _ in range(2)]
    share(scorers)
    assert len({one.fingerprint for one in scorers}) == 1
    scorers[0].score(seeds[:1], dev_clips[:1])
    with path.open("r+b") as file:
        file.seek(len(whole) // 2)
        file.write(bytes(reversed(whole[len(whole) // 2 :])))
    with pytest.raises(PauseError, match="were changed while they were in use"):
        scorers[0].score(seeds[:1], dev_clips[1:2])
    path.write_bytes(whole)
    table = scorers[1].score(seeds[:1], dev_clips[1:2])
    np.testing.assert_array_equal(table.logp, expected)
