"""The decision on the holdout. Only the helpers `decided` and `verdict` call what is tested."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from plain_statistics import balanced_gain
from scipy import stats
from searches import Display, clip, clip_set, logp_of, scored_trial
from statsmodels.stats.multitest import multipletests

from evaluators.errors import UserError
from evaluators.evaluator import ScoreTable, Uncached
from evaluators.prompts import Prompt
from evaluators.statistics import metrics
from evaluators.statistics.compare import step_down
from evaluators.statistics.resampling import Estimate, clusters
from evaluators.tasks import SPEECH_TASK
from opro.problem import Problem
from opro.search import budget, parts, select
from opro.search.history import best_first
from opro.settings import SearchSettings


class Planted(Uncached):
    """Answers as it is told: `margin` ``[prompt number][clip]`` log-odds of the first label, by what is heard."""

    def __init__(self, margin, heard):
        self.margin, self.heard, self.asked, self.fingerprint = margin, heard, [], "planted"

    def score(self, prompts, clips):
        audio = clips[0].audio
        self.asked.append((audio, tuple(p.text for p in prompts), tuple(clips)))
        table = self.margin if audio == "recorded" else self.heard[audio]
        place = [int(c.clip_id) for c in clips]
        m = np.array([np.asarray(table[int(p.text.split()[1])])[place] for p in prompts])
        self.forwards += m.size
        logp = logp_of(m)
        return ScoreTable(tuple(prompts), tuple(clips), logp, logp)


def half(per_label=20, clips=4):
    """(clips, truth, sources) of so many sources a label."""
    truth = np.tile(np.repeat([0, 1], clips), per_label)
    sources = [f"s{i // clips}" for i in range(len(truth))]
    made = [clip(i, t, source=s) for i, (t, s) in enumerate(zip(truth, sources, strict=True))]
    return clip_set(made), truth, sources


def margins_of(truth, right):
    """Log-odds that decide right where `right` is true."""
    sign = np.where(truth == 0, 1.0, -1.0)
    return 2 * sign * np.where(right, 1, -1)


def trial(number, reward, iteration=1, bias=0.0, sd=0.0, loss=0.5, both_orders=False):
    prompt = Prompt(f"Prompt {number:03d}", both_orders=both_orders)
    if reward is None:
        return replace(
            scored_trial(number, 0.0, iteration, prompt=prompt), state="failed", outcome=None
        )
    return scored_trial(number, reward, iteration, prompt=prompt, bias=bias, sd=sd, loss=loss)


def rivals_of(decision):
    return [f.trial.number for f in decision.finalists]


def decided(
    scored,
    margin,
    holdout,
    heard=None,
    seed=0,
    display=None,
    objective="balanced_accuracy",
    number=1,
):
    """What the decision says, in plain values. Numbers are those of trials."""
    still = {k: np.zeros(len(holdout)) for k in margin}
    evaluator = Planted(margin, heard or {"silence": still, "shuffled": still})
    seeds = tuple(t.prompt for t in scored if t.iteration == 0)
    problem = Problem(SPEECH_TASK, seeds, holdout, holdout, evaluator, {})
    complete = [t for t in best_first(scored) if t.state == "complete"]
    history = SimpleNamespace(complete=complete, trials=complete, wins={})
    display = display or Display()
    asked = []

    def take_turn(compared):
        asked.append([t.number for t in compared])
        return select.Turn(number)

    settings = SearchSettings(seed=seed, objective=objective)
    s = select.decide(problem, settings, history, display.advance, take_turn)
    assert asked == ([] if s.turn is None else [[s.baseline.number, *rivals_of(s)]])
    number = {t.prompt.prompt_id: t.number for t in scored}
    winner = None if s.winner is None else s.winner.trial
    assert s.chosen == (winner or s.baseline)
    assert s.chosen_score == (s.baseline_score if s.winner is None else s.winner.score)
    return SimpleNamespace(
        baseline=s.baseline.number,
        finalists=[f.trial.number for f in s.finalists],
        chosen=None if winner is None else winner.number,
        scores={f.trial.number: f.score for f in s.finalists}
        | {s.baseline.number: s.baseline_score},
        gains={f.trial.number: f.gain for f in s.finalists},
        to_first=s.to_first_seed,
        cells=s.two_by_two,
        reason=s.reason,
        turn=s.turn,
        controls={number[k]: v for k, v in s.controls.items()},
        predictions={number[k]: v for k, v in s.predictions.items()},
        evaluator=evaluator,
        display=display,
        problem=problem,
    )


def picked(scored, sources):
    """(number of the baseline, numbers of the finalists)."""
    baseline, finalists = select.pick_finalists(scored, sources)
    return baseline.number, [t.number for t in finalists]


def verdict(truth, sources, right, resamples=4000, seed=0):
    """(gains with corrected p, index of the winner or None) of ``[finalist + 1, clip]``, the baseline last."""
    return verdict_of(clusters(truth, sources, resamples=resamples, seed=seed), right)


def verdict_of(c, right):
    share = [c.balanced(np.asarray(one, float)) for one in right]
    gains = step_down(c, [one - share[-1] for one in share[:-1]])
    return gains, select.winner_of(gains, c.fewest)


def bounds_written_out(truth, sources, a, b, alpha):
    """Student's bounds of the difference, by CR2 with matrices."""
    return balanced_gain(truth, np.array(sources), a, b, alpha)[:2]


