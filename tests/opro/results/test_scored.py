"""Scores of logs, compared sample by sample."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_logs import choice, header, line, real, summary, write_eval, write_lines

from evaluators.errors import UserError
from opro.results.logs.read import read_log
from opro.results.scored import as_predictions, compare_logs, open_scored, tasks

RNG = np.random.default_rng(0)
A, B = (RNG.random(60) < p for p in (0.6, 0.8))


def evals(tmp_path, name, values, **more):
    """A log of one run of each sample; a value of None is no score."""
    samples = [
        summary(f"s{i}", {} if v is None else float(v), metadata={"speaker": f"p{i // 3}"}, **more)
        for i, v in enumerate(values)
    ]
    return write_eval(tmp_path / f"{name}.eval", samples)


def compared(*paths, resamples=500, **names):
    groups = open_scored([read_log(p) for p in paths], names)
    return compare_logs(groups, resamples=resamples, seed=0)


def opened(path, **names):
    ((one,),) = open_scored([read_log(path)], names)
    return one


def test_the_paired_difference_of_two_logs(tmp_path):
    found = compared(evals(tmp_path, "a", A), evals(tmp_path, "b", B), resamples=4000)
    a = found["logs"][0]
    assert (a["name"], a["kind"], a["task"], a["score"]) == ("A", "inspect_ai", "toy", "match")
    assert (a["samples"], a["sources"], a["epochs"], a["unscored"]) == (60, 60, 1, 0)
    assert a["mean"]["value"] == pytest.approx(A.mean()) and a["share"] is True
    (pair,) = found["pairs"]
    gap = A.astype(float) - B
    assert pair["difference"] == pytest.approx(gap.mean())
    error = gap.std() / np.sqrt(len(gap))
    assert (pair["high"] - pair["low"]) / 2 == pytest.approx(2.0 * error, rel=0.1)
    assert pair["detectable"] == pytest.approx(2.85 * error, rel=0.1)
    assert (pair["p"] < 0.05) == (pair["high"] < 0) == (pair["better"] == "b")
    assert (pair["samples"], pair["sources"], pair["told"]) == (60, 60, [])


def test_a_log_against_itself_is_exactly_zero(tmp_path):
    (pair,) = compared(evals(tmp_path, "a", A), evals(tmp_path, "b", A))["pairs"]
    assert [pair[k] for k in ("difference", "low", "high", "p", "p_holm")] == [0, 0, 0, 1, 1]
    assert pair["detectable"] is None and pair["better"] is None


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_samples_and_of_epochs_changes_nothing(tmp_path_factory, random):
    folder = tmp_path_factory.mktemp("logs")
    runs = [summary(f"s{i}", RNG.normal(), epoch=e) for i in range(20) for e in (1, 2)]
    other = [summary(r["id"], r["scores"]["match"]["value"] ** 2, epoch=r["epoch"]) for r in runs]
    first = [write_eval(folder / f"{n}.eval", rows) for n, rows in (("a", runs), ("b", other))]
    expected = compared(*first)
    random.shuffle(runs)
    random.shuffle(other)
    again = [write_eval(folder / f"{n}.eval", rows) for n, rows in (("a", runs), ("b", other))]
    assert compared(*again) == expected


def test_two_logs_exchanged_are_the_same_with_the_other_sign(tmp_path):
    a, b = evals(tmp_path, "a", A), evals(tmp_path, "b", B)
    (one,), (two,) = (compared(*paths)["pairs"] for paths in ((a, b), (b, a)))
    assert one["difference"] == -two["difference"] and one["p"] == two["p"]
    assert (one["low"], one["high"]) == pytest.approx((-two["high"], -two["low"]))
    assert (one["better"], two["better"]) in ((None, None), ("b", "a"))


def test_epochs_are_averaged_and_a_sample_stays_one_source(tmp_path):
    runs = [summary(f"s{i}", float(i % 2), epoch=e) for i in range(20) for e in range(1, 6)]
    runs += [summary("half", float(e == 1), epoch=e) for e in (1, 2)]
    one = opened(write_eval(tmp_path / "a.eval", runs))
    assert (
        len(one.scores) == 21
        and dict(zip(one.scores.ids, one.scores.value, strict=True))["half"] == 0.5
    )
    assert "a sample's score is the mean over its epochs" in one.told
    (log,) = compared(tmp_path / "a.eval")["logs"]
    assert (log["sources"], log["epochs"]) == (21, 5)


def test_samples_cluster_by_a_field_of_theirs(tmp_path):
    a, b = evals(tmp_path, "a", A), evals(tmp_path, "b", B)
    assert any("source_id=FIELD (fields: speaker)" in t for t in opened(a).told)
    (plain,), (grouped,) = (compared(a, b, **n)["pairs"] for n in ({}, {"source_id": "speaker"}))
    assert (grouped["sources"], grouped["samples"]) == (20, 60)
    assert grouped["difference"] == plain["difference"] and grouped["low"] != plain["low"]
    (rule,) = compared(a, b, source_id="s(.)[0-9]* of clip_id")["pairs"]
    assert rule["sources"] == 9 + (1 if len(A) > 9 else 0)
    with pytest.raises(UserError, match="no column 'class'"):
        compared(a, b, source_id="class")


def test_a_field_called_source_id_is_the_source(tmp_path):
    runs = [summary(i, 1.0, metadata={"source_id": f"u{i // 5}"}) for i in range(30)]
    assert len(set(opened(write_eval(tmp_path / "a.eval", runs)).scores.sources)) == 6
    runs[7]["metadata"] = {}
    with pytest.raises(UserError, match="sample 7: source_id is empty"):
        opened(write_eval(tmp_path / "a.eval", runs))


def test_two_sources_of_one_sample_are_refused(tmp_path):
    runs = [summary("a", 1.0, epoch=e, metadata={"source_id": f"u{e}"}) for e in (1, 2)]
    with pytest.raises(UserError, match="sample a: source_id is 'u2' in one epoch and 'u1'"):
        opened(write_eval(tmp_path / "a.eval", runs))
    a = write_eval(tmp_path / "a.eval", runs[:1])
    b = write_eval(tmp_path / "b.eval", runs[1:])
    with pytest.raises(UserError, match=r"sample a: source_id is 'u1' in .*a\.eval and 'u2'"):
        compared(a, b)


def test_samples_of_one_log_only_are_left_out_and_told(tmp_path):
    a, b = evals(tmp_path, "a", A[:50]), evals(tmp_path, "b", [*B[:40], *[None] * 0])
    (pair,) = compared(a, b)["pairs"]
    assert pair["samples"] == 40 and pair["difference"] == pytest.approx(
        A[:40].mean() - B[:40].mean()
    )
    assert pair["told"] == ["10 samples are in A only (s40, s41, s42, ...) and are left out"]


def test_samples_without_a_score_are_named_and_what_they_could_change_is_said(tmp_path):
    values = [None if i < 5 else v for i, v in enumerate(B)]
    broken = [
        summary(f"s{i}", {} if v is None else float(v), error="time-out")
        for i, v in enumerate(values)
    ]
    a, b = evals(tmp_path, "a", A), write_eval(tmp_path / "b.eval", broken)
    found = compared(a, b)
    assert found["logs"][1]["unscored"] == 5 and found["logs"][1]["samples"] == 55
    told = found["logs"][1]["told"]
    assert (
        "5 of 60 samples have no score (s0 (time-out), s1 (time-out), s2 (time-out), ...)"
        in told[0]
    )
    (pair,) = found["pairs"]
    assert pair["samples"] == 55 and pair["difference"] == pytest.approx(
        (A[5:].astype(float) - B[5:]).mean()
    )
    zero = 100 * (A.mean() - np.where(np.arange(60) < 5, 0, B).mean())
    assert f"counted as wrong they would make the difference {zero:+.1f} points" in pair["told"][0]


def test_a_run_without_a_score_leaves_the_mean_to_the_others(tmp_path):
    runs = [
        summary("a", 1.0),
        summary("a", {}, epoch=2),
        summary("b", 0.0),
        summary("b", 0.0, epoch=2),
    ]
    one = opened(write_eval(tmp_path / "a.eval", runs))
    assert one.scores.value.tolist() == [1.0, 0.0] and one.as_zero == {"a": 0.5, "b": 0.0}
    assert any("0 of 2 samples have no score; 1 of 4 runs" in t for t in one.told)


def test_the_score_is_chosen_once_and_shown(tmp_path):
    values = {"f1": 0.5, "judge": {"value": {"loud": 3, "clear": 4}}, "none": float("nan")}
    a = write_eval(tmp_path / "a.eval", [summary(i, values) for i in range(5)])
    b = write_eval(
        tmp_path / "b.eval", [summary(i, {"judge": values["judge"], "f1": 1}) for i in range(5)]
    )
    assert [s.score for s in open_scored([read_log(a), read_log(b)], {})[0]] == ["f1", "f1"]
    assert "the score is 'f1', the first of f1, judge.loud, judge.clear" in opened(a).told
    for asked in ("judge.loud", "loud"):
        assert opened(a, score=asked).score == "judge.loud"
    with pytest.raises(UserError, match=r"score='none' is not there; there are f1, judge.loud"):
        opened(a, score="none")
    with pytest.raises(UserError, match="score and source_id can be said"):
        opened(a, label="x")


def test_filters_are_asked_for_where_a_name_is_of_two(tmp_path):
    lines = [line(i, float(i % 2), name=n) for n in ("strict", "flexible") for i in range(4)]
    path = write_lines(tmp_path / "s.jsonl", lines)
    assert opened(path).score == "acc,strict"
    assert (
        opened(path, score="flexible").score
        == opened(path, score="acc,flexible").score
        == "acc,flexible"
    )
    with pytest.raises(UserError, match="score='acc' may be acc,strict or acc,flexible"):
        opened(path, score="acc")


def test_answers_that_no_filter_found_are_counted(tmp_path):
    lines = [
        line(i, float(i > 2), filtered_resps=["[invalid]" if i < 3 else "yes"]) for i in range(9)
    ]
    told = opened(write_lines(tmp_path / "s.jsonl", lines)).told
    assert "the filter found no answer in 3 of 9 replies, which count as wrong" in told


def test_less_may_be_better(tmp_path):
    name = "samples_t_2026-01-02T03-04-05.678901.jsonl"
    paths = []
    for folder, shift in (("a", 0.0), ("b", 1.0)):
        lines = [line(i, float(v) + shift) for i, v in enumerate(RNG.normal(size=40))]
        paths.append(write_lines(tmp_path / folder / name, lines))
        beside = paths[-1].with_name("results_2026-01-02T03-04-05.678901.json")
        beside.write_text(json.dumps({"higher_is_better": {"t": {"acc": False}}}))
    found = compared(*paths)
    assert found["pairs"][0]["difference"] < 0 and found["pairs"][0]["better"] == "a"
    assert (
        found["logs"][0]["share"] is False
        and "of acc,none less is better" in found["logs"][0]["told"]
    )


def test_a_figure_of_the_log_that_is_made_in_another_way_is_told(tmp_path):
    for value, told in ((0.5, False), (0.75, True)):
        scores = [{"name": "match", "scorer": "match", "metrics": {"accuracy": {"value": value}}}]
        runs = [summary(i, float(i % 2)) for i in range(10)]
        path = write_eval(tmp_path / "a.eval", runs, header(results={"scores": scores}))
        assert any("the log's own figure for match is 0.75" in t for t in opened(path).told) == told


def test_what_is_asked_differently_is_told_and_another_target_refused(tmp_path):
    a = write_eval(tmp_path / "a.eval", [summary(i, 1.0) for i in range(5)])
    b = write_eval(tmp_path / "b.eval", [summary(i, 1.0, input=f"Hear {i}?") for i in range(5)])
    assert "5 of 5 samples ask something else in the two logs" in compared(a, b)["pairs"][0]["told"]
    write_eval(b, [summary(i, 1.0, target="no" if i == 3 else "yes") for i in range(5)])
    with pytest.raises(UserError, match=r"sample 3: target is 'yes' in .* and 'no' in"):
        compared(a, b)


def test_logs_are_compared_within_their_task_and_holm_counts_all_pairs(tmp_path):
    paths = [
        write_lines(tmp_path / f"{task}{model}.jsonl", [line(i, float(v), doc_hash=f"{task}{i}")
                    for i, v in enumerate(values)])
        for model, values in (("a", A), ("b", B)) for task in ("x", "y")
    ]  # fmt: skip
    logs = [read_log(p) for p in paths]
    assert [[log.path.stem for log in group] for group in tasks(logs)] == [
        ["xa", "xb"],
        ["ya", "yb"],
    ]
    found = compared(*paths)
    assert [log["name"] for log in found["logs"]] == ["A", "C", "B", "D"]
    one, two = found["pairs"]
    assert one["difference"] == two["difference"] and one["p_holm"] == min(1, 2 * one["p"])
    (alone,) = compared(paths[0], paths[2])["pairs"]
    assert alone["p"] == one["p"] == alone["p_holm"] and alone["detectable"] < one["detectable"]
    three = compared(*paths[:3])["logs"]
    told = ["no other log is of its task or asks the same: it is compared with none"]
    assert [log["told"] for log in three] == [[], [], told]


def test_better_is_said_by_the_corrected_p(tmp_path):
    values = {"a": [i < 9 for i in range(40)], "b": [i in (10, 11) for i in range(40)]}
    paths = [
        write_lines(tmp_path / f"{task}{model}.jsonl", [line(i, float(v), doc_hash=f"{task}{i}")
                    for i, v in enumerate(values[model])])
        for task in ("x", "y") for model in ("a", "b")
    ]  # fmt: skip
    (alone,) = compared(*paths[:2])["pairs"]
    assert 0.025 < alone["p"] == alone["p_holm"] < 0.05 and alone["better"] == "a"
    for pair in compared(*paths)["pairs"]:
        assert pair["p"] == alone["p"] and pair["p_holm"] > 0.05 and pair["better"] is None


def test_scores_of_two_names_are_compared_when_a_name_fits_both_and_it_is_told(tmp_path):
    kinds = ({"f1": 0.5}, {"judge": {"value": {"f1": 0.5}}})
    paths = [
        write_eval(tmp_path / f"{n}.eval", [summary(i, kind) for i in range(12)])
        for n, kind in enumerate(kinds)
    ]
    (pair,) = compared(*paths, score="f1")["pairs"]
    assert pair["told"] == ["the scores have two names, f1 and judge.f1"]


def test_logs_of_one_task_without_a_common_score_or_sample_are_refused(tmp_path):
    a = write_eval(tmp_path / "a.eval", [summary(i, 1.0) for i in range(5)])
    b = write_eval(tmp_path / "b.eval", [summary(i, {"f1": 1.0}) for i in range(5)])
    with pytest.raises(
        UserError, match=r"no score in common: there are match in .*a\.eval, and f1 in .*b\.eval"
    ):
        compared(a, b)
    write_eval(b, [summary(f"other{i}", 1.0) for i in range(5)])
    with pytest.raises(UserError, match="of one task, and no sample has a score in both"):
        compared(a, b)
    write_eval(b, [summary(i, "good") for i in range(5)])
    with pytest.raises(UserError, match=r"b\.eval: no sample has a score that is a number"):
        compared(a, b)


def test_too_few_sources_are_no_claim(tmp_path):
    a, b = evals(tmp_path, "a", [0.0] * 9), evals(tmp_path, "b", [1.0] * 9)
    (pair,) = compared(a, b)["pairs"]
    assert pair["difference"] == -1 and pair["better"] is None
    assert pair["told"] == ["9 sources are too few for a claim; expected 10 or more"]


def test_many_sources_are_drawn_less_often_and_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("opro.results.scored.MOST_DRAWS", 60 * 1500)
    (log,) = compared(evals(tmp_path, "a", A), resamples=4000)["logs"]
    assert "1,500 resamples, not 4,000: there are 60 sources" in log["told"]
    (log,) = compared(evals(tmp_path, "a", A), resamples=1500)["logs"]
    assert not any("resamples" in t for t in log["told"])


# ---- as predictions


def labelled(tmp_path, said, truth, **more):
    runs = [
        summary(f"s{i}", {"match": {"value": "C" if s == t else "I", "answer": s}}, target=t, **more)
        for i, (s, t) in enumerate(zip(said, truth, strict=True))
    ]  # fmt: skip
    return write_eval(tmp_path / "a.eval", runs)


def test_answers_that_are_labels_are_predictions(tmp_path):
    truth = ["SPEECH", "NONSPEECH"] * 15
    said = [t.lower() if i % 5 else "speech" for i, t in enumerate(truth)]
    path = write_eval(tmp_path / "a.eval", [
        summary(f"s{i}", {"match": {"value": float(s.upper() == t), "answer": s}}, target=t,
                metadata={"source_id": f"p{i // 2}", "snr_db": i % 3, "answer": "trap"})
        for i, (s, t) in enumerate(zip(said, truth, strict=True))
    ])  # fmt: skip
    found, guessed = as_predictions(opened(path), "SPEECH", None)
    assert found.targets.labels == ("SPEECH", "NONSPEECH") and len(found.targets) == 30
    assert len(set(found.targets.sources)) == 15 and set(found.targets.slices) == {"snr_db"}
    assert found.right.tolist() == [s.upper() == t for s, t in zip(said, truth, strict=True)]
    assert "predicted 'speech' is SPEECH" in guessed
    assert set(as_predictions(opened(path), "speech", ["answer"])[0].targets.slices) == {"answer"}


@pytest.mark.parametrize(
    ("last", "ranked"), [("0.5", True), ("1.5", False), ("many", False), (None, False)]
)
def test_probabilities_among_the_fields_rank_the_samples(tmp_path, last, ranked):
    shares = [round(0.02 + 0.03 * i, 3) for i in range(29)] + [last]
    runs = [
        summary(i, {"match": {"value": "C", "answer": "ab"[i % 2]}}, target="ab"[i % 2], metadata={"p_a": p})
        for i, p in enumerate(shares)
    ]  # fmt: skip
    found, guessed = as_predictions(opened(write_eval(tmp_path / "a.eval", runs)), "a", None)
    assert (found.probability is not None) == ranked and found.right.all()
    assert ("p_a is the probability of a" in guessed) == ranked
    if ranked:
        np.testing.assert_array_equal(found.probability, [float(p) for p in shares])


def test_log_probabilities_of_choices_rank_the_samples(tmp_path):
    logp = [(-0.1 - 0.1 * i, -1.0) if i % 2 else (-2.0, -0.2) for i in range(24)]
    path = write_lines(
        tmp_path / "s.jsonl", [choice(i, (i + 1) % 2, v) for i, v in enumerate(logp)]
    )
    found, _ = as_predictions(opened(path), "yes", None)
    assert found.targets.labels == ("yes", "no")
    assert found.right.mean() == np.mean([s.scores["acc,none"] for s in read_log(path).samples])
    gaps = [a - b for a, b in logp]
    np.testing.assert_allclose(found.score, gaps)


@pytest.mark.parametrize(
    ("said", "truth", "positive", "why"),
    [
        (["a", "b"] * 5, ["a", "b"] * 5, "SPEECH", "no target is SPEECH"),
        (["a"] * 10, ["a"] * 10, "a", "there are 1 targets"),
        (["a", "I think b"] * 5, ["a", "b"] * 5, "a", "5 answers are none of its targets, such as 'I think b'"),
    ],
)  # fmt: skip
def test_why_a_log_is_none_of_predictions(tmp_path, said, truth, positive, why):
    assert as_predictions(opened(labelled(tmp_path, said, truth)), positive, None) == why


def test_scores_that_are_not_whether_the_answer_is_the_target(tmp_path):
    runs = [
        summary(i, {"match": {"value": 0.5, "answer": "a"}}, target="ab"[i % 2]) for i in range(8)
    ]
    assert "is not whether" in as_predictions(
        opened(write_eval(tmp_path / "a.eval", runs)), "a", None
    )
    runs += [summary(0, 0.5, epoch=2)]
    assert "several times" in as_predictions(
        opened(write_eval(tmp_path / "a.eval", runs)), "a", None
    )


def test_real_logs_are_compared():
    for pattern in ("*.eval", "samples_toy_choice*", "*_samples_toy_heard*"):
        worse, better = real(pattern)
        (pair,) = compared(worse, better)["pairs"]
        assert pair["difference"] < 0, pattern


def test_choices_that_differ_between_samples_are_no_labels(tmp_path):
    lines = [choice(i, i % 2, (-0.1, -2.0)) for i in range(10)]
    lines[3]["arguments"]["gen_args_1"]["arg_1"] = " never"
    path = write_lines(tmp_path / "s.jsonl", lines)
    assert "answers are none of its targets" in as_predictions(opened(path), "yes", None)
    lines = [choice(i, i % 2, (-0.1, -2.0), target="maybe" if i < 5 else "yes") for i in range(10)]
    write_lines(path, lines)
    assert (
        as_predictions(opened(path), "yes", None)
        == "its choices are yes, no and its targets maybe, yes"
    )
