"""Scores on a split: equal to what follows from the model's own log-probabilities, and every look is counted."""

import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from common import LABELS
from plain_statistics import balanced_gain

from evaluators.audio_lm.answer_tokens import PromptError
from evaluators.fakes import FakeEvaluator
from evaluators.files import read_yaml
from evaluators.manifest import manifest_digest, read_manifest
from evaluators.prompts import Prompt, dump_prompts
from evaluators.splits import Registry, write_registry
from evaluators.statistics.resampling import clusters
from opro import leaderboard, optimize, problem, rescore
from opro.results.looks import times
from opro.results.sheet import render


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two finished runs; tests get copies."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        for name, seed in (("one", "0"), ("two", "1")):
            argv = [
                "--checkpoint",
                "fake",
                "--iterations",
                "2",
                "--candidates",
                "5",
                "--clips",
                "160",
            ]
            argv += ["--runs-dir", str(runs), "--name", name, "--seed", seed]
            argv += ["--strategy", "race" if name == "one" else "opro", "--threshold", "argmax"]
            assert optimize.main([*argv, "--proposer", "rewriter"]) == 0
    return runs


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs" / "one"


@pytest.fixture
def small(make_manifest):
    """Clips of 36 sources, two thirds of them in test: uneven labels, a slice of one kind, no SNR at some."""

    def change(rows):
        for i, row in enumerate(rows):
            number = int(row["source_id"].removeprefix("source"))
            row["split"] = "dev" if number % 6 < 2 else "test"
            row["category"] = ("speech", "music", "speech", "animal")[number % 4]
            row["snr_db"] = "" if number % 5 == 0 else (-4, 11)[i % 2]
        del rows[-7:]
        row = rows[-1]
        row["duration_ms"] = 999

    return make_manifest(sources=36, per_source=3, change=change)


PROMPTS = [Prompt(f"{i}: is it speech? A or B") for i in (3, 2, 0, 1, 4, 5)]  # a weak baseline


def verb(module, *argv, code=0):
    assert module.run_verb(lambda: module.main([str(a) for a in argv])) == code


def openings(runs_dir):
    path = runs_dir / "test_openings.jsonl"
    return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []


def asked(tmp_path, prompts=PROMPTS):
    path = tmp_path / "mine.yaml"
    path.write_text(dump_prompts(prompts))
    return path


def scored(tmp_path, manifest, *more, prompts=PROMPTS, code=0):
    """What `rescore` writes for a prompt file."""
    out = tmp_path / "out.json"
    path = asked(tmp_path, prompts)
    flags = ["--checkpoint", "fake", "--manifest", manifest, "--runs-dir", tmp_path / "r"]
    verb(rescore, path, *flags, "--out", out, *more, code=code)
    return json.loads(out.read_text()) if code == 0 else None


def written_out_holm(p):
    order, out, most = np.argsort(p, kind="stable"), np.zeros(len(p)), 0.0
    for rank, i in enumerate(order):
        most = max(most, (len(p) - rank) * p[i])
        out[i] = min(1.0, most)
    return out


def area(positive, negative):
    wins = [(a > b) + (a == b) / 2 for a in positive for b in negative]
    return sum(wins) / len(wins)


