"""What hostile servers, keys and addresses come to: tables of attack, sentence and exit code.

`python tests/bench_hostile_servers.py` shows memory and time of each.
"""

import contextlib
import json
import math
import re
import runpy
import shutil
import sys

import pytest
from chat_server import completion, serve
from common import ROOT
from hostile_server import CASES, REFUSALS, body, gzipped, hostile

from evaluators import endpoint
from evaluators.endpoint import Endpoint
from evaluators.errors import PauseError, UserError
from evaluators.manifest import read_manifest
from evaluators.prompts import Prompt
from opro import optimize
from opro.proposers import openai_model
from opro.proposers.language_model import Message
from opro.proposers.lm_proposer import MOST_READ
from opro.proposers.openai_model import OpenAIModel

KEY = "sk-marked/secret+key-1234"
OTHER = "marked-audio-key-5678"
PROXIES = [f"{name}_proxy" for name in ("http", "https", "all", "no")]
VARIABLES = (
    "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPRO_AUDIO_API_KEY", "OPRO_AUDIO_BASE_URL", "OPRO_LM_PRICES",
    "SSL_CERT_FILE", "SSL_CERT_DIR", *PROXIES, *map(str.upper, PROXIES),
)  # fmt: skip
TIMEOUT_S = 0.25
NO_REPLY = r"no whole reply within 0\.25 s"
BROKE = r"the reply broke off \(\w+\)"
NO_JSON = r"the reply is not readable as JSON"
SENTENCES = {  # case -> what is said of it
    "cut": BROKE,
    "reset": BROKE,
    "stalled": NO_REPLY,
    "silent": NO_REPLY,
    "hangs up": BROKE,
    "body drips": NO_REPLY,
    "header drips": NO_REPLY,
    "headers without end": BROKE,
    "1xx for ever": NO_REPLY,
    "body without end": "the reply is larger than 4 MiB",
    "chunk cut": BROKE,
    "chunk that is none": BROKE,
    "gzip cut": NO_JSON,
    "gzip that is none": "the reply broke off",
    "gzip that yields nothing": NO_REPLY,
    "gzip bomb": "the reply is larger than 4 MiB",
    "encoding that is none": "the reply is encoded as 'br, zstd', which was not asked for",
    "no HTTP": BROKE,
    "101": BROKE,
    "204": NO_JSON,
    "deep JSON": NO_JSON,
    "deep objects": NO_JSON,
    "deep choices": NO_JSON,
    "500, deep": "the server answered 500",
    "number of 5000 digits": NO_JSON,
    "error of code \u00b2": 'the reply is an error; it says "pretended"',
    "500 without end": 'the server answered 500; it says ".*pretended',
    "500 stalls": "the server answered 500",
}
WAITS = (*(n for n, said in SENTENCES.items() if said == NO_REPLY), "500 stalls", "400 stalls")
FREE = ("500, deep", "500 without end", "500 stalls")  # refused, so not charged


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openai_model, "TRIES", 2)
    return monkeypatch


@pytest.fixture
def seconds(environment, name):
    """What a reply may take: no case ends by that but those that must, for the machine may be busy."""
    seconds = TIMEOUT_S if name in WAITS else 60.0
    environment.setattr(endpoint, "TIMEOUT_S", seconds)
    return seconds


@pytest.fixture
def clip(make_manifest):
    return read_manifest(make_manifest(sources=2, per_source=1), ("SPEECH", "NONSPEECH"))[0]


def ask(url, lost=None, seconds=60.0):
    """A reply of the language model; `lost` gets the calls that count without one."""
    model = OpenAIModel("m", url, wait=lambda s: None, timeout=seconds)
    if lost is not None:
        model.on_loss = lambda *about: lost.append(about) or ""
    return model([Message("user", "hello")], temperature=1.0, max_tokens=99)


def score(url, clip):
    evaluator = Endpoint("m", url, parallel=1, retries=1, wait=lambda s: None)
    return evaluator.score([Prompt("Speech? A or B")], [clip])


