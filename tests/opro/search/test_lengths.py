"""Length: the limit on candidates, the front of score and length, and which of several confirmed finalists is taken."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searches import GOOD, Made, ScriptedLM, Searched, scored_trial, three_seeds, view_of
from test_select import decided, half, margins_of, trial

from evaluators.evaluator import prompt_tokens
from evaluators.fakes import FakeEvaluator
from evaluators.prompts import Prompt
from evaluators.statistics.resampling import Estimate
from evaluators.tasks import SPEECH_TASK
from opro import optimize
from opro.cli import run_verb
from opro.proposers.ledger import Ledger, MeteredModel
from opro.proposers.lm_proposer import LMProposer
from opro.proposers.rewriter import Rewriter
from opro.results.leaderboard import leaderboard_rows, leaderboard_sheet
from opro.results.run_folder import RunFolder
from opro.search import select
from opro.search.history import Candidate, History
from opro.search.lengths import TOKENS, WORDS, Limit, front, length_of, unit_of, words
from opro.search.objective import Objective


class Counting(FakeEvaluator):
    """A stand-in whose tokenizer makes a token of every character."""

    def prompt_tokens(self, prompt):
        return len(prompt.system + prompt.text)


# ---- what is counted


def test_tokens_are_those_of_the_checkpoints_own_tokenizer(pocket, seeds):
    tokenizer = pocket.processor.tokenizer
    for prompt in (*seeds, replace(seeds[0], system=""), Prompt("<|AUDIO|> twice")):
        plain = [tokenizer.encode(t, add_special_tokens=False, split_special_tokens=True)
                 for t in (prompt.system, prompt.text)]  # fmt: skip
        assert prompt_tokens(pocket, prompt) == sum(map(len, plain)) > 0
    assert length_of(pocket, seeds[0]) == prompt_tokens(pocket, seeds[0])
    assert unit_of(pocket, seeds[0]) == TOKENS
    assert unit_of(FakeEvaluator(), seeds[0]) == WORDS and prompt_tokens(Counting(), seeds[0]) > 99


def test_words_are_counted_with_the_system_message_and_characters_of_scripts_without_spaces():
    assert words(Prompt("is it\n\nspeech?", system="You hear.")) == 5
    assert words(Prompt("这是 speech 吗?", system="")) == 5
    assert words(Prompt("", system="")) == 0


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9).map(float))))
def test_the_front_is_what_nothing_beats_in_both(points):
    found = front(points)
    beaten = [any(x <= a and y >= b and (x, y) != (a, b) for x, y in points) for a, b in points]
    assert {points[i] for i in found} == {
        p for p, is_beaten in zip(points, beaten, strict=True) if not is_beaten
    }
    lengths = [points[i][0] for i in found]
    assert lengths == sorted(set(lengths))
    assert all(i == points.index(points[i]) for i in found)


# ---- the limit


class Longer(Made):
    """Every second prompt has ten more words."""

    def propose(self, view, n):
        made = super().propose(view, n)
        return [
            replace(c, prompt=replace(c.prompt, text=c.prompt.text + " so" * (10 * (i % 2))))
            for i, c in enumerate(made)
        ]


def test_candidates_that_are_longer_are_refused_with_their_length_and_the_journal_says_so(tmp_path):
    allowed = max(words(Prompt(f"1.0 x: {Made().question}")), 1)
    one = Searched(tmp_path / "a.jsonl", proposer=Longer(), max_prompt_tokens=allowed)
    made = [t for t in one.history.trials if t.iteration > 0]
    assert len(made) == 2 * 3 and {words(t.prompt) for t in made} == {allowed}
    for refused in (one.history.refused[1], one.history.refused[2]):
        assert [r["reason"] for r in refused] == [
            f"has {allowed + 10} words with its system message, {allowed} are allowed"
        ] * 2
    again = History(one.path, SPEECH_TASK.labels)
    assert again.refused == one.history.refused
    free = Searched(tmp_path / "b.jsonl", proposer=Longer())
    assert len([t for t in free.history.trials if t.iteration > 0]) == 2 * 5
    assert free.history.refused == {0: [], 1: [], 2: []}


def test_the_rewriter_fills_its_round_with_shorter_prompts(seeds):
    view = view_of([scored_trial(i, 0.5 + i / 10, 0, prompt=p) for i, p in enumerate(seeds)])
    free = Rewriter(SPEECH_TASK, 0).propose(view, 8)
    most = sorted(words(c.prompt) for c in free)[2]
    held = Rewriter(SPEECH_TASK, 0).propose(replace(view, limit=Limit(most, WORDS, words)), 8)
    assert max(words(c.prompt) for c in free) > most
    assert len(held) == 8 and all(words(c.prompt) <= most for c in held)


def test_a_language_model_is_told_the_limit_and_refused_what_is_longer_with_its_system_message(
    seeds,
):
    entries, view = [], three_seeds(seeds)
    system = view.trials[0].prompt.system
    most = words(Prompt(GOOD, system=system))
    long = f"{GOOD} now"
    assert words(Prompt(long, system="")) <= most  # its system message makes it too long
    lm = ScriptedLM(json.dumps({"prompts": [long, GOOD]}))
    model = MeteredModel(lm, Ledger(), entries.append, {})
    limited = replace(view, limit=Limit(most, WORDS, words))
    found = LMProposer(model, SPEECH_TASK, Objective()).propose(limited, 1)
    assert [c.prompt.text for c in found] == [GOOD]
    assert [r["reason"] for r in entries[0]["refused"]] == [
        f"has {most + 1} words with its system message, {most} are allowed"
    ]
    assert f"No prompt may be longer than {most} words" in lm.asked[0]
    assert f"It is {words(seeds[0])} for the seed prompt" in lm.asked[0]
    lm = ScriptedLM(json.dumps({"prompts": [GOOD]}))
    model = MeteredModel(lm, Ledger(), entries.append, {})
    LMProposer(model, SPEECH_TASK, Objective()).propose(view, 1)
    assert "may be longer" not in lm.asked[0]


def command(tmp_path, *more, checkpoint="fake"):
    argv = f"--checkpoint {checkpoint} --iterations 1 --candidates 3 --clips 120 --name r".split()
    argv += ["--runs-dir", str(tmp_path), *map(str, more)]
    return run_verb(lambda: optimize.main(argv))


@pytest.mark.parametrize(("checkpoint", "unit"), [("fake", "words"), ("pocket-base", "tokens")])
def test_seeds_that_are_longer_end_it_in_one_sentence_before_anything_is_written(
    tmp_path, capsys, checkpoint, unit
):
    assert command(tmp_path, "--max-prompt-tokens", 5, checkpoint=checkpoint) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: --max-prompt-tokens is 5, and 3 of 3 seed prompts are longer")
    assert f" {unit} with the system message" in told and "\n" not in told
    assert not (tmp_path / "r").exists()


def test_a_run_without_a_tokenizer_says_that_it_counts_words_and_keeps_its_name(tmp_path, capsys):
    assert command(tmp_path, "--max-prompt-tokens", 60) == 0
    run = RunFolder.read(tmp_path / "r")
    assert run.config["max_prompt_tokens"] == 60
    assert run.finished().warnings == (
        "--max-prompt-tokens 60 counts words, for this checkpoint has no tokenizer here",
    )
    assert "max_prompt_tokens" not in optimize.OptimizeSettings().checked().config
    assert run.finished().chosen.tokens is None


# ---- where it is shown


def test_tokens_stand_in_the_journal_and_words_in_their_place_in_the_leaderboard(tmp_path):
    one = Searched(tmp_path / "t.jsonl", evaluator=Counting())
    told = {t.number: t.outcome.tokens for t in History(one.path, SPEECH_TASK.labels).complete}
    assert told and all(
        n == len(one.history.trials[i].prompt.system + one.history.trials[i].prompt.text)
        for i, n in told.items()
    )
    assert command(tmp_path) == 0
    run = RunFolder.read(tmp_path / "r")
    rows = leaderboard_rows(run)
    assert [r["tokens"] for r in rows] == [None] * len(rows)
    sheet = leaderboard_sheet(rows)
    place = [c.name for c in sheet.columns].index("words")
    assert [row[place] for row in sheet.rows] == [str(r["words"]) for r in rows]
    known = leaderboard_sheet([{**r, "tokens": 7} for r in rows])
    assert known.rows[0][[c.name for c in known.columns].index("tokens")] == "7"


# ---- of several that are confirmed


def gain(value, p):
    return Estimate(value, value - 0.1, value + 0.1, 160, 40, p)


def gap(low):
    return Estimate(0.05, low, 0.2, 160, 40)


@given(
    st.lists(
        st.tuples(st.floats(0, 0.4), st.sampled_from([0.001, 0.024, 0.025, 0.3]), st.integers(1, 9),
                  st.sampled_from([-0.01, 0.0, 0.01])),
        max_size=5,
    )
)  # fmt: skip
def test_only_what_replaces_the_baseline_anyway_may_be_taken_and_no_longer_one(found):
    gains, lengths = [gain(v, p) for v, p, _, _ in found], [n for _, _, n, _ in found]
    best = select.winner_of(gains, 10)
    if best is None:
        return
    taken = select.shorter_tie(best, gains, lengths, lambda i: gap(found[i][3]))
    assert gains[taken].p < select.ALPHA
    may = [best] + [
        i for i, (_, p, n, low) in enumerate(found)
        if p < select.ALPHA and n < lengths[best] and low <= 0
    ]  # fmt: skip
    assert taken in may and lengths[taken] == min(lengths[i] for i in may)
    if len(may) == 1:
        assert taken == best


def test_the_best_stays_where_nothing_shorter_is_as_good():
    gains = [gain(0.2, 0.001), gain(0.3, 0.001), gain(0.1, 0.3)]
    assert select.shorter_tie(1, gains, [9, 9, 2], lambda i: gap(-0.1)) == 1
    assert select.shorter_tie(1, gains, [8, 9, 2], lambda i: gap(0.01)) == 1
    assert select.shorter_tie(1, gains, [8, 9, 2], lambda i: gap(None)) == 1
    assert select.shorter_tie(1, gains, [8, 9, 2], lambda i: gap(-0.1)) == 0


@pytest.mark.parametrize(("worse", "taken"), [(2, 2), (40, 1)])
def test_of_two_that_are_confirmed_the_shorter_is_handed_over_unless_it_is_worse(worse, taken):
    clips, truth, _ = half(30)
    n = len(truth)
    rng = np.random.default_rng(3)
    right = {0: np.arange(n) % 4 > 1, 1: np.ones(n, bool), 2: np.ones(n, bool)}
    right[2][rng.permutation(n)[:worse]] = False
    margin = {k: margins_of(truth, one) for k, one in right.items()}
    long = trial(1, 0.9)
    prompt = replace(long.prompt, text=long.prompt.text + " and many more words")
    long = replace(long, candidate=Candidate(prompt, "made"))
    d = decided([long, trial(2, 0.85), trial(0, 0.6, 0)], margin, clips)
    assert d.gains[1].value > d.gains[2].value and max(g.p for g in d.gains.values()) < 0.025
    assert d.chosen == taken
    own = f"replaced: gains {select.points(d.gains[taken])}"
    assert d.reason.startswith(own)
    assert ("so the shorter is handed over" in d.reason) == (taken == 2)
    if taken == 2:
        sizes = words(trial(2, 0.9).prompt), words(prompt)
        assert d.reason.endswith(f"{sizes[0]} words in place of {sizes[1]}")
        assert f"another one gains {select.points(d.gains[1])}" in d.reason
