"""How a clip is given is searched beside the wording, and without being asked for nothing of it is seen."""

import json
import re
from dataclasses import replace

import pytest
from searches import scored_trial, three_seeds, view_of

import opro
from evaluators.errors import UserError
from evaluators.evaluator import Uncached
from evaluators.files import shipped
from evaluators.presentation import AS_IS, Presentation
from evaluators.prompts import Prompt, dump_prompts
from opro import matrix, optimize, rescore
from opro.cli import run_verb
from opro.proposers.factors import factors
from opro.proposers.presenting import ORIGIN, Presenting
from opro.proposers.replies import dedup_key
from opro.proposers.table import table
from opro.search.history import Candidate
from opro.search.presentations import effects, wording

WAYS = (Presentation(repeat_to_ms=1000), Presentation(text_first=True), Presentation(pad_to_ms=900))
COMMON = shipped("prompts/presentations") / "common.yaml"


class Fixed:
    name = "fixed"

    def __init__(self, *prompts):
        self.prompts, self.asked = prompts, []

    def propose(self, view, n):
        self.asked.append(n)
        return [Candidate(p, "fixed") for p in self.prompts[:n]]


def test_every_presentation_is_tried_once_with_the_best_wording_before_any_is_tried_twice(seeds):
    view = three_seeds(seeds)
    inner = Fixed(*(Prompt(f"new {i}: A or B") for i in range(9)))
    found = Presenting(inner, WAYS, 0).propose(view, 9)
    best = view.scored[0].prompt
    assert [c.prompt for c in found[:3]] == [replace(best, presentation=how) for how in WAYS]
    assert all(c.origin == ORIGIN for c in found[:4]) and inner.asked == [5] and len(found) == 9
    assert found[0].parents == (best.prompt_id,)
    assert len({c.prompt.digest for c in found}) == 9
    again = Presenting(Fixed(*inner.prompts), WAYS, 0).propose(view, 9)
    assert [c.prompt for c in again] == [c.prompt for c in found]


def test_what_helped_one_wording_is_tried_with_the_others_and_what_harmed_is_not(seeds):
    good = [Prompt(f"{i}: A or B") for i in range(6)]
    poor = [Prompt(f"poor {i}: A or B") for i in range(12)]
    trials = [scored_trial(i, 0.6, prompt=p) for i, p in enumerate(good)]
    for n, prompt in enumerate(poor):
        trials.append(scored_trial(50 + n, 0.2, prompt=prompt))
        how, gain = ((WAYS[0], 0.3), (WAYS[1], -0.2))[n % 2]
        other = replace(prompt, presentation=how)
        trials.append(scored_trial(100 + n, 0.2 + gain, prompt=other))
    known = effects(trials)
    assert known == {
        WAYS[0]: pytest.approx([0.3] * 6),
        WAYS[1]: pytest.approx([-0.2] * 6),
    }
    found = Presenting(Fixed(), WAYS[:2], 0).propose(view_of(trials), 12)
    assert [c.prompt for c in found] == [replace(p, presentation=WAYS[0]) for p in good]


def test_draws_are_of_the_seed():
    trials = [scored_trial(i, 0.6, prompt=Prompt(f"{i}: A or B")) for i in range(6)]
    trials += [
        scored_trial(9 + i, 0.1, prompt=Prompt("A or B", presentation=how))
        for i, how in enumerate(WAYS)
    ]
    found = [
        [c.prompt.digest for c in Presenting(Fixed(), WAYS, seed).propose(view_of(trials), 12)]
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2] and len(set(found[0])) == 6


def test_a_presentation_that_no_prompt_has_a_score_with_is_left_alone(seeds):
    failed = scored_trial(3, 0.0, prompt=replace(seeds[0], presentation=WAYS[0]), state="failed")
    view = three_seeds(seeds, [replace(failed, outcome=None, error="too long")])
    found = Presenting(Fixed(), WAYS, 0).propose(view, 20)
    assert {c.prompt.presentation for c in found} == set(WAYS[1:])


def test_prompts_that_differ_in_presentation_alone_are_not_the_same():
    prompt = Prompt("A or B?")
    keys = {dedup_key(replace(prompt, presentation=how)) for how in (AS_IS, *WAYS)}
    assert len(keys) == 4 and dedup_key(wording(replace(prompt, presentation=WAYS[0]))) in keys


def test_table_and_factors_tell_a_language_model_of_it(seeds):
    trials = [
        scored_trial(i, 0.5 + 0.2 * (i % 2), prompt=Prompt(f"{i}: A or B", presentation=how))
        for i, how in enumerate([AS_IS, WAYS[0]] * 4)
    ]
    rows = table(view_of(trials), trials)
    assert rows.count("(clip repeated to 1000 ms)") == 4
    assert "- clip repeated to 1000 ms: 70.0" in factors(trials)


