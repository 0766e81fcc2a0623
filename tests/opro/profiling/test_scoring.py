"""Scoring in parts is scoring at once, goes on after an interruption, and tells how far it is."""

import numpy as np
import pytest
from searches import half

from evaluators.cache import CachedEvaluator
from evaluators.errors import PauseError, PromptError
from evaluators.fakes import FakeEvaluator
from evaluators.tasks import SPEECH_TASK
from opro.profiling.scoring import TOGETHER, score, telling
from opro.profiling.wordings import sample

PROMPTS = [w.prompt for w in sample(SPEECH_TASK, 60, 0).wordings]
CLIPS = half("s", 8)


def test_parts_are_the_whole():
    told = []
    found = score(FakeEvaluator(), PROMPTS, CLIPS, lambda *given: told.append(given))
    assert np.array_equal(found.logp, FakeEvaluator().score(PROMPTS, CLIPS).logp)
    assert not found.failed and found.unlisted == 0
    assert [done for done, _ in told] == [TOGETHER, 2 * TOGETHER, len(PROMPTS)]
    assert told[0][1] is None and told[1][1] > 0 and told[2][1] == 0


def test_what_was_scored_before_an_interruption_is_kept(tmp_path):
    class Breaks(FakeEvaluator):
        def score(self, prompts, clips):
            if self.forwards >= TOGETHER * len(CLIPS):
                raise PauseError("the device is away")
            return super().score(prompts, clips)

    with pytest.raises(PauseError):
        score(CachedEvaluator(Breaks(), tmp_path), PROMPTS, CLIPS)
    evaluator = CachedEvaluator(FakeEvaluator(), tmp_path)
    assert evaluator.count_missing(PROMPTS, CLIPS) == (len(PROMPTS) - TOGETHER) * len(CLIPS)
    found = score(evaluator, PROMPTS, CLIPS)
    assert evaluator.usage.cached == TOGETHER * len(CLIPS)
    assert np.array_equal(found.logp, FakeEvaluator().score(PROMPTS, CLIPS).logp)


def test_a_prompt_that_cannot_be_asked_costs_no_other():
    class Picky(FakeEvaluator):
        def score(self, prompts, clips):
            if PROMPTS[30] in prompts:
                raise PromptError("no")
            return super().score(prompts, clips)

    found = score(Picky(), PROMPTS, CLIPS)
    assert found.failed == {30: "no"}
    assert np.isnan(found.logp).all(axis=(1, 2)).nonzero()[0].tolist() == [30]


def test_progress_is_ten_lines(capsys):
    told = telling("m", 400)
    for done in range(25, 401, 25):
        told(done, 100.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[0] == "m: 50 of 400 wordings, 2 min left"
    assert lines[-1] == "m: 400 of 400 wordings"