def check_rows(rows, prompts, clips, biases=None):
    """Every number of the rows against the model's own log-probabilities, written out."""
    biases = biases or [0.0] * len(prompts)
    truth = np.array([LABELS.index(c.label) for c in clips])
    speech = truth == 0
    sources = [c.source_id for c in clips]
    c = clusters(truth, sources)
    own = FakeEvaluator().score(prompts, clips).logp
    rights = []
    for logp, bias in zip(own.astype(float), biases, strict=True):
        says = logp[:, 0] + bias > logp[:, 1]
        rights.append(says == speech)
    balanced = [(r[speech].mean() + r[~speech].mean()) / 2 for r in rights]
    assert [row["prompt_id"] for row in rows] == [p.prompt_id for p in prompts]
    assert [row["text"] for row in rows] == [p.text for p in prompts]
    assert [row["baseline"] for row in rows] == [True, *[False] * (len(rows) - 1)]
    for i, row in enumerate(rows):
        right, logp = rights[i], own[i].astype(float)
        assert row["answers"] == prompts[i].to_dict()["answers"]
        assert row["score"] == pytest.approx(balanced[i])
        assert row["hit_rate"] == pytest.approx(right[speech].mean())
        assert row["false_alarm_rate"] == pytest.approx((~right[~speech]).mean())
        margin = logp[:, 0] - logp[:, 1]
        assert row["auroc"] == pytest.approx(area(margin[speech], margin[~speech]), abs=1e-6)
        assert row["outside"] == pytest.approx(np.mean(1 - np.exp(logp).sum(-1)), abs=1e-6)
        assert (row["clips"], row["sources"]) == (len(clips), len(set(sources)))
        e = c.estimate(c.balanced(right.astype(float)))
        assert (row["low"], row["high"]) == pytest.approx((e.low, e.high))
        assert row["low"] < row["score"] < row["high"]
        expected = {}
        for name, inside in slices_of(clips).items():
            of = [right[inside & (speech == k)] for k in (True, False)]
            if not name.endswith((" ms", " dB")):
                expected[name] = {"score": right[inside].mean(), "clips": inside.sum()}
            elif all(map(len, of)):
                score = (of[0].mean() + of[1].mean()) / 2
                expected[name] = {"score": score, "clips": inside.sum()}
        assert set(row["slices"]) == set(expected)
        for name, value in expected.items():
            assert row["slices"][name] == pytest.approx(value), name
        low, high, p = balanced_gain(truth, np.array(sources), right, rights[0])
        found = row["difference"]
        assert found["value"] == pytest.approx(balanced[i] - balanced[0])
        assert (found["low"], found["high"]) == pytest.approx((low, high))
        if i:
            assert found["p"] == pytest.approx(p, abs=1e-9)
            assert (found["p"] < 0.025) == (found["low"] > 0)
    p = [row["difference"]["p"] for row in rows[1:]]
    assert [r["difference"]["p_holm"] for r in rows[1:]] == pytest.approx(written_out_holm(p))
    assert rows[0]["difference"]["p_holm"] == 1.0 and rows[0]["difference"]["value"] == 0
    return p


def slices_of(clips):
    names = {}
    for i, c in enumerate(clips):
        of = [f"{round(c.duration_ms)} ms", c.category]
        if c.snr_db is not None:
            of.append(f"{round(c.snr_db / 5) * 5:+d} dB")
        for name in of:
            names.setdefault(name, np.zeros(len(clips), bool))[i] = True
    return names


def in_order(manifest, split):
    from evaluators.splits import balanced_order

    return balanced_order(read_manifest(manifest, LABELS, split))


def test_every_number_follows_from_the_models_own_log_probabilities(small, tmp_path):
    result = scored(tmp_path, small)
    p = check_rows(result["prompts"], PROMPTS, in_order(small, "test"))
    adjusted = [row["difference"]["p_holm"] for row in result["prompts"][1:]]
    assert any(1 > a > 1.5 * b for a, b in zip(adjusted, p, strict=True))  # Holm is not p
    assert set(result) == {
        *("split", "checkpoint", "fingerprint", "manifest", "test_openings", "warnings", "prompts")
    }
    assert result["fingerprint"] == FakeEvaluator().fingerprint and result["warnings"] == []
    assert (result["split"], result["checkpoint"]) == ("test", "fake")
    assert result["manifest"] == manifest_digest(small)


def test_what_goes_to_no_answer_is_told_of_each_prompt(small, tmp_path, monkeypatch):
    """A prompt's answers lose what its number says: one tenth, two tenths, ..."""
    real = FakeEvaluator.score

    def score(self, prompts, clips):
        table = real(self, prompts, clips)
        kept = [0.9 - int(p.text[0]) / 10 for p in prompts]
        logp = table.logp + np.log(kept, dtype=np.float32)[:, None, None]
        return dataclasses.replace(table, logp=logp)

    monkeypatch.setattr(FakeEvaluator, "score", score)
    for row, prompt in zip(scored(tmp_path, small)["prompts"], PROMPTS, strict=True):
        kept = np.exp(-0.01) * (0.9 - int(prompt.text[0]) / 10)
        assert row["outside"] == pytest.approx(1 - kept, abs=1e-5)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_split_that_was_asked_for_is_scored_and_only_test_is_counted(small, tmp_path, split):
    other = [*PROMPTS[1:], Prompt("9: is it speech? A or B")]
    # Again, and a part of it again, shows nothing new.
    for look, prompts in ((1, PROMPTS), (1, PROMPTS), (1, PROMPTS[:2]), (2, other)):
        result = scored(tmp_path, small, "--split", split, prompts=prompts)
        assert result["prompts"][0]["clips"] == len(read_manifest(small, LABELS, split))
        assert result["test_openings"] == (look if split == "test" else 0)
    lines = openings(tmp_path / "r")
    assert len(lines) == (2 if split == "test" else 0)
    assert all(x["manifest"] == manifest_digest(small) and x["verb"] == "rescore" for x in lines)
    assert all(x["about"] == "mine.yaml, 6 prompts" for x in lines)


