"""What is handed over: a prompt with its decision rule, as it was measured."""

import math
import re

import numpy as np
import pytest
from common import LABELS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import special

from evaluators.classifier import (
    Calibration,
    Classifier,
    classifier_from,
    decide,
    dump_classifiers,
    log_odds,
    read_classifiers,
    sigmoid,
)
from evaluators.errors import UserError
from evaluators.prompts import Prompt, dump_prompts, read_prompts

SEED = Prompt("Which? A) speech B) noise")
number = st.floats(-1e6, 1e6) | st.integers(-50, 50).map(float) | st.just(1e-300)
words = st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1, max_size=20).filter(
    str.strip
)
prompts = st.builds(
    lambda text, a, b, system, both: Prompt(
        text, (("SPEECH", tuple(a)), ("NONSPEECH", (b,))), system, both
    ),
    words, st.lists(words, min_size=1, max_size=3), words, words, st.booleans(),
)  # fmt: skip
calibrations = st.builds(Calibration, st.floats(1e-3, 1e3), number)
classifiers = st.builds(Classifier, prompts, number, st.none() | calibrations)
nats = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(2, 4)),
    elements=st.floats(-30, 0, width=32),
)  # fmt: skip


# ---- files


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(classifiers, min_size=1, max_size=4, unique_by=lambda c: c.prompt.digest))
def test_what_is_written_is_read_back_equal(tmp_path, written):
    path = tmp_path / "best.yaml"
    path.write_text(dump_classifiers(written), encoding="utf-8")
    assert read_classifiers(path, LABELS) == written
    assert read_prompts(path, LABELS) == [c.prompt for c in written]
    for one in written:
        assert classifier_from(one.to_dict(), LABELS, "here") == one


@given(prompts)
def test_argmax_without_calibration_reads_as_a_bare_prompt(prompt):
    bare = Classifier(prompt)
    assert bare.to_dict() == prompt.to_dict() and bare.prompt_id == prompt.prompt_id
    assert dump_classifiers([bare]) == dump_prompts([prompt])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("bias: big", "bias is 'big'; expected nats, such as -0.8"),
        ("bias: '0.5'", "bias is '0.5'; expected nats, such as -0.8"),
        ("bias: true", "bias is True; expected nats, such as -0.8"),
        ("bias: null", "bias is None; expected nats, such as -0.8"),
        ("bias: [0.5, 0.5]", "bias is [0.5, 0.5]; expected nats, such as -0.8"),
        ("bias: .nan", "bias is nan; expected nats, such as -0.8"),
        ("bias: -.inf", "bias is -inf; expected nats, such as -0.8"),
        ("bias: 1" + "0" * 400, "bias is 1" + "0" * 39 + "; expected nats, such as -0.8"),
        ("calibration: 2.0", "calibration is 2.0; expected a mapping of temperature and bias"),
        (
            "calibration: {temperature: 2.0}",
            "calibration is {'temperature': 2.0}; expected a mapping of temperature and bias",
        ),
        (
            "calibration: {temperature: 2.0, bias: 0.0, slope: 1.0}",
            "calibration is {'temperature': 2.0, 'bias': 0.0, 'slope': 1.0}; expected a mapping of"
            " temperature and bias",
        ),
        (
            "calibration: {temperature: warm, bias: 0.0}",
            "calibration temperature is 'warm'; expected a number above 0",
        ),
        (
            "calibration: {temperature: 0, bias: 0.0}",
            "calibration temperature is 0; expected a number above 0",
        ),
        (
            "calibration: {temperature: -2.5, bias: 0.0}",
            "calibration temperature is -2.5; expected a number above 0",
        ),
        (
            "calibration: {temperature: .inf, bias: 0.0}",
            "calibration temperature is inf; expected a number above 0",
        ),
        (
            "calibration: {temperature: 2.0, bias: false}",
            "calibration bias is False; expected nats, such as 0.3",
        ),
        (
            "threshold: 0.5",
            "key 'threshold' is unknown; a prompt has text, answers and system",
        ),
    ],
)
def test_each_wrong_key_or_value_is_one_sentence_that_names_its_place(tmp_path, entry, message):
    path = tmp_path / "best.yaml"
    path.write_text(f"prompts:\n- text: a\n- text: b\n  {entry}\n")
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}: prompt 2: {message}')}$"):
        read_classifiers(path, LABELS)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("prompts: []", "expected the single key 'prompts'"),
        ("bias: 1.0", "expected the single key 'prompts'"),
        ("prompts:\n- text: a\n  bias: 1.0\n  bias: 2.0", "line 4: key 'bias' stands twice"),
        ("prompts:\n- text: a\n  bias: 1.0\n- text: a", "a prompt stands twice"),
        ("prompts:\n- bias: 1.0", "text is None"),
        ("prompts:\n- a", "expected a mapping"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, body, message):
    path = tmp_path / "bad.yaml"
    path.write_text(body)
    with pytest.raises(UserError, match=f"bad.yaml.*{message}"):
        read_classifiers(path, LABELS)


