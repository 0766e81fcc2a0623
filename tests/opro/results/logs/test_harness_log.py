import json
import math

import pytest
from made_logs import choice, line, real, write_lines

from evaluators.errors import UserError
from opro.results.logs import sample_log
from opro.results.logs.read import is_log, read_log

NAME = "samples_toy_mc_2026-01-02T03-04-05.678901.jsonl"
RESULTS = "results_2026-01-02T03-04-05.678901.json"


def test_multiple_choice_of_the_package_is_read():
    log = read_log(real("samples_toy_choice*")[1])
    assert (log.kind, log.task, log.model) == ("lm-evaluation-harness", "toy_choice", "")
    first = log.samples[0]
    assert (first.id, first.target, first.choices) == ("0", "yes", ("yes", "no"))
    assert list(first.scores) == ["acc,none", "acc_norm,none"] and len(log.samples) == 6
    assert first.fields == {"question": "Clip 0: speech?", "answer": "yes", "speaker": "p0"}
    for one in log.samples:
        said = one.choices[one.logp.index(max(one.logp))]
        assert (said == one.target) == one.scores["acc,none"]


def test_filters_of_the_package_are_scores_of_their_own():
    log = read_log(real("samples_toy_reply*")[0])
    strict, flexible = "exact_match,strict-match", "exact_match,flexible-extract"
    assert all(list(s.scores) == [strict, flexible] for s in log.samples) and len(log.samples) == 6
    missed = [s for s in log.samples if s.answers[strict] == "[invalid]"]
    assert missed and all(s.scores[strict] == 0 for s in missed)
    assert all(s.answers[flexible] in ("yes", "no") for s in missed)


def test_samples_of_lmms_eval_are_read():
    a, b = (read_log(path) for path in real("*_samples_toy_heard*"))
    assert (a.kind, a.task, len(a.samples)) == ("lmms-eval", "toy_heard", 6)
    assert list(a.samples[0].scores) == ["exact", "judged.score"]
    assert a.samples[3].fields == {"judged.speaker": "p1", "judged.score": "0"}
    assert {s.answers["exact"] for s in a.samples} == {"no"}
    assert [s.asked for s in a.samples] == [s.asked for s in b.samples]
    assert len({s.asked for s in a.samples}) == 6  # though its own digests of documents are one


def test_what_lies_beside_tells_model_figures_and_direction(tmp_path):
    path = write_lines(tmp_path / NAME, [line(0, 1.0), line(1, 0.0)])
    results = {"model_name": "org/model", "results": {"toy_mc": {"acc,none": 0.5, "acc_stderr,none": 0.1,
               "alias": "toy"}}, "higher_is_better": {"toy_mc": {"acc": False}}}  # fmt: skip
    (tmp_path / RESULTS).write_text(json.dumps(results))
    log = read_log(path)
    assert (log.task, log.model, log.reported) == ("toy_mc", "org/model", {"acc,none": 0.5})
    assert log.less_is_better == {"acc,none"}
    for damage in ("{", "[]", '{"results": 1, "higher_is_better": {"toy_mc": 2}}'):
        (tmp_path / RESULTS).write_text(damage)
        log = read_log(path)
        assert (log.task, log.model, log.reported, log.less_is_better) == ("toy_mc", "", {}, set())


def test_the_list_of_older_versions_is_read(tmp_path):
    old = [choice(i, i % 2, (-0.2, -1.5)) for i in range(3)]
    for one in old:
        del one["filter"], one["metrics"]
        one["arguments"] = [[a["arg_0"], a["arg_1"]] for a in one["arguments"].values()]
    path = tmp_path / "toy.jsonl"
    path.write_text(json.dumps(old, indent=2))
    log = read_log(path)
    assert [s.scores for s in log.samples] == [{"acc": 1.0}, {"acc": 0.0}, {"acc": 1.0}]
    assert log.samples[1].choices == ("yes", "no") and log.samples[1].target == "no"