def run(folder, *flags):
    argv = [
        "--checkpoint", "fake", "--iterations", "1", "--candidates", "2", "--clips", "80", "--name", "run",
        "--runs-dir", str(folder), *map(str, flags),
    ]  # fmt: skip
    return optimize.run_verb(lambda: optimize.main(argv))


# One HTTP layer: deadlines, sizes, and what is tried again.


def test_every_case_has_its_sentence():
    assert set(SENTENCES) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_reply_is_tried_again_counted_at_its_worst_and_one_sentence(name, seconds):
    lost = []
    with hostile(CASES[name]) as server, pytest.raises(PauseError, match=SENTENCES[name]) as caught:
        ask(server.url, lost, seconds)
    assert len(server.requests) == 2 and len(str(caught.value)) < 600
    assert [about[:2] for about in lost] == ([] if name in FREE else [(2, 99)] * 2)


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_reply_of_an_audio_server_is_one_sentence(clip, name, seconds):
    with hostile(CASES[name]) as server, pytest.raises(PauseError, match=SENTENCES[name]) as caught:
        score(server.url, clip)
    assert len(server.requests) == 2 and len(str(caught.value)) < 600


@pytest.mark.parametrize("name", REFUSALS)
def test_a_hostile_refusal_is_one_sentence_and_costs_nothing(clip, name, seconds):
    lost = []
    with hostile(REFUSALS[name]) as server:
        with pytest.raises(PauseError, match=r"the request was rejected \(400\)") as caught:
            ask(server.url, lost, seconds)
        with pytest.raises(UserError, match=r"the request was rejected \(400\)") as other:
            score(server.url, clip)
    assert lost == [] and len(server.requests) == 2
    assert len(str(caught.value)) < 600 and len(str(other.value)) < 600


def test_a_reply_that_was_compressed_unasked_is_read():
    raw = json.dumps(completion("fine")).encode()
    with hostile(gzipped(raw, 1)) as server:
        assert ask(server.url).text == "fine"
    assert "accept-encoding: identity" in server.heads[0].lower()


@pytest.mark.parametrize("status", [b"301 Go", b"302 Go", b"307 Go", b"308 Go"])
def test_a_redirect_is_refused_and_its_target_asked_nothing(environment, clip, status):
    environment.setenv("OPENAI_API_KEY", KEY)
    with hostile(CASES["cut"]) as target:
        go = body(b"", status, b"location: " + target.url.encode() + b"?key=" + KEY.encode())
        with hostile(go) as server:
            for call in (ask, lambda url: score(url, clip)):
                with pytest.raises((PauseError, UserError), match="go to http") as caught:
                    call(server.url)
                assert KEY not in str(caught.value)
    assert target.requests == [] and len(server.requests) == 2


@pytest.mark.parametrize(
    "header", [b"location: ", b"retry-after: ", b"content-encoding: ", b"set-cookie: "]
)
def test_a_hostile_header_is_one_sentence(header):
    with hostile(body(b"", b"307 Go", header + b"sk-" * 15_000)) as server:
        with pytest.raises(PauseError, match="the server answered 307") as caught:
            ask(server.url)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["gzip that is none", "reset"])
def test_no_number_of_starts_exceeds_the_tokens_that_a_run_may_take(tmp_path, capsys, name):
    with hostile(CASES[name]) as server:
        flags = ["--lm-base-url", server.url, "--lm-model", "m", "--proposer", "lm"]
        model, wait = openai_model.OpenAIModel.__init__, {"wait": lambda s: None, "timeout": 5.0}
        with pytest.MonkeyPatch.context() as patch:
            quick = lambda self, *a, **k: model(self, *a, **{**k, **wait})  # noqa: E731
            patch.setattr(openai_model.OpenAIModel, "__init__", quick)
            codes = [run(tmp_path, *flags, "--max-tokens", 8000) for _ in range(4)]
    told = capsys.readouterr().err
    lines = (tmp_path / "run" / "proposals.jsonl").read_text().splitlines()
    lost = [x for x in map(json.loads, lines) if "lost" in x]
    assert set(codes) <= {0, 1} and "Traceback" not in told
    assert 0 < len(server.requests) == len(lost)
    assert sum(x["tokens_in"] + x["tokens_out"] for x in lost) <= 8000


