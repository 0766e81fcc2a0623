"""Options in both orders: found, exchanged, scored in one pass, averaged."""

import json
from dataclasses import replace

import numpy as np
import pytest
from common import LABELS
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.cache import CachedEvaluator
from evaluators.evaluator import Usage
from evaluators.fakes import FakeEvaluator
from evaluators.orders import BothOrders, evals_per_clip, find_options, swapped
from evaluators.prompts import Prompt, read_prompts
from opro.optimize import main as optimize
from opro.rescore import main as rescore


def both(prompt):
    """The prompt, scored in both orders."""
    return replace(prompt, both_orders=True)


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
    plain = both(Prompt("Is there speech?", (("SPEECH", ("Yes",)), ("NONSPEECH", ("No",)))))
    table = averaged.score([*map(both, seeds), plain], clips)
    assert averaged.usage.requested == inner.usage.requested == (2 * len(seeds) + 1) * len(clips)
    assert [evals_per_clip(p) for p in (*map(both, seeds), plain, *seeds)] == [2] * 3 + [1] * 4
    single = FakeEvaluator()
    for p, prompt in enumerate(seeds):
        pair = single.score([prompt, swapped(prompt)], clips).logp
        assert np.allclose(np.exp(table.logp[p]), np.exp(pair).mean(0), atol=1e-6)
    one = single.score([replace(plain, both_orders=False)], clips).logp[0]
    assert np.array_equal(table.logp[-1], one)
    other = averaged.score([both(swapped(p)) for p in seeds], clips)
    assert np.allclose(other.logp, table.logp[:-1], atol=1e-6)
    assert averaged.count_missing([*map(both, seeds), *seeds], clips) == 0


def test_a_prompt_of_one_order_is_scored_as_it_stands(seeds, dev_clips, tmp_path):
    """Beside one of both orders, whose first order it is; to the bit."""
    averaged, clips = BothOrders(CachedEvaluator(FakeEvaluator(), tmp_path)), dev_clips[:9]
    assert averaged.count_missing(seeds, clips) == len(seeds) * len(clips)
    table = averaged.score([seeds[0], both(seeds[0]), *seeds[1:]], clips)
    plain = FakeEvaluator().score(seeds, clips)
    assert np.array_equal(table.logp[[0, 2, 3]], plain.logp)
    assert np.array_equal(table.logp_top[[0, 2, 3]], plain.logp_top)
    assert not np.allclose(table.logp[1], table.logp[0])
    assert averaged.usage == Usage(4 * 9, 0, 4 * 9)


def test_a_model_that_always_says_a_is_at_chance_in_both_orders(seeds, dev_clips, tmp_path):
    class SaysA(FakeEvaluator):
        def score(self, prompts, clips):
            table = super().score(prompts, clips)
            for p, prompt in enumerate(prompts):
                for k, (_, words) in enumerate(prompt.answers):
                    table.logp[p, :, k] = -0.1 if words == ("A",) else -3.0
            return table

    averaged = BothOrders(CachedEvaluator(SaysA(), tmp_path))
    table = averaged.score([*map(both, seeds)], dev_clips[:5])
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
    (best,) = read_prompts(runs / "both" / "best.yaml", LABELS)
    assert best.both_orders
    lines = (runs / "both" / "trials.jsonl").read_text().splitlines()
    asked = [c["prompt"] for x in lines for c in json.loads(x).get("candidates", ())]
    assert len(asked) == 6 and all(prompt["both_orders"] is True for prompt in asked)
    assert rescore([str(runs / "both"), "--runs-dir", str(runs)]) == 0
    result = json.loads((runs / "both" / "test.json").read_text())
    assert result["fingerprint"] == about["fingerprint"] and not result["warnings"]
    assert optimize(["--config", str(runs / "both" / "config.yaml"), "--runs-dir", str(runs)]) == 0
    assert capsys.readouterr().out.count("both") > 1


MARKS = ["{}) ", "({}) ", "[{}] ", "{}. ", "{}: ", "{} = ", "{} - ", "{}.\n"]
option_words = st.text("abc xyé/", min_size=1, max_size=12).filter(str.strip)


def listed(options, marks, marked="ABCDEFGH"):
    """A prompt that lists the options, each behind its letter."""
    lines = [mark.format(marked[i]) + o for i, (o, mark) in enumerate(zip(options, marks))]  # noqa: B905
    answers = tuple((f"L{i}", (marked[i],)) for i in range(len(options)))
    return Prompt("Which one?\n" + "\n".join(lines) + "\nAnswer now.", answers)


@settings(deadline=None, max_examples=200)
@given(st.lists(option_words, min_size=2, max_size=5), st.data())
def test_options_are_found_by_their_letters_whatever_marks_them(options, data):
    marks = data.draw(st.lists(st.sampled_from(MARKS), min_size=5, max_size=5))
    prompt = listed(options, marks, data.draw(st.sampled_from(["ABCDE", "12345"])))
    found = find_options(prompt)
    assert [o.label for o in found] == [f"L{i}" for i in range(len(options))]
    assert [prompt.text[o.start : o.end] for o in found] == [o.strip() for o in options]
    at = len("Which one?\n")
    for option, words, mark in zip(found, options, marks, strict=False):
        assert option.mark == at
        at += len(mark) - 1 + len(words) + 1  # a letter for two braces, a line's end