def hits(rng, n, share):
    """Exactly that share, at random places."""
    return rng.permutation(n) < round(share * n)


# ---- who is compared


def test_the_baseline_is_the_best_seed_and_only_what_beats_it_is_a_finalist():
    scored = [trial(5, 0.9), trial(4, 0.8), trial(1, 0.7, 0), trial(3, 0.65), trial(0, 0.6, 0)]
    assert picked(scored, 1000) == (1, [5, 4])


def test_finalists_need_a_higher_reward_and_a_higher_rank():
    seed = trial(0, 0.5, 0, loss=0.5)
    less_loss = trial(1, 0.5, loss=0.1)  # same reward
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
    """(scored, margins, clips, truth, sources, right): a seed and finalists better by `gains` on the holdout."""
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
    assert d.gains[2].value == pytest.approx(gain) and gain > 0.2
    assert d.gains[2].low > 0 and d.gains[2].p < 0.01
    assert d.reason.startswith("replaced: gains") and f"{100 * gain:+.1f} points" in d.reason


@pytest.mark.parametrize("gain", [0.0, -0.3])
def test_a_prompt_that_is_no_better_on_the_holdout_replaces_nothing(gain):
    scored, margin, clips, truth, _, right = planted([gain])
    d = decided(scored, margin, clips)
    assert d.finalists == [1] and d.chosen is None
    assert d.reason.startswith("baseline kept")
    assert f"corrected p {select.p_text(d.gains[1].p)}; a gain counts below 0.025" in d.reason
    found = metrics.balanced_accuracy(truth, right[1]) - metrics.balanced_accuracy(truth, right[0])
    assert f"{100 * found:+.1f} points" in d.reason


def test_the_sentence_for_kept_tells_of_the_finalist_with_the_largest_gain():
    scored, margin, clips, *_ = planted([-0.1, 0.03])
    d = decided(scored, margin, clips)
    best = max(d.gains.values(), key=lambda one: one.value)
    assert d.chosen is None and f"gains {100 * best.value:+.1f} points" in d.reason
    numbers = re.search(r"\[(\S+), (\S+)\] on (\d+) holdout clips of (\d+) sources", d.reason)
    assert numbers is not None
    assert float(numbers[1]) == pytest.approx(100 * best.low, abs=0.051)
    assert float(numbers[2]) == pytest.approx(100 * best.high, abs=0.051)
    assert (int(numbers[3]), int(numbers[4])) == (160, 40)


def test_the_sentence_for_replaced_tells_the_interval_of_the_one_chosen():
    scored, margin, clips, *_ = planted([0.3])
    d = decided(scored, margin, clips)
    numbers = re.search(r"(\S+) points \[(\S+), (\S+)\] on (\d+) holdout .* of (\d+)", d.reason)
    one = d.gains[1]
    assert numbers is not None and (int(numbers[4]), int(numbers[5])) == (160, 40)
    for text, number in zip(numbers.groups()[:3], (one.value, one.low, one.high), strict=True):
        assert float(text) == pytest.approx(100 * number, abs=0.051)


