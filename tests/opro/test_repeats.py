"""`--repeats N`: N searches as they would go alone, one decision over all of them, and every verb reads the whole."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import LABELS, Made, Searched, scored_trial

import opro
from evaluators.errors import UserError
from evaluators.prompts import Prompt
from opro import leaderboard, optimize, report, rescore, seal, verify
from opro.results.decisions import DECISIONS
from opro.results.repeats import repeats_of, spread_line, wins_line
from opro.results.run_folder import RunFolder
from opro.results.summary import read_summary
from opro.search import history as history_module
from opro.search.history import History, best_first
from opro.search.repeats import STATES, best_of, journal_pool, pool, wins_of
from opro.search.select import decide, pick_finalists
from opro.settings import OptimizeSettings
from opro.view.reading import PAUSED, STOPPED, see

SMALL = ["--checkpoint", "fake", "--iterations", "2", "--candidates", "3", "--clips", "120"]
N, FIRST = 3, 4
FLAGS = ["--repeats", str(N), "--seed", str(FIRST)]


@pytest.fixture(autouse=True)
def no_model_configured(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPRO_LM_PRICES"):
        monkeypatch.delenv(name, raising=False)


def run(runs, *flags, name="run"):
    argv = [*SMALL, "--runs-dir", str(runs), "--name", name, *map(str, flags)]
    assert optimize.main(argv) == 0
    return runs / name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three searches, never interrupted."""
    runs = tmp_path_factory.mktemp("repeats")
    return run(runs, *FLAGS)


def searches(folder):
    return [folder / "repeats" / f"{folder.name}-seed{s}" for s in range(FIRST, FIRST + N)]


def lines(path):
    return (path / "trials.jsonl").read_text().splitlines()


@pytest.mark.parametrize("number", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 2))])
def test_each_search_is_the_single_one_with_its_seed(whole, tmp_path, number):
    runs = tmp_path / "runs"
    shutil.copytree(whole.parent / ".cache", runs / ".cache")  # nothing is scored again
    alone = lines(run(runs, "--seed", FIRST + number))
    assert json.loads(alone[-1])["event"] == "select"
    assert lines(searches(whole)[number]) == alone[:-1]


def test_the_pool_decides_once_and_holds_every_prompt_once(whole):
    made, pooled = [RunFolder.read(p).history for p in searches(whole)], RunFolder.read(whole)
    ids = [t.prompt.prompt_id for t in pooled.history.trials]
    assert len(set(ids)) == len(ids)
    assert set(ids) == {t.prompt.prompt_id for one in made for t in one.trials}
    assert len((whole.parent / DECISIONS).read_text().splitlines()) == 1
    assert not any(one.selection for one in made)
    for trial in pooled.history.trials:
        assert pooled.scores(trial.prompt).exists() == trial.scored


class KilledError(Exception):
    """The process ends."""


def killed_at(monkeypatch, number):
    """The process ends before it writes a line of a journal for the `number`-th time."""
    write, left = history_module.append_line, [number]

    def append_line(path, text):
        left[0] -= 1
        if left[0] < 0:
            raise KilledError
        write(path, text)

    monkeypatch.setattr(history_module, "append_line", append_line)


@pytest.mark.parametrize(
    "place",
    [
        "between two searches",
        pytest.param("in the second search", marks=pytest.mark.slow),
        pytest.param("before the pool", marks=pytest.mark.slow),
        "in the pool",
        pytest.param("before the decision is written", marks=pytest.mark.slow),
    ],
)
def test_killed_anywhere_it_ends_as_if_it_had_not_been(whole, tmp_path, monkeypatch, place):
    own = [len(lines(path)) for path in searches(whole)]
    number = {  # the run's own first line comes before all of them
        "between two searches": own[0] + 1,
        "in the second search": own[0] + 4,
        "before the pool": sum(own) + 1,
        "in the pool": sum(own) + 4,
        "before the decision is written": sum(own) + len(lines(whole)) - 1,
    }[place]
    shutil.copytree(whole.parent / ".cache", tmp_path / ".cache")
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        killed_at(patch, number)
        run(tmp_path, *FLAGS)
    folder = run(tmp_path, *FLAGS)
    for mine, other in zip((folder, *searches(folder)), (whole, *searches(whole)), strict=True):
        assert lines(mine) == lines(other)
    assert (folder / "best.yaml").read_bytes() == (whole / "best.yaml").read_bytes()
    assert len((tmp_path / DECISIONS).read_text().splitlines()) == 1
    mine, other = (read_summary(f / "summary.json") for f in (folder, whole))
    assert mine.repeats == other.repeats and mine.finalists == other.finalists
    assert mine.evals.requested == other.evals.requested


