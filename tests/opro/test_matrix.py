"""The matrix: its rows follow from the models' own log-probabilities, and the judged split decides nothing."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest
from common import LABELS
from plain_statistics import balanced_gain

from evaluators import latency
from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.cache import CachedEvaluator
from evaluators.classifier import Classifier, decide
from evaluators.clips import ClipSet
from evaluators.detectors.tuned import tune_detector
from evaluators.evaluator import About
from evaluators.fakes import FakeEvaluator
from evaluators.manifest import manifest_digest, read_manifest
from evaluators.prompts import Prompt, dump_prompts
from evaluators.splits import Registry, balanced_order, halves, write_registry
from evaluators.statistics import calibration
from evaluators.statistics.calibration import fit_bias
from evaluators.statistics.metrics import calibration_error
from evaluators.statistics.resampling import clusters
from evaluators.tasks import SPEECH_TASK
from opro import matrix, optimize, problem, report, stats
from opro.cli import run_verb
from opro.problem import Problem
from opro.results.looks import count_uses, times
from opro.results.run_folder import RunFolder
from opro.search.budget import most_evals
from opro.settings import OptimizeSettings


def split_of(rows):
    for row in rows:
        number = int(row["source_id"].removeprefix("source"))
        row["split"] = "test" if number % 4 < 2 else "dev"


@pytest.fixture
def made(make_manifest, monkeypatch):
    """A manifest of noise clips, half of the sources in test."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return make_manifest(sources=48, per_source=4, change=split_of)


