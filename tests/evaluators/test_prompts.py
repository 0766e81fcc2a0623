import hashlib
import json
import re
from dataclasses import replace

import pytest
from common import LABELS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluators.errors import UserError
from evaluators.prompts import (
    Prompt,
    dump_prompts,
    prompt_from,
    read_prompts,
)

words = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=80
).filter(lambda t: t.strip())


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=words, system=words, a=words, b=words)
def test_any_prompt_survives_its_file(tmp_path, text, system, a, b):
    text, system, a, b = (
        re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff\u2028\u2029\ufeff]", "?", t)
        for t in (text, system, a, b)
    )
    prompt = Prompt(text, (("SPEECH", (a,)), ("NONSPEECH", (b,))), system)
    path = tmp_path / "p.yaml"
    path.write_text(dump_prompts([prompt]), encoding="utf-8")
    assert read_prompts(path, LABELS) == [prompt]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("prompts: []", "expected the single key 'prompts'"),
        ("baseline: x", "expected the single key 'prompts'"),
        ("prompts:\n- text: a\n  txet: b", "key 'txet' is unknown"),
        ("prompts:\n- text: a\n  text: b", "line 3: key 'text' stands twice"),
        (
            "prompts:\n- text: a\n  answers: {SPEECH: YES, NONSPEECH: NO}",
            "YAML reads a bare YES or NO",
        ),
        (
            "prompts:\n- text: a\n  answers: {SPEECH: A}",
            "expected one entry for each of SPEECH, NONSPEECH",
        ),
        ("prompts:\n- text: 5", "expected the prompt's words"),
        ("prompts:\n- plain", "expected a mapping"),
        ("prompts:\n- text: a\n- text: a", "a prompt stands twice"),
        ("prompts: [", "not readable as YAML"),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, body, message):
    path = tmp_path / "bad.yaml"
    path.write_text(body)
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(path, LABELS)
    assert "bad.yaml" in str(caught.value)


@pytest.mark.parametrize("place", ["text", "system", "answer", "second word"])
@pytest.mark.parametrize(
    ("sign", "message"),
    [
        ("\x1b[31m", "control character U\\+001B"),
        ("\x00", "control character U\\+0000"),
        ("\x9b", "control character U\\+009B"),
        ("\r", "control character U\\+000D"),
        ("\u202e", "control character U\\+202E"),
        ("\u2066", "control character U\\+2066"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_no_part_of_a_prompt_may_steer_a_terminal(place, sign, message):
    raw = {
        "text": "Which?",
        "system": "Listen.",
        "answers": {"SPEECH": "A", "NONSPEECH": ["B", "C"]},
    }
    assert prompt_from(raw, LABELS, "here").text == "Which?"
    if place in raw:
        raw[place] += sign
    elif place == "answer":
        raw["answers"]["SPEECH"] += sign
    else:
        raw["answers"]["NONSPEECH"][1] += sign
    with pytest.raises(UserError, match=f"^here: the prompt holds .*{message}"):
        prompt_from(raw, LABELS, "here")


def test_lines_tabs_and_letters_of_all_scripts_are_no_control_characters():
    raw = {
        "text": "Ist das\n\tSprache? 语音 🎤 كلام",
        "answers": {"SPEECH": "はい", "NONSPEECH": "нет"},
    }
    prompt = prompt_from(raw, LABELS, "here")
    assert prompt.text == raw["text"] and dict(prompt.answers)["SPEECH"] == ("はい",)


def test_both_orders_make_another_prompt_and_one_order_keeps_its_old_id(seeds):
    p = seeds[0]
    both = replace(p, both_orders=True)
    assert both.prompt_id != p.prompt_id
    parts = json.dumps([p.text, p.answers, p.system], ensure_ascii=False, separators=(",", ":"))
    assert p.digest == hashlib.sha256(parts.encode()).hexdigest()
    assert "both_orders" not in p.to_dict() and both.to_dict()["both_orders"] is True
    assert prompt_from(both.to_dict(), LABELS, "here") == both
    assert prompt_from({**p.to_dict(), "both_orders": False}, LABELS, "here") == p


@pytest.mark.parametrize("value", [1, "yes", None, []])
def test_both_orders_are_true_or_false(value):
    with pytest.raises(UserError, match=r"^here: both_orders is .*; expected true or false$"):
        prompt_from({"text": "a", "both_orders": value}, LABELS, "here")


def test_a_decision_rule_in_the_file_is_no_part_of_the_prompt(tmp_path):
    path = tmp_path / "best.yaml"
    path.write_text(
        "prompts:\n- text: a\n  bias: -0.5\n  calibration: {temperature: 2.0, bias: 0.1}\n- text: b\n"
    )
    assert [p.text for p in read_prompts(path, LABELS)] == ["a", "b"]


def test_the_baselines_are_the_published_bytes(seeds):
    assert [p.text for p in seeds] == [
        (
            "Choose one:\nA) SPEECH (human voice)\nB) NONSPEECH"
            " (music/noise/silence/animals)\n\nAnswer with A or B ONLY."
        ),
        (
            "Listen to this audio clip. Does it contain human speech?\n\nA) Yes - I hear human"
            " voice speaking\nB) No - I hear music, noise, silence, or animals\n\nAnswer:"
        ),
        (
            "Task: Detect if human speech is present.\n\nOptions:\nA) SPEECH detected\nB) NO SPEECH"
            " detected\n\nYour answer:"
        ),
    ]
    assert {p.system for p in seeds} == {"You classify audio content."}


def test_the_id_changes_with_text_answers_and_system(seeds):
    p = seeds[0]
    others = [
        Prompt(p.text + " ", p.answers, p.system),
        Prompt(p.text, p.answers[::-1], p.system),
        Prompt(p.text, p.answers, ""),
    ]
    assert len({q.prompt_id for q in [p, *others]}) == 4
    assert re.fullmatch("[0-9a-f]{12}", p.prompt_id)


def test_heldout_phrasings_are_forty_and_not_in_the_training_grammar(heldout):
    import random

    from data.makers import grammar

    assert len(heldout) == 40
    rng = random.Random(0)
    seen = {grammar.about_audio(rng).text for _ in range(20_000)}
    assert not seen & {p.text for p in heldout}
