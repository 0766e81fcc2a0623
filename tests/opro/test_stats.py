import csv
import io
import json
import unicodedata

import numpy as np
import pytest
from made_logs import choice, header, real, summary, write_eval, write_lines

from opro.cli import run_verb
from opro.stats import main

RNG = np.random.default_rng(0)
N = 240
TRUTH = np.where(np.arange(N) % 2 == 0, "SPEECH", "NONSPEECH")
MARGIN = RNG.normal(0, 1, N) + np.where(TRUTH == "SPEECH", 1.0, -1.0)
ROWS = [
    {
        "clip_id": f"c{i}",
        "source_id": f"{TRUTH[i][0]}{i % 24}",
        "label": TRUTH[i],
        "predicted": "SPEECH" if MARGIN[i] > 0 else "NONSPEECH",
        "score": f"{1 / (1 + np.exp(-MARGIN[i])):.6f}",
        "duration_ms": str([200, 300, 500, 1000][i // 2 % 4]),
        "category": "voice" if i % 2 == 0 else "music",
    }
    for i in range(N)
]


def write(path, rows, **names):
    out = io.StringIO()
    writer = csv.DictWriter(out, [names.get(k, k) for k in rows[0]])
    writer.writeheader()
    for row in rows:
        writer.writerow({names.get(k, k): v for k, v in row.items()})
    path.write_text(out.getvalue())
    return str(path)


def without(rows, *columns):
    return [{k: v for k, v in row.items() if k not in columns} for row in rows]


def verb(*argv):
    try:
        return run_verb(lambda: main(list(argv)))
    except SystemExit as stop:
        return stop.code


def read(capsys, *argv):
    assert main([*argv, "--format", "json", "--resamples", "500"]) == 0
    return json.loads(capsys.readouterr().out)


def test_shape_of_the_json(tmp_path, capsys):
    worse = [{**r, "predicted": "SPEECH"} for r in ROWS]
    a, b = write(tmp_path / "a.csv", ROWS), write(tmp_path / "b.csv", worse)
    result = read(capsys, a, b)
    first = result["files"][0]
    for name in (
        "accuracy", "balanced_accuracy", "hit_rate", "false_alarm_rate", "auroc", "ece", "brier"
    ):  # fmt: skip
        assert first[name]["low"] <= first[name]["value"] <= first[name]["high"], name
    right = np.mean([(r["predicted"] == r["label"]) for r in ROWS])
    assert first["accuracy"]["value"] == pytest.approx(right)
    assert (first["file"], first["rows"], first["sources"]) == (a, N, 24)
    assert list(first["slices"]["duration_ms"]) == ["200", "300", "500", "1000"]
    assert first["slices"]["category"]["music"]["balanced_accuracy"] is None
    assert first["slices"]["category"]["music"]["hit_rate"] is None
    assert set(first["thresholds"]) == {"DT50", "DT75", "DT90"}
    assert set(first["crossings"]) == {"DT75", "DT90"}
    assert result["files"][1]["hit_rate"]["value"] == 1.0
    (pair,) = result["pairs"]
    assert (pair["a"], pair["b"]) == (a, b)
    assert pair["low"] < pair["difference"] < pair["high"] and pair["difference"] > 0.2
    assert pair["p"] <= pair["p_holm"] < 0.05


def test_kinds_of_columns_give_the_same_answer(tmp_path, capsys):
    logp = [
        {
            **r,
            "logp_SPEECH": str(-np.logaddexp(0, -MARGIN[i])),
            "logp_NONSPEECH": str(-np.logaddexp(0, MARGIN[i])),
        }
        for i, r in enumerate(without(ROWS, "predicted", "score"))
    ]
    files = [
        write(tmp_path / "a.csv", ROWS),
        write(tmp_path / "b.csv", without(ROWS, "predicted")),
        write(tmp_path / "c.csv", logp),
    ]
    entries = read(capsys, *files)["files"]
    for entry in entries[1:]:
        for name in ("balanced_accuracy", "auroc", "brier"):
            assert entry[name]["value"] == pytest.approx(entries[0][name]["value"], abs=1e-5)
            assert entry[name]["low"] == pytest.approx(entries[0][name]["low"], abs=1e-5)


def test_a_score_of_any_unit_ranks_only(tmp_path, capsys):
    rows = [{**r, "score": str(10 * MARGIN[i])} for i, r in enumerate(ROWS)]
    entry = read(capsys, write(tmp_path / "a.csv", rows))["files"][0]
    assert entry["auroc"]["value"] > 0.85 and entry["brier"] is None and entry["ece"] is None


def test_columns_are_mapped_and_clips_joined_by_id(tmp_path, capsys):
    a = write(tmp_path / "a.csv", ROWS)
    b = write(tmp_path / "b.csv", ROWS[::-1])
    both = read(capsys, a, b)
    assert both["pairs"][0]["difference"] == 0 and both["pairs"][0]["p"] == 1
    assert both["files"][0]["accuracy"] == both["files"][1]["accuracy"]
    other = write(tmp_path / "c.csv", ROWS, label="ground truth", source_id="speaker")
    found = read(capsys, other, "--map", "label=ground truth", "source_id=speaker")
    assert found["files"][0]["accuracy"] == both["files"][0]["accuracy"]


def test_more_sources_make_narrower_intervals(tmp_path, capsys):
    a = write(tmp_path / "a.csv", [{**r, "source_id": r["clip_id"]} for r in ROWS])
    b = write(tmp_path / "b.csv", [{**r, "source_id": r["label"] + r["clip_id"][-1]} for r in ROWS])
    clip, few = (read(capsys, f)["files"][0] for f in (a, b))
    assert clip["sources"] == N and few["sources"] == 10


def test_measured_numbers_are_sliced_in_groups(tmp_path, capsys):
    rows = [{**r, "duration_ms": str(200 + 3 * i)} for i, r in enumerate(ROWS)]
    levels = read(capsys, write(tmp_path / "a.csv", rows))["files"][0]["slices"]["duration_ms"]
    assert len(levels) == 5 and sum(part["rows"] for part in levels.values()) == N
    assert next(iter(levels)).startswith("200 to ")


@pytest.mark.parametrize("form", ["table", "csv", "markdown"])
def test_other_formats(tmp_path, capsys, form):
    rows = [{**r, "category": "=HYPERLINK(1)|<b>" if i % 2 else "x"} for i, r in enumerate(ROWS)]
    a, b = write(tmp_path / "a.csv", rows), write(tmp_path / "b.csv", rows)
    assert main([a, b, "--format", form, "--resamples", "200"]) == 0
    out = capsys.readouterr().out
    if form == "csv":
        table = list(csv.DictReader(io.StringIO(out)))
        assert {"balanced_accuracy", "DT75"} <= {row["statistic"] for row in table}
        assert "'=HYPERLINK(1)|<b>" in {row["level"] for row in table}
    if form == "markdown":
        assert "=HYPERLINK(1)\\|&lt;b>" in out
        for line in out.splitlines():
            assert not line.startswith("|") or line.endswith("|")


def test_each_kind_of_threshold_is_labelled_with_its_definition(tmp_path, capsys):
    path = write(tmp_path / "a.csv", ROWS)
    assert main([path, "--resamples", "200"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    fitted, published = text.split("thresholds, ")[1:]
    assert fitted.startswith("fitted curve: hits beyond the measured false alarms")
    assert published.startswith("published: balanced accuracy by level, joined by lines over log")
    assert "a DT50 " in fitted and "a DT75 " in fitted and "a DT90 " in published
    assert "DT50" not in published
    assert main([path, "--resamples", "200", "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {"DT75", "DT75 of balanced accuracy, published"} <= {r["statistic"] for r in table}


def change(i, **values):
    return [*ROWS[:i], {**ROWS[i], **values}, *ROWS[i + 1 :]]


@pytest.mark.parametrize(
    ("rows", "argv", "words"),
    [
        (without(ROWS, "source_id"), [], ["no column 'source_id'", "--map source_id=COLUMN"]),
        (without(ROWS, "label"), [], ["no column 'label'"]),
        (without(ROWS, "predicted", "score"), [], ["no column says what was decided"]),
        (change(3, predicted="ERROR"), [], [":5:", "'ERROR'", "SPEECH or NONSPEECH"]),
        (change(3, score="high"), [], [":5:", "score is 'high'"]),
        (change(3, score="nan"), [], [":5:", "expected a number"]),
        (change(3, clip_id="c0"), [], [":5:", "'c0'", "two rows"]),
        (change(3, source_id=""), [], [":5:", "source_id is empty"]),
        (change(3, label=""), [], [":5:", "label is empty"]),
        (ROWS, ["--positive", "VOICE"], ["'VOICE'", "NONSPEECH, SPEECH"]),
        ([r for r in ROWS if r["label"] == "SPEECH"], [], ["two kinds are needed"]),
        (ROWS, ["--map", "colour=x"], ["'colour=x'", "COLUMN=NAME"]),
        (ROWS, ["--map", "label"], ["'label'", "COLUMN=NAME"]),
        (ROWS, ["--map", "label=y"], ["no column 'y'", "clip_id"]),
        (ROWS, ["--slices", "speaker"], ["no column 'speaker'"]),
        (ROWS, ["--resamples", "1"], ["at least 100"]),
    ],
)  # fmt: skip
def test_wrong_files_are_one_sentence(tmp_path, capsys, rows, argv, words):
    path = write(tmp_path / "a.csv", rows)
    assert verb(path, *argv) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    for word in words:
        assert word in error


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS[:-1], ["do not hold the same clips", "1 are missing"]),
        (change(5, label="SPEECH", predicted="SPEECH"), ["'c5'", "label is"]),
        (change(5, source_id="x"), ["'c5'", "source_id is"]),
    ],
)
def test_files_that_do_not_match_are_refused(tmp_path, capsys, rows, words):
    a, b = write(tmp_path / "a.csv", ROWS), write(tmp_path / "b.csv", rows)
    assert verb(a, b) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error


# ---- files of other projects


def rates_of(capsys, *argv):
    entry = read(capsys, *argv)["files"][0]
    return {k: entry[k] for k in ("rows", "sources", "labels", "balanced_accuracy", "auroc")}


def test_a_file_of_another_project_is_read_in_one_try_and_every_guess_is_shown(tmp_path, capsys):
    ours = rates_of(capsys, write(tmp_path / "ours.csv", ROWS))
    says = {"SPEECH": "Yes", "NONSPEECH": "no"}
    rows = [{**r, "label": says[r["label"]], "predicted": says[r["predicted"]]} for r in ROWS]
    names = {"clip_id": "File", "source_id": "Speaker ID", "label": "ground_truth"}
    names |= {"predicted": "y_pred", "score": "p_speech"}
    theirs = write(tmp_path / "theirs.csv", rows, **names)
    assert rates_of(capsys, theirs) == ours
    assert read(capsys, theirs)["files"][0]["guessed"] == [
        "label is column 'ground_truth'", "label 'Yes' is SPEECH", "label 'no' is NONSPEECH",
        "clip_id is column 'File'", "source_id is column 'Speaker ID'", "score is column 'p_speech'",
        "predicted is column 'y_pred'", "predicted 'Yes' is SPEECH", "predicted 'no' is NONSPEECH",
    ]  # fmt: skip
    assert main([theirs, "--resamples", "100"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("guessed; --map says otherwise") and "label 'Yes' is SPEECH" in out
    assert main([theirs, "--resamples", "100", "--format", "csv"]) == 0
    err = capsys.readouterr().err
    assert f"{theirs}: guessed: label is column 'ground_truth'" in err
    both = read(capsys, str(tmp_path / "ours.csv"), theirs)
    assert both["pairs"][0]["difference"] == 0 and both["files"][0]["guessed"] == []


def test_sources_are_taken_out_of_the_names_of_clips_where_a_rule_is_given(tmp_path, capsys):
    rows = [{**r, "clip_id": f"{r['source_id']}_{i:03}.wav"} for i, r in enumerate(ROWS)]
    ours = rates_of(capsys, write(tmp_path / "a.csv", rows))
    theirs = write(tmp_path / "b.csv", without(rows, "source_id"), clip_id="file")
    assert verb(theirs) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no column 'source_id'" in error
    asked = "source_id=(.+)_[^_]* of clip_id"
    assert "--map source_id='(.+)_[^_]* of clip_id' makes 24 sources of 240 clips" in error
    assert rates_of(capsys, theirs, "--map", asked) == ours
    assert rates_of(capsys, theirs, "--map", "source_id=^([A-Z][0-9]+)_ of file") == ours


def test_files_with_semicolons_and_decimal_commas_are_read(tmp_path, capsys):
    rows = [{**r, "score": r["score"].replace(".", ",")} for r in ROWS]
    ours = rates_of(capsys, write(tmp_path / "a.csv", ROWS))
    lines = [";".join(ROWS[0]), *(";".join(r.values()) for r in rows)]
    (tmp_path / "b.csv").write_text("\n".join(lines))
    assert rates_of(capsys, str(tmp_path / "b.csv")) == ours
    (tmp_path / "c.csv").write_text("\n".join(lines).replace(";", "\t").replace(",", "."))
    assert rates_of(capsys, str(tmp_path / "c.csv")) == ours
    assert read(capsys, str(tmp_path / "c.csv"))["files"][0]["guessed"] == [
        r"columns are separated by '\t'"
    ]


LOGP = [
    {**r, "logp_SPEECH": r["score"], "logp_NONSPEECH": f"{1 - float(r['score']):.6f}"}
    for r in without(ROWS, "predicted")
]


@pytest.mark.parametrize(
    ("rows", "argv", "words"),
    [
        (ROWS, ["--map", "source_id=(a of clip_id"], ["'(a'", "no regular expression"]),
        (ROWS, ["--map", "source_id=c[0-9]+ of clip_id"], ["0 groups", "expected one"]),
        (ROWS, ["--map", "source_id=(c)(.) of clip_id"], ["2 groups", "expected one"]),
        (ROWS, ["--map", "source_id=(c[0-8]+)$ of clip_id"], [":11:", "'c9'", "every row"]),
        (ROWS, ["--map", "source_id=c(x*) of clip_id"], [":2:", "'c0'", "every row"]),
        (ROWS, ["--map", "source_id=(.) of speaker"], ["no column 'speaker'", "clip_id"]),
        (without([{**r, "gold": r["label"], "truth": r["label"]} for r in ROWS], "label"), [],
         ["label may be 'gold' or 'truth'", "--map label='gold'"]),
        (change(3, label="MUSIC", predicted="1"), [], [":5:", "predicted is '1'"]),
        ([{**r, "predicted": "01"[r["predicted"] == "SPEECH"]} for r in ROWS], [],
         [":2:", "predicted is", "SPEECH or NONSPEECH", "240 rows"]),
        ([{**r, "label": "12"[r["label"] == "SPEECH"]} for r in ROWS], [], ["'SPEECH'", "1, 2"]),
        (change(N - 1, label="NONSP"), [], [f":{N + 1}:", "'NONSP'", "was cut"]),
        (LOGP, [], [":2:", "never above 0", "column score"]),
    ],
)  # fmt: skip
def test_what_has_no_one_reading_is_asked_for_in_one_sentence(tmp_path, capsys, rows, argv, words):
    path = write(tmp_path / "a.csv", rows)
    assert verb(path, *argv) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    for word in words:
        assert word in error, error


@pytest.mark.parametrize(("line", "words"), [
    ("c9,s,SPEECH,0,9", [":4:", "5 fields", "header has 4", "decimal comma"]),
    ("c9,s,SPEECH", [":4:", "3 fields", "was cut"]),
])  # fmt: skip
def test_a_row_with_more_or_fewer_fields_is_refused_by_its_line(tmp_path, capsys, line, words):
    path = tmp_path / "a.csv"
    path.write_text(f"clip_id,source_id,label,score\n\nc1,s,SPEECH,0.9\n{line}\n")
    assert verb(str(path)) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error


def test_the_labels_found_are_shown(tmp_path, capsys):
    assert main([write(tmp_path / "a.csv", change(7, label="noise")), "--resamples", "100"]) == 0
    assert "labels SPEECH, NONSPEECH, noise" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "a,b\n", 'clip_id,label\n"x', "a,a\n1,2\n", "\x00\xff"])
def test_files_that_are_no_table(tmp_path, capsys, text):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("latin-1"))
    assert verb(str(path)) == 2
    assert capsys.readouterr().err.count("\n") == 1


CSV, LAST = "clip_id,source_id,label,score\n", "z,t,NONSPEECH,0.2\n"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (CSV + "a,s,SPEECH,1e400\n" + LAST, [":2:", "score is '1e400'", "expected a number"]),
        (CSV + "a,s,SPEECH,1_0\n" + LAST, [":2:", "score is '1_0'"]),
        (CSV + "a,s,SPEECH,\u0661\n" + LAST, [":2:", "score is '\u0661'"]),
        (CSV + 'a,"s\n1",SPEECH,0.1\nb,s,SPEECH,x\n' + LAST, [":4:", "score is 'x'"]),
        (CSV + "a,s,SPEECH,0.1\n" + CSV + "b,t,NONSPEECH,0.2\n", [":3:", "header stands there again"]),
        ("clip_id,label,Label\na,b,c\n", ["column 'Label'", "twice"]),
        (CSV + "a,s,SPEECH,0.1\nb,t,NON\0SPEECH,0.2\n", [":3:", "NUL byte"]),
        (CSV.encode("utf-16-le"), ["NUL byte", "UTF-16"]),
        (CSV.encode("utf-16"), ["UTF-8"]),
        (CSV + "a;s;SPEECH;0.1\n", [":2:", "1 fields, the header has 4"]),
        (CSV.replace(",", ";") + "a,s,SPEECH,0.1\n", [":2:", "1 fields, the header has 4"]),
    ],
)  # fmt: skip
def test_what_cannot_be_read_without_guessing_is_refused_by_its_line(tmp_path, capsys, raw, words):
    path = tmp_path / "a.csv"
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    assert verb(str(path)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
    for word in words:
        assert word in error, error


def test_a_name_is_one_name_however_its_accents_are_coded_and_whatever_blanks_follow(
    tmp_path, capsys
):
    ours = [
        {**r, "label": "Grün" if r["label"] == "SPEECH" else "rot"}
        for r in without(ROWS, "predicted")
    ]
    ours = [
        {**r, "clip_id": f"é{i}", "source_id": f"ö{r['source_id']}"} for i, r in enumerate(ours)
    ]
    theirs = [
        {k: unicodedata.normalize("NFD", v) + " \u00a0" if i % 3 else v for k, v in r.items()}
        for i, r in enumerate(ours)
    ]
    a, b = write(tmp_path / "a.csv", ours), write(tmp_path / "b.csv", theirs)
    both = read(capsys, a, b, "--positive", "Grün")
    assert both["pairs"][0]["difference"] == 0 and both["files"][1]["labels"] == ["Grün", "rot"]
    assert both["files"][0]["sources"] == both["files"][1]["sources"] == 24


def test_the_separator_is_the_one_that_cuts_the_header_most(tmp_path, capsys):
    ours = rates_of(capsys, write(tmp_path / "a.csv", ROWS))
    lines = [";".join([*ROWS[0], "note, free"]), *(";".join([*r.values(), "x"]) for r in ROWS)]
    (tmp_path / "b.csv").write_text("\n".join(lines))
    assert rates_of(capsys, str(tmp_path / "b.csv")) == ours


# ---- logs of evaluations


def test_is_a_better_than_b_from_the_logs_is_one_command(tmp_path, capsys):
    for model, chance in (("a", 0.5), ("b", 0.9)):
        runs = [summary(i, float(RNG.random() < chance)) for i in range(80)]
        head = header(eval={"task": "toy", "model": f"org/{model}"})
        write_eval(tmp_path / f"{model}.eval", runs, head)
    files = [str(tmp_path / f"{model}.eval") for model in "ab"]
    assert main([*files, "--resamples", "500"]) == 0
    out = capsys.readouterr().out
    assert "logs of inspect_ai; 95 % intervals over sources" in out
    assert "org/a" in out and "detectable: the smallest difference that 8 of 10" in out
    (row,) = [one for one in out.splitlines() if one.startswith("A - B ")]
    assert " B " in row and row.split()[3] != "+0.0"
    result = read(capsys, *files)
    assert [log["file"] for log in result["logs"]] == files and len(result["pairs"]) == 1
    assert (result["pairs"][0]["a"], result["pairs"][0]["better"]) == (files[0], "b")


@pytest.mark.parametrize("pattern", ["*.eval", "samples_toy_choice*", "*_samples_toy_heard*"])
@pytest.mark.parametrize("form", ["table", "csv", "markdown"])
def test_logs_of_the_packages_in_every_format(capsys, pattern, form):
    assert main([*map(str, real(pattern)), "--format", form, "--resamples", "200"]) == 0
    out, err = capsys.readouterr()
    told = (err if form == "csv" else out).splitlines()
    assert sum("sources are too few for a claim" in one for one in told) == 1
    assert sum("the first of" in one for one in told) == 1  # said once of both
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
        assert len(rows) == 3 and float(rows[2]["value"]) < 0
        assert rows[2]["statistic"].startswith(f"{rows[0]['statistic']} - ")
    if form == "markdown":
        assert out.count("\n| ---") == 2 and "- A, B: " in out


def test_scores_beyond_one_are_no_percentages(tmp_path, capsys):
    files = real("*.eval")
    assert main([*map(str, files), "--map", "score=loud", "--resamples", "200"]) == 0
    (row,) = [o for o in capsys.readouterr().out.splitlines() if o.startswith("A - B ")]
    value = float(row.split()[3])
    (pair,) = read(capsys, *map(str, files), "--map", "score=loud")["pairs"]
    assert value == pytest.approx(pair["difference"], abs=1e-3)


def speech(tmp_path, name, rows):
    runs = [
        summary(r["clip_id"], {"match": {"value": float(r["predicted"] == r["label"]), "answer": r["predicted"]}},
                target=r["label"], metadata={k: r[k] for k in ("source_id", "category", "duration_ms")})
        for r in rows
    ]  # fmt: skip
    return str(write_eval(tmp_path / name, runs))


def test_a_log_of_our_labels_gives_what_a_table_gives(tmp_path, capsys):
    """Also beside a table: the same clips, joined by id."""
    plain = without(ROWS, "score")
    log, table = speech(tmp_path, "a.eval", plain[::-1]), write(tmp_path / "b.csv", plain)
    both = read(capsys, table, log)
    for name in ("rows", "sources", "labels", "balanced_accuracy", "hit_rate", "slices"):
        assert both["files"][0][name] == both["files"][1][name], name
    assert both["pairs"][0]["difference"] == 0


def test_two_answers_are_offered_as_labels_and_become_labels_when_asked(tmp_path, capsys):
    logp = [(-0.1, -1.0) if i % 3 else (-2.0, -0.2) for i in range(40)]
    path = write_lines(tmp_path / "s.jsonl", [choice(i, i % 2, v) for i, v in enumerate(logp)])
    (log,) = read(capsys, str(path))["logs"]
    assert "answers are no or yes: --positive yes gives hits, AUROC and the rest" in log["told"]
    (entry,) = read(capsys, str(path), "--positive", "yes")["files"]
    assert entry["labels"] == ["yes", "no"] and entry["auroc"]["value"] is not None
    assert entry["accuracy"]["value"] == log["mean"]["value"]


def test_logs_that_cannot_be_what_was_asked_for_are_refused_in_one_sentence(tmp_path, capsys):
    log = str(write_eval(tmp_path / "a.eval", [summary(i, 0.5) for i in range(20)]))
    table = write(tmp_path / "b.csv", ROWS)
    for argv, words in (
        ([log, table], ["b.csv holds predictions", "only scores can be compared", "no target is SPEECH"]),
        ([log, "--slices", "category"], ["--slices: only predictions are sliced"]),
        ([log, "--positive", "yes"], ["--positive yes: the logs cannot be read as predictions"]),
        ([log, "--map", "label=x"], ["--map label='x'", "score and source_id"]),
        ([log, "--map", "score=f1"], ["score='f1' is not there; there are match"]),
        ([log, log], ["given twice"]),
    ):  # fmt: skip
        assert verb(*argv) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("error: ")
        for word in words:
            assert word in error, error


def test_texts_of_logs_steer_no_terminal(tmp_path, capsys):
    head = header(eval={"task": "\x1b[2J", "model": "a\nb"})
    runs = [summary(f"\x1b{i}", {}, error="\x1b[31mred\n") for i in range(5)]
    runs += [summary(f"=cmd{i}", 1.0) for i in range(15)]
    path = write_eval(tmp_path / "a.eval", runs, head)
    for form in ("table", "csv", "markdown", "json"):
        assert main([str(path), "--resamples", "100", "--format", form]) == 0
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err and "\\x1b0 (\\x1b[31mred)" in (out + err).replace(
            "\\\\", "\\"
        )


PLAIN, WIDE = "J\u00fcrgen", "\uff2au\u0308rgen "  # a wide J


def test_spellings_of_one_source_are_one_cluster_and_told(tmp_path, capsys):
    """As bytes they were two sources, and the interval too narrow."""
    one = [{**r, "source_id": PLAIN if r["source_id"] == "S0" else r["source_id"]} for r in ROWS]
    two = [
        {**r, "source_id": WIDE} if r["source_id"] == PLAIN and i % 48 else r
        for i, r in enumerate(one)
    ]
    assert len({r["source_id"] for r in two}) == 25
    a, b = write(tmp_path / "a.csv", one), write(tmp_path / "b.csv", two)
    result = read(capsys, a, b)
    first, second = result["files"]
    assert first["sources"] == second["sources"] == 24
    assert first["balanced_accuracy"] == second["balanced_accuracy"]
    (told,) = second["guessed"]
    assert told.startswith("1 sources are written in several ways") and told.endswith(
        "counts as one"
    )


def test_files_may_spell_clips_in_other_ways(tmp_path, capsys):
    a = write(tmp_path / "a.csv", [{**r, "clip_id": f"\u00fc{r['clip_id']}"} for r in ROWS])
    b = write(tmp_path / "b.csv", [{**r, "clip_id": f"u\u0308{r['clip_id']} "} for r in ROWS[::-1]])
    result = read(capsys, a, b)
    assert result["pairs"][0]["difference"] == 0
    c = write(tmp_path / "c.csv", [{**r, "clip_id": f"o{r['clip_id']}"} for r in ROWS])
    assert verb(a, c) == 2
    assert (
        "do not hold the same clips: 240 are missing in the second, 240 in the first"
        in capsys.readouterr().err
    )


def test_of_three_labels_it_is_said_whose_hits_are_shown_and_what_auroc_is(tmp_path, capsys):
    rng, path = np.random.default_rng(0), tmp_path / "three.csv"
    rows = ["clip_id,source_id,label,logp_A,logp_B,logp_C"]
    for i in range(60):
        nats = rng.normal(0, 1, 3) + 2 * np.eye(3)[i % 3] - 5
        rows.append(f"c{i},s{i},{'ABC'[i % 3]}," + ",".join(f"{v:.4f}" for v in nats))
    path.write_text("\n".join(rows) + "\n")
    assert run_verb(lambda: main([str(path), "--positive", "B"])) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "hits and false alarms are of B, AUROC is the mean over each label" in told
