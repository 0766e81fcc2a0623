"""Scores through a server, over real HTTP."""

import base64
import csv
import hashlib
import io
import itertools
import json
import math
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from chat_server import completion, serve
from common import LABELS

from evaluators import chat_client, endpoint
from evaluators.clips import clip_wave
from evaluators.endpoint import Endpoint
from evaluators.errors import PauseError, PromptError, UserError
from evaluators.manifest import read_manifest
from evaluators.presentation import AS_IS, Presentation
from evaluators.prompts import Prompt

PROMPTS = [Prompt("Is it speech? A) yes B) no"), Prompt("Speech? A or B")]


def listing(*pairs):
    body = completion("A")
    entries = [{"token": t, "logprob": v, "bytes": None} for t, v in pairs]
    body["choices"][0]["logprobs"] = {"content": [{**entries[0], "top_logprobs": entries}]}
    return body


def heard(request):
    """What reached the server: the samples, and the text beside them."""
    audio, text = request["messages"][1]["content"]
    raw = base64.b64decode(audio["input_audio"]["data"])
    return soundfile.read(io.BytesIO(raw))[0], text["text"]


def answer(request):
    wave, text = heard(request)
    p = min(0.9, 0.2 + 0.5 * (len(wave) > 5000) + 0.005 * len(text))
    return listing(
        ("A", math.log(p / 2)), (" A", math.log(p / 2)), ("B", math.log(1 - p)), ("C", -9)
    )


@pytest.fixture
def clips(make_manifest):
    return read_manifest(make_manifest(sources=6), LABELS)


def test_a_clip_is_sent_as_the_prompt_presents_it(clips):
    ways = [AS_IS, Presentation(repeat_to_ms=900), Presentation(pad_to_ms=700, text_first=True)]
    prompts = [replace(PROMPTS[0], presentation=how) for how in ways]
    sent = []

    def reply(request):
        content = request["messages"][1]["content"]
        first = content[0]["type"] == "text"
        audio, text = content[::-1] if first else content
        raw = base64.b64decode(audio["input_audio"]["data"])
        sent.append((text["text"], first, len(soundfile.read(io.BytesIO(raw))[0])))
        return listing(("A", -0.1 * len(sent[-1])), ("B", -2.0))

    with serve(reply) as server:
        Endpoint("m", server.url).score(prompts, clips[:2])
    expected = [
        (p.text, p.presentation.text_first, len(clip_wave(c, p.presentation)))
        for p in prompts
        for c in clips[:2]
    ]
    assert sorted(sent) == sorted(expected) and len(set(expected)) > 3


def test_scores_are_sums_over_the_listed_forms_of_each_answer(clips):
    with serve(answer) as server:
        evaluator = Endpoint("m", server.url)
        table = evaluator.score(PROMPTS, clips)
        alone = evaluator.score(PROMPTS[1:], clips[3:4])
    for p, prompt in enumerate(PROMPTS):
        for c, clip in enumerate(clips):
            share = 0.2 + 0.5 * (clip.duration_ms == 500) + 0.005 * len(prompt.text)
            assert np.exp(table.logp[p, c]) == pytest.approx([share, 1 - share], abs=1e-5)
            assert np.exp(table.logp_top[p, c, 0]) == pytest.approx(share / 2, abs=1e-5)
    assert np.array_equal(alone.logp[0, 0], table.logp[1, 3])
    assert len(server.requests) == len(PROMPTS) * len(clips) + 1 and evaluator.unlisted == 0
    request = server.requests[0]
    assert request["logprobs"] is True and request["top_logprobs"] == 20
    assert request["max_tokens"] == 1 and request["messages"][0]["content"] == PROMPTS[0].system


def test_an_answer_that_is_not_listed_is_at_most_the_last_one_that_is(clips):
    with serve(lambda r: listing(("A", -0.1), ("The", -3.0), ("I", -4.0))) as server:
        evaluator = Endpoint("m", server.url)
        table = evaluator.score(PROMPTS[:1], clips[:2])
    assert table.logp[0] == pytest.approx(np.array([[-0.1, -4.0]] * 2)) and evaluator.unlisted == 2