@pytest.fixture
def small(make_manifest, monkeypatch):
    """Fewer of them."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return make_manifest(sources=32, per_source=2, change=split_of)


def verb(*argv):
    try:
        return run_verb(lambda: matrix.main([str(a) for a in argv]))
    except SystemExit as stop:
        return stop.code


def flags(made, *more):
    return ["--checkpoint", "fake", "--manifest", made, "--runs-dir", made.parent / "runs", *more]


def result_of(made, split="test"):
    return json.loads((made.parent / "runs" / f"matrix-{split}" / "matrix.json").read_text())


def prompt_file(folder, count=4, name="p.yaml"):
    prompts = [Prompt(f"{i}: is it speech? A or B") for i in range(count)]
    (folder / name).write_text(dump_prompts(prompts))
    return folder / name, prompts


def openings(made):
    path = made.parent / "runs" / "test_openings.jsonl"
    return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []


def sets_of(manifest, split):
    """The judged clips, and those that thresholds are fitted on: the search half of dev."""
    search, holdout = map(balanced_order, halves(read_manifest(manifest, LABELS, "dev")))
    whole = balanced_order(read_manifest(manifest, LABELS, split))
    return holdout if split == "dev" else whole, search


def truth_of(clips):
    return np.array([LABELS.index(c.label) for c in clips])


def balanced(right, truth):
    return (right[truth == 0].mean() + right[truth == 1].mean()) / 2


def best_shift(truth, margin):
    """The shift of the log-odds with the best balanced accuracy, by trying all; several may be equally good."""
    edges = np.sort(np.unique(margin))
    cuts = [edges[0] - 1, *((edges[1:] + edges[:-1]) / 2), edges[-1] + 1]
    scores = [balanced((margin > cut) == (truth == 0), truth) for cut in cuts]
    return [-cut for cut, s in zip(cuts, scores, strict=True) if s >= max(scores) - 1e-12]


@pytest.mark.parametrize("split", ["test", "dev"])
def test_every_row_follows_from_the_models_own_log_probabilities(made, split):
    path, prompts = prompt_file(made.parent)
    assert verb(*flags(made, "--prompts", path, "--split", split)) == 0
    result, (clips, tune) = result_of(made, split), sets_of(made, split)
    truth, tune_truth = truth_of(clips), truth_of(tune)
    of = FakeEvaluator().score
    rights, dev = [], []
    for prompt in prompts:
        logp, fitted = (of([prompt], some).logp[0].astype(float) for some in (clips, tune))
        rights.append((logp[:, 0] > logp[:, 1]) == (truth == 0))
        dev.append(balanced((fitted[:, 0] > fitted[:, 1]) == (tune_truth == 0), tune_truth))
    reference = int(np.argmax(dev))
    p = []
    for i, (row, prompt) in enumerate(zip(result["rows"], prompts, strict=True)):
        logp, fitted = (of([prompt], some).logp[0].astype(float) for some in (clips, tune))
        margin, tune_margin = logp[:, 0] - logp[:, 1], fitted[:, 0] - fitted[:, 1]
        right = rights[i]
        assert (row["prompt_id"], row["text"]) == (prompt.prompt_id, prompt.text)
        assert row["balanced_accuracy"]["value"] == pytest.approx(balanced(right, truth))
        assert row["accuracy"]["value"] == pytest.approx(right.mean())
        assert row["hit_rate"]["value"] == pytest.approx(right[truth == 0].mean())
        assert row["false_alarm_rate"]["value"] == pytest.approx(1 - right[truth == 1].mean())
        wins = margin[truth == 0][:, None] > margin[truth == 1][None]
        assert row["auroc"]["value"] == pytest.approx(wins.mean())
        assert row["dev_score"] == pytest.approx(dev[i])
        for audio in ("silence", "shuffled"):
            heard = of([prompt], [dataclasses.replace(c, audio=audio) for c in clips]).logp[0]
            says = (heard[:, 0] > heard[:, 1]) == (truth == 0)
            assert row["controls"][audio] == pytest.approx(balanced(says, truth))
        shifts = best_shift(tune_truth, tune_margin)
        shift = fit_bias(tune_truth, tune_margin)
        assert min(shifts) - 1e-9 <= shift <= max(shifts) + 1e-9
        at = balanced((margin + shift > 0) == (truth == 0), truth)
        assert row["threshold_on_dev"]["value"] == pytest.approx(at)
        c = clusters(truth, [x.source_id for x in clips])
        fit = calibration.fit_calibration(tune_truth, tune_margin)
        found = row["calibrated"]
        assert (found["temperature"], found["bias"]) == pytest.approx(
            (fit.temperature, fit.bias), rel=1e-3, abs=1e-3
        )
        probability = 1 / (1 + np.exp(-(margin / fit.temperature + fit.bias)))
        brier = ((probability - (truth == 0)) ** 2).mean()
        assert found["brier"]["value"] == pytest.approx(brier, rel=1e-3)
        own = np.where(truth == 0, probability, 1 - probability)
        assert found["nll"]["value"] == pytest.approx(-np.log(own).mean(), rel=1e-3)
        sure = np.maximum(probability, 1 - probability)
        said = probability > 0.5
        ece = calibration_error(c, sure, said == (truth == 0)).value
        assert found["ece"]["value"] == pytest.approx(ece, abs=1e-3)
        for bins, confidence, hit in (
            (found["reliability"], sure, said == (truth == 0)),
            (row["reliability"], 1 / (1 + np.exp(-np.abs(margin))), right),
        ):
            assert sum(b["clips"] for b in bins) == len(clips)
            mean = sum(b["confidence"] * b["clips"] for b in bins) / len(clips)
            assert mean == pytest.approx(confidence.mean(), abs=1e-3)
            share = sum(b["right"] * b["clips"] for b in bins) / len(clips)
            assert share == pytest.approx(hit.mean(), abs=1e-9)
        assert row["reference"] == row["baseline"] == (i == reference)
        assert row["row"] == ("A1" if i == reference else "")
        assert (row["evals"], row["rows"]) == (len(clips), len(clips))
        assert row["warnings"] == [] and row["searched_on"] == []
        assert row["fingerprint"] == FakeEvaluator().fingerprint
        assert row["answers"] == {"SPEECH": "A", "NONSPEECH": "B"}
        assert (row["model"], row["finetuning"], row["data"]) == ("fake", "none", "")
        assert row["prompt"] == f"p {i + 1}"
        if i == reference:
            assert row["difference"] is None
            continue
        d = row["difference"]
        gap = balanced(right, truth) - balanced(rights[reference], truth)
        assert d["value"] == pytest.approx(gap)
        sources = np.array([c.source_id for c in clips])
        low, high, one_sided = balanced_gain(truth, sources, right, rights[reference])
        assert (d["low"], d["high"]) == pytest.approx((low, high), abs=1e-9)
        assert d["p"] == pytest.approx(2 * min(one_sided, 1 - one_sided))
        assert (d["p"] < 0.05) == (low > 0 or high < 0)
        p.append((d["p"], d["p_holm"]))
    order, most, adjusted = sorted(range(len(p)), key=lambda i: p[i][0]), 0.0, {}
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(p) - rank) * p[i][0]))
        adjusted[i] = most
    assert [b for _, b in p] == pytest.approx([adjusted[i] for i in range(len(p))])
    assert any(b > 1.5 * a for a, b in p)  # Holm is not p
    assert (result["split"], result["clips"]) == (split, len(clips))
    assert result["sources"] == len({c.source_id for c in clips}) and result["seed"] == 0
    assert result["manifest"] == manifest_digest(made)
    assert result["test_openings"] == (1 if split == "test" else None)
    assert result["reference"] == f"fake, p {reference + 1}"
    assert len(openings(made)) == (split == "test")


def test_the_labels_of_the_judged_split_fit_nothing(make_manifest, monkeypatch):
    """With other labels in test, temperature, bias and the choice of the reference stay as they are."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def permuted(rows):
        split_of(rows)
        for row in rows:
            if row["split"] == "test" and int(row["source_id"].removeprefix("source")) % 8 < 5:
                row["label"] = LABELS[1 - LABELS.index(row["label"])]

    of = {}
    for name, change in (("plain", split_of), ("permuted", permuted)):
        folder = make_manifest(sources=48, per_source=4, change=change, name=name)
        path, _ = prompt_file(folder.parent)
        out = folder.parent / name / "out"
        assert verb(*flags(folder, "--prompts", path, "--out", out, "--baselines", "energy")) == 0
        rows = json.loads((out / "matrix.json").read_text())["rows"]
        of[name] = [
            (r["dev_score"], r["baseline"], r["calibrated"]["temperature"], r["calibrated"]["bias"])
            for r in rows[:-1]
        ]
        of[name].append(rows[-1]["prompt"])  # the rule of the energy detector, with its threshold
        of[name + " scores"] = [r["balanced_accuracy"]["value"] for r in rows]
    assert of["plain"] == of["permuted"] and of["plain scores"] != of["permuted scores"]


