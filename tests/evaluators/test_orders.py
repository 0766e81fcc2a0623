"""Options in both orders: found, exchanged, scored in one pass, averaged."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.cache import CachedEvaluator
from evaluators.fakes import FakeEvaluator
from evaluators.orders import BothOrders, find_options, swapped
from evaluators.prompts import Prompt
from opro.optimize import main as optimize
from opro.rescore import main as rescore


def test_the_published_prompts_are_exchanged_and_nothing_else_changes(seeds):
    other = swapped(seeds[0])
    assert other.text == (
        "Choose one:\nA) NONSPEECH (music/noise/silence/animals)\nB) SPEECH (human voice)\n\n"
        "Answer with A or B ONLY."
    )
    assert dict(other.answers) == {"SPEECH": ("B",), "NONSPEECH": ("A",)}
    for prompt in seeds:
        assert swapped(prompt) != prompt and swapped(swapped(prompt)) == prompt


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt("Is there speech?", (("SPEECH", ("Yes",)), ("NONSPEECH", ("No",)))),
        Prompt("Answer A for speech, B for the rest."),
        Prompt("A) speech B) noise", (("SPEECH", ("A", "Speech")), ("NONSPEECH", ("B",)))),
    ],
)
def test_prompts_without_lettered_options_have_no_other_order(prompt):
    assert find_options(prompt) is None and swapped(prompt) is None


@given(st.text("abc (),;:/", min_size=1, max_size=12), st.text("xyz ()", min_size=1, max_size=12))
def test_exchanging_twice_changes_nothing(one, two):
    prompt = Prompt(f"Which?\nA) {one}.\nB) {two}.\nAnswer:")
    other = swapped(prompt)
    assert other is not None and sorted(other.text) == sorted(prompt.text)
    assert swapped(other) == prompt


def test_an_average_is_that_of_both_orders_in_one_pass(seeds, dev_clips, tmp_path):
    inner = CachedEvaluator(FakeEvaluator(), tmp_path)
    clips, averaged = dev_clips[:30], BothOrders(inner)
    plain = Prompt("Is there speech?", (("SPEECH", ("Yes",)), ("NONSPEECH", ("No",))))
    table = averaged.score([*seeds, plain], clips)
    assert averaged.usage.requested == inner.usage.requested == (2 * len(seeds) + 1) * len(clips)
    single = FakeEvaluator()
    for p, prompt in enumerate(seeds):
        both = single.score([prompt, swapped(prompt)], clips).logp
        assert np.allclose(np.exp(table.logp[p]), np.exp(both).mean(0), atol=1e-6)
    assert np.allclose(table.logp[-1], single.score([plain], clips).logp[0], atol=1e-6)
    other = averaged.score([swapped(p) for p in seeds], clips)
    assert np.allclose(other.logp, table.logp[:-1], atol=1e-6)
    assert averaged.count_missing(seeds, clips) == 0


def test_a_model_that_always_says_a_is_at_chance_in_both_orders(seeds, dev_clips, tmp_path):
    class SaysA(FakeEvaluator):
        def score(self, prompts, clips):
            table = super().score(prompts, clips)
            for p, prompt in enumerate(prompts):
                for k, (_, words) in enumerate(prompt.answers):
                    table.logp[p, :, k] = -0.1 if words == ("A",) else -3.0
            return table

    table = BothOrders(CachedEvaluator(SaysA(), tmp_path)).score(seeds, dev_clips[:5])
    assert np.allclose(table.logp[..., 0], table.logp[..., 1])


def test_a_search_and_its_test_score_in_both_orders(make_manifest, tmp_path, capsys):
    folder = make_manifest(
        sources=48,
        change=lambda rows: [r.update(split="test") for r in rows if int(r["source_id"][6:]) >= 24],
    )
    runs = tmp_path / "runs"
    flags = ["--checkpoint", "fake", "--manifest", str(folder), "--runs-dir", str(runs)]
    flags += ["--iterations", "1", "--candidates", "3", "--name", "both", "--swap"]
    assert optimize([*flags, "--proposer", "rewriter"]) == 0
    about = json.loads((runs / "both" / "summary.json").read_text())
    assert "swap: true" in (runs / "both" / "config.yaml").read_text()
    assert about["fingerprint"].endswith("-swap")
    assert rescore([str(runs / "both"), "--runs-dir", str(runs)]) == 0
    result = json.loads((runs / "both" / "test.json").read_text())
    assert result["fingerprint"] == about["fingerprint"] and not result["warnings"]
    assert optimize(["--config", str(runs / "both" / "config.yaml"), "--runs-dir", str(runs)]) == 0
    assert capsys.readouterr().out.count("both") > 1
