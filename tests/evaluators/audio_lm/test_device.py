"""Precision and kernels follow what a card can do. No card: what torch says of one is put in its place."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from evaluators.audio_lm import device as devices
from evaluators.audio_lm import scorer
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.decoder import load_kernels
from evaluators.audio_lm.device import (
    has_kernels,
    limits,
    pick_device,
    pick_dtype,
    pick_training_dtype,
)
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.errors import UserError

CUDA = torch.device("cuda", 0)
OLD = {"Tesla V100-SXM2-32GB": (7, 0), "Tesla T4": (7, 5), "NVIDIA GeForce RTX 2080 Ti": (7, 5)}
NEW = {"NVIDIA A100": (8, 0), "NVIDIA GeForce RTX 4090": (8, 9), "NVIDIA H100": (9, 0)}


@pytest.fixture
def card(monkeypatch):
    """Lets torch tell of a card of so high a capability."""

    def put(name: str, capability: tuple[int, int]) -> None:
        about = SimpleNamespace(major=capability[0], name=name, total_memory=16 * 2**30)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: about)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)

    return put


@pytest.mark.parametrize(("name", "capability"), (OLD | NEW).items())
def test_auto_is_bfloat16_where_the_card_has_it_and_kernels_run_where_triton_does(
    card, name, capability
):
    card(name, capability)
    old = name in OLD
    assert pick_dtype("auto", CUDA) == (torch.float16 if old else torch.bfloat16)
    assert pick_training_dtype("auto", CUDA) == (torch.float32 if old else torch.bfloat16)
    assert has_kernels(CUDA) is not old
    if old:
        assert load_kernels(CUDA) is None  # before Triton is imported
    for given, dtype in devices.DTYPES.items():  # what is asked for is done
        assert pick_dtype(given, CUDA) == dtype
    lines = limits(CUDA, pick_dtype("auto", CUDA))
    assert len(lines) == (2 if old else 0)
    if old:
        assert all(name in line for line in lines)
        assert "no bfloat16: computed in float16" in lines[0] and "--dtype float32" in lines[0]
        assert "plain torch" in lines[1]
        assert "NaN" not in limits(CUDA, torch.float32)[0]


def test_training_in_bfloat16_is_refused_where_the_card_has_none(card):
    card("Tesla T4", (7, 5))
    with pytest.raises(UserError, match="Tesla T4 computes in; give --dtype float32"):
        pick_training_dtype("bfloat16", CUDA)
    assert pick_training_dtype("float32", CUDA) == torch.float32
    card("NVIDIA A100", (8, 0))
    assert pick_training_dtype("bfloat16", CUDA) == torch.bfloat16


@pytest.mark.parametrize("name", ["cpu", "mps"])
def test_other_devices_are_as_before(name):
    device = torch.device(name)
    assert pick_dtype("auto", device) == pick_training_dtype("auto", device) == torch.float32
    assert limits(device, torch.float32) == [] and not has_kernels(device)


def test_what_a_card_lacks_stands_beside_what_fits_its_memory(monkeypatch, card):
    card("Tesla T4", (7, 5))
    monkeypatch.setattr(scorer, "pick_device", lambda name: CUDA)
    monkeypatch.setattr(scorer, "estimate_seconds_per_eval", lambda *_: 1.0)
    about = AudioScorer(open_checkpoint("pocket-base")).about()
    assert about.dtype == "float16"
    assert "no bfloat16" in about.memory[-2] and "plain torch" in about.memory[-1]


def test_a_device_that_is_not_there_is_one_sentence():
    with pytest.raises(UserError, match="device 'cuda:99' cannot be used"):
        pick_device("cuda:99")