def test_of_dev_the_half_is_judged_that_fits_nothing_and_it_is_said_with_the_number(
    made, capsys, monkeypatch
):
    path, _ = prompt_file(made.parent, 2)
    run = made.parent / "run"
    run.mkdir()
    ended(monkeypatch, lambda f: (Prompt("searched: is it speech? A or B"), "fake"))
    argv = flags(made, "--prompts", path, run, "--split", "dev", "--baselines", "energy")
    assert verb(*argv, "--dry-run") == 0
    judged, tune = sets_of(made, "dev")
    assert not {c.source_id for c in judged} & {c.source_id for c in tune}
    plan = f"holdout of dev: {len(judged)} clips; {len(tune)} dev clips to tune on"
    assert plan in capsys.readouterr().out
    assert verb(*argv) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"holdout of dev: {len(judged)} clips of ")
    result = result_of(made, "dev")
    assert (result["split"], result["judged_on"]) == ("dev", "holdout of dev")
    for row in result["rows"]:
        assert row["rows"] == row["evals"] == len(judged)
        file = made.parent / "runs" / "matrix-dev" / row["predictions"]
        ids = [x["clip_id"] for x in csv.DictReader(file.open())]
        assert sorted(ids) == sorted(c.clip_id for c in judged)
        # What a search chose on these clips is told from what it did not.
        flattered = [w for w in row["warnings"] if "its score is flattered" in w]
        assert len(flattered) == (row["prompt"] == "searched on fake")
    assert "chose it if its search was of these clips" in out
    assert report.main([str(made.parent / "runs" / "matrix-dev")]) == 0
    page = (made.parent / "runs" / "matrix-dev" / "report.html").read_text()
    assert "Matrix on holdout of dev" in page and "On the holdout of dev." in page
    assert verb(*flags(made, "--prompts", path, run)) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("written to")
    assert all("flattered" not in w for r in result_of(made)["rows"] for w in r["warnings"])


def test_a_holdout_that_lacks_a_class_is_one_sentence(make_manifest, capsys):
    def change(rows):
        for row in rows:
            row["split"] = "dev" if row["source_id"] in ("source0", "source1") else "test"

    assert verb(*flags(make_manifest(sources=8, change=change), "--split", "dev")) == 2
    assert "half of the 4 clips lacks a class" in capsys.readouterr().err


def test_what_dev_cannot_calibrate_says_why(small, monkeypatch):
    """Scores that part the dev clips without a mistake have no best temperature."""
    real = FakeEvaluator.score

    def score(self, prompts, clips):
        table = real(self, prompts, clips)
        sign = np.array([1.0 if c.label == LABELS[0] else -1.0 for c in clips])
        size = 1 + np.array([int(c.sha256[:4], 16) for c in clips]) / 65536
        logp = np.stack([-np.logaddexp(0, -sign * size), -np.logaddexp(0, sign * size)], -1)
        logp = np.broadcast_to(logp, table.logp.shape).astype(np.float32)
        return dataclasses.replace(table, logp=logp, logp_top=logp)

    monkeypatch.setattr(FakeEvaluator, "score", score)
    path, _ = prompt_file(small.parent, 1)
    assert verb(*flags(small, "--prompts", path)) == 0
    (row,) = result_of(small)["rows"]
    assert row["calibrated"] is None and "part the dev clips" in row["calibration_failed"]
    assert row["balanced_accuracy"]["value"] == row["threshold_on_dev"]["value"] == 1.0


@pytest.mark.parametrize("what", ["file", "dev file", "registry", "dev registry", "heard", "out"])
def test_what_is_wrong_is_found_before_the_split_is_opened(small, capsys, what):
    clips, tune = sets_of(small, "test")
    one = tune[-1] if what.startswith("dev") else clips[-1]
    more = []
    if "file" in what:
        one.path.write_bytes(b"other")
        sentence = "the manifest says"
    elif "registry" in what:
        write_registry(small / "registry.json", Registry({one.source_id: "train"}, {}))
        sentence = "is registered as 'train'"
    elif what == "heard":
        write_registry(small / "registry.json", Registry({}, {"fake": (one.source_id,)}))
        sentence = "was trained on 1 of the sources"
    else:
        (small.parent / "file").write_text("x")
        more, sentence = ["--out", small.parent / "file"], "is a file; expected a folder"
    assert verb(*flags(small, *more)) == 2
    assert sentence in capsys.readouterr().err
    assert openings(small) == [] and not (small.parent / "runs" / "matrix-test").exists()


def test_what_was_heard_stands_in_every_row_where_it_is_allowed(small, capsys):
    source = sets_of(small, "test")[0][0].source_id
    write_registry(small / "registry.json", Registry({}, {"fake": (source,)}))
    path, _ = prompt_file(small.parent, 2)
    assert verb(*flags(small, "--prompts", path, "--heard", "allow")) == 0
    for row in result_of(small)["rows"]:
        (warning,) = row["warnings"]
        assert "scores measure memory" in warning
    said = capsys.readouterr()
    assert said.out.count("scores measure memory") == 1 and "warning     " in said.err


def test_a_prompt_that_cannot_be_scored_costs_no_look(small, monkeypatch, capsys):
    from evaluators.audio_lm.answer_tokens import PromptError

    heard = []

    def score(self, prompts, clips):
        heard.append([(c.split, c.audio) for c in clips])
        raise PromptError("the answers begin with the same tokens")

    monkeypatch.setattr(FakeEvaluator, "score", score)
    assert verb(*flags(small)) == 2
    assert "the same tokens" in capsys.readouterr().err
    assert openings(small) == [] and heard == [[("dev", "silence")]]


