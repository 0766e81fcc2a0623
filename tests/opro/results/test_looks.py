"""How often a test split was used: by manifest, counted before it is scored, and never forgotten."""

import json

import pytest

from evaluators.errors import UserError
from opro.results.looks import USES, count_uses, record_use, said_of_uses


def test_uses_are_counted_by_manifest(tmp_path):
    assert count_uses(tmp_path, "a") == 0 and not (tmp_path / USES).exists()
    assert [record_use(tmp_path, d, "rescore", "x") for d in ("a", "b", "a")] == [1, 1, 2]
    assert (count_uses(tmp_path, "a"), count_uses(tmp_path, "b"), count_uses(tmp_path, "c")) == (
        2,
        1,
        0,
    )
    lines = [json.loads(x) for x in (tmp_path / USES).read_text().splitlines()]
    assert [(x["manifest"], x["verb"], x["about"]) for x in lines] == [
        ("a", "rescore", "x"),
        ("b", "rescore", "x"),
        ("a", "rescore", "x"),
    ]
    assert all(x["time"].startswith("20") for x in lines)


@pytest.mark.parametrize("line", ["garbage", "[]", "3", "{}", '"manifest"', ""])
def test_a_damaged_count_is_named_with_its_line_and_nothing_is_added(tmp_path, line):
    record_use(tmp_path, "a", "rescore", "x")
    with (tmp_path / USES).open("a") as file:
        file.write(line + "\n" + json.dumps({"manifest": "a"}) + "\n")
    before = (tmp_path / USES).read_bytes()
    for use in (lambda: count_uses(tmp_path, "a"), lambda: record_use(tmp_path, "a", "v", "x")):
        with pytest.raises(UserError, match=rf"{USES}:2: damaged line; restore the file"):
            use()
    assert (tmp_path / USES).read_bytes() == before


def test_what_is_said_warns_from_the_second_use_on():
    assert "opened 1 times" in said_of_uses(1) and "trustworthy" not in said_of_uses(1)
    assert said_of_uses(2).endswith("each use makes the next result less trustworthy")


def test_about_may_hold_any_text(tmp_path):
    record_use(tmp_path, "a", "rescore", 'quotes " and \n lines, ü')
    assert count_uses(tmp_path, "a") == 1
