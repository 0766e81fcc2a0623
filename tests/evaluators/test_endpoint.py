"""Scores through a server, over real HTTP."""

import base64
import io
import math

import numpy as np
import pytest
import soundfile
from chat_server import completion, serve
from conftest import LABELS

from evaluators.endpoint import Endpoint
from evaluators.errors import PauseError, UserError
from evaluators.manifest import read_manifest
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
        table = Endpoint("m", server.url, parallel=1).score(PROMPTS[:1], clips[:2])
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


def test_an_endpoint_without_a_server_says_how_to_name_one(monkeypatch):
    monkeypatch.delenv("OPRO_AUDIO_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match="OPRO_AUDIO_BASE_URL"):
        Endpoint("m")