def test_the_plan_counts_what_will_be_scored_and_what_is_cached(small, capsys):
    path, _ = prompt_file(small.parent, 3)
    clips, tune = sets_of(small, "test")
    total = 3 * (3 * len(clips) + len(tune))
    assert verb(*flags(small, "--prompts", path, "--dry-run")) == 0
    out = capsys.readouterr().out
    assert f"fake: at most {total:,} evals, 0 cached" in out
    assert f"{len(clips)} clips; {len(tune)} dev clips to tune on" in out
    assert "prompts     3\n" in out and "baselines   none" in out
    assert verb(*flags(small, "--prompts", path)) == 0
    assert f"fake: at most {total:,} evals, 0 cached" in capsys.readouterr().err
    assert verb(*flags(small, "--prompts", path, "--dry-run", "--search")) == 0
    total = 4 * (3 * len(clips) + len(tune))
    searches = OptimizeSettings(checkpoint="fake", manifest=small).checked()
    three = tuple(Prompt(str(i)) for i in range(3))
    both = [ClipSet(SPEECH_TASK, tuple(tune))] * 2
    search = most_evals(Problem(SPEECH_TASK, three, *both, FakeEvaluator(), {}), searches)
    out = capsys.readouterr().out
    assert f"fake: at most {total + search:,} evals, {3 * len(clips):,} cached" in out
    assert "prompts     3 and up to 1 that searches choose" in out


def test_a_prompt_that_stands_in_two_files_is_scored_once_under_its_first_name(small):
    a, _ = prompt_file(small.parent, 2, "a.yaml")
    b, _ = prompt_file(small.parent, 3, "b.yaml")
    alone, _ = prompt_file(small.parent, 1, "c.yaml")
    assert verb(*flags(small, "--prompts", alone, b, a)) == 0
    names = [r["prompt"] for r in result_of(small)["rows"]]
    assert names == ["c", "b 2", "b 3"]


def test_every_look_at_test_is_counted_and_shown(small, capsys):
    path, _ = prompt_file(small.parent, 1)
    more, _ = prompt_file(small.parent, 2, "more.yaml")
    both = [path, "--baselines", "energy"]
    # Again, and a part of it again, shows nothing new; a prompt more does, and so does a detector.
    for look, argv in ((1, [path]), (1, [path]), (2, both), (2, both), (2, [path]), (3, [more])):
        assert verb(*flags(small, "--prompts", *argv)) == 0
        assert result_of(small)["test_openings"] == look == len(openings(small))
        assert f"opened {times(look)}" in capsys.readouterr().out
    line = openings(small)[1]
    assert line["verb"] == "matrix" and line["manifest"] == manifest_digest(small)
    assert line["about"] == "matrix, 1 checkpoints, 1 prompts, 1 baselines"
    assert verb(*flags(small, "--prompts", path, "--split", "dev")) == 0
    assert "has been opened" not in capsys.readouterr().out and len(openings(small)) == 3


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """Stand-ins that carry the folders of fine-tuned checkpoints."""
    made = {}

    def folder(name, kind=None, **training):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": kind or "qwen2_audio"}))
        if training:
            (path / "training.json").write_text(json.dumps(training))
        return path

    class Tuned(FakeEvaluator):
        def __init__(self, name, base, adapter):
            super().__init__()
            self.fingerprint = f"print of {name}"
            self.checkpoint = Checkpoint(name, base, adapter, "none", None, None)
            self.released = 0

        def about(self):
            return About(checkpoint=self.checkpoint)

        def release(self):
            self.released += 1

    base, omni = folder("base"), folder("omni", "qwen3_omni_moe")
    about = {
        "base": (base, None),
        "omni": (omni, None),
        "full": (base, folder("f", recipe={"loss": "full"}, clips=5000)),
        "few": (base, folder("g", recipe={"loss": "answer"}, clips=999)),
        "many": (base, folder("h", recipe={"loss": "answer"}, clips=1000)),
        "unknown": (base, folder("i")),
    }

    def build_evaluator(name, **options):
        made[name] = Tuned(name, *about[name])
        return CachedEvaluator(made[name], options["cache"]), frozenset()

    monkeypatch.setattr(problem, "build_evaluator", build_evaluator)
    real = latency.measure
    monkeypatch.setattr(latency, "measure", lambda evaluator, *rest: real(FakeEvaluator(), *rest))
    return made


def test_rows_are_named_as_in_the_published_matrix(small, tuned):
    path, _ = prompt_file(small.parent, 2)
    names = ["base", "omni", "full", "few", "many", "unknown"]
    argv = ["--manifest", small, "--runs-dir", small.parent / "runs", "--prompts", path]
    assert verb(*argv, "--checkpoint", *names) == 0
    result = result_of(small)
    of = {n: [r for r in result["rows"] if r["model"] == n] for n in names}
    baseline = {n: next(r for r in rows if r["baseline"]) for n, rows in of.items()}
    codes = {n: r["row"] for n, r in baseline.items()}
    assert codes == {
        **{"base": "A1", "omni": "", "full": "B1", "few": "B2", "many": "B3", "unknown": "B2"}
    }
    words = {n: (r["finetuning"], r["data"]) for n, r in baseline.items()}
    assert words == {
        "base": ("none", ""),
        "omni": ("none", ""),
        "full": ("LoRA, plain loss", "5,000 clips"),
        "few": ("LoRA, masked loss", "999 clips"),
        "many": ("LoRA, masked loss", "1,000 clips"),
        "unknown": ("LoRA", "unknown"),
    }
    assert [r for r in result["rows"] if r["reference"]] == [baseline["base"]]
    assert all(r["row"] == "" for rows in of.values() for r in rows if not r["baseline"])
    assert all(one.released == 1 for one in tuned.values())
    assert {r["fingerprint"] for r in of["full"]} == {"print of full"}
    # The reference is a prompt of the first checkpoint; every other row is compared with it.
    assert sum(r["difference"] is None for r in result["rows"]) == 1


