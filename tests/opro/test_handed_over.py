"""What a run hands over is one thing: scored from its folder, from its best.yaml and in a matrix, to the last digit."""

import itertools
import json

from opro import matrix, optimize, rescore
from opro.results.run_folder import RunFolder

THRESHOLDS = ("argmax", "dev")
ORDERS = ((), ("--swap",))
OBJECTIVES = ("balanced_accuracy", "accuracy", "auroc", "nll", "worst_slice")
COMBINATIONS = list(itertools.product(THRESHOLDS, ORDERS, OBJECTIVES))


def name_of(threshold, order, objective):
    return f"{threshold}-{'swap' if order else 'plain'}-{objective}"


def handed_over(folder, root):
    """Of each combination's choice: the classifier, its row by run folder, by best.yaml, and in the matrix."""
    shared = ["--manifest", str(folder), "--runs-dir", str(root)]
    for threshold, order, objective in COMBINATIONS:
        argv = ["--checkpoint", "fake", "--iterations", "1", "--candidates", "4", *shared]
        argv += ["--threshold", threshold, "--objective", objective, *order]
        argv += ["--name", name_of(threshold, order, objective), "--strategy", "opro"]
        assert optimize.main(argv) == 0
    runs = [root / name_of(*one) for one in COMBINATIONS]
    assert rescore.main([*map(str, runs), "--runs-dir", str(root)]) == 0
    files = [str(run / "best.yaml") for run in runs]
    assert rescore.main([*files, "--checkpoint", "fake", *shared]) == 0
    argv = ["--checkpoint", "fake", "--prompts", *map(str, runs), *shared]
    assert matrix.main([*argv, "--out", str(root / "m")]) == 0
    in_matrix = json.loads((root / "m" / "matrix.json").read_text())["rows"]
    for combination, run in zip(COMBINATIONS, runs, strict=True):
        best = RunFolder.read(run).best
        by_run = json.loads((run / "test.json").read_text())["prompts"]
        (by_run,) = [r for r in by_run if same(r, best)]
        (by_file,) = json.loads((run / "best.test.json").read_text())["prompts"]
        (by_matrix,) = [r for r in in_matrix if same(r, best)]
        yield combination, best, by_run, by_file, by_matrix


def same(row, best):
    return (row["prompt_id"], row["bias"]) == (best.prompt_id, best.bias)


def test_a_classifier_scores_the_same_wherever_it_is_scored(make_manifest, tmp_path, monkeypatch):
    """For every threshold, order of options and objective."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def change(rows):
        for row in rows:
            number = int(row["source_id"].removeprefix("source"))
            row["split"] = "test" if number % 4 < 2 else "dev"

    folder = make_manifest(sources=84, per_source=2, change=change)
    found = list(handed_over(folder, tmp_path / "runs"))
    for (threshold, order, objective), best, by_run, by_file, by_matrix in found:
        where = name_of(threshold, order, objective)
        assert best.prompt.both_orders == bool(order), where
        assert best.bias == 0 or threshold == "dev", where
        for by in (by_run, by_file):
            assert by["both_orders"] == bool(order) and same(by, best), where
            assert by["text"] == best.prompt.text, where
        for name, in_matrix in (
            ("score", "balanced_accuracy"),
            ("hit_rate", "hit_rate"),
            ("false_alarm_rate", "false_alarm_rate"),
            ("auroc", "auroc"),
        ):
            numbers = {by_run[name], by_file[name], by_matrix[in_matrix]["value"]}
            assert len(numbers) == 1, (where, name, numbers)
        for bound in ("low", "high"):
            assert by_run[bound] == by_file[bound], where
    # Otherwise equal numbers would say nothing.
    assert sum(abs(best.bias) > 0.05 for _, best, *_ in found) >= 3
    assert sum(best.prompt.both_orders for _, best, *_ in found) == len(found) // 2
    assert len({row["score"] for _, _, row, *_ in found}) > 3
