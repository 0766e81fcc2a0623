"""The self-test passes what rounding explains and nothing else."""

import numpy as np
import pytest

from evaluators.audio_lm.selftest import EXACT, ROUGH, compare
from evaluators.errors import UserError

CONFIDENT = [[-1e-4, -9.2], [-14.0, -2e-6]]
UNSURE = [[-0.7, -0.7], [-1.2, -0.4]]


@pytest.mark.parametrize(
    ("then", "now", "allowed", "passes"),
    [
        (CONFIDENT, [[-1.2e-4, -9.0], [-12.9, -3e-6]], ROUGH, True),  # of another card, in bfloat16
        (CONFIDENT, [[-1e-4, -9.205], [-13.99, -2e-6]], EXACT, True),
        (CONFIDENT, [[-9.2, -1e-4], [-2e-6, -14.0]], ROUGH, False),  # the other answer
        (CONFIDENT, [[-1e-4, -9.2], [-5.0, -7e-3]], ROUGH, False),  # as sure, but another model
        (CONFIDENT, [[-1e-4, -8.0], [-14.0, -2e-6]], EXACT, False),
        (UNSURE, [[-0.8, -0.62], [-1.25, -0.41]], ROUGH, True),
        (UNSURE, [[-0.5, -1.0], [-1.2, -0.4]], ROUGH, False),
        (UNSURE, [[-0.702, -0.7], [-1.2, -0.4]], EXACT, False),
        (UNSURE, [[-0.7005, -0.7], [-1.2, -0.4]], EXACT, True),
        (UNSURE, [[np.nan, -0.7], [-1.2, -0.4]], ROUGH, False),
    ],
)
def test_what_is_the_same_model(then, now, allowed, passes):
    if passes:
        compare(np.array(then), np.array(now), allowed, "checkpoint 'x'")
        return
    with pytest.raises(UserError, match="checkpoint 'x' does not load as the model that was"):
        compare(np.array(then), np.array(now), allowed, "checkpoint 'x'")
