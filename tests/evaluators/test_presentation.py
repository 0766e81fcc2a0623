"""What is done to a clip's samples is what was asked for, and a prompt's identity says so."""

from dataclasses import fields, replace

import numpy as np
import pytest
from common import LABELS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluators.classifier import Classifier, dump_classifiers, read_classifiers
from evaluators.clips import Clip, clip_wave
from evaluators.errors import UserError
from evaluators.evaluator import ScoreTable, Uncached, require_presents
from evaluators.fakes import FakeEvaluator
from evaluators.files import shipped
from evaluators.orders import BothOrders
from evaluators.presentation import AS_IS, RATE, Presentation, own_noise, present
from evaluators.prompts import Prompt, presentation_from, prompt_from, read_presentations

WAVES = arrays(np.float32, st.integers(1, 4000), elements=st.floats(-1, 1, width=32))
MS = st.integers(1, 400)
LEVELS = st.floats(-80, -0.1)
WAYS = st.builds(
    lambda repeat, level, pad, first: Presentation(**repeat, **level, **pad, text_first=first),
    st.one_of(st.just({}), st.builds(lambda ms: {"repeat_to_ms": ms}, MS)),
    st.one_of(
        st.just({}),
        st.builds(lambda g, v: {"gain": g, "level_dbfs": v}, st.sampled_from(["peak", "rms"]), LEVELS),
    ),
    st.one_of(
        st.just({}),
        st.builds(
            lambda ms, p: {"pad_to_ms": ms, "pad": p}, MS, st.sampled_from(["silence", "noise"])
        ),
    ),
    st.booleans(),
)  # fmt: skip


