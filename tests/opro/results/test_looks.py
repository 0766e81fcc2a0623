"""How often a test split was used: by manifest, counted before it is scored, and never forgotten."""

import json
import multiprocessing

import pytest

from evaluators.classifier import Calibration, Classifier
from evaluators.errors import PauseError
from evaluators.prompts import Prompt
from opro.results.looks import USES, count_uses, look_id, record_use, said_of_uses


def test_uses_are_counted_by_manifest(tmp_path):
    assert count_uses(tmp_path, "a") == 0 and not (tmp_path / USES).exists()
    asked = [("a", ["p"]), ("b", ["p"]), ("a", ["q"])]
    assert [record_use(tmp_path, d, "rescore", "x", shows) for d, shows in asked] == [1, 1, 2]
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


@pytest.mark.parametrize(
    "line", ["garbage", "[]", "3", "{}", '"manifest"', "[" * 9999, '{"manifest": "a", "shows": 3}']
)
def test_a_damaged_line_is_named_and_counts_as_a_use_of_any_split(tmp_path, line, caplog):
    record_use(tmp_path, "a", "rescore", "x", ["p"])
    with (tmp_path / USES).open("a") as file:
        file.write(line + "\n" + json.dumps({"manifest": "a"}) + "\n")
    assert count_uses(tmp_path, "a") == 3 and count_uses(tmp_path, "b") == 1
    assert f"{USES}: line 2 is damaged and counts as one use" in caplog.text
    assert record_use(tmp_path, "a", "v", "x", ["p"]) == 3  # shown before, in a line that is whole
    assert record_use(tmp_path, "a", "v", "x", ["q"]) == 4


def test_a_torn_line_counts_and_takes_no_other_with_it(tmp_path):
    record_use(tmp_path, "a", "rescore", "x", ["p"])
    raw = (tmp_path / USES).read_bytes()
    (tmp_path / USES).write_bytes(raw + raw[:-9])
    assert record_use(tmp_path, "a", "rescore", "x", ["q"]) == 3 == count_uses(tmp_path, "a")


def test_what_is_said_warns_from_the_second_use_on():
    assert "opened once" in said_of_uses(1) and "trustworthy" not in said_of_uses(1)
    assert said_of_uses(2).endswith("each use makes the next result less trustworthy")


def test_about_may_hold_any_text(tmp_path):
    record_use(tmp_path, "a", "rescore", 'quotes " and \n lines, ü', ["p"])
    assert count_uses(tmp_path, "a") == 1


def test_to_show_again_what_was_shown_is_no_further_use(tmp_path):
    def record(*shows, digest="a"):
        return record_use(tmp_path, digest, "rescore", "x", list(shows))

    assert record("p", "q") == 1
    before = (tmp_path / USES).read_bytes()
    assert record("q", "p") == record("q") == 1  # all of it, or a part
    assert (tmp_path / USES).read_bytes() == before
    assert record("q", "r") == 2 and record("p", "r") == 2 and record("p", digest="b") == 1
    with (tmp_path / USES).open("a") as file:  # of version 0.1, which did not say what was shown
        file.write(
            json.dumps({"manifest": "a", "verb": "rescore", "about": "x", "time": ""}) + "\n"
        )
    assert record("p") == 3 and record("s") == 4


def test_what_is_shown_is_a_classifier_on_a_model_by_a_verb():
    prompt = Prompt("A or B")
    ways = [
        look_id(verb, fingerprint, one)
        for verb in ("rescore", "matrix")
        for fingerprint in ("f", "g")
        for one in (
            Classifier(prompt),
            Classifier(Prompt("B or A")),
            Classifier(prompt, 0.5),
            Classifier(prompt, 0.5, Calibration(2.0)),
        )
    ]
    assert len(set(ways)) == len(ways) and ways[0] == look_id("rescore", "f", Classifier(prompt))


def use_often(folder, name, barrier, found):
    barrier.wait()
    for i in range(30):
        found.put(record_use(folder, "a", "rescore", "x" * 3000, [f"{name}-{i}"]))


def test_processes_take_turns_and_lose_no_use(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, found = context.Barrier(4), context.Queue()
    several = [
        context.Process(target=use_often, args=(tmp_path, n, barrier, found)) for n in range(4)
    ]
    for one in several:
        one.start()
    counts = sorted(found.get(timeout=60) for _ in range(120))
    for one in several:
        one.join()
    assert counts == list(range(1, 121)) and count_uses(tmp_path, "a") == 120


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PauseError, match="cannot be written"):
        record_use(tmp_path / "file", "a", "rescore", "x", ["p"])


def test_an_empty_record_counts_nothing(tmp_path):
    (tmp_path / USES).write_text("")
    assert count_uses(tmp_path, "d") == 0
    assert record_use(tmp_path, "d", "rescore", "one", ["a"]) == 1