def test_a_look_is_counted_before_it_is_taken(small, tmp_path, monkeypatch):
    """Whoever stops the scoring half-way has looked."""
    real = FakeEvaluator.score

    def score(self, prompts, clips):
        if len(clips) > 1:
            assert len(openings(tmp_path / "r")) == 1
            raise KeyboardInterrupt
        return real(self, prompts, clips)

    monkeypatch.setattr(FakeEvaluator, "score", score)
    with pytest.raises((KeyboardInterrupt, SystemExit, AssertionError)):
        scored(tmp_path, small)
    assert len(openings(tmp_path / "r")) == 1 and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("what", ["file", "registry", "heard", "train manifest", "out", "task"])
def test_what_is_wrong_is_found_before_the_test_split_is_opened(small, tmp_path, capsys, what):
    more, clips = [], read_manifest(small, LABELS, "test")
    if what == "file":
        clips[-1].path.write_bytes(b"other")
        sentence = "the manifest says"
    elif what == "registry":
        write_registry(small / "registry.json", Registry({clips[-1].source_id: "dev"}, {}))
        sentence = "is registered as 'dev'"
    elif what == "heard":
        lists = {"fake": (clips[-1].source_id,)}
        write_registry(small / "registry.json", Registry({}, lists))
        sentence = "was trained on 1 of the sources"
    elif what == "train manifest":
        train = small / "train.csv"
        lines = (small / "manifest.csv").read_text().splitlines()
        row = next(x for x in lines if x.startswith(clips[0].clip_id + ","))
        train.write_text("\n".join([lines[0], row.replace(",test,", ",train,"), ""]))
        more = ["--train-manifest", train]
        sentence = "was trained on 1 of the sources"
    elif what == "out":
        (tmp_path / "out.json").mkdir()
        sentence = "is a folder; expected a regular file or a new name"
    else:
        more = ["--task", "birds"]
        sentence = "--task is 'birds'"
    scored(tmp_path, small, *more, code=2)
    assert sentence in capsys.readouterr().err
    assert openings(tmp_path / "r") == [] and not (tmp_path / "out.json").is_file()


def test_what_was_heard_is_scored_where_that_is_allowed_and_stands_in_the_result(small, tmp_path):
    source = read_manifest(small, LABELS, "test")[0].source_id
    write_registry(small / "registry.json", Registry({}, {"fake": (source,)}))
    (warning,) = scored(tmp_path, small, "--heard", "allow")["warnings"]
    assert "was trained on 1 of the sources" in warning and "scores measure memory" in warning


def test_a_run_is_scored_baseline_first_then_what_was_chosen_and_the_next_best(folder, capsys):
    for look, top in ((1, 2), (2, 5)):
        verb(rescore, folder, "--runs-dir", folder.parent, "--top", top)
        result = json.loads((folder / "test.json").read_text())
        assert result["test_openings"] == look and len(openings(folder.parent)) == look
        said = capsys.readouterr().out
        assert f"opened {times(look)}" in said
        assert ("each use makes the next result less trustworthy" in said) == (look > 1)
        trials, selection = read_trials(folder)
        complete = [n for n, t in trials.items() if t["state"] == "complete"]
        complete.sort(key=lambda n: (-trials[n]["reward"], trials[n]["nll"]))
        order = [selection["baseline"], selection["chosen"], *selection["finalists"], *complete]
        expected = [trials[n]["prompt_id"] for n in dict.fromkeys(order)][: top + 1]
        assert [row["prompt_id"] for row in result["prompts"]] == expected
        assert result["warnings"] == []
    abouts = [x["about"] for x in openings(folder.parent)]
    assert abouts == ["one, 3 prompts", f"one, {len(result['prompts'])} prompts"]
    assert openings(folder.parent)[0]["manifest"] == result["manifest"]


