"""The wire to a server: connections, proxies and addresses. What is read from it stands in the tests of its users."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from chat_server import completion, serve

from evaluators.chat_client import ChatClient, ChatError, backoff
from evaluators.environment import Server

REQUEST = {"model": "m", "messages": [], "max_tokens": 9}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)


def client(url, key="k", timeout=20.0):
    return ChatClient(Server(url, key), timeout, {})


def test_a_connection_serves_one_request_after_the_other():
    with serve(lambda request: "fine") as server:
        one = client(server.url)
        for _ in range(5):
            assert one.chat(REQUEST)["choices"]
        assert len(server.clients) == 1
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: one.chat(REQUEST), range(80)))
        assert len(server.clients) <= 8


def test_a_connection_that_the_server_has_closed_is_not_used_again():
    bye = (200, b'{"choices": []}', {"connection": "close"})
    with serve(lambda request: "fine", [None, bye, None, "cut", None]) as server:
        one = client(server.url)
        for _ in range(3):
            one.chat(REQUEST)
        with pytest.raises(ChatError, match="broke off"):
            one.chat(REQUEST)
        assert one.chat(REQUEST) == completion("fine")


def test_a_proxy_of_the_environment_is_used(monkeypatch):
    with serve(lambda request: "fine") as server:
        monkeypatch.setenv("http_proxy", server.url.replace("http://", "http://me:pw@"))
        monkeypatch.setenv("no_proxy", "")
        assert client("http://models.invalid/v1").chat(REQUEST) == completion("fine")
        monkeypatch.setenv("no_proxy", "models.invalid")
        with pytest.raises(ChatError, match="no connection"):
            client("http://models.invalid/v1", timeout=5.0).chat(REQUEST)


def test_waits_grow_unless_the_server_says_how_long():
    error = ChatError("x", passes=True)
    assert [backoff(error, n) for n in (1, 2, 3, 9)] == [2, 4, 8, 60]
    assert backoff(error, 1, 0.5) == 0.5 and backoff(ChatError("x", wait_s=7.0), 3) == 7