@pytest.mark.parametrize("fault", [500, 503, 429, "half", "reset"])
def test_faults_that_pass_are_tried_again(clips, fault):
    with serve(answer, [fault]) as server:
        table = Endpoint("m", server.url, parallel=1, wait=lambda s: None).score(
            PROMPTS[:1], clips[:2]
        )
    assert np.isfinite(table.logp).all()


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (401, UserError, "refuses the key"),
        (404, UserError, "refuses model 'm'"),
        (400, UserError, "takes input_audio"),
        ("empty", UserError, "no log-probabilities"),
        ("no list", UserError, "no log-probabilities"),
        (500, PauseError, "goes on from here"),
    ],
)
def test_faults_that_stay_are_one_sentence(clips, fault, kind, message):
    with serve(answer, [fault] * 20) as server, pytest.raises(kind, match=message):
        Endpoint("m", server.url, parallel=1, retries=0).score(PROMPTS[:1], clips[:2])


def test_an_endpoint_without_a_server_says_how_to_name_one(monkeypatch):
    monkeypatch.delenv("OPRO_AUDIO_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match="OPRO_AUDIO_BASE_URL"):
        Endpoint("m")


@pytest.fixture
def environment(monkeypatch):
    for name in ("OPRO_AUDIO_BASE_URL", "OPRO_AUDIO_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def score_one(server, clip, prompt=PROMPTS[0], retries=0):
    return Endpoint("m", server.url, retries=retries, wait=lambda s: None).score([prompt], [clip])


def test_a_request_holds_the_clip_the_prompt_as_it_is_and_nothing_drawn_by_chance(clips):
    prompt = Prompt("  Is it speech? \n A) yes B) nö \n", system=" Listen.\n")
    with serve(answer) as server:
        score_one(server, clips[0], prompt)
    (request,) = server.requests
    data = request["messages"][1]["content"][0]["input_audio"].pop("data")
    assert request == {
        "model": "m",
        "messages": [
            {"role": "system", "content": " Listen.\n"},
            {
                "role": "user",
                "content": [
                    {"type": "input_audio", "input_audio": {"format": "wav"}},
                    {"type": "text", "text": "  Is it speech? \n A) yes B) nö \n"},
                ],
            },
        ],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 20,
    }
    raw = base64.b64decode(data, validate=True)
    about = soundfile.info(io.BytesIO(raw))
    assert (about.format, about.samplerate, about.channels) == ("WAV", 16000, 1)
    wave = soundfile.read(io.BytesIO(raw))[0]
    assert len(wave) == len(clip_wave(clips[0])) > 0 and np.ptp(wave) > 0.1
    assert np.abs(wave - clip_wave(clips[0])).max() <= 1 / 32768


def test_every_prompt_is_asked_about_every_clip_once_and_a_control_replaces_the_audio(clips):
    silent = replace(clips[1], audio="silence")
    with serve(answer) as server:
        Endpoint("m", server.url).score(PROMPTS, [clips[0], silent])
    asked = sorted((text, bool(np.any(wave))) for wave, text in map(heard, server.requests))
    assert asked == sorted((p.text, sound) for p in PROMPTS for sound in (True, False))


@pytest.mark.parametrize("parallel", [1, 8])
def test_scores_stand_in_the_place_of_their_prompt_and_clip_in_any_order(clips, parallel):
    prompts, clips = [Prompt("A or B" + "?" * n) for n in range(4)], clips[:3]

    def exact(request):
        wave, text = heard(request)
        share = 0.1 + 0.1 * text.count("?") + len(wave) / 20_000
        return listing(("A", math.log(share)), ("B", math.log(1 - share)))

    with serve(exact) as server:
        evaluator = Endpoint("m", server.url, parallel=parallel)
        whole = evaluator.score(prompts, clips)
        turned = evaluator.score(prompts[::-1], clips[::-1])
    expected = [[0.1 + 0.1 * n + len(clip_wave(c)) / 20_000 for c in clips] for n in range(4)]
    assert np.exp(whole.logp[..., 0]) == pytest.approx(np.array(expected), abs=1e-6)
    assert np.exp(whole.logp[..., 1]) == pytest.approx(1 - np.array(expected), abs=1e-6)
    assert np.array_equal(turned.logp, whole.logp[::-1, ::-1])
    assert whole.prompts == tuple(prompts) and whole.clips == tuple(clips)
    assert evaluator.forwards == 2 * len(prompts) * len(clips)


def test_two_words_of_a_label_are_summed_and_the_likelier_one_is_its_top(clips):
    prompt = Prompt("?", (("SPEECH", ("A", "Yes")), ("NONSPEECH", ("B",))))
    pairs = [(" Yes", -1.0), ("B", -1.5), ("A", -2.0), ("yes", -2.5), ("Yes.", -2.6), ("b", -7.0)]
    with serve(lambda request: listing(*pairs)) as server:
        table = score_one(server, clips[0], prompt)
    assert table.logp[0, 0] == pytest.approx([np.logaddexp(-1.0, -2.0), -1.5], abs=1e-6)
    assert table.logp_top[0, 0] == pytest.approx([-1.0, -1.5], abs=1e-6)


def test_an_unlisted_answer_is_counted_once_and_bounded_by_the_least_listed_one(clips):
    pairs = [("B", -0.5), ("I", -3.5), ("It", -2.5)]
    with serve(lambda request: listing(*pairs)) as server:
        evaluator = Endpoint("m", server.url)
        table = evaluator.score(PROMPTS, clips[:1])
    assert (table.logp == [-3.5, -0.5]).all() and (table.logp_top[..., 1] == -0.5).all()
    assert np.isnan(table.logp_top[..., 0]).all() and (table.unlisted == 0.5).all()
    assert evaluator.unlisted == 2 and evaluator.forwards == 2


@pytest.mark.parametrize(
    "entries",
    [
        [("A", math.nan), ("B", -1.0)],
        [("A", -1.0), ("B", math.nan)],
        [("A", math.inf), ("B", -1.0)],
        [("A", None), ("B", -1.0)],
        [("A", -1.0), ("B", -math.inf)],
        [("A", "likely"), ("B", -1.0)],
        [("A", "nan"), ("B", -1.0)],
        [("A", [-0.5]), ("B", -1.0)],
        [("A", 0.5), ("B", -1.0)],
        [("A", -1.0), ("B", 1e-5)],
    ],
)
def test_what_is_no_log_probability_is_refused(clips, entries):
    with (
        serve(lambda request: listing(*entries)) as server,
        pytest.raises(UserError, match="no log-probabilities"),
    ):
        score_one(server, clips[0])


@pytest.mark.parametrize("value", [0, 0.0, 9e-7, -9999.0, -3])
def test_a_log_probability_is_at_most_zero_but_for_rounding(clips, value):
    with serve(lambda request: listing(("A", value), ("B", -9999))) as server:
        table = score_one(server, clips[0])
    assert table.logp[0, 0] == pytest.approx([value, -9999], abs=1e-6)


# How tokens are spelt.


@pytest.mark.parametrize(
    ("token", "raw", "is_a"),
    [
        ("A", None, True), (" A", None, True), ("ĠA", None, True), ("▁A", None, True), ("▁A", [32, 65], True),
        ("ĠA", [196, 160, 65], True), ("?", [32, 65], True), ("bytes:\\x41", [65], True), ("A", "odd", True),
        ("A.", None, False), ("A)", None, False), ("a", None, False), ("AA", None, False), ("ĊA", None, True),
    ],
)  # fmt: skip
def test_a_token_is_known_in_every_spelling(clips, token, raw, is_a):
    body = listing((token, -0.5), ("B", -1.0), ("C", -9.0))
    body["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["bytes"] = raw
    with serve(lambda request: body) as server:
        table = score_one(server, clips[0])
    assert table.logp[0, 0] == pytest.approx([-0.5 if is_a else -9.0, -1.0])
    assert table.unlisted[0, 0] == (0 if is_a else 0.5)


@pytest.mark.parametrize("token", ["nö", " nö", "nÃ¶", "ĠnÃ¶", "▁nö"])
def test_letters_beyond_ascii_are_known_byte_by_byte(clips, token):
    prompt = Prompt("?", (("SPEECH", ("ja",)), ("NONSPEECH", ("nö",))))
    with serve(lambda request: listing(("Ġja", -0.5), (token, -1.0), ("C", -9.0))) as server:
        assert score_one(server, clips[0], prompt).logp[0, 0] == pytest.approx([-0.5, -1.0])


def test_a_token_that_a_server_lists_twice_counts_once(clips):
    pairs = [("A", -1.0), ("A", -1.0), (" A", -1.0), ("B", -0.9)]
    with serve(lambda request: listing(*pairs)) as server:
        table = score_one(server, clips[0])
    assert table.logp[0, 0, 0] == pytest.approx(-1.0 + math.log(2))


# What is no score.

WORDY = [("The", -0.1), ("I", -3.0), ("It", -4.0)]


@pytest.mark.parametrize(
    ("pairs", "prompt", "cause"),
    [
        (WORDY, PROMPTS[0], "none of the answers 'A', 'B' is among the likeliest first tokens ('The', 'I', 'It')"),
        ([("<think>", 0.0), ("A", -12.0), ("B", -13.0)], PROMPTS[0], "'<think>': a reasoning model"),
        ([("<|channel|>", 0.0), ("x", -12.0)], PROMPTS[0], "'<|channel|>': a reasoning model"),
        ([("SPE", -0.1), ("NO", -3.0)], Prompt("?", (("SPEECH", ("SPEECH",)), ("NONSPEECH", ("NOISE",)))),
         "the answer 'SPEECH' takes several tokens here ('SPE' is listed)"),
        ([("Yes", -0.1), ("Non", -3.0)], Prompt("?", (("SPEECH", ("Yes",)), ("NONSPEECH", ("Nonspeech",)))),
         "the answer 'Nonspeech' takes several tokens here"),
    ],
)  # fmt: skip
def test_a_reply_that_tells_nothing_of_the_answers_is_no_score(clips, pairs, prompt, cause):
    with (
        serve(lambda request: listing(*pairs)) as server,
        pytest.raises(PromptError, match=re.escape(cause)) as caught,
    ):
        score_one(server, clips[0], prompt)
    assert prompt.prompt_id in str(caught.value) and "\n" not in str(caught.value)


def test_where_no_prompt_has_a_score_the_run_ends_with_the_likely_cause(clips):
    with serve(lambda request: listing(*WORDY)) as server:
        evaluator = Endpoint("m", server.url, parallel=1)
        with pytest.raises(
            UserError, match="none of the 2 prompts can be scored; none of the ans"
        ) as caught:
            evaluator.score(PROMPTS, clips)
    assert not isinstance(caught.value, PromptError)
    assert len(server.requests) == 2  # a prompt that has failed is not asked about again


def wordy_without_options(request):
    return answer(request) if "A)" in heard(request)[1] else listing(*WORDY)


def test_a_rare_reply_without_an_answer_is_bounded_and_marked_and_costs_no_prompt(make_manifest):
    clips = read_manifest(make_manifest(sources=24), LABELS)[:40]
    with serve(lambda r: None) as server:
        for misses, fails in ((2, False), (3, True)):
            count = itertools.count()
            server.reply = lambda r, n=count, m=misses: (
                listing(*WORDY) if next(n) < m else answer(r)
            )
            evaluator = Endpoint("m", server.url, parallel=1)
            if fails:
                for _ in range(2):  # the second time without a request
                    with pytest.raises(PromptError, match="none of the answers"):
                        evaluator.score(PROMPTS[:1], clips)
                    assert next(count) <= 5
            else:
                table = evaluator.score(PROMPTS[:1], clips)
                assert table.unlisted.sum() == misses == np.isnan(table.logp_top).all(-1).sum()


def test_silence_that_is_answered_with_other_words_fails_no_prompt(clips):
    silent = [replace(c, audio="silence") for c in clips]
    with serve(lambda request: listing(*WORDY)) as server:
        table = Endpoint("m", server.url).score(PROMPTS, silent)
    assert (table.unlisted == 1).all() and (table.logp[..., 0] == table.logp[..., 1]).all()


def test_a_prompt_without_a_score_fails_alone_and_nothing_is_asked_twice(clips):
    with serve(wordy_without_options) as server:
        evaluator = Endpoint("m", server.url, parallel=1)
        with pytest.raises(PromptError, match=PROMPTS[1].prompt_id):
            evaluator.score(PROMPTS, clips)
        asked = len(server.requests)
        assert np.isfinite(evaluator.score(PROMPTS[:1], clips).logp).all()
        with pytest.raises(PromptError):
            evaluator.score(PROMPTS[1:], clips)
        assert len(server.requests) == asked == len(clips) + 1


# Tokens by id.


def by_id(tokens):
    """A server that lists what it is asked for by id, and the likeliest token."""

    def reply(request):
        ids = request.get("logprob_token_ids")
        if ids is None:
            return listing(*WORDY)
        names = {number: text for text, numbers in tokens.items() for number in numbers}
        return listing(("The", -0.1), *((names[i], -5.0 - i) for i in ids))

    return reply


IDS = {"A": [1], " A": [2], "B": [3], " B": [4, 5]}


def test_answers_are_asked_for_by_id_where_the_server_can(clips):
    with serve(by_id(IDS)) as server:
        server.tokens = lambda text: IDS[text]
        table = score_one(server, clips[0])
    assert (
        table.logp[0, 0] == pytest.approx([np.logaddexp(-6, -7), -8.0])
        and table.unlisted.max() == 0
    )
    assert [r["logprob_token_ids"] for r in server.requests] == [[1, 2, 3]]


def test_a_server_that_refuses_or_ignores_ids_is_read_as_it_lists(clips):
    def refuses(request):
        return (
            (400, "logprob_token_ids: Extra inputs are not permitted")
            if "logprob_token_ids" in request
            else answer(request)
        )

    plain = None
    for reply in (answer, refuses):
        with serve(reply) as server:
            server.tokens = lambda text: IDS[text]
            table = Endpoint("m", server.url).score(PROMPTS[:1], clips)
        plain = table.logp if plain is None else plain
        assert np.array_equal(table.logp, plain)
    with serve(answer) as server:
        assert np.array_equal(Endpoint("m", server.url).score(PROMPTS[:1], clips).logp, plain)


def test_an_answer_of_several_tokens_is_refused_before_anything_is_asked(clips):
    prompt = Prompt("?", (("SPEECH", ("SPEECH",)), ("NONSPEECH", ("B",))))
    with (
        serve(answer) as server,
        pytest.raises(PromptError, match="'SPEECH' takes several tokens here"),
    ):
        server.tokens = lambda text: IDS.get(text, [7, 8, 9])
        score_one(server, clips[0], prompt)
    assert server.requests == []


# Many requests at once.


def test_refusals_for_too_many_requests_do_not_count_while_others_get_through(clips):
    """Every third request is refused, more often than one request may fail."""
    prompts, count = [Prompt("A or B" + "?" * n) for n in range(9)], itertools.count()

    def busy(request):
        return (429, "slow down") if next(count) % 3 == 1 else answer(request)

    with serve(busy) as server:
        evaluator = Endpoint("m", server.url, retries=2, wait=lambda s: time.sleep(0.02))
        assert np.isfinite(evaluator.score(prompts, clips).logp).all()
    assert len(server.requests) > 1.4 * len(prompts) * len(clips)


def test_prompts_of_a_clip_are_asked_together(clips):
    with serve(answer) as server:
        Endpoint("m", server.url, parallel=1).score(PROMPTS, clips[:3])
    waves = [r["messages"][1]["content"][0]["input_audio"]["data"] for r in server.requests]
    assert [waves.index(w) for w in waves] == [0, 0, 2, 2, 4, 4]


def test_a_body_without_end_is_read_to_its_limit(clips, monkeypatch):
    monkeypatch.setattr(chat_client, "LARGEST_BODY", 10_000)
    with (
        serve(answer, ["huge"]) as server,
        pytest.raises(PauseError, match="is larger than"),
    ):
        score_one(server, clips[0])


def test_a_model_that_takes_no_temperature_or_fewer_tokens_is_adapted_to(clips):
    def strict(request):
        if "temperature" in request:
            return 400, "Unsupported value: 'temperature' does not support 0 with this model."
        if request["top_logprobs"] > 5:
            return 400, "Requested sample logprobs of 20, which is greater than max allowed: 5"
        return answer(request)

    with serve(strict) as server:
        evaluator = Endpoint("m", server.url, parallel=1)
        assert np.isfinite(evaluator.score(PROMPTS, clips[:2]).logp).all()
    assert len(server.requests) == 4 + 2 and server.requests[-1]["top_logprobs"] == 5


# In a search.


def searched(make_manifest, tmp_path, monkeypatch, reply, verb="optimize"):
    """Exit code and server of a search against an endpoint, or of the doctor."""
    from opro import doctor, optimize
    from opro.cli import run_verb

    arguments = ["--checkpoint", "endpoint:m", "--manifest", str(make_manifest(sources=24))]
    if verb == "optimize":
        arguments += [
            "--iterations",
            "1",
            "--candidates",
            "2",
            "--runs-dir",
            str(tmp_path / "runs"),
        ]
        arguments += ["--name", "e"]
    with serve(reply) as server:
        monkeypatch.setenv("OPRO_AUDIO_BASE_URL", server.url)
        main = optimize.main if verb == "optimize" else doctor.main
        return run_verb(lambda: main(arguments)), server


@pytest.mark.parametrize("first", ["<think>", "The"])
def test_a_search_behind_a_server_that_lists_no_answer_ends_with_the_cause(
    make_manifest, tmp_path, monkeypatch, capsys, first
):
    pairs = [(first, -0.01), ("I", -6.0)]
    code, server = searched(make_manifest, tmp_path, monkeypatch, lambda r: listing(*pairs))
    err = capsys.readouterr().err
    assert code == 2 and err.count("error:") == 1 and "can be scored" in err
    assert ("a reasoning model" if first == "<think>" else "begins with other text") in err
    assert len(server.requests) < 100 and not (tmp_path / "runs" / "e" / "summary.json").exists()


def test_the_doctor_names_the_answers_and_not_the_audio(
    make_manifest, tmp_path, monkeypatch, capsys
):
    code, _ = searched(make_manifest, tmp_path, monkeypatch, lambda r: listing(*WORDY), "doctor")
    out = capsys.readouterr().out
    assert code == 1 and "none of the answers" in out and "audio does not reach" not in out


def test_unlisted_answers_stand_in_every_row(make_manifest, tmp_path, monkeypatch, capsys):
    from evaluators.files import read_yaml
    from opro import matrix, report, rescore
    from opro.cli import run_verb

    def rarely(request):
        listed = answer(request)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(e["token"], e["logprob"]) for e in listed]
        return listing(*(pairs if len(heard(request)[0]) > 5000 else [*pairs[2:], ("D", -12.0)]))

    code, _ = searched(make_manifest, tmp_path, monkeypatch, rarely)
    folder = tmp_path / "runs" / "e"
    out = capsys.readouterr().out
    assert code == 0 and "unlisted" in out
    rows = list(csv.DictReader((folder / "leaderboard.csv").open()))
    assert rows and all(0 < float(row["unlisted"]) <= 0.5 for row in rows)
    with serve(rarely) as server:
        monkeypatch.setenv("OPRO_AUDIO_BASE_URL", server.url)
        argv = [str(folder), "--split", "dev", "--runs-dir", str(tmp_path / "runs")]
        capsys.readouterr()
        code = run_verb(lambda: rescore.main(argv))
        assert code == 0 and "unlisted" in capsys.readouterr().out
        argv = ["--checkpoint", "endpoint:m", *argv[1:], "--prompts", str(folder)]
        argv += ["--manifest", read_yaml(folder / "config.yaml")["manifest"]]
        assert run_verb(lambda: matrix.main(argv)) == 0
    assert (
        "of its answers are not among the tokens that the server lists" in capsys.readouterr().out
    )
    assert run_verb(lambda: report.main([str(folder)])) == 0
    assert "of a prompt&#39;s answers are not among" in (folder / "report.html").read_text()


@pytest.mark.parametrize("missing", [None, {}, {"content": None}, {"content": []}])
def test_a_reply_without_a_list_of_log_probabilities_is_refused(clips, missing):
    def reply(request):
        body = completion("A")
        body["choices"][0]["logprobs"] = missing
        return body

    with serve(reply) as server, pytest.raises(UserError, match="holds no log-probabilities"):
        score_one(server, clips[0])


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, UserError, r"refuses the key \(401\)"),
        (403, UserError, r"refuses the key \(403\)"),
        (404, UserError, "refuses model 'm'"),
        (400, UserError, "refuses model 'm'"),
        (422, UserError, "refuses model 'm'"),
        (408, PauseError, "failed 1 times"),
        (409, PauseError, "failed 1 times"),
        (429, PauseError, "failed 1 times"),
        (500, PauseError, "failed 1 times"),
        (503, PauseError, "failed 1 times"),
        ("half", PauseError, "failed 1 times"),
        ("html", PauseError, "failed 1 times"),
        ("reset", PauseError, "failed 1 times"),
    ],
)
def test_what_a_person_can_mend_stops_and_what_passes_pauses(clips, status, kind, message):
    with serve(answer, [status] * 9) as server, pytest.raises(kind, match=message) as caught:
        score_one(server, clips[0])
    assert server.url in str(caught.value) and len(server.requests) == 1
    assert type(caught.value) is kind and "\n" not in str(caught.value)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_body_that_is_no_json_is_asked_for_again_as_often_as_is_allowed(clips, retries):
    with serve(answer, ["half"] * retries) as server:
        assert np.isfinite(score_one(server, clips[0], retries=retries).logp).all()
    assert len(server.requests) == retries + 1
    with (
        serve(answer, ["half"] * (retries + 1)) as server,
        pytest.raises(PauseError, match=f"failed {retries + 1} times"),
    ):
        score_one(server, clips[0], retries=retries)
    assert len(server.requests) == retries + 1


