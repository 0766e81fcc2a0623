import dataclasses
import json

import numpy as np
import pytest

from opro import optimize, power
from opro.cli import run_verb
from opro.search.power import OFTEN, Half, shown_by, simulate, smallest_gain

SETTINGS = power.PowerSettings(searches=40, candidates=10)


def half(sources, clips):
    source = np.repeat(np.arange(2 * sources), clips)
    return Half((source >= sources).astype(int), source)


def test_large_gains_are_found_and_small_sets_find_less():
    found = [
        simulate("x", (half(n, 8), half(n, 8)), gain, SETTINGS)
        for n, gain in ((40, 0.15), (12, 0.06), (40, 0.0))
    ]
    assert found[0].replaced > 0.9 > found[1].replaced
    assert found[2].wrong <= 0.15 and found[0].wrong <= 0.15
    assert (found[0].clips, found[0].sources, found[0].fewest) == (1280, 160, 40)


def test_too_few_sources_claim_nothing():
    cell = simulate("x", (half(6, 30), half(6, 30)), 0.15, SETTINGS)
    assert cell.replaced == cell.wrong == 0


def test_a_set_grows_as_told():
    grown = half(5, 4).grown(3, 2)
    assert len(grown.truth) == 240 and len(np.unique(grown.source)) == 30
    assert len(np.unique(half(5, 4).alone().source)) == 40
    for s in np.unique(grown.source):
        assert len(np.unique(grown.truth[grown.source == s])) == 1


def test_same_seed_same_table_and_another_seed_another():
    def cell(seed):
        settings = dataclasses.replace(SETTINGS, seed=seed)
        return simulate("x", (half(12, 4), half(12, 4)), 0.1, settings)

    assert cell(0) == cell(0)
    assert len({cell(seed).replaced for seed in range(4)}) > 1


def test_the_more_sources_differ_the_less_is_found():
    found = [
        simulate(
            "x", (half(12, 4), half(12, 4)), 0.15, dataclasses.replace(SETTINGS, spread=spread)
        ).replaced
        for spread in (0.0, 0.08, 0.3)
    ]
    assert found[0] > 0.9 and found[0] > found[1] > found[2] + 0.2


def test_command(make_manifest, capsys):
    folder = make_manifest()
    flags = ["--manifest", str(folder), "--searches", "10", "--candidates", "2"]
    assert power.main([*flags, "--format", "json"]) == 0
    cells = json.loads(capsys.readouterr().out)
    assert {c["gain"] for c in cells} == set(power.GAINS)
    assert all(0 <= c["replaced"] <= 1 for c in cells)
    assert power.main([*flags, "--format", "markdown"]) == 0
    assert "as it is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--accuracy", "80"], "0.5 to 0.99"),
        (["--spread", "8"], "8 points"),
        (["--task", "x"], "'x'"),
    ],
)
def test_wrong_flags(flags, word, capsys):
    assert run_verb(lambda: power.main(flags)) == 2
    assert word in capsys.readouterr().err


def test_the_smallest_gain_is_found_often_and_a_smaller_one_is_not():
    both = (half(30, 6), half(30, 6))
    gain = smallest_gain(both, SETTINGS)
    assert gain is not None
    assert simulate("x", both, gain / 100, SETTINGS).replaced >= OFTEN
    assert simulate("x", both, (gain - 1) / 100, SETTINGS).replaced < OFTEN
    larger = smallest_gain((half(120, 6), half(120, 6)), SETTINGS)
    assert larger is not None and larger < gain


@pytest.mark.parametrize(
    ("holdout", "words"),
    [
        (half(9, 20), "no gain, however large: a claim needs 10 sources of each label"),
        (half(10, 1), "no gain often: even the largest"),
        (half(40, 8), "points replaces the baseline in 80 % of searches (simulated, seeds at 80 %"),
    ],
)
def test_what_dev_shows_is_one_sentence(holdout, words):
    assert words in shown_by((holdout, holdout), SETTINGS)


def test_a_half_without_a_label_shows_nothing():
    search = half(20, 2)
    assert "it has 0 of one" in shown_by((search, Half(search.truth[:20] * 0, search.source[:20])))


def test_a_dry_run_says_what_dev_shows_and_a_search_that_it_shows_nothing(
    make_manifest, tmp_path, capsys
):
    flags = ["--manifest", str(make_manifest()), "--checkpoint", "fake", "--iterations", "0"]
    flags += ["--runs-dir", str(tmp_path / "runs")]
    assert optimize.main([*flags, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "dev shows   no gain, however large" in said
    assert "warning     no prompt can replace the baseline, however good: the holdout has 6" in said
    assert optimize.main([*flags, "--dry-run", "--manifest", "data/demo"]) == 0
    said = capsys.readouterr().out
    assert "dev shows   a prompt that is better by" in said and "warning" not in said