def test_a_search_decides_once_and_carries_the_presentation_through(tmp_path, capsys):
    flags = [
        "--checkpoint",
        "fake",
        "--iterations",
        "2",
        "--runs-dir",
        str(tmp_path),
        "--name",
        "r",
    ]
    more = ["--presentations", str(COMMON)]
    assert run_verb(lambda: optimize.main([*flags, *more])) == 0
    out = capsys.readouterr().out
    lines = (tmp_path / "r" / "trials.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    made = [c for e in events if e["event"] == "propose" for c in e["candidates"]]
    ways = [json.dumps(c["prompt"].get("presentation", {})) for c in made]
    assert len(set(ways)) == 6 and sum(c["origin"] == ORIGIN for c in made) == 10
    assert [e["event"] for e in events].count("select") == 1
    assert "by giving the clip in other ways" in out and "[clip " in out
    assert re.search(
        r"repeated to 1000 ms: [+-]\d+\.\d points on the search half, \d wordings?", out
    )
    board = opro.load_run(tmp_path / "r").leaderboard
    assert set(board["presentation"].dropna()) == {how.words for how in WAYS[:2]} | {
        "padded with silence to 1000 ms",
        "padded with its own noise to 1000 ms",
        "RMS at -20 dBFS or as near as its peak allows",
    }
    before = (tmp_path / "r" / "trials.jsonl").read_bytes()
    assert run_verb(lambda: optimize.main([*flags, *more])) == 0  # shown again
    assert (tmp_path / "r" / "trials.jsonl").read_bytes() == before
    assert run_verb(lambda: optimize.main(flags)) == 2  # another search


def test_without_the_option_settings_name_and_journal_are_those_from_before(tmp_path):
    """A run's settings do not speak of it, so that its name, and the prompts that a seed draws, stay."""
    plain = optimize.OptimizeSettings(checkpoint="fake").checked()
    assert "presentations" not in plain.config
    named = optimize.OptimizeSettings(checkpoint="fake", presentations=COMMON).checked()
    assert named.config["presentations"] == str(COMMON) and named.name != plain.name
    flags = ["--checkpoint", "fake", "--iterations", "1", "--clips", "80", "--name", "r"]
    for path, more in (("a", []), ("b", ["--presentations", str(COMMON)])):
        assert (
            run_verb(
                lambda p=path, m=more: optimize.main([*flags, *m, "--runs-dir", str(tmp_path / p)])
            )
            == 0
        )
    first, second = (
        [json.loads(x) for x in (tmp_path / p / "r" / "trials.jsonl").read_text().splitlines()]
        for p in "ab"
    )
    scores = [
        [e["score"] for e in events if e["event"] == "tell"][:3] for events in (first, second)
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 3  # of the seed prompts, as they are
    assert "presentation" not in (tmp_path / "a" / "r" / "trials.jsonl").read_text()


class Deaf(Uncached):
    fingerprint = "deaf"

    def score(self, prompts, clips):
        raise AssertionError("it is refused before")


def test_what_cannot_be_searched_is_refused_before_anything_is_scored(tmp_path):
    options = {"runs_dir": tmp_path, "presentations": COMMON}
    with pytest.raises(UserError, match="evaluator Deaf does not say that it heeds that"):
        opro.optimize(Deaf(), ["A or B"], "data/demo", **options)
    with pytest.raises(UserError, match="presentations go with the built-in proposers"):
        opro.optimize("fake", ["A or B"], "data/demo", proposer=Fixed(), **options)
    with pytest.raises(UserError, match=r"none\.yaml"):
        opro.optimize("fake", ["A or B"], "data/demo", **options | {"presentations": "none.yaml"})
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith(".")]


def test_rescore_and_matrix_keep_how_a_clip_was_given(tmp_path, capsys):
    prompt = Prompt("Speech? A) yes B) no", presentation=WAYS[0])
    (tmp_path / "seeds.yaml").write_text(dump_prompts([prompt]))
    where = ["--runs-dir", str(tmp_path)]
    seeds = ["--checkpoint", "fake", "--seeds", str(tmp_path / "seeds.yaml")]
    rest = ["--iterations", "0", "--clips", "80", "--name", "r"]
    assert run_verb(lambda: optimize.main([*seeds, *rest, *where])) == 0
    run = opro.load_run(tmp_path / "r")
    assert run.best.prompt == prompt and run.summary.chosen.presentation == WAYS[0].words
    assert run_verb(lambda: rescore.main([str(run.path), "--split", "test", *where])) == 0
    (row,) = json.loads((tmp_path / "r" / "test.json").read_text())["prompts"]
    assert (row["text"], row["presentation"]) == (prompt.text, WAYS[0].words)
    flags = ["--checkpoint", "fake", "--prompts", str(run.path), "--out", str(tmp_path / "m")]
    assert run_verb(lambda: matrix.main([*flags, *where])) == 0
    rows = json.loads((tmp_path / "m" / "matrix.json").read_text())["rows"]
    assert [r["presentation"] for r in rows if "text" in r] == [WAYS[0].words]
    assert "[clip repeated to 1000 ms]" in capsys.readouterr().out