class Killed(BaseException):
    """Stands for the end of a process: nothing is done about it."""


def killed_in_its_call(folder, *flags):
    """A start that is ended while its requests are under way."""

    def chat(self, request):
        sent.append(request)
        raise Killed

    sent = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluators.chat_client.ChatClient.chat", chat)
        with contextlib.suppress(Killed):
            run(folder, *flags)
    return sent


def test_calls_of_killed_starts_count_at_their_worst_case(tmp_path, capsys):
    flags = ["--lm-base-url", "http://127.0.0.1:9/v1", "--lm-model", "m", "--proposer", "lm"]
    flags += ["--max-tokens", 6000]
    sent = [request for _ in range(8) for request in killed_in_its_call(tmp_path, *flags)]
    lines = (tmp_path / "run" / "calls.jsonl").read_text().splitlines()
    begun = [x for x in map(json.loads, lines) if "begun" in x]
    assert 1 <= len(sent) == len(begun) < 8
    assert sum(x["tokens_in"] + x["tokens_out"] for x in begun) <= 6000
    assert run(tmp_path, *flags) == 0
    spent = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (
        spent["lost"] == len(begun)
        and 3000 < sum(spent["lm"][k] for k in ("tokens_in", "tokens_out")) <= 6000
    )
    assert "were under way when the run was interrupted" in capsys.readouterr().err


def test_answered_calls_beside_one_that_failed_are_counted(tmp_path, capsys):
    """Of calls under way together the first is refused: what the others were told is not kept, but paid."""

    def reply(request):
        return (401, "no") if request is server.requests[0] else "nothing"

    flags = ["--lm-model", "m", "--proposer", "lm", "--candidates", 20]
    with serve(reply) as server:
        flags += ["--lm-base-url", server.url]
        assert run(tmp_path, *flags) == 1
        answered = len(server.requests) - 1
        server.reply = lambda request: "nothing"
        assert run(tmp_path, *flags) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert answered >= 1 and summary["lost"] + summary["lm"]["calls"] == len(server.requests) - 1


# The environment: keys, addresses and proxies, before anything is scored.


BAD_KEYS = {
    "sk-abc\ndef-12345": r"U\+000A",
    "\ufeffsk-abc-12345": r"U\+FEFF",
    "\u201csk-abc-12345\u201d": r"U\+201C \(LEFT DOUBLE QUOTATION MARK\)",
    "sk-\u0430bc-12345": r"U\+0430 \(CYRILLIC SMALL LETTER A\)",
    "sk\u2011abc-12345": r"U\+2011",
    "sk-abc\u00a0-12345": r"U\+00A0",
    '"sk-abc-12345"': r"U\+0022 \(QUOTATION MARK\)",
    "Bearer sk-abc-12345": r"U\+0020 \(SPACE\)",
    "sk-abc\x00-12345": "",
}
BAD_URLS = {
    "file:///etc/passwd": r"expected an address like http://127\.0\.0\.1:8000/v1",
    "http://127.0.0.1:99999/v1": "expected an address like",
    "http://127.0.0.1:0/v1": "expected an address like",
    "http://HOST:PORT/v1": "expected an address like",
    "not a url": "expected an address like",
    "127.0.0.1:8000/v1": "expected an address like",
    "http://[::1/v1": "expected an address like",
    "http:///v1": "expected an address like",
    "http://h/v1#x": "expected an address like",
    "http://h\u043est/v1": "expected an address like",
    "http://a b/v1": "expected an address like",
    "http://a..b/v1": "expected an address like",
    f"http://me:{KEY.replace('/', '')}@127.0.0.1:9/v1": "user or password",
}
BAD_PROXIES = {
    "socks5://127.0.0.1:9": "SOCKS",
    "socks://127.0.0.1:9": "expected an address like",
    "http://127.0.0.1:99999": "expected an address like",
    "ftp://127.0.0.1": "expected an address like",
    "not a url": "expected an address like",
    "http://": "expected an address like",
}
KEYS = [k for k in BAD_KEYS if "\x00" not in k]  # no variable can hold a NUL