def test_a_server_that_is_not_there_pauses(clips):
    with serve(answer) as server:
        gone = server.url
    with pytest.raises(PauseError, match="goes on from here"):
        Endpoint("m", gone, retries=0).score(PROMPTS, clips[:1])


def test_a_reply_that_takes_too_long_pauses(clips, monkeypatch):
    monkeypatch.setattr(endpoint, "TIMEOUT_S", 0.2)
    with serve(answer, ["slow"]) as server, pytest.raises(PauseError, match="failed 1 times"):
        score_one(server, clips[0])


def test_a_refused_key_sends_no_further_requests(clips):
    prompts = [Prompt("A or B" + "?" * n) for n in range(20)]
    with serve(answer, [401] * 999) as server, pytest.raises(UserError, match="refuses the key"):
        Endpoint("m", server.url, parallel=1).score(prompts, clips)
    assert len(server.requests) < len(prompts) * len(clips) / 2


def test_the_words_of_a_server_are_one_short_line_without_control_characters(clips):
    words = "\x1b[31mno\x07 such\u202emodel " + "x " * 999 + "\nsecret line"
    body = json.dumps({"error": {"message": words}}).encode()
    with serve(answer, [(404, body)]) as server, pytest.raises(UserError) as caught:
        score_one(server, clips[0])
    text = str(caught.value)
    assert text.isprintable() and "?[31mno? such?model" in text
    assert "secret line" not in text and 50 < text.count("x") < 220