@dataclasses.dataclass(frozen=True)
class Ended:
    """What the matrix asks of a finished run."""

    best: Classifier
    checkpoint: str

    @property
    def checkpoints(self):
        return self.checkpoint.split(", ")


def ended(monkeypatch, of):
    """Folders that `of` names a (prompt or classifier, checkpoint) for are finished runs."""

    def read(path, flag=""):
        best, checkpoint = of(path)
        return Ended(Classifier(best) if isinstance(best, Prompt) else best, checkpoint)

    monkeypatch.setattr(RunFolder, "read", read)


def test_searched_rows_have_their_own_names(small, tuned, monkeypatch):
    path, _ = prompt_file(small.parent, 2)
    searched = Prompt("searched: is it speech? A or B")
    runs_made = []
    for name in ("base", "omni", "many", "full"):
        run = small.parent / f"run-{name}"
        run.mkdir()
        runs_made.append(run)
    ended(monkeypatch, lambda f: (searched, f.name.removeprefix("run-")))
    argv = ["--manifest", small, "--runs-dir", small.parent / "runs", "--prompts", path, *runs_made]
    assert verb(*argv, "--checkpoint", "base", "omni", "many", "full", "few") == 0
    rows = [r for r in result_of(small)["rows"] if r["text"] == searched.text]
    codes = {r["model"]: r["row"] for r in rows}
    assert codes == {"base": "A2", "omni": "C1", "many": "B4", "full": "", "few": ""}
    assert all(r["searched_on"] == ["base", "omni", "many", "full"] for r in rows)
    assert all(r["prompt"] == "searched on base" and not r["baseline"] for r in rows)


def test_a_prompt_for_several_checkpoints_was_searched_on_each_of_them(small, tuned, monkeypatch):
    path, _ = prompt_file(small.parent, 1)
    run = small.parent / "run"
    run.mkdir()
    ended(monkeypatch, lambda f: (Prompt("searched: is it speech? A or B"), "base, many"))
    argv = ["--manifest", small, "--runs-dir", small.parent / "runs", "--prompts", path, run]
    assert verb(*argv, "--checkpoint", "base", "many") == 0
    rows = [r for r in result_of(small)["rows"] if r["text"].startswith("searched")]
    assert {r["model"]: r["row"] for r in rows} == {"base": "A2", "many": "B4"}
    assert {r["prompt"] for r in rows} == {"searched on base, many"}
    assert all(r["searched_on"] == ["base", "many"] for r in rows)


def test_a_seed_that_a_search_kept_carries_both_names(small, monkeypatch):
    path, prompts = prompt_file(small.parent, 1)
    run = small.parent / "run"
    run.mkdir()
    ended(monkeypatch, lambda f: (prompts[0], "fake"))
    assert verb(*flags(small, "--prompts", path, run)) == 0
    (row,) = result_of(small)["rows"]
    assert row["row"] == "A1 = A2" and row["baseline"] and row["prompt"] == "p"
    assert row["searched_on"] == ["fake"]


def test_a_seed_that_a_search_kept_is_the_baseline_whatever_its_file_is_called(small, monkeypatch):
    path, prompts = prompt_file(small.parent, 1, "searched.yaml")
    run = small.parent / "run"
    run.mkdir()
    ended(monkeypatch, lambda f: (prompts[0], "fake"))
    for order in ((path, run), (run, path)):
        assert verb(*flags(small, "--prompts", *order)) == 0
        (row,) = result_of(small)["rows"]
        assert row["row"] == "A1 = A2" and row["baseline"], order


def test_what_a_search_chose_is_no_baseline_however_good_it_is(small, monkeypatch):
    _, prompts = prompt_file(small.parent, 12)
    _, tune = sets_of(small, "test")
    truth, logp = truth_of(tune), FakeEvaluator().score(prompts, tune).logp
    order = np.argsort([balanced((one[:, 0] > one[:, 1]) == (truth == 0), truth) for one in logp])
    weak, strong = prompts[order[0]], prompts[order[-1]]
    path, run = small.parent / "weak.yaml", small.parent / "run"
    path.write_text(dump_prompts([weak]))
    run.mkdir()
    ended(monkeypatch, lambda f: (strong, "fake"))
    assert verb(*flags(small, "--prompts", path, run)) == 0
    rows = result_of(small)["rows"]
    assert [(r["row"], r["baseline"], r["reference"]) for r in rows] == [
        ("A1", True, True),
        ("A2", False, False),
    ]
    assert rows[0]["dev_score"] < rows[1]["dev_score"]