def read_trials(folder):
    events = [json.loads(x) for x in (folder / "trials.jsonl").read_text().splitlines()]
    return {e["number"]: e for e in events if e["event"] == "tell"}, events[-1]


def test_a_runs_prompts_are_judged_by_the_thresholds_fitted_on_its_search_half(
    tmp_path, make_manifest
):
    def change(rows):
        for row in rows:
            number = int(row["source_id"].removeprefix("source"))
            row["split"] = "dev" if number % 6 < 2 else "test"

    small = make_manifest(sources=150, per_source=1, change=change)
    argv = ["--checkpoint", "fake", "--iterations", "1", "--candidates", "4", "--manifest", small]
    argv += ["--threshold", "dev", "--runs-dir", tmp_path, "--name", "t", "--proposer", "rewriter"]
    verb(optimize, *argv)
    verb(rescore, tmp_path / "t", "--runs-dir", tmp_path)
    rows = json.loads((tmp_path / "t" / "test.json").read_text())["prompts"]
    trials, _ = read_trials(tmp_path / "t")
    bias = {t["prompt_id"]: t["bias"] for t in trials.values()}
    biases = [bias[row["prompt_id"]] for row in rows]
    assert any(abs(b) > 0.05 for b in biases) and [row["bias"] for row in rows] == biases
    prompts = [
        Prompt(row["text"], tuple((k, (v,)) for k, v in row["answers"].items())) for row in rows
    ]
    check_rows(rows, prompts, in_order(small, "test"), biases)


def test_a_run_brings_its_own_manifest_checkpoint_and_order_of_options(tmp_path, small):
    argv = ["--checkpoint", "fake", "--iterations", "0", "--manifest", small, "--swap"]
    argv += ["--runs-dir", tmp_path, "--name", "t", "--proposer", "rewriter"]
    verb(optimize, *argv)
    assert read_yaml(tmp_path / "t" / "config.yaml")["swap"] is True
    verb(rescore, tmp_path / "t", "--runs-dir", tmp_path)
    result = json.loads((tmp_path / "t" / "test.json").read_text())
    assert result["manifest"] == manifest_digest(small) and result["warnings"] == []
    assert result["prompts"][0]["clips"] == len(read_manifest(small, LABELS, "test"))
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert result["fingerprint"] == summary["fingerprint"] == FakeEvaluator().fingerprint
    assert all(row["both_orders"] for row in result["prompts"])  # the order is the prompt's
    assert result["prompts"][0]["prompt_id"] == summary["baseline"]["prompt_id"]


def test_another_model_than_the_runs_is_warned_of(folder):
    path = folder / "trials.jsonl"
    first, rest = path.read_text().split("\n", 1)
    event = json.loads(first)
    assert event["fingerprint"] == FakeEvaluator().fingerprint
    path.write_text(json.dumps(event | {"fingerprint": "0" * 64}) + "\n" + rest)
    verb(rescore, folder, "--runs-dir", folder.parent)
    (warning,) = json.loads((folder / "test.json").read_text())["warnings"]
    assert "not the one of the run" in warning


def test_dev_is_not_counted_and_flatters_the_runs_prompts(folder, capsys):
    verb(rescore, folder, "--split", "dev", "--runs-dir", folder.parent)
    result = json.loads((folder / "dev.json").read_text())
    assert result["test_openings"] == 0 and openings(folder.parent) == []
    (warning,) = result["warnings"]
    assert "half of these clips were searched on" in warning
    said = capsys.readouterr().out
    assert "half of these clips were searched on" in said and "has been opened" not in said


def test_the_table_shows_what_the_file_holds(small, tmp_path, capsys):
    rows = scored(tmp_path, small)["prompts"]
    out = " ".join(capsys.readouterr().out.split())
    for row in rows:
        d = row["difference"]
        assert f"{100 * row['score']:.1f} {100 * row['low']:.1f}-{100 * row['high']:.1f}" in out
        share = f"{100 * row['hit_rate']:.0f} {100 * row['false_alarm_rate']:.0f}"
        assert f"{share} {row['auroc']:.3f}" in out
        if not row["baseline"]:
            assert f"{100 * d['value']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]" in out
            assert f"{d['p_holm']:.3f}" in out
    assert out.count("baseline") >= 2 and "opened once" in out