def refused(capsys, folder, sentence, *flags):
    """The command ends at once with one sentence and 2, and nothing is written."""
    assert run(folder / "runs", *flags) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ") and re.search(sentence, told) and "\n" not in told, told
    assert not (folder / "runs").exists()
    return told


@pytest.mark.parametrize("key", KEYS, ids=ascii)
@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OPRO_AUDIO_API_KEY"])
def test_a_key_that_is_none_is_refused_by_its_variable(environment, capsys, tmp_path, key, name):
    environment.setenv(name, key)
    environment.setenv("OPRO_AUDIO_BASE_URL", "http://127.0.0.1:9/v1")
    flags = ["--lm-model", "m"] if name == "OPENAI_API_KEY" else ["--checkpoint", "endpoint:m"]
    told = refused(capsys, tmp_path, f"{name} .*{BAD_KEYS[key]}", *flags)
    assert "abc" not in told and "12345" not in told


@pytest.mark.parametrize("url", BAD_URLS, ids=ascii)
@pytest.mark.parametrize("where", ["--lm-base-url", "OPENAI_BASE_URL", "OPRO_AUDIO_BASE_URL"])
def test_an_address_that_is_none_is_refused_by_its_name(environment, capsys, tmp_path, url, where):
    flags = ["--lm-model", "m"]
    if where == "OPRO_AUDIO_BASE_URL":
        flags = ["--checkpoint", "endpoint:m"]
    if where.startswith("--"):
        flags += [where, url]
    else:
        environment.setenv(where, url)
    told = refused(capsys, tmp_path, f"{where} .*{BAD_URLS[url]}", *flags)
    assert "secret" not in told


@pytest.mark.parametrize("proxy", BAD_PROXIES)
@pytest.mark.parametrize("name", ["ALL_PROXY", "https_proxy"])
def test_a_proxy_that_is_none_is_refused_by_its_variable(
    environment, capsys, tmp_path, proxy, name
):
    environment.setenv(name, proxy)
    flags = ["--lm-model", "m", "--lm-base-url", "http://127.0.0.1:9/v1"]
    refused(capsys, tmp_path, f"{name} .*{BAD_PROXIES[proxy]}", *flags)
    environment.setenv("OPRO_AUDIO_BASE_URL", "http://127.0.0.1:9/v1")
    refused(capsys, tmp_path, f"{name} .*{BAD_PROXIES[proxy]}", "--checkpoint", "endpoint:m")


@pytest.mark.parametrize("name", ["SSL_CERT_FILE"])
def test_what_else_the_transport_cannot_use_is_one_sentence(environment, capsys, tmp_path, name):
    environment.setenv(name, "/no/such/file")
    flags = ["--lm-model", "m", "--lm-base-url", "https://127.0.0.1:9/v1"]
    refused(capsys, tmp_path, name, *flags)


def test_a_run_that_asks_no_server_does_not_mind_its_environment(environment, tmp_path):
    environment.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    environment.setenv("OPENAI_API_KEY", "\u201csk\u201d")
    environment.setenv("OPENAI_BASE_URL", "file:///etc/passwd")
    assert run(tmp_path, "--proposer", "rewriter", "--dry-run") == 0


def test_white_space_around_a_key_is_a_slip_of_copying(environment):
    environment.setenv("OPENAI_API_KEY", f" {KEY}\n")
    with serve(lambda request: "fine") as server:
        assert ask(server.url).text == "fine"
    assert server.keys == [f"Bearer {KEY}"]