def test_the_same_command_shows_it_again_and_nothing_is_written(whole, capsys):
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file() and p.suffix != ".txt"}
    run(whole.parent, *FLAGS)
    out = capsys.readouterr().out
    assert {p: p.read_bytes() for p in before} == before
    summary = RunFolder.read(whole).finished()
    assert spread_line(summary.repeats) in out and wins_line(summary.repeats) in out


def test_the_summary_says_what_each_search_came_to(whole):
    summary, folder = RunFolder.read(whole).finished(), RunFolder.read(whole)
    told = summary.repeats
    assert [one.seed for one in told.each] == [4, 5, 6] and sum(told.wins.values()) == N
    for one, path in zip(told.each, searches(whole), strict=True):
        history = RunFolder.read(path).history
        best = best_of(history.trials)
        assert (one.prompt_id, one.search_score) == (best.prompt.prompt_id, best.reward)
        assert one.trials == len(history.trials)
    values = [one.search_score for one in told.each]
    assert (told.search.low, told.search.high) == (min(values), max(values))
    known = {s.prompt_id: s.score for s in (summary.baseline, *summary.finalists)}
    assert all(one.score == known.get(one.prompt_id, one.score) for one in told.each)
    asked = sum(t.n_scored for p in searches(whole) for t in RunFolder.read(p).history.trials)
    assert summary.evals.requested > asked
    assert summary.evals.forward + summary.evals.cached == summary.evals.requested
    assert folder.document()["repeats"] == told.model_dump()