@settings(deadline=None)
@given(st.lists(st.text("abcxyz", min_size=1, max_size=6), min_size=2, max_size=5))
def test_in_the_other_order_words_and_answers_change_places_and_letters_stay(options):
    prompt = listed(options, ["{}) "] * 5)
    other = swapped(prompt)
    assert other.text == listed(options[::-1], ["{}) "] * 5).text
    letters = [dict(prompt.answers)[label] for label, _ in prompt.answers]
    assert [label for label, _ in other.answers] == [label for label, _ in prompt.answers]
    assert [words for _, words in other.answers] == letters[::-1]
    assert other.system == prompt.system


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("Which?\nA) one\nQ) two", ("A", "Z")),  # one letter marks nothing
        ("Which?\nB) two\nA) one", ("A", "B")),  # not in the order of the letters
        ("Which? xA) one, B) two", ("A", "B")),  # the end of a word is no mark
        ("Which?\nA)one B)two", ("A", "B")),
        ("Which?\nyes) one\nB) two", ("yes", "B")),
        ("Which?\nA) one\nno) two", ("A", "no")),
        ("Which?\na) one\nb) two", ("a", "b")),
        ("Which?\n0) one\n1) two", ("0", "1")),
        ("Which?\nA) one\nAB) two", ("A", "AB")),
        ("Which?\nA) one\nB) two", ("A", "A")),
    ],
)
def test_what_does_not_mark_every_answer_once_and_in_order_is_no_list_of_options(text, answers):
    prompt = Prompt(text, tuple((f"L{i}", (word,)) for i, word in enumerate(answers)))
    assert find_options(prompt) is None and swapped(prompt) is None


def test_the_words_of_the_last_option_end_with_their_line_and_signs_between_stay():
    prompt = Prompt("Which: A) speech, B) no speech;\nAnswer A or B.")
    assert swapped(prompt).text == "Which: A) no speech, B) speech;\nAnswer A or B."
    prompt = Prompt("A: one two\nB: three")
    assert swapped(prompt).text == "A: three\nB: one two"
    marks = [(o.mark, o.start, o.end) for o in find_options(Prompt("(A)  x,\n[B] y"))]
    assert marks == [(0, 5, 6), (8, 12, 13)]


def test_both_members_are_the_mean_probability_of_the_two_orders(seeds, dev_clips, tmp_path):
    class TopIsLess(FakeEvaluator):
        """Its likeliest sequence holds a share of a label's mass that depends on prompt and clip."""

        def score(self, prompts, clips):
            table = super().score(prompts, clips)
            share = np.log(
                [[0.5 + 0.4 * (len(p.text + c.clip_id) % 2) for c in clips] for p in prompts]
            )
            return replace(table, logp_top=(table.logp + share[..., None]).astype(np.float32))

    clips, asked = dev_clips[:7], [both(p) for p in seeds[::-1]]
    table = BothOrders(CachedEvaluator(TopIsLess(), tmp_path)).score(asked, clips)
    assert table.prompts == tuple(asked) and table.clips == tuple(clips)
    for row, prompt in enumerate(seeds[::-1]):
        pair = TopIsLess().score([prompt, swapped(prompt)], clips)
        for averaged, single in ((table.logp, pair.logp), (table.logp_top, pair.logp_top)):
            assert np.allclose(np.exp(averaged[row]), np.exp(single).mean(0), atol=1e-6)
    assert table.logp.dtype == table.logp_top.dtype == np.float32
    assert (table.logp_top < table.logp).all()


def test_the_evals_of_both_orders_are_counted_and_kept_scores_are_of_single_orders(
    seeds, dev_clips, tmp_path
):
    clips, plain = dev_clips[:3], Prompt("Speech?", (("SPEECH", ("Yes",)), ("NONSPEECH", ("No",))))
    inner = CachedEvaluator(FakeEvaluator(), tmp_path)
    averaged, asked = BothOrders(inner), [both(seeds[0]), both(plain)]
    assert averaged.fingerprint == inner.fingerprint  # the order is a part of the prompt
    assert averaged.innermost is inner.inner and averaged.about() == inner.about()
    assert averaged.count_missing(asked, clips) == 9
    inner.score([swapped(seeds[0])], clips[:2])
    assert averaged.count_missing(asked, clips) == 7
    averaged.score([*asked, both(swapped(seeds[0]))], clips)  # a prompt and its other order: once
    assert averaged.usage == inner.usage == Usage(2 + 9, 2, 9) and inner.inner.forwards == 9
    assert averaged.count_missing(asked, clips) == 0
    assert inner.count_missing([seeds[0], plain], clips) == 0
    assert inner.count_missing([swapped(seeds[0])], clips) == 0