def test_one_prompt_with_two_thresholds_is_two_rows(small, monkeypatch):
    """What a run hands over is scored with its threshold, beside the same words without it."""
    path, prompts = prompt_file(small.parent, 1)
    run = small.parent / "run"
    run.mkdir()
    ended(monkeypatch, lambda f: (Classifier(prompts[0], bias=-0.7), "fake"))
    assert verb(*flags(small, "--prompts", path, run)) == 0
    plain, shifted = result_of(small)["rows"]
    assert (plain["bias"], shifted["bias"]) == (0.0, -0.7)
    clips, _ = sets_of(small, "test")
    truth, logp = truth_of(clips), FakeEvaluator().score(prompts, clips).logp[0].astype(float)
    for row in (plain, shifted):
        says = logp[:, 0] + row["bias"] > logp[:, 1]
        assert row["balanced_accuracy"]["value"] == pytest.approx(
            balanced(says == (truth == 0), truth)
        )
        # The reliability is of the decisions that were made.
        assert sum(b["right"] * b["clips"] for b in row["reliability"]) == pytest.approx(
            (says == (truth == 0)).sum()
        )
        assert row["threshold_on_dev"] == plain["threshold_on_dev"]
        for audio in ("silence", "shuffled"):
            heard = [dataclasses.replace(c, audio=audio) for c in clips]
            own = FakeEvaluator().score(prompts, heard).logp[0].astype(float)
            says = own[:, 0] + row["bias"] > own[:, 1]
            assert row["controls"][audio] == pytest.approx(balanced(says == (truth == 0), truth))
    assert plain["balanced_accuracy"] != shifted["balanced_accuracy"]
    assert plain["auroc"]["value"] == shifted["auroc"]["value"]


def test_files_and_printed_formats_hold_the_same_numbers(small, capsys):
    path, _ = prompt_file(small.parent, 2)
    shown = {}
    for form in ("csv", "markdown", "latex", "json", "table"):
        assert verb(*flags(small, "--prompts", path, "--format", form)) == 0
        shown[form] = capsys.readouterr().out
    out = small.parent / "runs" / "matrix-test"
    result = result_of(small)
    assert {p.name for p in out.iterdir()} == {
        *(f"matrix.{kind}" for kind in ("json", "csv", "md", "tex")),
        "predictions",
    }
    assert json.loads(shown["json"])["rows"][0]["text"] == result["rows"][0]["text"]
    head = shown["csv"].splitlines()[0].split(",")
    assert {"balanced_accuracy", "balanced_accuracy_low", "difference_p_holm", "auroc"} <= set(head)
    rows = list(csv.DictReader((out / "matrix.csv").open()))
    for row, r in zip(rows, result["rows"], strict=True):
        for name in ("balanced_accuracy", "threshold_on_dev", "hit_rate"):
            assert float(row[name]) == pytest.approx(r[name]["value"])
            assert float(row[f"{name}_high"]) == pytest.approx(r[name]["high"])
        assert float(row["controls_silence"]) == pytest.approx(r["controls"]["silence"])
        assert float(row["latency_batch"]) >= 0 and row["answers_SPEECH"] == "A"
        assert "reliability" not in row and "slices" not in row
        plain = {k: str(v) for k, v in r.items() if isinstance(v, str | int | float)}
        assert {"text", "bias"} < plain.keys() and plain.items() <= row.items()
        if r["difference"]:
            assert float(row["difference"]) == pytest.approx(r["difference"]["value"])
        for name, t in r["thresholds"].items():
            assert row[name] == t["text"]
    assert shown["markdown"].count("\n") == 4 and shown["latex"].count(r"\\") == 3
    assert "written to" in shown["table"]
    (left,) = [x for x in shown["table"].splitlines() if x.startswith("(left out at ")]
    hidden = left.partition(": ")[2].strip(")").split("; ")
    assert "ms single" in hidden and not set(hidden) & set(shown["table"].splitlines()[1].split())
    assert all(x in shown["table"] for x in ("balanced accuracy", "p (Holm)", "false alarms"))
    names = [p.name for p in sorted((out / "predictions").iterdir())]
    assert names == ["01-fake--p-1.csv", "02-fake--p-2.csv"]
    assert [r["predictions"] for r in result["rows"]] == [f"predictions/{n}" for n in names]


def test_predictions_are_those_of_their_row(small):
    path, prompts = prompt_file(small.parent, 2)
    assert verb(*flags(small, "--prompts", path)) == 0
    clips, _ = sets_of(small, "test")
    for r, prompt in zip(result_of(small)["rows"], prompts, strict=True):
        with (small.parent / "runs" / "matrix-test" / r["predictions"]).open() as file:
            rows = list(csv.DictReader(file))
        own = FakeEvaluator().score([prompt], clips).logp[0]
        assert [x["clip_id"] for x in rows] == [c.clip_id for c in clips]
        assert [x["label"] for x in rows] == [c.label for c in clips]
        assert [x["predicted"] for x in rows] == [LABELS[k] for k in own.argmax(-1)]