@given(wave=WAVES, how=WAYS)
@settings(max_examples=60, deadline=None)
def test_length_and_level_are_as_asked_and_nothing_clips(wave, how):
    before, out = wave.copy(), present(wave, how)
    assert out.dtype == np.float32 and np.array_equal(out, present(wave, how))
    assert np.array_equal(wave, before)
    asked = [how.repeat_to_ms * RATE // 1000, how.pad_to_ms * RATE // 1000]
    assert len(out) == max(len(wave), *asked)
    clip_only = present(wave, replace(how, pad_to_ms=0))  # it stands whole in the middle
    around = len(out) - len(clip_only)
    assert np.array_equal(out[around // 2 : around // 2 + len(clip_only)], clip_only)
    if how.pad == "silence":
        assert not out[: around // 2].any() and not out[len(out) - (around - around // 2) :].any()
    peak = float(np.abs(clip_only).max())
    if not wave.any():
        assert not out.any()
    elif how.gain == "peak":
        assert peak == pytest.approx(10 ** (how.level_dbfs / 20), rel=1e-5)
    elif how.gain == "rms":
        rms = float(np.sqrt(np.square(clip_only, dtype=np.float64).mean()))
        wanted = 10 ** (how.level_dbfs / 20)
        assert rms == pytest.approx(wanted, rel=1e-5) or (
            rms < wanted and peak == pytest.approx(1, rel=1e-5)
        )
    else:
        turns = -(-len(clip_only) // len(wave))
        assert np.array_equal(clip_only, np.tile(wave, turns)[: len(clip_only)])
    assert peak <= 1 + 1e-6


@given(wave=WAVES)
@settings(max_examples=30, deadline=None)
def test_as_it_is_changes_nothing_and_the_place_of_the_question_is_none_of_the_samples(wave):
    assert present(wave, AS_IS) is wave
    assert present(wave, Presentation(text_first=True)) is wave
    assert Presentation(text_first=True).sound == AS_IS


def test_own_noise_is_as_loud_as_the_quiet_part_and_does_not_hang_on_the_last_bits():
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.001, RATE).astype(np.float32)
    wave[4000:8000] += np.sin(np.arange(4000) / 5).astype(np.float32) / 2
    made = own_noise(wave, RATE)
    assert len(made) == RATE and made.std() == pytest.approx(0.001, rel=0.15)
    assert np.abs(made).max() < 0.01  # no tone
    other = own_noise(wave * np.float32(1 + 1e-6), RATE)
    assert np.allclose(made, other, atol=1e-7)
    short = own_noise(rng.normal(0, 0.1, 1600).astype(np.float32), RATE)  # few grains make no tone
    assert abs(np.corrcoef(short[160:], short[:-160])[0, 1]) < 0.3
    padded = present(wave[:1600], Presentation(pad_to_ms=300, pad="noise"))
    assert len(padded) == 4800 and not np.array_equal(padded[:1600], padded[-1600:])
    assert len(present(wave[:1599], Presentation(pad_to_ms=100))) == 1600


@given(how=WAYS)
@settings(max_examples=100)
def test_a_presentation_is_read_back_equal_and_makes_another_prompt(how):
    plain, prompt = Prompt("Speech? A or B"), Prompt("Speech? A or B", presentation=how)
    assert presentation_from(how.to_dict(), "p") == how
    assert prompt_from(prompt.to_dict(), LABELS, "p") == prompt
    assert (
        (prompt.digest == plain.digest)
        == (how == AS_IS)
        == ("presentation" not in prompt.to_dict())
    )
    assert (repr(prompt) == repr(plain)) == (how == AS_IS) == (prompt.shown == prompt.text)


@given(one=WAYS, other=WAYS)
@settings(max_examples=100)
def test_two_presentations_are_one_prompt_only_where_they_are_equal(one, other):
    first, second = (Prompt("Speech? A or B", presentation=how) for how in (one, other))
    assert (first.digest == second.digest) == (one == other)


def test_ids_and_names_of_prompts_without_presentation_are_those_from_before():
    plain = Prompt("Speech? A or B")
    both = Prompt("Is it speech?\nA) yes\nB) no", system="Listen.", both_orders=True)
    assert (plain.prompt_id, both.prompt_id) == ("fcecd33dbc62", "df8f24814977")
    assert repr(plain) == (
        "Prompt(text='Speech? A or B', answers=(('SPEECH', ('A',)), ('NONSPEECH', ('B',))),"
        " system='You classify audio content.', both_orders=False)"
    )
    assert [f.name for f in fields(Prompt)] == [
        "text", "answers", "system", "both_orders", "presentation"
    ]  # fmt: skip


def test_a_classifier_file_carries_it(tmp_path):
    how = Presentation(repeat_to_ms=1000, gain="rms", level_dbfs=-20.0, text_first=True)
    found = Classifier(Prompt("Speech? A or B", presentation=how), -0.5)
    (tmp_path / "best.yaml").write_text(dump_classifiers([found]))
    assert read_classifiers(tmp_path / "best.yaml", LABELS) == [found]
    assert "level_dbfs: -20.0" in (tmp_path / "best.yaml").read_text()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("loud", "presentation is 'loud'; expected a mapping of repeat_to_ms"),
        ({"speed": 2}, "expected a mapping of repeat_to_ms"),
        ({"repeat_to_ms": 0}, "repeat_to_ms is 0; expected a whole number of ms from 1 to 30000"),
        ({"pad_to_ms": 30001}, "pad_to_ms is 30001; expected a whole number"),
        ({"pad_to_ms": True}, "pad_to_ms is True; expected a whole number"),
        ({"pad_to_ms": 500, "pad": "hum"}, "pad is 'hum'; expected silence or noise"),
        ({"pad": "noise"}, "expected pad_to_ms beside pad"),
        ({"gain": "rms"}, "expected gain and level_dbfs together"),
        ({"level_dbfs": -3}, "expected gain and level_dbfs together"),
        ({"gain": "rms", "level_dbfs": 3}, "level_dbfs is 3; expected dB below full scale"),
        ({"gain": "none", "level_dbfs": -3}, "gain is 'none'; expected peak or rms"),
        ({"text_first": "yes"}, "text_first is 'yes'; expected true or false"),
    ],
)
def test_what_is_no_presentation_is_one_sentence(raw, said):
    with pytest.raises(UserError, match=r"^p: presentation") as caught:
        prompt_from({"text": "A or B", "presentation": raw}, LABELS, "p")
    assert said in str(caught.value)


def test_a_file_of_presentations(tmp_path):
    found = read_presentations(shipped("prompts/presentations") / "common.yaml")
    assert len(found) == 5 and AS_IS not in found
    path = tmp_path / "p.yaml"
    for text, said in (
        ("prompts: []", "expected the single key 'presentations'"),
        ("presentations: 3", "expected a list of mappings"),
        ("presentations: [{gain: rms}]", "presentation 1 is"),
        ("presentations: [{text_first: true}, {text_first: true}]", "stands twice"),
    ):
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            read_presentations(path)
        assert said in str(caught.value)


class Deaf(Uncached):
    """Scores, and does not say that it heeds presentations."""

    fingerprint = "deaf"

    def score(self, prompts, clips):
        logp = np.full((len(prompts), len(clips), 2), -1.0, dtype=np.float32)
        return ScoreTable(tuple(prompts), tuple(clips), logp, logp)


def test_an_evaluator_that_would_not_heed_it_is_given_none(dev_clips):
    prompt = Prompt("Speech? A or B", presentation=Presentation(repeat_to_ms=1000))
    with pytest.raises(UserError, match=r"wants the clip repeated to 1000 ms, and evaluator Deaf"):
        BothOrders(Deaf()).score([Prompt("A or B"), prompt], dev_clips[:2])
    assert BothOrders(Deaf()).score([Prompt("A or B")], dev_clips[:2]).logp.shape == (1, 2, 2)
    require_presents(FakeEvaluator(), [prompt])


def test_controls_are_presented_too(dev_clips):
    one: Clip = dev_clips[0]
    how = Presentation(pad_to_ms=2000, pad="noise", gain="peak", level_dbfs=-6.0)
    silent, shuffled = (clip_wave(replace(one, audio=a), how) for a in ("silence", "shuffled"))
    assert len(silent) == len(shuffled) == 2 * RATE and not silent.any()
    assert np.abs(shuffled).max() == pytest.approx(10 ** (-6 / 20), rel=1e-5)
