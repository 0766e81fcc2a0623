"""The page in a real Chromium: at two widths, by keyboard, with axe; nothing leaves this machine."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from common import LABELS, ROOT
from view_runs import HOSTILE

for package in ("gradio", "krippendorff", "playwright", "axe_playwright_python"):
    pytest.importorskip(package, reason="pip install 'opro-audio[dev]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium on the path; apt-get install chromium", allow_module_level=True)

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from evaluators.files import shipped
from opro.search.steering import read_requests

TABS = ("Runs", "Compare", "Proposals", "Steer", "Playground", "Listen")
WIDTHS = (1280, 390)
FLAGS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
]


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    own = tmp_path_factory.mktemp("browser") / "runs"
    shutil.copytree(runs, own)
    return own


@pytest.fixture(scope="module")
def address(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "opro.view", "--runs-dir", str(folder), "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--checkpoint", "fake"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(240):
            try:
                urllib.request.urlopen(url)
                break
            except OSError:
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.25)
        yield url
        process.terminate()


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, address):
    """Opens the page at a width. Fails at the end where it asked elsewhere, opened a dialog or had an error."""
    faults, pages = [], []

    def opened(width=1280):
        page = chromium.new_page(viewport={"width": width, "height": 1000})
        pages.append(page)
        page.on("dialog", lambda one: (faults.append(f"dialog {one.message}"), one.dismiss()))
        page.on("pageerror", lambda error: faults.append(f"error {error}"))
        page.on("request", lambda one: faults.extend([one.url] * (not is_ours(one.url))))
        page.goto(address)
        expect(page.get_by_role("heading", name="Runs, prompts and clips")).to_be_visible()
        expect(page.locator("#board")).to_contain_text("prompt id")
        return page

    def is_ours(url):
        return url.startswith((address, "data:", "blob:"))

    yield opened
    for page in pages:
        faults += page.get_by_test_id("toast-body").all_inner_texts()
        page.close()
    assert faults == []


def go(page, tab):
    """To a tab, through the menu where the page is too narrow to show it."""
    found = page.get_by_role("tab", name=tab)
    if found.count() and found.first.is_visible():
        found.first.click()
    else:
        page.locator(".overflow-menu > button").first.click()
        page.locator(".overflow-dropdown button", has_text=tab).first.click()


def choose(page, label, value):
    page.get_by_label(label, exact=True).first.click()
    page.get_by_role("option", name=value, exact=isinstance(value, str)).first.click()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_tab_fits_and_axe_finds_nothing(open_page, width):
    page = open_page(width)
    found = []
    for tab in TABS:
        go(page, tab)
        page.wait_for_timeout(600)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        found += [
            (tab, one["id"], one["nodes"][0]["html"])
            for one in Axe().run(page).response["violations"]
        ]
    assert found == []


def test_hostile_words_stand_there_as_text_in_every_tab(open_page):
    page = open_page()
    choose(page, "Run", "done")
    for tab in TABS:
        go(page, tab)
        page.wait_for_timeout(400)
        assert page.locator("img[src='x']").count() == 0
        assert page.locator("[onmouseover]").count() == 0
    go(page, "Runs")
    expect(page.locator("#board")).to_contain_text(HOSTILE[:40])
    go(page, "Proposals")
    expect(page.locator("body")).to_contain_text(HOSTILE)


def test_the_leaderboard_sorts_and_filters(open_page):
    page = open_page()
    choose(page, "Run", "done")
    board = page.locator("#board")
    cells = board.get_by_role("gridcell")
    expect(cells.filter(has_text="cmd()").first).to_be_visible()
    board.get_by_label("Enter text to filter the table").fill("hear: nothing else")
    expect(cells).to_have_count(0)
    board.get_by_label("Enter text to filter the table").fill("cmd()")
    expect(cells.filter(has_text="cmd()").first).to_be_visible()
    expect(cells.filter(has_text="Is it speech?")).to_have_count(0)
    board.get_by_label("Enter text to filter the table").fill("")
    choose(page, "Order by", "length")
    expect(board.get_by_role("row").nth(1)).to_contain_text("=cmd() Speech? A or B")


def test_a_run_is_followed_as_its_journal_grows(open_page, folder):
    page = open_page()
    choose(page, "Run", "half")
    about = page.get_by_role("tabpanel").first
    expect(about).to_contain_text("interrupted, round 0 of 1")
    lines = (folder / "done" / "trials.jsonl").read_bytes().splitlines(keepends=True)
    have = (folder / "half" / "trials.jsonl").read_bytes().count(b"\n")
    with (folder / "half" / "trials.jsonl").open("ab") as file:
        file.write(b"".join(lines[have : have + 3]))
    expect(about).to_contain_text("round 1 of 1", timeout=15_000)
    expect(about).to_contain_text("5 prompts tried")


def test_two_prompts_are_compared_and_a_clip_plays(open_page):
    page = open_page()
    choose(page, "Run", "done")
    go(page, "Compare")
    choose(page, "First prompt, of the run above", re.compile("^#1 "))
    choose(page, "Second prompt", re.compile("^#2 "))
    expect(page.get_by_text("of the search half, of")).to_be_visible()
    player = page.locator("audio[aria-label^='clip ']").first
    seconds = player.evaluate("""one => new Promise((done, no) => {
        one.onloadedmetadata = () => done(one.duration); one.onerror = no; one.load()})""")
    assert 0.1 < seconds < 2


def test_a_run_is_steered_by_keyboard_alone(open_page, folder):
    page = open_page()
    choose(page, "Run", "half")
    go(page, "Steer")
    page.get_by_label("A prompt of your own for the next round").focus()
    page.keyboard.type("Mine: speech? A or B")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Add the prompt"
    page.keyboard.press("Enter")
    expect(page.locator("#steered")).to_contain_text("the next round that begins takes it")
    page.get_by_label("Words that no later candidate may contain").fill(f"hum {HOSTILE}")
    page.get_by_role("button", name="Forbid them").click()
    expect(page.get_by_role("region", name="what was asked")).to_contain_text(HOSTILE)
    asked = read_requests(folder / "half" / "steering.jsonl", LABELS)
    assert [one.kind for one in asked] == ["prompt", "forbid"]
    page.get_by_role("button", name="Pause before the next round").click()
    expect(page.locator("#steered")).to_contain_text("there is nothing to pause")


def test_p_follows_the_words_of_a_dropped_clip_and_a_recording(open_page):
    page = open_page()
    go(page, "Playground")
    clip = shipped("data/demo/clips/dev-n094.ogg")
    page.locator("input[type=file][accept*=audio]").first.set_input_files(clip)
    answer = page.locator("#p")
    expect(answer).to_contain_text("P(SPEECH) =", timeout=30_000)
    before = answer.inner_text()
    page.get_by_label("Prompt", exact=True).fill("Another question? A or B")
    expect(answer).not_to_have_text(before, timeout=15_000)
    expect(answer).to_contain_text("P(SPEECH) =")
    page.get_by_label("Answer words, in the order of the labels").fill("A")
    expect(answer).to_contain_text("expected 2 with commas between")
    page.get_by_label("Answer words, in the order of the labels").fill("A, B")
    expect(answer).to_contain_text("P(SPEECH) =")
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(1200)
    page.get_by_role("button", name="Stop").click()
    expect(answer).to_contain_text("P(SPEECH) =", timeout=15_000)


def test_clips_are_heard_blind_by_keyboard(open_page, folder):
    page = open_page()
    choose(page, "Run", "done")
    go(page, "Listen")
    page.get_by_label("Your name").fill("Ann <b>")
    page.keyboard.press("Enter")
    heard = page.locator("#listening")
    expect(heard).to_contain_text("Clip 1 of 100")
    assert "dev-" not in heard.inner_html()
    page.get_by_role("button", name="SPEECH", exact=True).focus()
    page.keyboard.press("Enter")
    expect(heard).to_contain_text("Clip 2 of 100")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(heard).to_contain_text("Clip 3 of 100")
    lines = (folder / "listening.jsonl").read_text().splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == ["SPEECH", "NONSPEECH"]
    page.get_by_role("button", name="How far listeners agree").click()
    page.get_by_role("button", name="Reckon").click()
    expect(page.locator("#heard")).to_contain_text("2 of 1 listeners")
