"""Runs for the tests of the page: one finished, with hostile words in its prompts and its name, and one under way."""

import json
import shutil

from common import LABELS

from evaluators.files import dump_yaml
from opro import optimize
from opro.results.run_folder import RunFolder

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> ${alert(3)} {{value}} **b** [l](javascript:alert(4))"
NAME = "<b onmouseover=alert(5)>run"  # of a folder that somebody renamed


def make_runs(folder):
    """Fills a runs folder; returns it."""
    seeds = folder / "seeds.yaml"
    texts = [f"{HOSTILE} Speech? A or B", "Is it speech?\nA) Yes\nB) No", "=cmd() Speech? A or B"]
    answers = dict(zip(LABELS, "AB", strict=True))
    seeds.write_text(dump_yaml({"prompts": [{"text": t, "answers": answers} for t in texts]}))
    runs = folder / "runs"
    base = ["--checkpoint", "fake", "--seeds", str(seeds), "--iterations", "1", "--clips", "120"]
    optimize.main([*base, "--name", "done", "--runs-dir", str(runs)])
    proposals = {
        "iteration": 1, "call": 0, "model": "m", "system": HOSTILE, "meta_prompt": HOSTILE, "reply": HOSTILE,
        "tokens_in": 10, "tokens_out": 5, "cost": 0.01, "finish": "stop", "accepted": 1,
        "refused": [{"text": HOSTILE, "reason": "no text"}],
    }  # fmt: skip
    lines = [proposals, {"lost": "no reply", "tokens_in": 1, "tokens_out": 1, "cost": 0.0}]
    lines.append({"iteration": 1, "unanswered": "the rewriter goes on"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (runs / "done" / "proposals.jsonl").write_text(text + '{"iteration": 2, "ca')
    half(runs)
    shutil.copytree(runs / "done", runs / NAME)
    return runs


def half(runs):
    """A run that was interrupted after its seed prompts, with a budget."""
    shutil.copytree(runs / "done", runs / "half")
    folder = runs / "half"
    (folder / "summary.json").unlink()
    lines = (folder / "trials.jsonl").read_bytes().splitlines(keepends=True)
    last = next(
        i for i, line in enumerate(lines) if b'"iteration": 1' in line and b"propose" in line
    )
    (folder / "trials.jsonl").write_bytes(b"".join(lines[:last]))
    config = (folder / "config.yaml").read_text().replace("max_evals: null", "max_evals: 5000")
    (folder / "config.yaml").write_text(config)
    assert RunFolder.read(folder).summary is None