def test_a_baseline_is_tuned_on_dev_and_judged_on_the_split(small):
    path, _ = prompt_file(small.parent, 1)
    assert verb(*flags(small, "--prompts", path, "--baselines", "energy")) == 0
    row = result_of(small)["rows"][-1]
    clips, tune = sets_of(small, "test")
    fitted = tune_detector("energy", ClipSet(SPEECH_TASK, tuple(tune)))
    nothing = Prompt("", tuple((label, ("",)) for label in LABELS), "")
    truth = truth_of(clips)
    for audio in ("recorded", "silence", "shuffled"):
        some = [dataclasses.replace(c, audio=audio) for c in clips]
        table = fitted.score([nothing], some)
        logp = table.logp[0]
        right = decide(logp) == truth
        found = row["balanced_accuracy"]["value"] if audio == "recorded" else row["controls"][audio]
        assert found == pytest.approx(balanced(right, truth))
        if audio == "recorded":
            probability = table.predict(Classifier(nothing)).probability
            sure = np.maximum(probability, 1 - probability)
            bins = row["reliability"]
            assert sum(b["clips"] for b in bins) == len(clips) == row["evals"]
            mean = sum(b["confidence"] * b["clips"] for b in bins) / len(clips)
            assert mean == pytest.approx(sure.mean())
            assert sum(b["right"] * b["clips"] for b in bins) == pytest.approx(right.sum())
    assert (row["model"], row["prompt"], row["row"]) == ("energy", fitted.rule, "")
    assert row["warnings"] == [] and not row["baseline"]
    assert (row["finetuning"], row["data"], row["fingerprint"]) == ("", "", fitted.fingerprint)


def test_a_search_of_the_matrix_is_the_search_of_its_own_settings(small, monkeypatch):
    made = []

    def run(settings, beside):
        made.append(settings)
        assert beside == [model.evaluator for model in models]
        return small.parent / f"run{len(made)}"

    monkeypatch.setattr(matrix, "run_search", run)
    chosen = iter([Prompt("first? A or B"), Prompt("second? A or B")])
    ended(monkeypatch, lambda f: (next(chosen), made[-1].checkpoint))
    path, _ = prompt_file(small.parent, 1)
    settings = matrix.MatrixSettings(
        manifest=small, seed=3, swap=True, runs_dir=small.parent / "r", device="cpu"
    )
    asked = matrix._entries([path], problem.open_data(settings), settings)
    models = [problem.Model(name, FakeEvaluator(), None) for name in ("a", "b")]
    found = matrix._searched(asked, models, settings)
    assert [m.checkpoint for m in made] == ["a", "b"]
    assert [m.share for m in made] == [None, str(small.parent / "run1")]
    for m in made:
        assert (m.manifest, m.seed, m.swap, m.runs_dir) == (small, 3, True, small.parent / "r")
        assert (m.quantization, m.dtype, m.device, m.heard) == ("none", "auto", "cpu", "refuse")
        assert m.name and m.candidates == 10  # as `opro.optimize` itself would fill them in
    assert [a.name for a in found] == ["p", "searched on a", "searched on b"]
    assert [a.searched_on for a in found] == [(), ("a",), ("b",)]
    # A file's prompts get the order that was asked for; a run's are taken as they were handed over.
    assert [a.classifier.prompt.both_orders for a in found] == [True, False, False]


def test_what_the_flags_say_reaches_the_model(small, monkeypatch):
    found, real = {}, problem.build_evaluator

    def build_evaluator(checkpoint, **options):
        found.update(options, checkpoint=checkpoint)
        return real("fake", cache=options["cache"])

    monkeypatch.setattr(problem, "build_evaluator", build_evaluator)
    path, _ = prompt_file(small.parent, 1)
    argv = ["--prompts", path, "--dry-run"]
    assert verb(*flags(small, *argv)) == 0
    plain = {"checkpoint": "fake", "quantization": "none", "device": "auto", "dtype": "auto"}
    plain |= {"adapter": None, "ray": None, "ray_cpus": 1}
    plain |= {"cache": small.parent / "runs" / ".cache"}
    assert found == plain
    more = {"quantization": "nf4", "device": "cpu", "dtype": "bfloat16", "ray": "auto"}
    argv += [x for name, value in more.items() for x in (f"--{name}", value)]
    assert verb(*flags(small, *argv, "--ray-cpus", 3)) == 0
    assert found == plain | more | {"ray_cpus": 3}


def test_help_begins_with_what_a_matrix_is(capsys):
    assert verb("--help") == 0
    assert f"\n\n{matrix.__doc__.strip()}\n\n" in capsys.readouterr().out


def test_the_seed_is_none_below_zero_and_there_is_no_config(small, capsys):
    for argv, words in (["--seed", "-1"], "at least 0"), (["--config", "x"], "--config"):
        assert verb(*flags(small, *argv)) == 2
        assert words in capsys.readouterr().err
    assert matrix.MatrixSettings().seed == 0 and not matrix.MatrixSettings().search
    assert verb(*flags(small, "--seed", "0", "--dry-run")) == 0


def test_settings_and_rows_cannot_be_changed():
    for kind in (matrix.MatrixSettings, matrix.Entry, matrix.Clips, problem.Model, matrix.Row):
        assert kind.__dataclass_params__.frozen