def test_whole_numbers_are_read_as_nats():
    raw = {"text": "a", "bias": -1, "calibration": {"temperature": 2, "bias": 0}}
    found = classifier_from(raw, LABELS, "here")
    assert found == Classifier(Prompt("a"), -1.0, Calibration(2.0, 0.0))
    assert type(found.bias) is type(found.calibration.temperature) is float
    assert raw["bias"] == -1  # what is given stays as it is


# ---- decisions


@given(nats, number.filter(lambda b: abs(b) < 100), st.none() | calibrations)
def test_decisions_are_the_largest_shifted_log_probability_whatever_the_calibration(
    logp, bias, calibration
):
    shift = np.zeros(logp.shape[-1])
    shift[0] = bias
    decided = Classifier(SEED, bias, calibration).decide(logp)
    assert np.array_equal(decided, (logp.astype(np.float64) + shift).argmax(-1))
    assert np.array_equal(decided, decide(logp, bias)) and decided.shape == logp.shape[:-1]


@given(nats, number.filter(lambda b: abs(b) < 100))
def test_probabilities_are_those_of_the_shifted_log_odds(logp, bias):
    exact = logp.astype(np.float64)
    odds = exact[..., 0] - special.logsumexp(exact[..., 1:], axis=-1) + bias
    plain = Classifier(SEED, bias).probability(logp)
    assert plain == pytest.approx(special.expit(odds), abs=1e-5)
    warm = Classifier(SEED, bias, Calibration(4.0, -0.5)).probability(logp)
    nats = exact / 4 + np.eye(logp.shape[-1])[0] * (bias / 4 - 0.5)
    assert warm == pytest.approx(special.softmax(nats, axis=-1)[..., 0], abs=1e-5)
    if logp.shape[-1] == 2:
        assert warm == pytest.approx(special.expit(odds / 4 - 0.5), abs=1e-5)
    neutral = Classifier(SEED, bias, Calibration()).probability(logp)
    assert neutral == pytest.approx(plain)


@given(nats.filter(lambda a: a.shape[-1] == 2), number.filter(lambda b: abs(b) < 100))
def test_of_two_labels_the_likelier_one_is_decided_on(logp, bias):
    one = Classifier(SEED, bias)
    p, decided = one.probability(logp), one.decide(logp)
    clear = np.abs(p - 0.5) > 1e-4
    assert ((p > 0.5) == (decided == 0))[clear].all()


def test_log_odds_are_against_all_other_labels():
    three = np.log(np.array([[0.5, 0.3, 0.1], [0.1, 0.1, 0.1]]))
    assert log_odds(three) == pytest.approx(np.log([0.5 / 0.4, 0.5]))
    assert log_odds(three[None]).shape == (1, 2)


def test_decisions_are_the_likeliest_label_with_the_first_shifted():
    logp = np.log(np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3], [0.3, 0.3, 0.4], [0.5, 0.5, 0.0001]]))
    assert decide(logp).tolist() == [1, 0, 2, 0]
    assert decide(logp, np.log(3)).tolist() == [0, 0, 0, 0]
    assert decide(logp, -np.log(2)).tolist() == [1, 1, 2, 1]
    assert decide(logp[None], 9.0).shape == (1, 4)
    assert logp[0, 0] == np.log(0.2)  # what is given stays as it is


def test_calibrated_odds_are_divided_by_the_temperature_then_shifted():
    c = Calibration(temperature=4.0, bias=1.5)
    odds = np.array([-10.0, -6.0, 0.0, 8.0])
    assert c.log_odds(odds).tolist() == [-1.0, 0.0, 1.5, 3.5]
    assert c.probability(odds) == pytest.approx(special.expit([-1.0, 0.0, 1.5, 3.5]))
    assert Calibration().log_odds(odds).tolist() == odds.tolist()


def test_probability_is_the_logistic_function_to_the_ends():
    odds = np.array([-800.0, -2.0, 0.0, 2.0, 800.0])
    found = sigmoid(odds)
    assert found == pytest.approx(special.expit(odds)) and found.dtype == np.float64
    assert sigmoid(odds.astype(np.float32)).dtype == np.float64
    assert float(sigmoid(np.float64(math.log(3)))) == pytest.approx(0.75)


def test_what_is_handed_over_cannot_be_changed():
    for kind in (Classifier, Calibration, Prompt):
        assert kind.__dataclass_params__.frozen


def test_a_plain_prompt_is_a_classifier_without_a_shift_or_calibration():
    prompt = Prompt("Is it speech?", (("SPEECH", ("A",)), ("NONSPEECH", ("B",))))
    assert classifier_from(prompt.to_dict(), LABELS, "here") == Classifier(prompt, 0.0, None)