def test_a_narrow_table_shows_no_false_alarms_without_hits_and_always_score_and_gain(
    small, tmp_path
):
    result = scored(tmp_path, small)
    shown = []
    for width in range(160, 20, -1):
        head = render(rescore.result_sheet(result), width=width).split("\n")[1]
        names = [c.name for c in rescore.COLUMNS if c.name in head]
        if "prompt" not in names:
            break  # one line a value
        assert {"balanced accuracy", "against baseline"} <= set(names)
        assert "false alarms" not in names or "hits" in names
        shown.append(len(names))
    assert shown == sorted(shown, reverse=True) and set(shown) == set(range(3, 9))


def test_out_goes_with_one_prompt_file(folder, small, tmp_path, capsys):
    path = asked(tmp_path)
    for these in ([folder], [path, path]):
        verb(rescore, *these, "--out", tmp_path / "o.json", "--runs-dir", folder.parent, code=2)
        assert "--out goes with a single prompt file" in capsys.readouterr().err
    assert openings(folder.parent) == []


def test_several_inputs_are_each_scored_and_counted(folder, small, tmp_path):
    verb(rescore, folder, folder.parent / "two", "--runs-dir", folder.parent)
    rows = [json.loads((folder.parent / r / "test.json").read_text()) for r in ("one", "two")]
    assert len(rows[0]["prompts"]) < 6 == len(rows[1]["prompts"])  # five beside the baseline
    assert [x["about"].split(",")[0] for x in openings(folder.parent)] == ["one", "two"]


@pytest.mark.parametrize("flag", ["--top", "--ray-cpus"])
def test_counts_are_at_least_one_and_there_is_no_config(tmp_path, capsys, flag):
    for argv, words in ([flag, "0"], "expected at least 1"), (["--config", "x"], "--config"):
        with pytest.raises(SystemExit) as stop:
            rescore.main([str(tmp_path), *argv])
        assert stop.value.code == 2 and words in capsys.readouterr().err
    verb(rescore, tmp_path / "nowhere.yaml", flag, "1", code=2)
    assert "nowhere.yaml' does not exist" in capsys.readouterr().err


def test_what_the_flags_say_reaches_the_model(small, tmp_path, monkeypatch):
    found, real = {}, problem.build_evaluator

    def build_evaluator(checkpoint, **options):
        found.update(options, checkpoint=checkpoint)
        return real("fake", cache=options["cache"])

    monkeypatch.setattr(problem, "build_evaluator", build_evaluator)
    rows = scored(tmp_path, small)["prompts"]
    plain = {"checkpoint": "fake", "adapter": None, "quantization": "none", "device": "auto"}
    plain |= {"dtype": "auto", "ray": None, "ray_cpus": 1}
    assert found == plain | {"cache": tmp_path / "r" / ".cache"}
    assert not any(row["both_orders"] for row in rows)
    more = {"adapter": tmp_path / "a", "quantization": "nf4", "device": "cpu", "dtype": "float32"}
    more |= {"ray": "auto", "ray_cpus": 3}
    argv = []
    for name, value in more.items():
        argv += [f"--{name.replace('_', '-')}", value]
    rows = scored(tmp_path, small, *argv, "--swap")["prompts"]
    assert found == plain | more | {"cache": tmp_path / "r" / ".cache"}
    assert all(row["both_orders"] for row in rows)


def test_what_is_printed_is_printed_as_it_is(small, tmp_path, capsys):
    source = read_manifest(small, LABELS, "test")[0].source_id
    write_registry(small / "registry.json", Registry({}, {"fake": (source,)}))
    out = tmp_path / "[bold]o.json"
    scored_to = ["--out", out, "--heard", "allow", "--checkpoint", "fake", "--manifest", small]
    verb(rescore, asked(tmp_path), *scored_to, "--runs-dir", tmp_path / "r")
    said = capsys.readouterr().out.replace("\n", "")
    assert "[bold]o.json" in said and source in said


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    verb(rescore, tmp_path, "--runs-dir", tmp_path, code=2)
    assert "is no run folder" in capsys.readouterr().err


def test_settings_cannot_be_changed():
    for kind in (rescore.RescoreSettings, rescore.Asked, rescore.Job):
        assert kind.__dataclass_params__.frozen


