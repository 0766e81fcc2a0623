"""What the search climbs. Only the helpers `measured`, `sliced`, `objective` call what is tested."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import clip, clip_set, half, logp_of
from sklearn import metrics as reference

from evaluators.classifier import sigmoid
from evaluators.statistics.compare import compare, estimate
from evaluators.targets import Predictions
from evaluators.tasks import SPEECH_TASK
from opro.search.objective import OBJECTIVES, Objective, slice_scores

KINDS = [(name, threshold) for name in OBJECTIVES for threshold in ("argmax", "dev")]


def measured(name, margin, truth, clips=None, threshold="argmax", bias=None):
    """(reward, right, bias, loss) of ``[clip]`` log-odds of the first label."""
    clips = clip_set(clips or [clip(i, t) for i, t in enumerate(truth)])
    assert clips.targets.truth.tolist() == list(truth)
    m = np.asarray(margin, float)
    logp = np.stack([-np.logaddexp(0, -m), -np.logaddexp(0, m)], -1)
    j = Objective(name, threshold).measure(logp, clips, bias)
    return SimpleNamespace(reward=j.reward, right=j.right, bias=j.bias, loss=j.loss)


def sliced(clips, truth, right):
    """Slice name -> (score, clips)."""
    return slice_scores(clip_set(clips), np.asarray(truth), np.asarray(right, bool))


def balanced(truth, right):
    truth, right = np.asarray(truth), np.asarray(right)
    return np.mean([right[truth == k].mean() for k in np.unique(truth)])


rows = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(-5, 5).map(lambda m: m + 0.5),
        st.sampled_from([200.0, 300.2, 1000.0]),
        st.sampled_from([None, -5.0, -2.0, 0.0, 2.4, 9.0, 10.0]),
        st.sampled_from(["voice", "music"]),
    ),
    min_size=2,
    max_size=30,
)


def unpacked(drawn):
    truth = np.array([r[0] for r in drawn])
    margin = np.array([r[1] for r in drawn])
    return truth, margin, [clip(i, t, d, s, c) for i, (t, _, d, s, c) in enumerate(drawn)]


def slices_written_out(truth, right, clips):
    """Balanced accuracy by whole ms, and by SNR to the nearest 5 dB, where both labels occur."""
    out = {}
    for name, key in (
        ("ms", lambda c: round(c.duration_ms)),
        ("dB", lambda c: None if c.snr_db is None else 5 * round(c.snr_db / 5)),
    ):
        for level in {key(c) for c in clips} - {None}:
            inside = np.array([key(c) == level for c in clips])
            if len(set(truth[inside])) == 2:
                out[name, level] = (balanced(truth[inside], right[inside]), int(inside.sum()))
    return out


@settings(max_examples=60, deadline=None)
@given(rows)
def test_rewards_of_hits_are_their_shares(drawn):
    truth, margin, clips = unpacked(drawn)
    right = (margin > 0) == (truth == 0)
    assert measured("accuracy", margin, truth, clips).reward == pytest.approx(right.mean())
    found = measured("balanced_accuracy", margin, truth, clips)
    assert found.reward == pytest.approx(balanced(truth, right))
    assert (found.right == right).all() and found.bias == 0


@settings(max_examples=60, deadline=None)
@given(rows)
def test_the_worst_slice_is_the_minimum_over_durations_and_noise_levels(drawn):
    truth, margin, clips = unpacked(drawn)
    right = (margin > 0) == (truth == 0)
    found = [score for score, _ in slices_written_out(truth, right, clips).values()]
    expected = min(found) if found else balanced(truth, right)
    assert measured("worst_slice", margin, truth, clips).reward == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(rows)
def test_slices_hold_score_and_number_of_their_clips(drawn):
    truth, margin, clips = unpacked(drawn)
    right = (margin > 0) == (truth == 0)
    expected = {
        f"{level} ms" if unit == "ms" else f"{level:+d} dB": value
        for (unit, level), value in slices_written_out(truth, right, clips).items()
    }
    for name in {c.category for c in clips}:
        inside = [c.category == name for c in clips]
        expected[name] = (right[inside].mean(), sum(inside))
    found = sliced(clips, truth, right)
    assert set(found) == set(expected)
    for name, (score, count) in expected.items():
        assert found[name] == (pytest.approx(score), count), name


def test_slices_stand_in_the_order_of_their_levels_durations_first():
    levels = [(1000.0, 10.0, "b"), (200.0, -5.0, "a"), (500.0, 0.0, "c"), (3000.0, 5.0, "a")]
    pairs = [(t, *level) for level in levels for t in (0, 1)]
    clips = [clip(i, *p) for i, p in enumerate(pairs)]
    found = list(sliced(clips, [p[0] for p in pairs], np.ones(8)))
    assert found == [
        "200 ms", "500 ms", "1000 ms", "3000 ms", "-5 dB", "+0 dB", "+5 dB", "+10 dB", "a", "b", "c"
    ]  # fmt: skip


def test_clips_from_life_are_sliced_in_groups_of_durations():
    """Each has a duration of its own: a slice of two clips says nothing, and its worst one less."""
    truth = np.arange(60) % 2
    clips = [clip(i, t, 200.0 + 7 * i, None) for i, t in enumerate(truth)]
    right = np.ones(60, bool)
    right[12:24] = truth[12:24] == 0  # the second fifth misses one label
    found = {k: v for k, v in sliced(clips, truth, right).items() if k.endswith(" ms")}
    assert next(iter(found)).startswith("200 to ") and len(found) == 5
    assert sum(count for _, count in found.values()) == 60
    assert [score for score, _ in found.values()] == pytest.approx([1, 0.5, 1, 1, 1])
    margin = np.where(right == (truth == 0), 2.0, -2.0)
    assert measured("worst_slice", margin, truth, clips).reward == pytest.approx(0.5)


def test_a_category_is_no_slice_that_the_worst_is_taken_of():
    truth = [0, 1] * 4
    clips = [clip(i, t, category="bad" if i < 2 else "good") for i, t in enumerate(truth)]
    margin = np.where(np.array(truth) == 0, 2.0, -2.0) * np.where(np.arange(8) < 2, -1, 1)
    assert measured("worst_slice", margin, truth, clips).reward == pytest.approx(0.75)


@settings(max_examples=60, deadline=None)
@given(rows.filter(lambda r: len({x[0] for x in r}) == 2))
def test_area_and_loss_equal_scikit_learn(drawn):
    truth, margin, clips = unpacked(drawn)
    area = reference.roc_auc_score(truth == 0, margin)
    assert measured("auroc", margin, truth, clips).reward == pytest.approx(area)
    own = np.log(np.where(truth == 0, 1, np.exp(-margin)) / (1 + np.exp(-margin)))
    loss = -np.mean([own[truth == k].mean() for k in (0, 1)])
    for name in OBJECTIVES:
        assert measured(name, margin, truth, clips).loss == pytest.approx(loss)
    assert measured("nll", margin, truth, clips).reward == pytest.approx(1 - loss)


@pytest.mark.parametrize("name", ["balanced_accuracy", "accuracy", "worst_slice"])
def test_a_fitted_threshold_forgives_a_shift_and_argmax_does_not(name):
    truth = np.array([0, 1] * 10)
    margin = np.where(truth == 0, 1.0, -1.0) + 4.0
    clips = [clip(i, t, source=f"s{i}") for i, t in enumerate(truth)]
    assert measured(name, margin, truth, clips).reward == pytest.approx(0.5)
    fitted = measured(name, margin, truth, clips, "dev")
    assert fitted.reward == pytest.approx(1.0) and fitted.bias == pytest.approx(-4.0)
    assert fitted.right.all()


def test_of_fewer_than_ten_sources_of_a_label_no_threshold_is_fitted():
    truth = np.array([0, 1] * 10)
    margin = np.where(truth == 0, 1.0, -1.0) + 4.0
    for sources, fits in ((9, False), (10, True)):
        clips = [clip(i, t, source=f"s{t}-{i // 2 % sources}") for i, t in enumerate(truth)]
        assert Objective("accuracy", "dev").fits(clip_set(clips)) == fits
        found = measured("accuracy", margin, truth, clips, "dev")
        assert found.bias == pytest.approx(-4.0 if fits else 0.0)
        assert not Objective("accuracy", "argmax").fits(clip_set(clips))
        assert not Objective("nll", "dev").fits(clip_set(clips))


@pytest.mark.parametrize("threshold", ["argmax", "dev"])
@pytest.mark.parametrize("bias", [0.0, -2.5])
def test_a_threshold_fitted_elsewhere_is_taken_as_it_is(threshold, bias):
    truth = np.array([0, 1, 0, 1])
    margin = np.array([5.0, 2.0, 3.0, 4.0])
    found = measured("balanced_accuracy", margin, truth, None, threshold, bias)
    right = ((margin + bias) > 0) == (truth == 0)
    assert (found.right == right).all() and found.bias == bias
    assert found.reward == pytest.approx(balanced(truth, right))


def test_a_shift_changes_neither_area_nor_loss():
    truth, margin = np.array([0, 1, 0, 1]), np.array([2.0, 1.0, -1.0, 0.5])
    for name in ("auroc", "nll"):
        one, two = (measured(name, margin, truth, None, bias=b) for b in (0.0, -3.0))
        assert one.reward == two.reward and one.loss == two.loss


@pytest.mark.parametrize(("name", "threshold"), KINDS)
def test_only_a_reward_that_is_a_sum_over_clips_says_so(name, threshold):
    """Of such a reward, one more hit never lowers it and adds the clip's weight."""
    one = Objective(name, threshold)
    assert one.sums_hits == (name in ("accuracy", "balanced_accuracy") and threshold == "argmax")
    if one.sums_hits:
        truth = np.array([0, 0, 0, 1])
        weight = one.weights(truth)
        expected = [1 / 4] * 4 if name == "accuracy" else [1 / 6] * 3 + [1 / 2]
        assert weight == pytest.approx(expected)
        for hit in range(4):
            right = np.arange(4) == hit
            margin = np.where((truth == 0) == right, 1.0, -1.0)
            assert measured(name, margin, truth).reward == pytest.approx(weight[hit])


