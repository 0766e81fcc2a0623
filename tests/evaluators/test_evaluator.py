"""Scores, and the one way from scores to decisions."""

from dataclasses import replace

import numpy as np
import pytest
from common import LABELS
from hypothesis import given
from hypothesis import strategies as st

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.cache import CachedEvaluator
from evaluators.classifier import Calibration, Classifier, log_odds
from evaluators.evaluator import About, ScoreTable, Uncached, Usage, Work, share
from evaluators.fakes import FakeEvaluator
from evaluators.orders import BothOrders
from evaluators.prompts import Prompt
from evaluators.several import PerCheckpoint


@pytest.fixture
def table(seeds, dev_clips):
    return FakeEvaluator().score(seeds, dev_clips[:20])


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("bias", [0.0, -0.7, 40.0])
@pytest.mark.parametrize("calibration", [None, Calibration(3.0, 0.4)])
def test_predictions_are_the_classifiers_on_the_row_of_its_prompt(table, row, bias, calibration):
    one = Classifier(table.prompts[row], bias, calibration)
    said = table.predict(one)
    assert np.array_equal(said.decided, one.decide(table.logp[row]))
    assert np.array_equal(said.probability, one.probability(table.logp[row]))
    assert np.array_equal(said.score, log_odds(table.logp[row]))
    assert said.name == one.prompt_id and table.predict(one, "mine").name == "mine"


def test_a_prompt_that_was_not_scored_is_a_key_error(table):
    other = Prompt("Another question? A) yes B) no")
    with pytest.raises(KeyError, match=f"prompt {other.prompt_id} was not scored"):
        table.predict(Classifier(other))


def test_a_prompt_is_found_by_its_content_and_its_order_is_a_part_of_it(table):
    first = table.prompts[0]
    again = Prompt(first.text, first.answers, first.system)
    assert np.array_equal(
        table.predict(Classifier(again)).decided, table.predict(Classifier(first)).decided
    )
    with pytest.raises(KeyError):
        table.predict(Classifier(Prompt(first.text, first.answers, first.system, True)))


def test_targets_are_those_of_the_clips_in_their_order(table, dev_clips):
    t = table.targets
    assert t.labels == LABELS and t.clip_ids == tuple(c.clip_id for c in dev_clips[:20])
    assert [LABELS[k] for k in t.truth] == [c.label for c in dev_clips[:20]]
    assert t.sources.tolist() == [c.source_id for c in dev_clips[:20]]
    assert table.predict(Classifier(table.prompts[1])).targets is t


def test_the_rest_of_the_probability_is_outside(seeds, dev_clips):
    logp = np.log(np.array([[[0.5, 0.3], [0.1, 0.1]]], np.float32))
    table = ScoreTable(tuple(seeds[:1]), tuple(dev_clips[:2]), logp, logp)
    assert table.outside == pytest.approx(np.array([[0.2, 0.8]]), abs=1e-6)
    assert table.outside.dtype == np.float32


usages = st.builds(Usage, *[st.integers(0, 1000)] * 3)


@given(usages, usages)
def test_usages_are_added_member_by_member(a, b):
    total = a + b
    assert total.requested == a.requested + b.requested
    assert (total.cached, total.forward) == (a.cached + b.cached, a.forward + b.forward)
    assert sum([a, b], Usage()) == total


def test_work_is_milliseconds_an_eval_and_a_share_of_the_measured_rate():
    work = Work(evals=2000, seconds=4.0, flop=6e12, rate=3e12)
    assert work.ms == 2.0 and work.share == 0.5
    assert replace(work, rate=0.0).share is None  # not measured
    assert Work().ms == 0.0 and Work().share is None
    more = work.after(Work(1000, 1.0, 1e12))
    assert more == Work(3000, 5.0, 7e12, 3e12) == Work(1000, 1.0, 1e12).after(work)


def test_the_work_of_several_checkpoints_is_their_sum():
    class Counting(FakeEvaluator):
        def __init__(self, work):
            super().__init__()
            self.work = work

        def about(self):
            return About(work=self.work)

    made = [Counting(Work(10, 1.0, 5.0, 2.0)), Counting(None), Counting(Work(20, 3.0, 7.0))]
    several = PerCheckpoint({str(n): one for n, one in enumerate(made)})
    assert several.about().work == Work(30, 4.0, 12.0, 2.0)
    assert PerCheckpoint({"one": made[1]}).about().work is None