def test_a_request_that_never_left_is_no_loss(environment):
    with hostile(CASES["cut"]) as gone:
        pass
    lost = []
    for name, value in (("none", ""), ("http_proxy", gone.url.removesuffix("/v1"))):
        environment.setenv(name, value)
        environment.setenv("no_proxy", "")
        with pytest.raises(PauseError, match="no connection to the server"):
            ask(gone.url if name == "none" else "http://models.invalid/v1", lost)
    assert lost == []


def test_a_proxy_that_makes_no_tunnel_is_no_loss(environment):
    lost = []
    for case in ("silent", "cut"):
        with hostile(CASES[case]) as proxy:
            environment.setenv("https_proxy", proxy.url.removesuffix("/v1"))
            with pytest.raises(PauseError):
                ask("https://models.invalid/v1", lost, TIMEOUT_S)
    assert lost == []


# Keys: sent to their own service, stored and shown nowhere.


def listing(*pairs):
    out = completion("A")
    entries = [{"token": t, "logprob": v} for t, v in pairs]
    out["choices"][0]["logprobs"] = {"content": [{"token": "A", "top_logprobs": entries}]}
    return out


FINE = listing(("A", math.log(0.6)), ("B", math.log(0.3)))


def test_the_key_of_the_language_model_is_not_sent_to_another_audio_server(environment, clip):
    environment.setenv("OPENAI_API_KEY", KEY)
    with serve(lambda request: FINE) as server:
        score(server.url, clip)
        environment.setenv("OPENAI_BASE_URL", server.url + "/other/path")
        score(server.url, clip)  # the same server: its own key
        environment.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        score(server.url, clip)
        environment.setenv("OPRO_AUDIO_API_KEY", OTHER)
        score(server.url, clip)
    assert server.keys == ["Bearer none", f"Bearer {KEY}", "Bearer none", f"Bearer {OTHER}"]


def test_a_server_that_wants_the_key_that_was_not_sent_says_which_variable_to_set(
    environment, clip
):
    environment.setenv("OPENAI_API_KEY", KEY)
    with serve(lambda request: (401, "no key")) as server:
        with pytest.raises(
            UserError, match=r"refuses the key \(401\).*; set OPRO_AUDIO_API_KEY"
        ) as caught:
            score(server.url, clip)
    assert KEY not in str(caught.value)


def echoes(key):
    """Replies, refusals and headers that hold a key."""
    spelt = "".join(f"\\u{ord(ch):04x}" for ch in key).encode()
    text = {"text": f"Is {key} heard as speech in this clip? A) speech B) other"}
    plain = completion(json.dumps({"analysis": key, "prompts": [text, key + " A or B"]}))
    escaped = json.dumps(plain).encode().replace(key.replace("/", "\\/").encode(), spelt)
    yield body(plain)
    yield body(escaped.replace(key.encode(), spelt))
    yield body(
        {**completion("x"), "choices": [{"finish_reason": key, "message": {"content": key}}]}
    )
    yield body({"error": {"message": f"key {key} is unknown", "param": key}}, b"401 No")
    yield body({"error": {"message": f"key {key} is unknown", "code": key}})
    yield body(b'{"error": {"message": "key ' + spelt + b' is unknown"}}', b"500 No")
    yield body(key.encode(), b"400 No")
    yield body(b"", b"302 Go", b"location: http://127.0.0.1:9/" + key.encode())


