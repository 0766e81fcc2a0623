"""The decision on the fresh half. Only the helpers `decided` and `verdict` call what is tested."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import LABELS
from scipy import stats
from statsmodels.stats.multitest import multipletests

from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.evaluator import ScoreTable
from evaluators.prompts import Prompt
from evaluators.statistics import metrics
from evaluators.statistics.resampling import clusters
from opro.search import select
from opro.search.history import Candidate, Trial
from opro.search.objective import Reward


class Planted:
    """Answers as it is told: `margin` ``[prompt number][clip]`` log-odds of the first label, by what is heard."""

    def __init__(self, margin, heard):
        self.margin, self.heard, self.asked = margin, heard, []

    def score(self, prompts, clips):
        audio = clips[0].audio
        self.asked.append((audio, tuple(p.text for p in prompts), tuple(clips)))
        table = self.margin if audio == "recorded" else self.heard[audio]
        place = [int(c.clip_id) for c in clips]
        m = np.array([np.asarray(table[int(p.text.split()[1])])[place] for p in prompts])
        logp = np.stack([-np.logaddexp(0, -m), -np.logaddexp(0, m)], -1).astype(np.float32)
        return ScoreTable(tuple(prompts), tuple(clips), logp, logp)


def half(per_label=20, clips=4):
    """(clips, truth, sources) of so many sources a label."""
    truth = np.tile(np.repeat([0, 1], clips), per_label)
    sources = [f"s{i // clips}" for i in range(len(truth))]
    made = [
        Clip(str(i), Path(f"{i}.wav"), LABELS[t], "x", 500.0, None, "c", s, "dev", "CC0", "0" * 64)
        for i, (t, s) in enumerate(zip(truth, sources, strict=True))
    ]
    return made, truth, sources


def margins_of(truth, right):
    """Log-odds that decide right where `right` is true."""
    sign = np.where(truth == 0, 1.0, -1.0)
    return 2 * sign * np.where(right, 1, -1)


def trial(number, reward, iteration=1, bias=0.0, sd=0.0, nll=0.5, text=""):
    return Trial(
        number, iteration, Candidate(Prompt(text or f"Prompt {number:03d}"), "x"), "complete",
        reward=reward, sd=sd, nll=nll, bias=bias,
    )  # fmt: skip


def decided(scored, margin, fresh, heard=None, seed=0):
    """What the selection says, in plain values. Numbers are those of trials."""
    still = {k: np.zeros(len(fresh)) for k in margin}
    evaluator = Planted(margin, heard or {"silence": still, "shuffled": still})
    s = select.select(evaluator, scored, fresh, LABELS, Reward(), seed)
    return SimpleNamespace(
        baseline=s.baseline.number,
        finalists=[f.trial.number for f in s.finals],
        chosen=None if s.chosen is None else s.chosen.trial.number,
        scores={f.trial.number: f.score for f in s.finals} | {s.baseline.number: s.baseline_score},
        differences={f.trial.number: f.difference for f in s.finals},
        p={f.trial.number: f.p_holm for f in s.finals},
        to_first=s.to_first_seed,
        reason=s.reason,
        controls={int(scored_id(scored, k)): v for k, v in s.controls.items()},
        logp={int(scored_id(scored, k)): v for k, v in s.logp.items()},
        evaluator=evaluator,
    )


def scored_id(scored, prompt_id):
    return next(t.number for t in scored if t.candidate.prompt.prompt_id == prompt_id)


def picked(scored, sources):
    """(number of the baseline, numbers of the finalists)."""
    baseline, finalists = select.pick_finalists(scored, sources)
    return baseline.number, [t.number for t in finalists]


def verdict(truth, sources, right, resamples=4000, seed=0):
    """(differences, corrected p, index of the winner or None) of ``[finalist + 1, clip]``, the baseline last."""
    c = clusters(truth, sources, resamples=resamples, seed=seed)
    return select.judge(c, np.asarray(right))


def bounds_written_out(truth, sources, a, b, alpha, resamples=4000, seed=0):
    """Percentiles of the resampled difference at Student's quantile, widened for the fewest sources of a label."""
    c = clusters(truth, sources, resamples=resamples, seed=seed)
    gain = a.astype(float) - b
    n = min(len({s for s, t in zip(sources, truth, strict=True) if t == k}) for k in (0, 1))
    per = np.array([c.weights[:, c.index] * (truth == k) for k in (0, 1)])
    drawn = np.mean([(w @ gain) / w.sum(1) for w in per], axis=0)
    tail = stats.norm.cdf(stats.t.ppf(alpha, n - 1) * np.sqrt(n / (n - 1)))
    return np.quantile(drawn, [tail, 1 - tail])


