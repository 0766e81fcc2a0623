"""The training plan picks the fastest way that fits."""

from dataclasses import replace

import pytest

from evaluators.audio_lm.stock import config_7b
from evaluators.finetuning.memory import RowLength, plan_training

ROW = RowLength(tokens=85, audio=25)


def test_what_fits_which_card():
    config = config_7b()
    small = plan_training(config, ROW, 8, batch=16, quantization="nf4")
    large = plan_training(config, ROW, 80, batch=16, quantization="nf4")
    assert small.checkpointing and not small.expand and small.gib < 8
    fastest = replace(large, expand=True, micro_batch_size=16, checkpointing=False)
    assert large == fastest and large.row == ROW
    assert plan_training(config, ROW, 12, batch=16) is None


@pytest.mark.parametrize(
    ("quantization", "gib", "line"),
    [  # as before the plan moved here
        ("nf4", 8, "about 7.2 GiB of 8.0: 8 samples at once, gradient checkpointing"),
        ("nf4", 24, "about 18.5 GiB of 24.0: 16 samples at once"),
        ("none", 80, "about 28.2 GiB of 80.0: 16 samples at once"),
    ],
)
def test_plans_for_the_7b_stay(quantization, gib, line):
    plan = plan_training(config_7b(), ROW, gib, batch=16, quantization=quantization)
    assert plan.line() == line


def test_a_given_micro_batch_size_and_a_cpu():
    plan = plan_training(config_7b(), ROW, None, batch=16, micro_batch_size=4)
    assert plan.micro_batch_size == 4 and plan.room is None and not plan.checkpointing
    assert " of " not in plan.line()
    full = plan_training(config_7b(), ROW, None, batch=16, loss="full", micro_batch_size=4)
    assert full.gib > plan.gib