def test_each_of_server_model_scorer_and_list_changes_the_fingerprint(environment):
    urls = ("http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1")
    prints = [Endpoint(m, url).fingerprint for m in ("m", "n") for url in urls]
    for name, value in (("SCORER", "endpoint next"), ("LISTED", 5)):
        with environment.context() as patch:
            patch.setattr(endpoint, name, value)
            prints.append(Endpoint("m", urls[0]).fingerprint)
    assert len(set(prints)) == 6 and all(len(p) == 64 for p in prints)
    # What cannot change a score does not: kept scores stay valid.
    environment.setenv("OPRO_AUDIO_API_KEY", "other")
    assert Endpoint("m", urls[0], parallel=3, retries=1).fingerprint == prints[0]
    environment.setenv("OPRO_AUDIO_BASE_URL", urls[1])
    assert Endpoint("m").fingerprint == prints[1]


def test_a_tag_for_the_weights_behind_a_server_is_a_part_of_the_fingerprint(environment):
    url = "http://127.0.0.1:1/v1"
    plain, one, two = (Endpoint(m, url) for m in ("org/m:4b", "org/m:4b#v1", "org/m:4b#v 2#x"))
    assert [e.model for e in (plain, one, two)] == ["org/m:4b"] * 3
    assert (plain.tag, one.tag, two.tag) == ("", "v1", "v 2#x")
    assert len({e.fingerprint for e in (plain, one, two)}) == 3
    # Without a tag the key is that of before there were tags.
    parts = [endpoint.SCORER, url, "org/m:4b", endpoint.LISTED]
    assert plain.fingerprint == hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    with pytest.raises(
        UserError, match=r"endpoint:m# has no tag after its #; give endpoint:MODEL#"
    ):
        Endpoint("m#", url)
    with pytest.raises(UserError, match="needs a model and a server"):
        Endpoint("#v1", url)


