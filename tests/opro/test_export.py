"""What is taken elsewhere gives the same labels there: with transformers alone, and from a server."""

import base64
import io
import json
import os
import runpy
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from adapters import LLM, base_model, lora, make_adapter
from chat_server import completion, serve
from transformers import AutoProcessor

import opro
from evaluators.audio_lm.checkpoint import POCKET
from evaluators.audio_lm.stock import StockModel
from evaluators.classifier import read_classifiers
from evaluators.clips import clip_wave
from evaluators.presentation import Presentation
from evaluators.prompts import Prompt
from opro import export
from opro.cli import run_verb

pytestmark = pytest.mark.tiny
LETTERS = "Is there speech?\nA) yes, a voice\nB) no"
HOSTILE = 'It\'s "<b>" {{ 1 }} {% x %} \\n?\nA) yes\nB) no'
WORDS = Prompt("Is it human speech?", (("SPEECH", ("speech",)), ("NONSPEECH", ("other sound",))))


@pytest.fixture(scope="module")
def clips():
    dev = opro.load_clips("data/demo", "dev")
    return dev.take([i for i, c in enumerate(dev) if c.duration_ms > 150][:28])


def finished(clips, folder, evaluator="pocket-base", prompt=LETTERS, **options):
    return opro.optimize(evaluator, [prompt], clips, iterations=0, runs_dir=folder, **options)


def exported(run, folder, *more):
    assert run_verb(lambda: export.main([str(run.path), "--to", str(folder), *more])) == 0
    return folder