def test_without_finalists_the_baseline_is_kept_and_still_measured():
    scored, margin, clips, truth, _, right = planted([0.3])
    scored = [trial(t.number, 0.6 if t.iteration == 0 else 0.5, t.iteration) for t in scored]
    d = decided(scored, margin, clips)
    assert d.finalists == [] and d.chosen is None and "no candidate scored above" in d.reason
    assert d.scores[0].value == pytest.approx(metrics.balanced_accuracy(truth, right[0]))


@pytest.mark.parametrize(("per_label", "claimed"), [(9, False), (10, True)])
def test_with_fewer_than_ten_sources_of_a_label_no_claim_is_made(per_label, claimed):
    clips, truth, _ = half(per_label)
    n = len(truth)
    margin = {0: margins_of(truth, np.arange(n) % 4 > 1), 1: margins_of(truth, np.ones(n, bool))}
    d = decided([trial(1, 0.9), trial(0, 0.6, 0)], margin, clips)
    assert d.gains[1].low > 0
    assert d.chosen == (1 if claimed else None)
    assert d.reason.startswith("replaced" if claimed else "baseline kept: the holdout has only")
    assert claimed or "only 9 sources" in d.reason


def test_every_number_is_that_of_the_right_prompt():
    scored, margin, clips, truth, sources, right = planted([0.1, 0.2])
    d = decided(scored, margin, clips)
    for number, found in d.scores.items():
        c = clusters(truth, sources)
        ours = c.estimate(c.balanced(right[number].astype(float)))
        assert (found.value, found.low, found.high) == (ours.value, ours.low, ours.high)
        assert (found.clips, found.sources) == (160, 40)
    for number, said in d.predictions.items():
        assert ((said.decided == 0) == (margin[number] > 0)).all()
        assert said.targets.clip_ids == tuple(c.clip_id for c in clips)
        assert said.score == pytest.approx(margin[number], abs=1e-5)
    assert set(d.predictions) == {0, 1, 2}


def test_prompts_are_asked_about_the_holdout_clips_as_they_are_and_in_order():
    scored, margin, clips, *_ = planted([0.3, 0.0, 0.0])
    d = decided(scored, margin, clips)
    audio, texts, _ = d.evaluator.asked[0]
    assert audio == "recorded"
    recorded = [
        (texts, c) for audio, texts, part in d.evaluator.asked if audio == "recorded" for c in part
    ]
    assert [c for _, c in recorded] == list(clips)
    assert {asked for asked, _ in recorded} == {texts}
    assert sorted(texts) == ["Prompt 000", "Prompt 001", "Prompt 002"]  # 20 sources: two finalists
    for audio in ("silence", "shuffled"):
        parts = [(n, part) for a, n, part in d.evaluator.asked if a == audio]
        assert {n for n, _ in parts} == {("Prompt 000", "Prompt 001")}
        assert [replace(c, audio="recorded") for _, part in parts for c in part] == list(clips)


@pytest.mark.parametrize("gains", [[0.3, 0.0, 0.0], [0.3], [-0.3], []])
@pytest.mark.parametrize("seeds", [1, 2])
def test_progress_is_told_in_parts_and_ends_at_what_was_planned(gains, seeds):
    scored, margin, clips, *_ = planted(gains)
    if seeds == 2:
        scored, margin = [*scored, trial(9, 0.55, 0)], {**margin, 9: margin[0]}
    display, steps = Display(), []
    whole, advance = display.advance, lambda *pairs: (steps.append(pairs), whole(*pairs))
    display.advance = advance
    d = decided(scored, margin, clips, display=display)
    planned = budget.planned_pairs(d.problem, SearchSettings(iterations=0)) - seeds * len(clips)
    assert display.scored + display.skipped == planned
    assert display.scored == d.evaluator.forwards
    assert max(done for done, _ in steps) <= parts.PART * (2 + len(gains) + seeds)
    assert sum(done > 0 for done, _ in steps) == 3 * 2  # 160 clips, in parts of 100


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
        for number, gain in d.gains.items():  # finalists are compared with the baseline
            value = [metrics.balanced_accuracy(truth, shares[k]) for k in (number, 2)]
            assert gain.value == pytest.approx(value[0] - value[1], abs=1e-9)


