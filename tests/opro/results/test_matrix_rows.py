"""Rows of the published matrix, and the sheet of a matrix."""

import json

import pytest
from common import ROOT

from opro.results.matrix_rows import COLUMNS, matrix_sheet, row_code

FROZEN = ROOT / "tests" / "assets" / "run-v1" / "matrix-test" / "matrix.json"


def about(finetuning="LoRA", loss=None, clips=0, omni=False):
    return {"finetuning": finetuning, "loss": loss, "clips": clips, "omni": omni}


@pytest.mark.parametrize(
    ("of", "names"),
    [
        (about("none"), ("A1", "A2")),
        (about("none", omni=True), ("", "C1")),
        (about(loss="full", clips=5000), ("B1", "")),
        (about(loss="answer", clips=999), ("B2", "")),
        (about(loss="answer", clips=1000), ("B3", "B4")),
        (about(), ("B2", "")),
        (about(loss="answer", clips=1000) | {"cotuned": True}, ("", "B5")),
        (about(loss="answer", clips=1000) | {"cotuned": False}, ("B3", "B4")),
    ],
)
def test_a_row_has_the_name_of_its_place_in_the_published_matrix(of, names):
    baseline, searched = names
    assert row_code(of, True, False) == baseline and row_code(of, False, True) == searched
    assert row_code(of, False, False) == ""
    assert row_code(of, True, True) == " = ".join(n for n in names if n)


def test_the_sheet_shows_what_the_file_holds():
    result = json.loads(FROZEN.read_text())
    sheet = matrix_sheet(result)
    at = {c.name: i for i, c in enumerate(COLUMNS)}
    assert sheet.columns == COLUMNS and len(sheet.rows) == len(result["rows"])
    for cells, row in zip(sheet.rows, result["rows"], strict=True):
        score = row["balanced_accuracy"]
        assert cells[at["balanced accuracy"]] == (
            f"{100 * score['value']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
        )
        assert cells[at["hits"]] == f"{100 * row['hit_rate']['value']:.0f}"
        assert cells[at["false alarms"]] == f"{100 * row['false_alarm_rate']['value']:.0f}"
        assert cells[at["silence"]] == f"{100 * row['controls']['silence']:.0f}"
        if row["difference"] is None:
            assert row["reference"] and cells[at["difference"]] == "reference"
            assert cells[at["p (Holm)"]] == ""
        else:
            assert cells[at["difference"]].startswith(f"{100 * row['difference']['value']:+.1f} [")
            assert cells[at["p (Holm)"]] == f"{row['difference']['p_holm']:.4f}"
        took = row["latency"]
        for column, part in (("ms single", "single"), ("ms batch", "batch")):
            whole = took["decode"] + took["features"] + took[part]
            assert cells[at[column]] == f"{whole:.1f}"
    assert f"{result['clips']} clips of {result['sources']} sources" in sheet.title