@pytest.mark.parametrize("number", range(8))
def test_a_key_that_a_server_echoes_is_stored_and_shown_nowhere(
    environment, tmp_path, capsys, number
):
    environment.setenv("OPENAI_API_KEY", KEY)
    environment.setattr("evaluators.chat_client.LONGEST_WAIT_S", 0.0)
    with hostile(list(echoes(KEY))[number]) as server:
        environment.setenv("OPENAI_BASE_URL", server.url + "?token=" + OTHER)
        run(tmp_path, "--lm-model", "m", "--json")
        run(tmp_path, "--lm-model", "m")
    assert server.requests and f"token={OTHER}" in server.heads[0]
    told = capsys.readouterr()
    stored = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    for key in (KEY, OTHER):
        assert key not in told.out + told.err and key.encode() not in stored
        assert json.dumps(key)[1:-1].encode() not in stored
    assert b"trials" in stored or (tmp_path / "run" / "trials.jsonl").exists()


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/v1?token={}", "http://me:{}@127.0.0.1:9/v1"]
)
def test_an_address_in_a_flag_holds_no_credentials(environment, tmp_path, capsys, address):
    url = address.format(OTHER)
    told = refused(
        capsys, tmp_path, "--lm-base-url holds a", "--lm-model", "m", "--lm-base-url", url
    )
    assert OTHER not in told


def test_a_flag_that_holds_a_key_of_the_environment_is_refused(environment, tmp_path, capsys):
    environment.setenv("OPENAI_API_KEY", KEY)
    flags = ["--lm-base-url", "http://127.0.0.1:9/v1", "--lm-model", KEY]
    told = refused(capsys, tmp_path, "--lm-model holds the key of OPENAI_API_KEY", *flags)
    assert KEY not in told