def test_a_server_is_asked_for_its_model_without_the_tag(clips):
    with serve(answer) as server:
        Endpoint("m#v1", server.url).score(PROMPTS, clips[:1])
    assert {request["model"] for request in server.requests} == {"m"}


def test_the_flag_goes_before_the_audio_server_and_that_before_the_general_one(environment):
    urls = [f"http://127.0.0.1:{n}/v1" for n in (1, 2, 3)]
    by_flag = [Endpoint("m", url).fingerprint for url in urls]
    environment.setenv("OPENAI_BASE_URL", urls[2])
    assert Endpoint("m").fingerprint == by_flag[2]
    environment.setenv("OPRO_AUDIO_BASE_URL", urls[1])
    assert Endpoint("m").fingerprint == by_flag[1]
    assert Endpoint("m", urls[0]).fingerprint == by_flag[0]
    with pytest.raises(UserError, match="needs a model and a server"):
        Endpoint("", urls[0])


def test_the_audio_key_goes_before_that_of_the_same_server_and_a_server_without_keys_takes_any(
    environment, clips
):
    with serve(answer) as server:
        score_one(server, clips[0])
        environment.setenv("OPENAI_API_KEY", "general")
        environment.setenv("OPENAI_BASE_URL", server.url)
        score_one(server, clips[0])
        environment.setenv("OPRO_AUDIO_API_KEY", "audio")
        score_one(server, clips[0])
    assert server.keys == ["Bearer none", "Bearer general", "Bearer audio"]