def test_rows_tables_and_predictions(made, capsys):
    assert verb(*flags(made, "--baselines", "energy")) == 0
    result = result_of(made)
    names = [(r["model"], r["prompt"]) for r in result["rows"]]
    assert [n for n, _ in names] == ["fake"] * 3 + ["energy"]
    assert [p for _, p in names[:3]] == ["baselines 1", "baselines 2", "baselines 3"]
    (reference,) = [r for r in result["rows"] if r["reference"]]
    assert reference["row"] == "A1" and reference["difference"] is None
    assert reference["dev_score"] == max(r["dev_score"] for r in result["rows"][:3])
    for r in result["rows"]:
        score = r["balanced_accuracy"]
        assert score["low"] <= score["value"] <= score["high"]
        assert set(r["controls"]) == {"silence", "shuffled"} and r["latency"]["batch"] >= 0
        if r["difference"]:
            gap = score["value"] - reference["balanced_accuracy"]["value"]
            assert r["difference"]["value"] == pytest.approx(gap)
    out = made.parent / "runs" / "matrix-test"
    files = sorted((out / "predictions").glob("*.csv"))
    again = stats.statistics(files, stats.StatsSettings(resamples=500), {})
    for entry, r in zip(again["files"], result["rows"], strict=True):
        for name in ("accuracy", "balanced_accuracy", "auroc"):
            assert entry[name]["value"] == pytest.approx(r[name]["value"], abs=1e-4)
    with (out / "matrix.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["balanced_accuracy"]) == pytest.approx(
        result["rows"][0]["balanced_accuracy"]["value"]
    )
    assert (out / "matrix.md").read_text().count("\n") == 2 + 4
    assert (out / "matrix.tex").read_text().count(r"\\") == 1 + 4
    assert "opened once" in capsys.readouterr().out


def test_searched_prompts_join_and_a_second_matrix_scores_nothing_anew(made, capsys):
    assert verb(*flags(made, "--search", "--format", "json")) == 0
    capsys.readouterr()
    first = result_of(made)
    searched = [r for r in first["rows"] if r["searched_on"] == ["fake"]]
    assert len(searched) == 1 and searched[0]["row"] in ("A2", "A1 = A2")
    (run,) = [p.parent for p in (made.parent / "runs").glob("*/summary.json")]
    assert (
        json.loads((run / "summary.json").read_text())["chosen"]["prompt_id"]
        == (searched[0]["prompt_id"])
    )
    assert verb(*flags(made, "--prompts", "prompts/seeds/baselines.yaml", run)) == 0
    second = result_of(made)
    for a, b in zip(first["rows"], second["rows"], strict=True):
        for name in (
            "row",
            "prompt_id",
            "balanced_accuracy",
            "difference",
            "controls",
            "calibrated",
        ):
            assert a[name] == b[name], name


def test_order_of_prompts_changes_no_score(made, tmp_path):
    prompts = [
        Prompt(f"Is it speech {i}?", (("SPEECH", ("A",)), ("NONSPEECH", ("B",))), "x")
        for i in range(3)
    ]
    scores = []
    for name, some in (("a", prompts), ("b", prompts[::-1])):
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump_prompts(some))
        assert verb(*flags(made, "--prompts", path)) == 0
        rows = result_of(made)["rows"]
        scores.append({r["prompt_id"]: r["balanced_accuracy"] for r in rows})
    assert scores[0] == scores[1]


def test_checkpoints_and_soft_prompts_share_what_they_have_in_common(small, monkeypatch):
    given = []
    monkeypatch.setattr(matrix, "share", lambda evaluators: given.append(evaluators))
    soft = problem.Model("fake", FakeEvaluator(), None), matrix.Entry(Classifier(Prompt("?")), "s")
    monkeypatch.setattr(matrix, "_open_soft", lambda *a: soft)
    flags = ["--manifest", small, "--runs-dir", small.parent / "r", "--soft", "x", "--dry-run"]
    assert verb(*flags, "--checkpoint", "fake", "pocket-base", "--device", "cpu") == 0
    ((first, second, third),) = given
    assert isinstance(first.innermost, FakeEvaluator) and third is soft[0].evaluator
    assert second.about().checkpoint.name == "pocket-base"


def test_a_dry_run_opens_nothing(made, capsys):
    assert verb(*flags(made, "--dry-run", "--search", "--baselines", "energy")) == 0
    out = capsys.readouterr().out
    assert "evals" in out and "energy" in out
    assert not (made.parent / "runs" / "matrix-test").exists()
    assert count_uses(made.parent / "runs", manifest_digest(made)) == 0


def test_a_dry_run_counts_both_orders_of_what_is_cached(made, capsys):
    """Twice the evals, and never fewer than none of them cached."""
    evals = []
    for more in ([], ["--swap"]):
        assert verb(*flags(made, "--dry-run", "--search", *more)) == 0
        said = re.search(r"at most ([0-9,]+) evals, ([0-9,-]+) cached", capsys.readouterr().out)
        evals.append(int(said[1].replace(",", "")))
        assert said[2] == "0"
    assert evals[1] == 2 * evals[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--baselines", "siler"], ["'siler'", "silero"]),
        (["--baselines", "energy", "energy"], ["given twice"]),
        (["--checkpoint", "fake", "fake"], ["given twice"]),
        (["--checkpoint", "nothing-here"], ["nothing-here"]),
        (["--prompts", "nothing.yaml"], ["nothing.yaml"]),
        (["--task", "music"], ["'music'"]),
        (["--split", "tset"], ["--split"]),
    ],
)
def test_wrong_use_is_one_sentence_and_opens_nothing(made, capsys, more, words):
    assert verb(*flags(made, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for word in words:
        assert word in error
    assert not (made.parent / "runs" / "test_openings.jsonl").exists()


def test_an_unfinished_run_is_refused(made, capsys):
    run_folder = made.parent / "runs"
    argv = ["--checkpoint", "fake", "--manifest", str(made), "--runs-dir", str(run_folder)]
    argv += ["--name", "x", "--iterations", "1", "--candidates", "2"]
    assert optimize.main(argv) == 0
    (run_folder / "x" / "summary.json").unlink()
    assert verb(*flags(made, "--prompts", run_folder / "x")) == 2
    assert "not finished" in capsys.readouterr().err