def hits(rng, n, share):
    """Exactly that share, at random places."""
    return rng.permutation(n) < round(share * n)


# ---- who is compared


def test_the_baseline_is_the_best_seed_and_only_what_beats_it_is_a_finalist():
    scored = [trial(5, 0.9), trial(4, 0.8), trial(1, 0.7, 0), trial(3, 0.65), trial(0, 0.6, 0)]
    assert picked(scored, 1000) == (1, [5, 4])


def test_finalists_need_a_higher_reward_and_a_higher_rank():
    seed = trial(0, 0.5, 0, nll=0.5)
    less_loss = trial(1, 0.5, nll=0.1)  # same reward
    unsure = trial(2, 0.75, sd=0.3)  # a forecast that may be no better
    as_good = trial(3, 0.75, sd=0.25)  # the same rank
    sure = trial(4, 0.75, sd=0.24)
    assert picked([less_loss, unsure, as_good, sure, seed], 1000) == (0, [4])


def test_trials_without_a_reward_are_no_finalists():
    assert picked([trial(0, 0.5, 0), trial(1, None)], 1000) == (0, [])
    assert picked([trial(1, 0.1), trial(0, 0.0, 0)], 1000) == (0, [1])


@pytest.mark.parametrize(
    ("sources", "most"),
    [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (29, 2), (30, 3), (49, 4), (50, 5), (900, 5)],
)
def test_one_finalist_for_every_ten_sources_at_least_one_at_most_five(sources, most):
    scored = [*(trial(9 - i, 0.9 - i / 100) for i in range(8)), trial(0, 0.5, 0)]
    assert picked(scored, sources) == (0, [9 - i for i in range(most)])


def test_a_run_without_a_scored_seed_says_so():
    with pytest.raises(UserError, match="no seed prompt could be scored"):
        picked([trial(3, 0.9)], 100)


# ---- the whole selection


def planted(gains, per_label=20, seed=1, base=0.6):
    """(scored, margins, clips, truth, sources, right): a seed and finalists better by `gains` on the fresh half."""
    clips, truth, sources = half(per_label)
    rng = np.random.default_rng(seed)
    right = {0: hits(rng, len(truth), base)}
    for i, gain in enumerate(gains, 1):
        right[i] = hits(rng, len(truth), base + gain)
    scored = [*(trial(i, 0.9 - i / 100) for i in right if i), trial(0, 0.6, 0)]
    margin = {k: margins_of(truth, r) for k, r in right.items()}
    return scored, margin, clips, truth, sources, right


def test_a_planted_better_prompt_becomes_a_finalist_and_replaces_the_baseline():
    scored, margin, clips, truth, _, right = planted([0.0, 0.3])
    d = decided(scored, margin, clips)
    assert (d.baseline, d.finalists, d.chosen) == (0, [1, 2], 2)
    gain = metrics.balanced_accuracy(truth, right[2]) - metrics.balanced_accuracy(truth, right[0])
    assert d.differences[2].value == pytest.approx(gain) and gain > 0.2
    assert d.differences[2].low > 0 and d.p[2] < 0.01
    assert d.reason.startswith("replaced: gains") and f"{100 * gain:+.1f} points" in d.reason