def test_a_prompt_file_is_scored_beside_itself_or_to_out(small, tmp_path, seeds):
    path = asked(tmp_path, seeds)
    flags = ["--checkpoint", "fake", "--runs-dir", tmp_path / "r", "--manifest", small]
    verb(rescore, path, *flags)
    assert len(json.loads((tmp_path / "mine.test.json").read_text())["prompts"]) == 3
    verb(rescore, path, *flags, "--out", tmp_path / "o.json")
    assert json.loads((tmp_path / "o.json").read_text())["test_openings"] == 1


@pytest.fixture
def joint(tmp_path, small, monkeypatch):
    """A finished run for two checkpoints, of which the second one hears something else."""
    real = problem.build_evaluator

    class Other(FakeEvaluator):
        fingerprint = "other"

        def score(self, prompts, clips):
            table = super().score(prompts, clips)
            return dataclasses.replace(table, logp=table.logp[..., ::-1] - 0.1)

    def build_evaluator(checkpoint, **options):
        return real("fake", **options) if checkpoint == "fake" else (Other(), None)

    monkeypatch.setattr(problem, "build_evaluator", build_evaluator)
    argv = ["--checkpoint", "fake", "--also", "other", "--iterations", "1", "--candidates", "3"]
    argv += ["--manifest", small, "--runs-dir", tmp_path, "--name", "joint"]
    verb(optimize, *argv, "--proposer", "rewriter", "--swap")
    return tmp_path / "joint", Other


def test_a_run_for_several_checkpoints_is_scored_on_all_of_them_and_on_each(
    joint, small, tmp_path, capsys
):
    folder, _ = joint
    capsys.readouterr()
    verb(rescore, folder, "--runs-dir", tmp_path)
    said = capsys.readouterr().out
    result = json.loads((folder / "test.json").read_text())
    clips = len(read_manifest(small, LABELS, "test"))
    assert result["checkpoint"] == "fake, other" and set(result["each"]) == {"fake", "other"}
    header = json.loads((folder / "trials.jsonl").read_text().split("\n")[0])
    assert f"{result['fingerprint']}-swap" == header["fingerprint"]
    assert not any("not the one of the run" in text for text in result["warnings"])
    for i, row in enumerate(result["prompts"]):
        each = [result["each"][name][i] for name in ("fake", "other")]
        assert row["score"] == pytest.approx(np.mean([one["score"] for one in each]))
        assert (row["clips"], [one["clips"] for one in each]) == (2 * clips, [clips] * 2)
        assert len({one["sources"] for one in (row, *each)}) == 1
        assert {one["prompt_id"] for one in (row, *each)} == {row["prompt_id"]}
    for title in ("fake, other on test", "fake on test", "other on test"):
        assert sum(line.startswith(title) for line in said.splitlines()) == 1
    assert "opened once" in said
    verb(rescore, folder, "--runs-dir", tmp_path, "--checkpoint", "fake")  # as it was asked for
    alone = json.loads((folder / "test.json").read_text())
    assert alone["prompts"] == result["each"]["fake"] and "each" not in alone


def test_a_prompt_that_one_of_the_checkpoints_cannot_score_costs_no_look(
    joint, tmp_path, monkeypatch, capsys
):
    folder, other = joint

    def score(self, prompts, clips):
        raise PromptError("answers begin with the same tokens")

    monkeypatch.setattr(other, "score", score)
    verb(rescore, folder, "--runs-dir", tmp_path, code=2)
    assert "begin with the same tokens" in capsys.readouterr().err
    assert openings(tmp_path) == []


def test_an_unfinished_run_may_not_see_the_test_split(folder, capsys):
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text("".join(lines[:-1]))
    verb(rescore, folder, "--runs-dir", folder.parent, code=2)
    assert "is not finished" in capsys.readouterr().err
    assert not (folder.parent / "test_openings.jsonl").exists()


def test_nothing_is_scored_when_one_input_is_wrong(folder, tmp_path, capsys):
    verb(rescore, folder, tmp_path / "nowhere.yaml", "--runs-dir", folder.parent, code=2)
    assert "nowhere.yaml' does not exist" in capsys.readouterr().err
    assert (
        not (folder / "test.json").exists() and not (folder.parent / "test_openings.jsonl").exists()
    )