# Numbers and texts of replies.


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        ({"prompt_tokens": 10**400, "completion_tokens": 1}, "prompt_tokens"),
        ({"prompt_tokens": 10**8, "completion_tokens": 1}, "prompt_tokens"),
        ({"prompt_tokens": -5, "completion_tokens": 1}, "prompt_tokens"),
        ({"prompt_tokens": 2, "completion_tokens": "many"}, "completion_tokens"),
        ({"prompt_tokens": 2, "completion_tokens": 1e308}, "completion_tokens"),
        ({"prompt_tokens": 2, "completion_tokens": 1, "cost": -1}, "cost"),
        ({"prompt_tokens": 2, "completion_tokens": 1, "cost": 1e300}, "cost"),
        ("many", "usage"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_usage_that_cannot_be_is_counted_at_its_most_and_said(caplog, usage, told):
    with (
        serve(lambda request: {**completion("fine"), "usage": usage}) as server,
        caplog.at_level("WARNING"),
    ):
        reply = ask(server.url)
    assert reply.tokens_in == 2 and 1 <= reply.tokens_out <= 99 and reply.cost is None
    (line,) = [r.getMessage() for r in caplog.records]
    assert f"the server tells {told} " in line and len(line) < 300


@pytest.mark.parametrize(
    "value", [0.5, "-0.5", 1e308, -1e308, 10**400, -(10**400), True, None, [1], math.nan]
)
def test_a_log_probability_that_cannot_be_is_named(clip, value):
    with (
        serve(lambda request: listing(("A", value), ("B", -1.0))) as server,
        pytest.raises(UserError, match=r"'A' is .*; expected a number up to 0") as caught,
    ):
        score(server.url, clip)
    assert len(str(caught.value)) < 400


def test_a_list_of_thousands_of_tokens_is_refused(clip):
    many = [(f"t{i}", -9.0) for i in range(20_000)]
    with (
        serve(lambda request: listing(*many)) as server,
        pytest.raises(UserError, match="20000 tokens"),
    ):
        score(server.url, clip)


HOSTILE_TEXTS = {
    "40,000 <INS>": "<INS>" * 40_000,
    "40,000 <INS> with text": "<INS>a b" * 24_000,
    "brackets": "[" * 199_000,
    "objects": '{"a":' * 39_000,
    "keys": '"prompts": [' * 16_000,
    "thoughts": "<think>" * 28_000,
    "numbers": "\n".join(f"{i}. a b" for i in range(1, 99)) * 150,
    "one long prompt": json.dumps({"prompts": ["A or B " * 28_000]}),
    "long answers": json.dumps(
        {"prompts": [{"text": f"A or B {i}", "answers": {"SPEECH": "x" * 30_000, "NONSPEECH": "B"}} for i in range(6)]}
    ),
    "long labels": json.dumps({"prompts": [{"text": "A or B", "answers": {"y" * 190_000: "A"}}]}),
    "many answers": json.dumps(
        {"prompts": [{"text": "A or B", "answers": {"SPEECH": ["x" * 9] * 16_000, "NONSPEECH": "B"}}]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_hostile_texts_of_a_reply_are_bounded_where_they_are_fed_back(tmp_path, environment, name):
    """What is asked after such a reply, what is stored and what is logged of its refusals stays short."""
    with serve(lambda request: HOSTILE_TEXTS[name]) as server:
        assert run(tmp_path, "--lm-model", "m", "--lm-base-url", server.url) == 0
    asked = [
        sum(len(str(m["content"])) for m in request["messages"]) for request in server.requests
    ]
    assert max(asked) < asked[0] + 2000
    lines = [json.loads(x) for x in (tmp_path / "run" / "proposals.jsonl").read_text().splitlines()]
    refused = [one for line in lines for one in line.get("refused", [])]
    assert refused and all(len(one["text"]) + len(one["reason"]) < 500 for one in refused)
    assert all(len(line.get("refused", [])) <= MOST_READ + 1 for line in lines)
    assert (tmp_path / "run" / "log.txt").stat().st_size < 200_000


# The script that `opro.export` writes for other places.


def exported_script(folder):
    shutil.copy(ROOT / "opro" / "exported" / "ask.py", folder)
    about = {"labels": ["SPEECH", "NONSPEECH"], "audio": "AUDIO", "bias": [0.0, 0.0]}
    asked = {"body": {"model": "m"}, "answers": {"SPEECH": ["A"], "NONSPEECH": ["B"]}}
    (folder / "request.json").write_text(json.dumps(about | {"requests": [asked]}))
    (folder / "clip.wav").write_bytes(b"RIFF")
    return folder / "ask.py"


def test_the_exported_script_sends_its_key_nowhere_else(environment, tmp_path):
    script = exported_script(tmp_path)
    environment.setattr(sys, "argv", ["ask.py", str(tmp_path / "clip.wav")])
    environment.setenv("OPENAI_API_KEY", KEY)
    with hostile(CASES["cut"]) as target:
        for status in (b"302 Go", b"307 Go"):
            with hostile(body(b"", status, b"location: " + target.url.encode())) as server:
                environment.setenv("OPENAI_BASE_URL", server.url)
                with pytest.raises(SystemExit, match="no log-probabilities came back"):
                    runpy.run_path(str(script))
    assert target.heads == [] and KEY.lower() in server.heads[0].lower()


@pytest.mark.parametrize(
    "url", ["file:///etc", "ftp://127.0.0.1:9", "http://me:pw@127.0.0.1:9/v1", "x"]
)
def test_the_exported_script_asks_servers_alone(environment, tmp_path, url):
    script = exported_script(tmp_path)
    environment.setattr(sys, "argv", ["ask.py", str(tmp_path / "clip.wav")])
    environment.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(SystemExit, match="OPENAI_BASE_URL is no address like"):
        runpy.run_path(str(script))


@pytest.mark.parametrize(
    "name",
    [
        "cut",
        "reset",
        "hangs up",
        "body without end",
        "gzip that is none",
        "no HTTP",
        "deep JSON",
        "500 without end",
    ],
)
def test_a_hostile_reply_to_the_exported_script_is_one_sentence(environment, tmp_path, name):
    script = exported_script(tmp_path)
    environment.setattr(sys, "argv", ["ask.py", str(tmp_path / "clip.wav")])
    with hostile(CASES[name]) as server:
        environment.setenv("OPENAI_BASE_URL", server.url)
        with pytest.raises(SystemExit, match="no log-probabilities came back") as caught:
            runpy.run_path(str(script))
    assert len(str(caught.value)) < 400