def test_a_target_may_be_told_by_its_place(tmp_path):
    given = ["0", "1", "7", "yes", "²"]
    lines = [choice(i, 0, (-1.0, -2.0), target=t) for i, t in enumerate(given)]
    found = [s.target for s in read_log(write_lines(tmp_path / NAME, lines)).samples]
    assert found == ["yes", "no", "7", "yes", "²"]


def test_scores_that_are_no_numbers_are_left_out(tmp_path):
    more = {
        "metrics": ["acc", "pair", "words", "nan"],
        "pair": [1, 2],
        "words": "good",
        "nan": math.nan,
    }
    (one,) = read_log(write_lines(tmp_path / NAME, [line(0, 1.0, **more)])).samples
    assert list(one.scores) == ["acc,none", "nan,none"] and math.isnan(one.scores["nan,none"])


def test_several_replies_are_no_answer(tmp_path):
    lines = [
        line(0, 1.0),
        line(1, 1.0, filtered_resps=["yes", "no"]),
        line(2, 1.0, filtered_resps=[]),
    ]
    found = [dict(s.answers) for s in read_log(write_lines(tmp_path / NAME, lines)).samples]
    assert found == [{"acc,none": "yes"}, {}, {}]


@pytest.mark.parametrize("wrong", [["-1.0"], ["-1.0", "False", 1], "-1.0", ["nan", "False"], []])
def test_choices_whose_log_probabilities_are_not_all_known_are_none(tmp_path, wrong):
    one = choice(0, 0, (-1.0, -2.0), filtered_resps=[["-1.0", "False"], wrong])
    (found,) = read_log(write_lines(tmp_path / NAME, [one])).samples
    assert found.choices == found.logp == ()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([line(0, 1.0), line(1, 0.0), line(0, 1.0)], r"jsonl:3: doc_id 0 stands at .*jsonl:1 too"),
        ([line(0, 1.0), {"doc": 1}], r"jsonl:2: no doc_id"),
        ([line(0, 1.0), [1]], r"jsonl:2: no doc_id"),
        ([line([0], 1.0)], r"jsonl:1: no doc_id"),
    ],
)
def test_what_is_no_sample_is_refused_by_its_line(tmp_path, lines, words):
    with pytest.raises(UserError, match=words):
        read_log(write_lines(tmp_path / "s.jsonl", lines))


def test_a_line_that_was_cut_is_refused_by_its_number(tmp_path):
    path = write_lines(tmp_path / "s.jsonl", [line(i, 1.0) for i in range(3)])
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"s\.jsonl:3: not readable as JSON"):
        read_log(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "JSON"),
        ('{"doc_id": ' + "[" * 100_000, "JSON"),
        ('{"doc_id": 1, "acc": ' + "9" * 5000 + "}", "JSON"),
        ('{"eval": 1}', "expected a log of inspect_ai"),
        ('{"results": {"toy": {}}}', "--log_samples"),
        ('{"eval": {}, "samples": []}', "holds no samples"),
        ("[]", "holds no samples"),
        ('{"a": "\\ud800\x1b', "JSON"),
    ],
)
def test_other_json_is_refused_in_one_sentence(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert is_log(path)
    with pytest.raises(UserError, match=words) as caught:
        read_log(path)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


def test_json_of_too_many_values_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_log, "MOST_VALUES", 1000)
    path = write_lines(tmp_path / "s.jsonl", [line(0, 1.0), line(1, 1.0, doc=[[]] * 2000)])
    with pytest.raises(UserError, match=r"s\.jsonl:2: .* MB of JSON; expected at most"):
        read_log(path)


def test_tables_and_what_is_not_there_are_no_logs(tmp_path):
    (tmp_path / "a.csv").write_text("clip_id,label\n")
    assert not is_log(tmp_path / "a.csv") and not is_log(tmp_path / "b.csv")
    assert not is_log(tmp_path)
    (tmp_path / "c.json").write_text('\ufeff \n{"eval": 1}', encoding="utf-8")
    assert is_log(tmp_path / "c.json")