def test_a_damaged_count_is_no_fresh_start(folder, capsys, caplog):
    (folder.parent / "test_openings.jsonl").write_text("garbage\n")
    verb(rescore, folder, "--runs-dir", folder.parent)
    assert "test_openings.jsonl: line 1 is damaged and counts as one use" in caplog.text
    assert "has been opened 2 times" in capsys.readouterr().out


def test_leaderboard_in_all_formats(folder, capsys):
    capsys.readouterr()
    verb(leaderboard, "--runs-dir", folder.parent, "--format", "json")
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 26 and set(rows[0]) >= {
        "run",
        "checkpoint",
        "prompt_id",
        "text",
        "score",
        "low",
        "high",
        "clips",
        "origin",
    }
    complete = [r["score"] for r in rows if r["state"] == "complete"]
    assert complete == sorted(complete, reverse=True) and [r["state"] for r in rows] == sorted(
        r["state"] for r in rows
    )
    verb(leaderboard, folder, "--format", "csv")
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(table) == 13 and table[0]["text"]
    verb(leaderboard, folder, "--format", "markdown")
    assert len(capsys.readouterr().out.splitlines()) == 15
    verb(leaderboard, folder)
    assert "dropped early" in capsys.readouterr().out


def test_leaderboard_without_runs_says_how_to_make_one(tmp_path, capsys):
    verb(leaderboard, "--runs-dir", tmp_path, code=2)
    assert "make one with: python -m opro.optimize" in capsys.readouterr().err
    verb(leaderboard, tmp_path, code=2)
    assert "is no run folder" in capsys.readouterr().err


EVIL = '=HYPERLINK("http://x")|`<script>` A or B \\ [red]x[/red]'


def test_untrusted_prompt_text_stays_text_everywhere(tmp_path, capsys):
    path = tmp_path / "evil.yaml"
    path.write_text(dump_prompts([Prompt(EVIL), Prompt("Plain: A or B")]))
    verb(
        optimize,
        "--checkpoint",
        "fake",
        "--iterations",
        "0",
        "--clips",
        "120",
        "--seeds",
        path,
        "--runs-dir",
        tmp_path,
        "--name",
        "evil",
        "--proposer",
        "rewriter",
    )
    assert "[red]x[/red]" in capsys.readouterr().out
    cells = [row["text"] for row in csv.DictReader((tmp_path / "evil" / "leaderboard.csv").open())]
    assert "'" + EVIL in cells
    verb(leaderboard, tmp_path / "evil", "--format", "markdown")
    line = next(x for x in capsys.readouterr().out.splitlines() if "HYPERLINK" in x)
    assert "<script>" not in line and "\\|" in line
    from evaluators.prompts import read_prompts

    assert {p.text for p in read_prompts(path, LABELS)} == {EVIL, "Plain: A or B"}


def test_a_prompt_that_cannot_be_scored_costs_no_look_at_the_test_split(
    small, tmp_path, capsys, monkeypatch
):
    heard = []

    def score(self, prompts, clips):
        heard.append([c.audio for c in clips])
        raise PromptError("answers begin with the same tokens")

    monkeypatch.setattr(FakeEvaluator, "score", score)
    scored(tmp_path, small, code=2)
    assert "begin with the same tokens" in capsys.readouterr().err
    assert openings(tmp_path / "r") == [] and heard == [["silence"]]


def test_a_damaged_run_is_left_out_of_the_leaderboard_and_named(folder, capsys):
    (folder.parent / "two" / "summary.json").write_text("{}")
    capsys.readouterr()
    verb(leaderboard, "--runs-dir", folder.parent, "--format", "json")
    out = capsys.readouterr()
    assert {row["run"] for row in json.loads(out.out)} == {"one"} and "left out" in out.err
    verb(leaderboard, folder.parent / "two", code=2)


def test_a_run_whose_settings_lack_a_key_of_later_versions_is_ranked(folder, capsys):
    path = folder.parent / "two" / "config.yaml"
    before = path.read_text()
    path.write_text("".join(x for x in before.splitlines(True) if not x.startswith("split:")))
    assert path.read_text() != before
    verb(leaderboard, "--runs-dir", folder.parent, "--format", "json")
    assert {row["run"] for row in json.loads(capsys.readouterr().out)} == {"one", "two"}


def test_finished_runs_show_fresh_scores_in_their_csv(folder):
    rows = list(csv.DictReader((folder / "leaderboard.csv").open()))
    assert sum(bool(row["fresh_score"]) for row in rows) >= 1
