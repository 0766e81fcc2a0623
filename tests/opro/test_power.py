import dataclasses
import json

import numpy as np
import pytest

from opro import power
from opro.cli import run_verb

SETTINGS = power.PowerSettings(searches=40, candidates=10)


def half(sources, clips):
    source = np.repeat(np.arange(2 * sources), clips)
    return power.Half((source >= sources).astype(int), source)


def test_large_gains_are_found_and_small_sets_find_less():
    found = [
        power.simulate("x", (half(n, 8), half(n, 8)), gain, SETTINGS)
        for n, gain in ((40, 0.15), (12, 0.06), (40, 0.0))
    ]
    assert found[0].replaced > 0.9 > found[1].replaced
    assert found[2].wrong <= 0.15 and found[0].wrong <= 0.15
    assert (found[0].clips, found[0].sources, found[0].fewest) == (1280, 160, 40)


def test_too_few_sources_claim_nothing():
    cell = power.simulate("x", (half(6, 30), half(6, 30)), 0.15, SETTINGS)
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
        return power.simulate("x", (half(12, 4), half(12, 4)), 0.1, settings)

    assert cell(0) == cell(0)
    assert len({cell(seed).replaced for seed in range(4)}) > 1


def test_the_more_sources_differ_the_less_is_found():
    found = [
        power.simulate(
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
