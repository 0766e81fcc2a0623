"""The table of wording and threshold, and what it means in words."""

import json

import pytest

from opro import optimize
from opro.results.run_folder import RunFolder
from opro.results.sheet import render
from opro.results.summary import FourCells, Interval
from opro.results.two_by_two import share_line, two_by_two_sheet, verdict_line


def cells(seed=(0.7, 0.8), found=(0.75, 0.85), sure=0.01):
    """A table of four scores; every gain is sure by so much more or less than its value."""

    def gain(value):
        return Interval(value=value, low=value - sure, high=value + sure)

    both = {"seed": seed, "found": found}
    return FourCells(
        metric="balanced_accuracy",
        found="f",
        scores={
            who: {
                mode: Interval(value=value, low=value - 0.1, high=None)
                for mode, value in zip(("argmax", "threshold"), pair, strict=True)
            }
            for who, pair in both.items()
        },
        wording={"argmax": gain(found[0] - seed[0]), "threshold": gain(found[1] - seed[1])},
        threshold={who: gain(pair[1] - pair[0]) for who, pair in both.items()},
        both=gain(found[1] - seed[0]),
    )


def test_every_number_stands_in_its_cell():
    text = render(two_by_two_sheet(cells(), "test"), width=200).split("\n")
    assert text[0] == "balanced accuracy on test; thresholds are fitted on the search half"
    assert text[2].split() == "best seed prompt 70.0 80.0 +10.0 [+9.0, +11.0]".split()
    assert text[3].split() == "prompt found 75.0 85.0 +10.0 [+9.0, +11.0]".split()
    rest = "wording gains +5.0 [+4.0, +6.0] +5.0 [+4.0, +6.0] both +15.0 [+14.0, +16.0]"
    assert text[4].split() == rest.split()
    assert share_line(cells()) == (
        "of +15.0 points of balanced accuracy over the best seed prompt as it is, its threshold alone gives +10.0"
        " [+9.0, +11.0], wording beyond that +5.0 [+4.0, +6.0]"
    )


def test_where_nothing_was_found_the_seeds_row_is_shown():
    one = cells()
    alone = one.model_copy(
        update={"found": None, "scores": {"seed": one.scores["seed"]}, "wording": {}}
    )
    assert len(two_by_two_sheet(alone).rows) == 1
    assert share_line(alone) == (
        "its threshold gives the best seed prompt +10.0 [+9.0, +11.0] points of balanced accuracy;"
        " no wording beat it"
    )


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_digit_is_lost_on_a_narrow_terminal(width):
    text = render(two_by_two_sheet(cells()), width=width)
    assert all(number in text for number in ("70.0", "80.0", "75.0", "85.0"))


@pytest.mark.parametrize("threshold", ["dev", "argmax"])
def test_a_run_tells_its_table_on_the_terminal_and_in_its_summary(tmp_path, capsys, threshold):
    flags = ["--checkpoint", "fake", "--iterations", "2", "--candidates", "6", "--name", "run"]
    flags += ["--threshold", threshold, "--runs-dir", str(tmp_path)]
    assert optimize.main(flags) == 0
    out = capsys.readouterr().out
    summary = RunFolder.read(tmp_path / "run").finished()
    told = summary.two_by_two
    assert told and summary.threshold == threshold and share_line(told) in out
    for row in two_by_two_sheet(told).rows:
        assert all(cell in out for cell in row)
    best = told.scores["seed"]["threshold" if threshold == "dev" else "argmax"]
    assert best.value == pytest.approx(summary.baseline.score)
    raw = json.loads((tmp_path / "run" / "summary.json").read_text())["two_by_two"]
    assert raw == json.loads(told.model_dump_json())


def test_the_verdict_is_told_in_plain_words(tmp_path):
    flags = ["--checkpoint", "fake", "--iterations", "1", "--candidates", "4", "--name", "run"]
    assert optimize.main([*flags, "--runs-dir", str(tmp_path)]) == 0
    summary = RunFolder.read(tmp_path / "run").finished()

    def verdict(kept, bias, table):
        chosen = summary.chosen.model_copy(update={"bias": bias})
        update = {"baseline_kept": kept, "chosen": chosen, "two_by_two": table}
        return verdict_line(summary.model_copy(update=update))

    assert verdict(True, 0.5, None) == ""
    alike = cells(found=(0.75, 0.8))  # as good as the seed with its threshold
    assert "the threshold does it all" in verdict(True, 0.5, alike)
    assert verdict(True, 0.5, cells()) == ""  # wording gains, too
    assert verdict(True, 0.5, cells(found=(0.75, 0.8), sure=0.2)) == ""  # not for certain
    worse = cells(seed=(0.8, 0.7), found=(0.8, 0.7))
    assert "did not hold up" in verdict(True, 0.5, worse)
    assert verdict(False, 0.5, cells()) == ""
    assert "may do as well: --threshold dev" in verdict(False, 0.0, cells(found=(0.8, 0.8)))
    assert verdict(False, 0.0, cells()) == ""
