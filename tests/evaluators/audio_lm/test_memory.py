"""The memory plan agrees with what the evaluator does, and with what was measured."""

import pytest

from evaluators.audio_lm.memory import CARDS_GIB, Shape, plan_memory, shape_for, should_dequantize
from evaluators.audio_lm.stock import config_7b


@pytest.fixture(scope="module")
def config():
    return config_7b()


def test_weights_of_the_7b_shape_are_counted_right(config):
    plain = plan_memory(config, "none", 80)
    assert plain.weights_gib == pytest.approx(8_397_094_912 * 2 / 2**30, rel=0.01)
    assert plan_memory(config, "nf4", 12).weights_gib == pytest.approx(5.8, abs=0.1)


def test_what_fits_which_card(config):
    fits = {gib: plan_memory(config, "nf4", gib).fits for gib in CARDS_GIB}
    assert all(fits.values())
    assert not plan_memory(config, "none", 12).fits
    assert "does not fit" in plan_memory(config, "none", 8).line()
    for gib in CARDS_GIB:
        plan = plan_memory(config, "nf4", gib)
        assert plan.weights_gib + plan.batch_gib + plan.cache_gib < gib
        assert f"{plan.clips:,} clips" in plan.line()


def test_larger_cards_hold_more_and_only_they_dequantize(config):
    plans = [plan_memory(config, "nf4", gib) for gib in CARDS_GIB]
    plain = [plan_memory(config, "none", gib).clips for gib in CARDS_GIB]
    assert plain == sorted(plain) and plain[:2] == [0, 0] and plain[2] > 0
    assert [p.weights for p in plans] == ["nf4", "nf4"] + ["nf4, expanded to bf16"] * 2
    assert not should_dequantize(config, 12) and should_dequantize(config, 24)


def test_shapes_halve():
    assert Shape(1024, 64, 512).halved() == Shape(512, 32, 256)
    assert (
        shape_for(None).tokens < shape_for(8).tokens < shape_for(16).tokens < shape_for(80).tokens
    )