def test_the_first_seed_is_compared_at_the_level_of_one_comparison():
    scored, margin, clips, truth, sources, right = planted([0.3, 0.25])
    d = decided(scored, margin, clips, seed=4)
    low, high = bounds_written_out(truth, sources, right[d.chosen], right[0], 0.025)
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
    found, _ = verdict(truth, sources, right)
    plain = [bounds_written_out(truth, sources, r, right[-1], 0.025)[0] for r in right[:-1]]
    for rank, i in enumerate(np.argsort(plain)[::-1]):
        low, high = bounds_written_out(truth, sources, right[i], right[-1], 0.025 / (4 - rank))
        assert (found[i].low, found[i].high) == pytest.approx((low, high)), rank


def test_p_is_corrected_by_holm_in_the_order_of_the_finalists():
    rng = np.random.default_rng(0)
    _, truth, sources = half(15)
    right = [hits(rng, len(truth), s) for s in (0.64, 0.72, 0.6, 0.7, 0.6)]
    found, _ = verdict(truth, sources, right)
    alone = [verdict(truth, sources, [one, right[-1]])[0][0].p for one in right[:-1]]
    assert [d.p for d in found] == pytest.approx(multipletests(alone, method="holm")[1])
    assert found[1].p > alone[1]  # corrected indeed


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
    assert verdict(truth, sources, [better, start])[1] == 0
    assert verdict(truth, sources, [better, better, start])[1] is None


def test_of_those_that_clear_the_largest_difference_replaces():
    _, truth, sources = half(20)
    place = np.arange(len(truth))
    base = np.zeros(len(truth), bool)
    even = (place % 4 == 0) | (place == 1)  # one clip of each source, two of the first: sure
    lumpy = place % 160 < 64  # all clips of some sources: larger, less sure
    found, best = verdict(truth, sources, [even, lumpy, base])
    assert found[0].low > found[1].low > 0 and found[1].value > found[0].value
    assert best == 1
    assert verdict(truth, sources, [lumpy, even, base])[1] == 0


def test_a_gain_whose_bound_is_exactly_zero_replaces_nothing():
    _, truth, sources = half(15)
    base = np.arange(len(truth)) % 2 == 0
    found, best = verdict(truth, sources, [base, base])
    assert (found[0].low, found[0].high, found[0].p, best) == (0, 0, 1.0, None)
    assert verdict(truth, sources, [base]) == ([], None)


def gain(value, p):
    return Estimate(value, value - 0.1, value + 0.1, 160, 40, p)


def test_the_decision_is_by_p_alone_and_of_those_that_pass_the_largest_gain_replaces():
    assert select.winner_of([gain(0.1, 0.0249), gain(0.3, 0.024), gain(0.5, 0.025)], 10) == 1
    assert select.winner_of([gain(0.3, 0.01), gain(0.1, 0.001)], 10) == 0
    assert select.winner_of([gain(0.1, 0.025), gain(0.1, None)], 10) is None
    assert select.winner_of([gain(0.1, 0.001)], 9) is None and select.winner_of([], 10) is None


def test_what_p_says_the_bound_that_is_shown_says_too():
    rng = np.random.default_rng(4)
    _, truth, sources = half(12)
    c = clusters(truth, sources, resamples=1000)
    seen = set()
    for _ in range(60):
        found, best = verdict_of(c, [hits(rng, len(truth), s) for s in rng.uniform(0.6, 0.86, 4)])
        for one in found:
            assert one.p >= 0.025 or one.low > 0
        assert (best is not None) == any(one.p < 0.025 for one in found)
        seen.add(best is None)
    assert seen == {True, False}


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
        replaced += verdict_of(c, right)[1] is not None
    assert replaced <= stats.binom.ppf(0.95, searches, 0.025)


def test_a_clear_gain_is_found_nearly_always():
    _, truth, sources = half(15)
    c = clusters(truth, sources, resamples=1000)
    rng = np.random.default_rng(12)
    found = [
        verdict_of(c, rng.random((3, len(truth))) < np.array([[0.6], [0.9], [0.6]]))[1]
        for _ in range(30)
    ]
    assert found.count(1) >= 27


