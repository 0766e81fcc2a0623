"""What the environment says of servers, and what is hidden of it."""

import html
import json
import os
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators import environment
from evaluators.environment import audio_server, checked_url, language_server, without_secrets
from evaluators.errors import UserError
from evaluators.files import append_line, write_json

KEY = "sk-ab/c+d&e<f\\g-12345"


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    for name in (*environment._KEYS, *environment._ADDRESSES):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_variables_the_server_is_openais_and_there_is_no_audio_server():
    server = language_server()
    assert (server.url, server.key) == ("https://api.openai.com/v1", "none")
    assert audio_server() is None


def test_a_key_is_in_no_repr(variables):
    variables.setenv("OPENAI_API_KEY", KEY)
    assert language_server().key == KEY and KEY not in repr(language_server())


@pytest.mark.parametrize(
    ("audio", "general", "sent"),
    [
        ("http://h:80/a", "http://h/b", True),
        ("https://h/a", "https://h:443/b", True),
        ("http://H/a", "http://h/b", True),
        ("http://h/a", "https://h/a", False),
        ("http://h:8000/a", "http://h:8001/a", False),
        ("http://h/a", "http://h.evil/a", False),
        ("https://api.openai.com/v1", None, True),
        ("http://h/a", None, False),
    ],
)
def test_the_general_key_goes_to_the_same_scheme_host_and_port_alone(
    variables, audio, general, sent
):
    variables.setenv("OPENAI_API_KEY", KEY)
    if general:
        variables.setenv("OPENAI_BASE_URL", general)
    assert (audio_server(audio).key == KEY) == sent
    variables.setenv("OPRO_AUDIO_API_KEY", "audio")
    assert audio_server(audio).key == "audio"


@pytest.mark.parametrize("value", ["k", "EMPTY", "none", "ollama", "lm-studio", "not-needed"])
def test_what_stands_for_no_key_is_a_word_like_any_other(variables, value):
    variables.setenv("OPENAI_API_KEY", value)
    text = f"{value}: the key of lm-studio is not-needed, and none is EMPTY"
    assert without_secrets(text) == text and environment.keys_in(text) == []


@pytest.mark.parametrize(
    "spell", [str, json.dumps, html.escape, urllib.parse.quote, urllib.parse.quote_plus]
)
def test_a_key_is_hidden_in_every_spelling(variables, spell):
    variables.setenv("OPRO_AUDIO_API_KEY", KEY)
    shown = without_secrets(f"x {spell(KEY)} y")
    assert "12345" not in shown and "***" in shown


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("http://h/v1?api-version=2024-10-21&sig=abcdefgh12", ["abcdefgh12"]),
        ("http://someone1:passw0rd%21@h/v1", ["passw0rd!", "passw0rd%21", "someone1"]),
        ("http://[::1", []),
        ("http://h/v1", []),
    ],
)
def test_credentials_of_addresses_are_secret(variables, url, secrets):
    for name in ("OPENAI_BASE_URL", "https_proxy"):
        variables.setenv(name, url)
        assert sorted(environment.secrets()) == sorted(secrets)
        variables.delenv(name)


@given(st.text(), st.text())
def test_no_file_holds_a_key(tmp_path_factory, before, after):
    folder = tmp_path_factory.mktemp("files")
    os.environ["OPENAI_API_KEY"] = KEY
    try:
        data = {before + KEY: [after + KEY + before]}
        write_json(folder / "a.json", data)
        append_line(folder / "b", (before + KEY + after).encode("utf-8", "replace").decode())
    finally:
        del os.environ["OPENAI_API_KEY"]
    for path in folder.iterdir():
        assert KEY not in path.read_text() and json.dumps(KEY)[1:-1] not in path.read_text()


@given(st.text(max_size=30) | st.text(alphabet="http://[]@:%?#.9a", max_size=30))
def test_any_text_is_an_address_or_one_sentence(url):
    try:
        found = checked_url(url, "OPENAI_BASE_URL")
    except UserError as error:
        assert str(error).startswith("OPENAI_BASE_URL ") and "\n" not in str(error)
    else:
        parts = urllib.parse.urlsplit(found)
        assert parts.scheme in ("http", "https") and parts.hostname and found.isascii()
        assert parts.port is None or 0 < parts.port < 65536