@pytest.mark.parametrize(("name", "threshold"), KINDS)
def test_the_proposer_is_told_the_score_in_force_and_the_classes(name, threshold):
    text = Objective(name, threshold).describe(SPEECH_TASK)
    told = [other for other, words in OBJECTIVES.items() if f"The score is {words}." in text]
    assert told == [name]
    assert ", ".join(SPEECH_TASK.labels) in text
    assert ("tuned for each prompt" in text) == (threshold == "dev" and name != "nll")


def test_unless_told_otherwise_balanced_accuracy_without_a_fitted_threshold_is_climbed():
    assert Objective() == Objective("balanced_accuracy", "argmax")


@pytest.mark.parametrize("name", ["nll", "auroc"])
def test_answers_too_sure_for_a_probability_have_the_value_that_is_climbed(name):
    """Beyond 37 nats a probability is 0 or 1: the log-odds still tell how wrong an answer is, and rank it."""
    clips = half("s", 40)
    odds = np.where(clips.targets.truth == 0, 50.0, 40.0)
    odds[0] = -45.0
    said = Predictions("", clips.targets, np.where(odds > 0, 0, 1), sigmoid(odds), odds)
    climbed = Objective(name).measure(logp_of(odds), clips).reward
    assert estimate(said, name).value == pytest.approx(climbed, abs=1e-4)


def test_a_worst_slice_without_a_mistake_has_an_interval_of_some_width():
    clips = half("s", 80).targets
    right = Predictions("", clips, clips.truth.copy())
    first = Predictions("", clips, np.zeros(80, int))
    for whole, one in ((1.0, right), (0.5, first)):
        found = estimate(one, "worst_slice")
        assert found.value == whole and found.low < estimate(one).low and found.high > whole - 1e-9
    gain = compare(right, first, "worst_slice")
    assert gain.value == 0.5 and gain.low < 0.4 and gain.p < 0.025