def test_by_default_a_fault_that_passes_is_tried_five_times_more(environment, clips):
    with serve(answer, ["half"] * 11) as server:
        with pytest.raises(PauseError, match="failed 6 times"):
            Endpoint("m", server.url, wait=lambda s: None).score(PROMPTS[:1], clips[:1])
        assert len(server.requests) == 6
        assert np.isfinite(
            Endpoint("m", server.url, wait=lambda s: None).score(PROMPTS[:1], clips[:1]).logp
        ).all()
    assert len(server.requests) == 12


def test_a_search_runs_against_a_server(make_manifest, tmp_path, monkeypatch, capsys):
    from opro import optimize

    monkeypatch.setenv("OPRO_AUDIO_API_KEY", "sk-marked-key")
    manifest = make_manifest(sources=24)
    arguments = ["--checkpoint", "endpoint:m", "--manifest", str(manifest), "--name", "e"]
    arguments += ["--iterations", "1", "--candidates", "2", "--runs-dir", str(tmp_path / "runs")]
    with serve(answer) as server:
        monkeypatch.setenv("OPRO_AUDIO_BASE_URL", server.url)
        assert optimize.main(arguments) == 0
        asked = len(server.requests)
        assert optimize.main(arguments) == 0 and len(server.requests) == asked
    assert (
        "is unknown" in capsys.readouterr().err + (tmp_path / "runs" / "e" / "log.txt").read_text()
    )
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"sk-marked-key" not in path.read_bytes()