def test_every_verb_reads_it(whole, tmp_path, capsys):
    runs = Path(shutil.copytree(whole.parent, tmp_path / "runs"))
    folder, to = runs / "run", ["--runs-dir", str(runs)]
    assert leaderboard.main(to) == 0
    out = capsys.readouterr().out
    assert "run: 3 searches by seed" in out and f"1 of {N}" in out
    assert leaderboard.main([*to, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["run"] for row in rows} == {"run"}  # not its searches, whose prompts these are
    assert sum(row["won"] for row in rows) == N and {row["repeats"] for row in rows} == {N}
    assert report.main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "Repeats</h2>" in page and "decided nothing" in page and 'href="#repeats-1"' in page
    assert rescore.main([str(folder), "--split", "test", *to]) == 0
    assert seal.main([str(folder)]) == 0
    assert verify.main([str(folder / "card.yaml")]) == 0
    found = opro.load_run(folder)
    assert found.finished and set(found.leaderboard["won"]) <= {0, 1, 2, 3}
    assert see(runs, "run").summary is not None and see(runs, "run").round <= 2 * N
    for name in ("mine", "run-seedling", "run-seed10"):
        shutil.copytree(searches(folder)[0], folder / "repeats" / name)
    found = [path.name for path in RunFolder.read(folder).repeats]
    assert found == ["run-seed4", "run-seed5", "run-seed6", "run-seed10"]


def test_while_it_goes_on_the_page_shows_and_steers_the_search_under_way(
    tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        killed_at(patch, 16)
        run(tmp_path, *FLAGS)
    seen = see(tmp_path, "run")
    assert seen.run.name == "run-seed5" and seen.state == STOPPED and seen.rounds == 2
    assert report.main([str(tmp_path / "run")]) == 0
    assert "1 of 3 searches have ended" in (tmp_path / "run" / "report.html").read_text()
    history_module_ask(seen)
    argv = [*SMALL, "--runs-dir", str(tmp_path), "--name", "run", *FLAGS]
    assert optimize.run_verb(lambda: optimize.main(argv)) == 1
    assert "as someone asked" in capsys.readouterr().err
    assert see(tmp_path, "run").state == PAUSED
    summary = RunFolder.read(run(tmp_path, *FLAGS)).finished()
    assert any("forbade 'music'" in w and w.startswith("seed 5") for w in summary.warnings)


def history_module_ask(seen):
    """A pause and a word that is forbidden, as the page writes them."""
    about = {"time": "2026-01-01T00:00:00", "who": "someone"}
    asked = [{"kind": "forbid", "value": "music"}, {"kind": "pause", "value": None}]
    seen.run.steering.write_text("".join(json.dumps(one | about) + "\n" for one in asked))


def test_limits_are_for_the_whole(tmp_path, capsys):
    folder = run(tmp_path, *FLAGS, "--max-evals", "3000")
    summary = RunFolder.read(folder).finished()
    assert summary.evals.requested <= 3000 + 4 * 60  # the controls come on top
    assert "--max-evals 3000 is for all 3 repeats, 1000 for each" in summary.warnings
    assert RunFolder.read(searches(folder)[0]).config["max_evals"] == 1000
    argv = [*SMALL, "--runs-dir", str(tmp_path), *FLAGS, "--max-evals", "600"]
    assert optimize.run_verb(lambda: optimize.main(argv)) == 2
    assert "a search's share of 3 repeats: --max-evals is 200" in capsys.readouterr().err
    given = OptimizeSettings(repeats=4, max_evals=10, max_cost=1.0, max_tokens=9).checked()
    for one in given.searches():
        assert (one.max_evals, one.max_cost, one.max_tokens) == (2, 0.25, 2)
    with pytest.raises(UserError, match="--max-tokens is 3 for 4 repeats"):
        replace(given, max_tokens=3).searches()


def test_the_plan_counts_all_searches_and_one_decision(tmp_path, capsys):
    argv = [*SMALL, "--runs-dir", str(tmp_path), "--dry-run"]

    def most(*flags):
        assert optimize.main([*argv, *flags]) == 0
        out = capsys.readouterr().out
        found = next(line for line in out.splitlines() if line.startswith("evals"))
        return out, int(found.split()[3].strip(";").replace(",", ""))

    _, one = most()
    out, three = most("--repeats", "3")
    assert "3 such searches, seeds 0 to 2, and one decision over all" in out
    search, holdout = (int(n) for n in re.findall(r" on (\d+) clips", out))
    assert search + holdout == 120
    # and the best prompt of each is heard, too
    assert three - one == 2 * (3 + 2 * 3) * search + 3 * holdout
    assert not [p for p in tmp_path.iterdir() if p.is_dir() and not p.name.startswith(".")]


def test_one_repeat_changes_nothing(tmp_path):
    assert "repeats" not in OptimizeSettings(repeats=1).checked().config
    assert OptimizeSettings(repeats=1).checked() == OptimizeSettings().checked()
    folder = run(tmp_path, "--repeats", "1")
    assert not (folder / "repeats").exists()
    assert "repeats" not in json.loads((folder / "summary.json").read_text())


def test_a_proposer_of_ones_own_has_no_seed():
    with pytest.raises(UserError, match="one of your own has none"):
        opro.optimize("fake", ["Speech?"], "data/demo", proposer=Made(), repeats=2)


@pytest.mark.slow
def test_python_takes_it_too(whole, tmp_path):
    shutil.copytree(whole.parent / ".cache", tmp_path / ".cache")
    found = opro.optimize(
        "fake",
        "prompts/seeds/baselines.yaml",
        "data/demo",
        runs_dir=tmp_path,
        name="run",
        iterations=1,
        candidates=2,
        repeats=2,
    )
    assert [one.seed for one in found.summary.repeats.each] == [0, 1]


@pytest.mark.parametrize("threshold", [pytest.param("argmax", marks=pytest.mark.slow), "dev"])
def test_a_pool_of_one_search_decides_as_it_would_alone(tmp_path, threshold):
    one = Searched(tmp_path / "a.jsonl", threshold=threshold, proposer=Made(options=True))
    history = History(tmp_path / "b.jsonl", LABELS)
    history.begin(one.problem.identity)
    journal_pool(history, pool([one.history.trials], one.settings.iterations))
    assert [replace(t, asked_twice=0) for t in one.history.trials] == history.trials
    history.wins = wins_of([one.history.trials])
    made = decide(one.problem, one.settings, history)
    assert made.reason == one.decision.reason and made.finalists == tuple(
        replace(f, trial=replace(f.trial, asked_twice=0)) for f in one.decision.finalists
    )


STATE = st.sampled_from(STATES[1:])


def test_what_most_searches_found_best_is_the_first_finalist():
    """Though another prompt has more points: more trials make more that lead by luck."""
    seed = scored_trial(0, 0.7, 0)
    lucky, often = (scored_trial(1, r, prompt=Prompt(f"P{r}")) for r in (0.82, 0.81))
    third = scored_trial(2, 0.8, prompt=Prompt("third"))
    searches = [[seed, lucky, third], [seed, often], [seed, often, third]]
    wins = wins_of(searches)
    assert list(wins.values()) == [2, 1] and next(iter(wins)) == often.prompt.prompt_id
    scored = best_first([seed, lucky, often, third])
    baseline, finalists = pick_finalists(scored, 30, wins)
    assert baseline is seed and finalists == [often, lucky, third]
    assert pick_finalists(scored, 30)[1] == [lucky, often, third]
    assert pick_finalists(scored, 11, wins)[1] == [often]
    assert best_of([seed, scored_trial(3, 0.9, state="dropped")]) is seed  # a forecast is no score
    alone = wins_of([[seed, lucky, often, third]])  # of one search it is the order that it had
    assert pick_finalists(scored, 30, alone)[1] == [lucky, often, third]


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 6), STATE), max_size=6), min_size=1, max_size=4),
    st.data(),
)
@settings(max_examples=25, deadline=None)
def test_pools_hold_each_prompt_once_as_it_is_known_best(tmp_path_factory, drawn, data):
    rounds = 3
    found = []
    for search in drawn:
        names = dict(search)  # each prompt once in a search
        trials = [trial(0, 0, "complete")]
        for k, (name, state) in enumerate(names.items(), 1):
            trials.append(trial(k, 1 + min(k // 3, rounds - 1), state, name))
        found.append(trials)
    pooled = pool(found, rounds)
    ids = [one.trial.prompt.prompt_id for one in pooled]
    assert len(ids) == len(set(ids))
    for one in pooled:
        all_of_it = [t for ts in found for t in ts if t.prompt == one.trial.prompt]
        best = max(STATES.index(t.state) for t in all_of_it)
        assert STATES.index(one.trial.state) == best
        assert one.search == next(  # the first that knows as much
            i
            for i, trials in enumerate(found)
            if any(t.prompt == one.trial.prompt and STATES.index(t.state) == best for t in trials)
        )
    assert [one.iteration for one in pooled] == sorted(one.iteration for one in pooled)
    path = tmp_path_factory.mktemp("pool") / "t.jsonl"
    history = History(path, LABELS)
    history.begin({})
    journal_pool(history, pooled)
    text = path.read_text().splitlines(keepends=True)
    cut = data.draw(st.integers(1, len(text)))
    path.write_text("".join(text[:cut]))  # killed there
    history = History(path, LABELS)
    journal_pool(history, pooled)
    assert path.read_text() == "".join(text)


def trial(number, iteration, state, name="seed"):
    prompt = Prompt(f"Prompt {name}: speech? A or B")
    made = scored_trial(number, 0.6, iteration, state=state, prompt=prompt)
    return replace(made, outcome=None, error="no") if state == "failed" else made


def test_what_the_sentences_say():
    seed = scored_trial(0, 0.7, 0)
    searches = [
        [seed, scored_trial(1, 0.8 + 0.02 * (i % 2), prompt=Prompt(f"P{i % 2}"))] for i in range(3)
    ]
    told = repeats_of([0, 1, 2], searches, [0.7, 0.74, 0.7])
    assert told.search.sd == pytest.approx(0.02 / 3**0.5)
    assert "80.0 to 82.0 on the search half (sd 1.2), 70.0 to 74.0 on the holdout (sd 2.3)" in (
        spread_line(told)
    )
    assert "some 6.5 points" in spread_line(told)  # 2.8 sd
    assert "was best in 2 of 3 searches, 1 other in the rest" in wins_line(told)
    other = repeats_of([0, 1], searches[:2], [0.7, 0.74])
    assert wins_line(other) == "each of the 2 searches ended with another prompt"