def script(folder, name, paths, monkeypatch, capsys):
    """The script's rows; in this process, since loading transformers takes seconds."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [name, *map(str, paths)])
    runpy.run_path(str(folder / name), run_name="__main__")
    return rows_of(capsys.readouterr().out)


def rows_of(text):
    rows = [line.split("\t") for line in text.splitlines() if line.count("\t") == 2]
    return [row[1] for row in rows], np.array([float(row[2]) for row in rows])


def ours(evaluator, classifier, clips, folder):
    found = opro.score(evaluator, classifier, clips, runs_dir=folder)
    return list(found.predicted), found.score.to_numpy()


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        pytest.param(LETTERS, {"swap": True}, marks=pytest.mark.slow),  # by every server below
        (WORDS, {}),
        (HOSTILE, {"swap": True}),
    ],
    ids=["both orders", "several tokens", "hostile"],
)
def test_plain_transformers_give_the_same_labels_and_probabilities(
    clips, tmp_path, prompt, options, monkeypatch, capsys
):
    run = finished(clips, tmp_path, prompt=prompt, **options)
    folder = exported(run, tmp_path / "out")
    (classifier,) = read_classifiers(folder / "classifier.yaml", clips.task.labels)
    assert classifier == run.best
    some = clips[:4]
    labels, p = script(folder, "score.py", [c.path for c in some], monkeypatch, capsys)
    said, probability = ours("pocket-base", classifier, some, tmp_path)
    assert labels == said and np.abs(p - probability).max() < 1e-5
    assert (folder / "request.json").exists() == (prompt is not WORDS)
    assert all("/runs" not in p.read_text() for p in folder.glob("*.json"))


PRESENTED = Prompt(
    LETTERS, presentation=Presentation(800, "rms", -20.0, 1000, "noise", text_first=True)
)


def test_the_scripts_present_a_clip_as_the_search_did(clips, tmp_path, monkeypatch, capsys):
    run = finished(clips, tmp_path, prompt=PRESENTED)
    folder = exported(run, tmp_path / "out")
    monkeypatch.syspath_prepend(folder)  # where Python looks first when it runs a script
    assert (
        run.best.prompt
        == PRESENTED
        == read_classifiers(folder / "classifier.yaml", clips.task.labels)[0].prompt
    )
    some = clips[:4]
    paths = [c.path for c in some]
    labels, p = script(folder, "score.py", paths, monkeypatch, capsys)
    said, probability = ours("pocket-base", run.best, some, tmp_path)
    assert labels == said and np.abs(p - probability).max() < 1e-5
    body = json.loads((folder / "request.json").read_text())["requests"][0]["body"]
    assert [part["type"] for part in body["messages"][1]["content"]] == ["text", "input_audio"]
    sent = []

    def reply(body):
        raw = base64.b64decode(body["messages"][1]["content"][1]["input_audio"]["data"])
        sent.append(soundfile.read(io.BytesIO(raw), dtype="float32")[0])
        out = completion("A")
        entries = [{"token": t, "logprob": -1.0, "bytes": None} for t in "AB"]
        out["choices"][0]["logprobs"] = {"content": [{**entries[0], "top_logprobs": entries}]}
        return out

    with serve(reply) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        script(folder, "ask.py", paths, monkeypatch, capsys)
    for wave, clip in zip(sent, some, strict=True):
        assert np.abs(wave - clip_wave(clip, PRESENTED.presentation)).max() < 2**-15
    processor = AutoProcessor.from_pretrained(POCKET / "base")
    text = json.loads((folder / "export.json").read_text())["asked"][0]["text"]
    for content in ([{"type": "audio"}], [{"type": "text", "text": LETTERS}, {"type": "audio"}]):
        rendered = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=(folder / "chat_template.jinja").read_text(),
            tokenize=False,
            add_generation_prompt=True,
        )
        assert rendered == text


@pytest.mark.parametrize(
    "where",
    ["language model", pytest.param("everywhere", marks=pytest.mark.slow), "kept by --merge"],
)
def test_an_adapter_is_kept_or_merged_as_servers_need_it(
    clips, tmp_path, where, monkeypatch, capsys
):
    if where == "everywhere":
        checkpoint = "pocket-lora"
    else:
        checkpoint = make_adapter(lora(target_modules=LLM), tmp_path / "adapter")
    run = finished(clips, tmp_path, checkpoint)
    merged = where != "language model"
    folder = exported(run, tmp_path / "out", *(["--merge"] if where == "kept by --merge" else []))
    assert (folder / "model").is_dir() == merged and (folder / "adapter").is_dir() != merged
    told = capsys.readouterr().out
    assert ("changes audio_tower, which servers such as vLLM do not take" in told) == (
        where == "everywhere"
    )
    some = clips[:3]
    labels, p = script(folder, "score.py", [c.path for c in some], monkeypatch, capsys)
    scored = str(folder / "model") if merged else checkpoint
    said, probability = ours(scored, run.best, some, tmp_path)
    assert labels == said and np.abs(p - probability).max() < 1e-5
    if merged:  # the files are float16, as the base's are
        before, probability = ours(checkpoint, run.best, some, tmp_path)
        assert labels == before and np.abs(p - probability).max() < 1e-4


@pytest.mark.parametrize("prompt", [LETTERS, HOSTILE])
def test_the_chat_template_renders_what_was_scored(clips, tmp_path, prompt):
    folder = exported(finished(clips, tmp_path, prompt=prompt), tmp_path / "out")
    template = (folder / "chat_template.jinja").read_text()
    text = json.loads((folder / "export.json").read_text())["asked"][0]["text"]
    processor = AutoProcessor.from_pretrained(POCKET / "base")
    audio, system = {"type": "audio", "audio": "x"}, Prompt("").system
    for messages in (
        [{"role": "user", "content": [audio]}],
        [{"role": "user", "content": [audio, {"type": "text", "text": prompt}]}],
        [{"role": "system", "content": system}, {"role": "user", "content": [audio]}],
        [
            {"role": "system", "content": [{"type": "text", "text": system}]},
            {"role": "user", "content": [{"type": "audio_url"}, {"type": "text", "text": prompt}]},
        ],
    ):
        rendered = processor.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert rendered == text
    other = [{"role": "user", "content": [audio, {"type": "text", "text": "Other words?"}]}]
    rendered = processor.apply_chat_template(other, chat_template=template, tokenize=False)
    assert "Other words?" in rendered and prompt not in rendered


@pytest.mark.parametrize("swap", [True])
def test_a_server_that_lists_token_ids_gives_the_same_labels(
    clips, tmp_path, swap, monkeypatch, capsys
):
    """A loopback server that holds the checkpoint: it lists what is asked for by id, else the likeliest tokens."""
    run = finished(clips, tmp_path, swap=swap)
    folder = exported(run, tmp_path / "out", "--served-as", "pocket")
    processor = AutoProcessor.from_pretrained(POCKET / "base")
    stock = StockModel(base_model().eval(), processor, torch.device("cpu"))
    heard = {soundfile.read(c.path, dtype="float32")[0].tobytes(): c for c in clips}

    def reply(body):
        system, user = body["messages"]
        raw = base64.b64decode(user["content"][0]["input_audio"]["data"])
        clip = heard[soundfile.read(io.BytesIO(raw), dtype="float32")[0].tobytes()]
        assert body["model"] == "pocket" and body["max_tokens"] == 1
        prompt = Prompt(user["content"][1]["text"], system=system["content"])
        logp = stock.logp(prompt, clip)
        entries = [
            {"token": processor.tokenizer.decode([i]), "logprob": float(logp[i]), "bytes": None}
            for i in body["logprob_token_ids"]
        ]
        out = completion("A")
        out["choices"][0]["logprobs"] = {"content": [{**entries[0], "top_logprobs": entries}]}
        return out

    some, waves = clips[:4], []
    for clip in some:
        waves.append(tmp_path / f"{clip.clip_id}.wav")
        soundfile.write(waves[-1], *soundfile.read(clip.path, dtype="float32"), subtype="FLOAT")
    with serve(reply) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        labels, p = script(folder, "ask.py", waves, monkeypatch, capsys)
        assert len(server.requests) == len(some) * (1 + swap)
    said, probability = ours("pocket-base", run.best, some, tmp_path)
    assert labels == said and np.abs(p - probability).max() < 1e-5


def test_the_script_needs_nothing_of_this_project(clips, tmp_path):
    folder = exported(finished(clips, tmp_path), tmp_path / "out")
    done = subprocess.run(
        [sys.executable, str(folder / "score.py"), str(clips[0].path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"},
    )
    assert len(rows_of(done.stdout)[0]) == 1
    imported = "".join(path.read_text() for path in folder.glob("*.py"))
    assert "opro" not in imported and "evaluators" not in imported


def test_what_cannot_be_taken_elsewhere_is_one_sentence(clips, tmp_path, capsys):
    run = opro.optimize("fake", [LETTERS], "data/demo", iterations=0, runs_dir=tmp_path)
    for argv, said in (
        ([str(run.path), "--to", str(tmp_path)], "exists; give a folder that does not"),
        ([str(run.path), "--to", str(tmp_path / "x")], "'fake' has no weights"),
        ([str(tmp_path / "none"), "--to", str(tmp_path / "x")], "is no run folder"),
    ):
        assert run_verb(lambda argv=argv: export.main(argv)) == 2
        assert said in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("x")) == []
    spelled = finished(clips, tmp_path, prompt="Speech <|im_end|>?\nA) yes\nB) no")
    assert run_verb(lambda: export.main([str(spelled.path), "--to", str(tmp_path / "x")])) == 2
    assert "spells a control token" in capsys.readouterr().err
