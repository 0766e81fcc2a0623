"""Who may ask the page's server, and for what."""

import shutil

import pytest

pytest.importorskip("gradio", reason="pip install 'opro-audio[view]'")
pytest.importorskip("krippendorff", reason="pip install 'opro-audio[view]'")

from starlette.testclient import TestClient

from evaluators.errors import UserError
from opro.view.app import application, bound

PORT = 7999
HERE = f"http://127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def client(runs):
    with TestClient(application(runs, PORT), base_url=HERE) as one:
        yield one


def test_the_page_itself_is_served_and_may_ask_nothing_elsewhere(client):
    page = client.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1.evil.example", "0.0.0.0"]
)
def test_another_host_name_is_refused(client, host):
    """A page elsewhere whose name was made to mean this machine."""
    assert client.get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
    ],
)
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload"])
def test_what_another_page_sends_is_refused(client, headers, path):
    assert client.post(path, headers=headers, content=b"{}").status_code == 403


def test_the_pages_own_requests_pass(client):
    own = {"origin": HERE, "sec-fetch-site": "same-origin"}
    assert client.post("/gradio_api/queue/join", headers=own, json={}).status_code != 403


def test_no_file_of_the_machine_is_served(client, runs):
    secret = runs / "done" / "config.yaml"
    for path in ("/etc/passwd", str(secret), "pyproject.toml", "../../etc/passwd"):
        for route in (
            "/gradio_api/file=",
            "/file=",
            "/clip/",
            "/static/",
            "/assets/",
            "/gradio_api/stream/",
        ):
            got = client.get(f"{route}{path}")
            assert got.status_code in (400, 403, 404, 405, 422), (route, path, got.status_code)


def test_a_sentence_says_that_there_is_no_such_clip(client):
    got = client.get("/clip/nothing")
    assert got.status_code == 404 and got.text == "the page has shown no such clip"


def test_gradio_asks_nobody_for_versions_or_counts():
    import os

    import gradio

    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert gradio.analytics.analytics_enabled() is False


def test_a_port_that_is_taken_is_one_sentence_and_the_page_is_this_machines_alone():
    with bound(0) as own:
        host, port = own.getsockname()
        assert host == "127.0.0.1"
        own.listen()
        with pytest.raises(UserError, match=f"--port {port} cannot be had"):
            bound(port)


def test_a_folder_without_runs_and_one_with_a_damaged_run_have_a_page(tmp_path, runs):
    with TestClient(application(tmp_path, PORT), base_url=HERE) as one:
        assert "There is no run yet." in one.get("/config").text
    shutil.copytree(runs / "half", tmp_path / "bad")
    (tmp_path / "bad" / "trials.jsonl").write_text("{\n")
    with TestClient(application(tmp_path, PORT), base_url=HERE) as one:
        assert "damaged line" in one.get("/config").text