@pytest.mark.parametrize("gain", [0.0, -0.3])
def test_a_prompt_that_is_no_better_on_fresh_clips_replaces_nothing(gain):
    scored, margin, clips, truth, _, right = planted([gain])
    d = decided(scored, margin, clips)
    assert d.finalists == [1] and d.chosen is None
    assert d.reason.startswith("baseline kept") and "lower bound is not above zero" in d.reason
    found = metrics.balanced_accuracy(truth, right[1]) - metrics.balanced_accuracy(truth, right[0])
    assert f"{100 * found:+.1f} points" in d.reason


def test_the_sentence_for_kept_tells_of_the_finalist_with_the_largest_gain():
    scored, margin, clips, *_ = planted([-0.1, 0.03])
    d = decided(scored, margin, clips)
    best = max(d.differences.values(), key=lambda one: one.value)
    assert d.chosen is None and f"gains {100 * best.value:+.1f} points" in d.reason
    numbers = re.search(r"\[(\S+), (\S+)\] on (\d+) fresh clips of (\d+) sources", d.reason)
    assert numbers is not None
    assert float(numbers[1]) == pytest.approx(100 * best.low, abs=0.051)
    assert float(numbers[2]) == pytest.approx(100 * best.high, abs=0.051)
    assert (int(numbers[3]), int(numbers[4])) == (160, 40)


def test_the_sentence_for_replaced_tells_the_interval_of_the_one_chosen():
    scored, margin, clips, *_ = planted([0.3])
    d = decided(scored, margin, clips)
    numbers = re.search(r"(\S+) points \[(\S+), (\S+)\] on (\d+) fresh .* of (\d+)", d.reason)
    one = d.differences[1]
    assert numbers is not None and (int(numbers[4]), int(numbers[5])) == (160, 40)
    for text, number in zip(numbers.groups()[:3], (one.value, one.low, one.high), strict=True):
        assert float(text) == pytest.approx(100 * number, abs=0.051)


def test_without_finalists_the_baseline_is_kept_and_still_measured():
    scored, margin, clips, truth, _, right = planted([0.3])
    scored = [replace(t, reward=0.6 if t.iteration == 0 else 0.5) for t in scored][::-1]
    d = decided(scored, margin, clips)
    assert d.finalists == [] and d.chosen is None and "no candidate scored above" in d.reason
    assert d.scores[0].value == pytest.approx(metrics.balanced_accuracy(truth, right[0]))


@pytest.mark.parametrize(("per_label", "claimed"), [(9, False), (10, True)])
def test_with_fewer_than_ten_sources_of_a_label_no_claim_is_made(per_label, claimed):
    clips, truth, _ = half(per_label)
    n = len(truth)
    margin = {0: margins_of(truth, np.arange(n) % 4 > 1), 1: margins_of(truth, np.ones(n, bool))}
    d = decided([trial(1, 0.9), trial(0, 0.6, 0)], margin, clips)
    assert d.differences[1].low > 0
    assert d.chosen == (1 if claimed else None)
    assert d.reason.startswith("replaced" if claimed else "baseline kept: the fresh half has only")
    assert claimed or "only 9 sources" in d.reason


def test_every_number_is_that_of_the_right_prompt():
    scored, margin, clips, truth, sources, right = planted([0.1, 0.2])
    d = decided(scored, margin, clips)
    for number, found in d.scores.items():
        ours = metrics.estimate(truth, right[number], sources)
        assert (found.value, found.low, found.high) == (ours.value, ours.low, ours.high)
        assert (found.clips, found.sources) == (160, 40)
    for number, logp in d.logp.items():
        assert ((logp[:, 0] > logp[:, 1]) == (margin[number] > 0)).all()
    assert set(d.logp) == {0, 1, 2}