def test_wording_and_threshold_are_told_apart():
    """Four classifiers on the same clips: each cell is the score of the prompt with that bias, each gain paired."""
    (holdout, truth, _), rng = half(20, 5), np.random.default_rng(3)
    sound = np.where(truth == 0, 1.0, -1.0)
    noise = rng.normal(0, 1, (2, 200))
    margin = {0: sound + noise[0] - 2.0, 1: 2 * sound + noise[1] + 1.0}
    trials = [trial(0, 0.6, iteration=0), trial(1, 0.7)]
    fitted = {0: 2.0, 1: -1.0}
    trials = [replace(t, outcome=replace(t.outcome, fitted=fitted[t.number])) for t in trials]
    cells = decided(trials, margin, holdout).cells

    def right(number, bias):
        decided_ = np.where(margin[number] + bias > 0, 0, 1)
        return np.mean([(decided_[truth == k] == k).mean() for k in (0, 1)])

    assert cells.found.number == 1 and cells.metric == "balanced_accuracy"
    for name, number in (("seed", 0), ("found", 1)):
        plain, tuned = right(number, 0.0), right(number, fitted[number])
        assert cells.scores[name]["argmax"].value == pytest.approx(plain)
        assert cells.scores[name]["threshold"].value == pytest.approx(tuned)
        assert cells.threshold[name].value == pytest.approx(tuned - plain)
        assert cells.threshold[name].low <= tuned - plain <= cells.threshold[name].high
    assert cells.wording["argmax"].value == pytest.approx(right(1, 0.0) - right(0, 0.0))
    assert cells.wording["threshold"].value == pytest.approx(right(1, -1.0) - right(0, 2.0))
    assert cells.both.value == pytest.approx(right(1, -1.0) - right(0, 0.0))


def test_without_a_finalist_the_seeds_cells_stand_alone_and_without_thresholds_none():
    holdout, truth, _ = half(10, 2)
    margin = {0: np.where(truth == 0, 1.0, -1.0) - 2.0, 1: np.zeros(len(truth))}
    one = trial(0, 0.6, iteration=0)
    known = replace(one, outcome=replace(one.outcome, fitted=2.0))
    cells = decided([known, trial(1, 0.5)], margin, holdout).cells
    assert cells.found is None and set(cells.scores) == {"seed"} and not cells.wording
    assert cells.both.value == cells.threshold["seed"].value == pytest.approx(0.5)
    assert decided([one, trial(1, 0.5)], margin, holdout).cells is None
    assert decided([one, trial(1, 0.7)], margin, holdout).cells is None


# ---- the level of the n-th decision on a half


@pytest.mark.parametrize(("number", "most"), [(2, 3), (20, 1)])
def test_a_later_decision_replaces_only_below_its_own_level(number, most):
    """The later, the more a gain must show."""
    replaced = 0
    for gain in (0.1, 0.15, 0.2, 0.25):
        scored, margin, clips, *_ = planted([gain, 0.05])
        d = decided(scored, margin, clips, number=number)
        real = [k for k, one in d.gains.items() if one.p < select.Turn(number).level]
        assert all(d.gains[k].low > 0 for k in real)
        assert (d.chosen is not None) == bool(real) and d.turn == select.Turn(number)
        replaced += bool(real)
    assert replaced <= most and (replaced > 0) == (most > 0)


def test_the_first_decision_says_nothing_more_and_a_later_one_what_is_left():
    scored, margin, clips, *_ = planted([0.1])
    first, third = (decided(scored, margin, clips, number=n) for n in (1, 3))
    assert "decision on this half" not in first.reason
    assert first.gains[1].value == third.gains[1].value and first.gains[1].low > third.gains[1].low
    assert "a gain counts below 0.0042; 3rd decision on this half, level 0.0042" in third.reason
    scored, margin, clips, *_ = planted([0.35])
    assert "3rd decision on this half" in decided(scored, margin, clips, number=3).reason


def test_where_nothing_can_be_replaced_no_turn_is_taken():
    """`decided` asserts that none is asked for."""
    scored, margin, clips, *_ = planted([0.3])
    worse = [trial(t.number, 0.6 if t.iteration == 0 else 0.5, t.iteration) for t in scored]
    few = planted([0.3], per_label=9)
    assert decided(worse, margin, clips).turn is None and decided(*few[:3]).turn is None