def test_what_computes_its_scores_itself_counts_all_of_them_and_holds_nothing(seeds, dev_clips):
    one = FakeEvaluator()
    assert isinstance(one, Uncached) and one.innermost is one and one.usage == Usage()
    assert one.count_missing(seeds, dev_clips[:4]) == 12
    one.score(seeds, dev_clips[:4])
    assert one.usage == Usage(12, 0, 12) and one.count_missing(seeds, dev_clips[:4]) == 12
    one.release()
    assert one.about() == About() and one.about().checkpoint is None
    assert (About().device, About().dtype, About().seconds_per_eval) == ("none", "none", None)


class Sharing(FakeEvaluator):
    """It shares with those of its kind alone, and notes whom it is asked about."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.asked = kind, []

    def share_with(self, other):
        self.asked.append(other)
        return isinstance(other, Sharing) and other.kind == self.kind


def test_each_shares_with_the_first_of_its_kind_behind_cache_and_orders(tmp_path):
    a, b, fake, c, d = (Sharing("x"), Sharing("y"), FakeEvaluator(), Sharing("y"), Sharing("x"))
    joint = PerCheckpoint({"one": Sharing("x")})  # one prompt for several is no single model
    share(
        [a, BothOrders(CachedEvaluator(b, tmp_path)), fake, joint, CachedEvaluator(c, tmp_path), d]
    )
    assert (a.asked, b.asked, c.asked, d.asked) == ([], [a], [a, b], [a])
    assert joint.evaluators["one"].asked == []
    assert not FakeEvaluator().share_with(FakeEvaluator())


WRAPPERS = [
    lambda inner, folder: CachedEvaluator(inner, folder),
    lambda inner, folder: BothOrders(CachedEvaluator(inner, folder)),
    lambda inner, folder: PerCheckpoint({"one": CachedEvaluator(inner, folder)}),
]


class Known(FakeEvaluator):
    released = 0

    def about(self):
        return About(device="abacus", seconds_per_eval=2.0)

    def release(self):
        self.released += 1


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_pass_on_what_they_wrap(wrap, tmp_path):
    inner = Known()
    outer = wrap(inner, tmp_path)
    assert outer.innermost is inner and outer.about() == inner.about()
    outer.release()
    assert inner.released == 1 and outer.usage == Usage()


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_usage_and_missing_pairs_add_up(wrap, tmp_path, seeds, dev_clips):
    outer = wrap(FakeEvaluator(), tmp_path)
    clips = [replace(c, checkpoint="one") for c in dev_clips[:7]]
    missing = outer.count_missing(seeds, clips)
    assert missing in (7 * len(seeds), 2 * 7 * len(seeds))
    outer.score(seeds, clips)
    assert outer.usage == Usage(missing, 0, missing) and outer.count_missing(seeds, clips) == 0
    outer.score(seeds, clips)
    assert outer.usage == Usage(2 * missing, missing, missing)


def test_an_evaluator_without_a_cache_sends_every_pair_through_the_model(seeds, dev_clips):
    fake = FakeEvaluator()
    assert fake.innermost is fake and fake.about() == About()
    assert fake.count_missing(seeds, dev_clips[:5]) == 5 * len(seeds)
    fake.score(seeds, dev_clips[:5])
    assert fake.usage == Usage(5 * len(seeds), 0, 5 * len(seeds))


@pytest.mark.tiny
def test_a_scorer_tells_of_itself_without_loading_and_loads_again_after_a_release(seeds, dev_clips):
    from evaluators.audio_lm.scorer import AudioScorer

    scorer = AudioScorer(open_checkpoint("pocket-base"), "cpu", "float32")
    about = scorer.about()
    assert scorer._loaded is None
    assert (about.device, about.dtype, about.batch_tokens) == ("cpu", "float32", 768)
    assert about.checkpoint is scorer.checkpoint and about.memory and about.seconds_per_eval > 0
    whole = scorer.score(seeds, dev_clips[:4]).logp
    scorer.release()
    assert scorer._loaded is None
    assert np.array_equal(scorer.score(seeds, dev_clips[:4]).logp, whole)