def test_prompts_are_asked_about_the_fresh_clips_as_they_are_and_in_order():
    scored, margin, clips, *_ = planted([0.3, 0.0, 0.0])
    d = decided(scored, margin, clips)
    audio, texts, asked = d.evaluator.asked[0]
    assert audio == "recorded" and asked == tuple(clips)
    assert sorted(texts) == ["Prompt 000", "Prompt 001", "Prompt 002"]  # 20 sources: two finalists
    assert [a for a, *_ in d.evaluator.asked] == ["recorded", "silence", "shuffled"]
    assert [len(c) for _, _, c in d.evaluator.asked] == 3 * [len(clips)]


def test_the_first_seed_is_compared_with_the_one_chosen_or_else_the_baseline():
    scored, margin, clips, truth, _, right = planted([0.35])
    first = trial(0, 0.4, 0)
    for chosen, ours in ((1, 1), (None, 2)):
        seeds = [trial(2, 0.6, 0), first]
        rows = [*scored[:1], *seeds] if chosen else seeds
        table = {**margin, 2: margins_of(truth, np.arange(len(truth)) % 10 > 2)}
        d = decided(rows, table, clips)
        shares = {**right, 2: np.arange(len(truth)) % 10 > 2}
        value = [metrics.balanced_accuracy(truth, shares[k]) for k in (ours, 0)]
        assert d.baseline == 2 and d.chosen == chosen
        assert d.to_first.value == pytest.approx(value[0] - value[1], abs=1e-9)


def test_the_first_seed_is_compared_at_the_level_of_one_comparison():
    scored, margin, clips, truth, sources, right = planted([0.3, 0.25])
    d = decided(scored, margin, clips, seed=4)
    low, high = bounds_written_out(truth, sources, right[d.chosen], right[0], 0.025, seed=4)
    assert (d.to_first.low, d.to_first.high) == pytest.approx((low, high))


def test_a_threshold_fitted_on_the_search_half_is_carried_over():
    clips, truth, _ = half()
    odds = margins_of(truth, np.arange(len(truth)) % 5 > 0) + 5.0  # all say the first label
    still = np.where(np.arange(len(truth)) % 4 == 0, 6.0, 4.0)
    heard = {"silence": {0: still, 1: still}, "shuffled": {0: still - 2, 1: still - 2}}
    rows = [trial(1, 0.9, bias=-5.0), trial(0, 0.6, 0)]
    d = decided(rows, {0: odds, 1: odds}, clips, heard)
    assert d.scores[1].value == pytest.approx(0.8) and d.scores[0].value == pytest.approx(0.5)
    assert d.chosen == 1
    assert d.controls[1]["silence_first_label"] == pytest.approx(0.25)
    assert d.controls[1]["shuffled_first_label"] == 0
    assert d.controls[0]["silence_first_label"] == d.controls[0]["shuffled_first_label"] == 1


def test_controls_are_the_scores_of_baseline_and_winner_when_nothing_is_to_be_heard():
    scored, margin, clips, truth, _, _ = planted([0.3, 0.0])
    rng = np.random.default_rng(3)
    noise = {
        audio: {k: rng.normal(size=len(truth)) for k in margin} for audio in ("silence", "shuffled")
    }
    d = decided(scored, margin, clips, noise)
    assert set(d.controls) == {0, 1}
    for number, found in d.controls.items():
        assert set(found) == {f"{a}{b}" for a in noise for b in ("", "_first_label")}
        for audio, odds in noise.items():
            first = odds[number] > 0
            share = np.mean([(first == (truth == 0))[truth == k].mean() for k in (0, 1)])
            assert found[audio] == pytest.approx(share)
            assert found[f"{audio}_first_label"] == pytest.approx(first.mean())
    none, _, rest, *_ = planted([-0.3])
    assert set(decided(none, planted([-0.3])[1], rest).controls) == {0}


# ---- the decision


def test_bounds_are_at_holms_levels_the_strongest_finalist_at_the_strictest():
    rng = np.random.default_rng(0)
    _, truth, sources = half(15)
    shares = (0.7, 0.85, 0.6, 0.8)
    right = [hits(rng, len(truth), s) for s in (*shares, 0.6)]
    found, _, _ = verdict(truth, sources, right)
    plain = [bounds_written_out(truth, sources, r, right[-1], 0.025)[0] for r in right[:-1]]
    for rank, i in enumerate(np.argsort(plain)[::-1]):
        low, high = bounds_written_out(truth, sources, right[i], right[-1], 0.025 / (4 - rank))
        assert (found[i].low, found[i].high) == pytest.approx((low, high)), rank


def test_p_is_corrected_by_holm_in_the_order_of_the_finalists():
    rng = np.random.default_rng(0)
    _, truth, sources = half(15)
    right = [hits(rng, len(truth), s) for s in (0.64, 0.72, 0.6, 0.7, 0.6)]
    found, p, _ = verdict(truth, sources, right)
    assert p == pytest.approx(multipletests([d.p for d in found], method="holm")[1])
    assert p[1] > found[1].p  # corrected indeed


def test_two_equal_finalists_need_more_than_one_alone():
    """Sure at 2.5 %, not at half of it: the first of the two does not clear its level, so neither replaces."""
    _, truth, sources = half(15)
    base = np.zeros(len(truth), bool)
    for gained in range(1, 30):
        better = base.copy()
        better[np.random.default_rng(2).permutation(len(truth))[:gained]] = True
        better[np.random.default_rng(5).permutation(len(truth))[:6]] ^= True
        start = base.copy()
        start[np.random.default_rng(5).permutation(len(truth))[:6]] = True
        plain, strict = (
            bounds_written_out(truth, sources, better, start, a)[0] for a in (0.025, 0.0125)
        )
        if plain > 0 >= strict:
            break
    else:
        pytest.fail("no such gain was found")
    assert verdict(truth, sources, [better, start])[2] == 0
    assert verdict(truth, sources, [better, better, start])[2] is None


def test_of_those_that_clear_the_largest_difference_replaces():
    _, truth, sources = half(20)
    place = np.arange(len(truth))
    base = np.zeros(len(truth), bool)
    even = place % 4 == 0  # one clip of each source: sure
    lumpy = place % 160 < 64  # all clips of some sources: larger, less sure
    found, _, best = verdict(truth, sources, [even, lumpy, base])
    assert found[0].low > found[1].low > 0 and found[1].value > found[0].value
    assert best == 1
    assert verdict(truth, sources, [lumpy, even, base])[2] == 0


def test_a_gain_whose_bound_is_exactly_zero_replaces_nothing():
    _, truth, sources = half(15)
    base = np.arange(len(truth)) % 2 == 0
    found, p, best = verdict(truth, sources, [base, base])
    assert (found[0].low, found[0].high, p, best) == (0, 0, [1.0], None)
    assert verdict(truth, sources, [base])[1:] == ([], None)


def test_under_no_difference_the_family_errs_in_at_most_two_and_a_half_percent():
    """Four finalists as good as the baseline, correlated by it; without correction about one in twelve would err."""
    _, truth, sources = half(15)
    c = clusters(truth, sources, resamples=1000)
    rng = np.random.default_rng(11)
    place = np.array([int(s[1:]) for s in sources])
    replaced, searches = 0, 90
    for _ in range(searches):
        skill = np.clip(0.7 + rng.normal(0, 0.1, (5, 30)), 0, 1)
        right = rng.random((5, len(truth))) < skill[:, place]
        replaced += select.judge(c, right)[2] is not None
    assert replaced <= stats.binom.ppf(0.95, searches, 0.025)


def test_a_clear_gain_is_found_nearly_always():
    _, truth, sources = half(15)
    c = clusters(truth, sources, resamples=1000)
    rng = np.random.default_rng(12)
    found = [
        select.judge(c, rng.random((3, len(truth))) < np.array([[0.6], [0.9], [0.6]]))[2]
        for _ in range(30)
    ]
    assert found.count(1) >= 27
