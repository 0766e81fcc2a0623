"""The doctor names what is wrong, and finds nothing where nothing is."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
import soundfile

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.fakes import FakeEvaluator
from evaluators.files import csv_text
from evaluators.tasks import SPEECH_TASK
from opro import doctor, finetune, optimize
from opro.cli import run_verb
from opro.doctor import main, symptoms


def test_the_tuned_checkpoint_is_well_and_of_the_base_the_prompts_are_named(capsys):
    assert main(["--clips", "20"]) == 1  # two seed prompts always say SPEECH there, as argmax
    assert "SPEECH for 100 % of the clips" in capsys.readouterr().out
    assert main(["--clips", "20", "--checkpoint", "pocket-lora"]) == 0
    out = capsys.readouterr().out
    for text in (
        "torch",
        "train: 1,000 clips",
        "ok      training",
        "silence in place of the clips moves",
        "AUROC of the labels 0.",
    ):
        assert text in out
    assert "SPEECH: 'A' [" in out and "BROKEN" not in out


def deaf(table):
    table.logp[:] = table.logp[:, :1]


def says_a(table):
    table.logp[..., 0], table.logp[..., 1] = -0.1, -3.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (deaf, "audio does not reach the model"),
        (says_a, r"SPEECH for 100 % of the clips"),
    ],
)
def test_broken_models_are_named(monkeypatch, capsys, change, message):
    class Broken(FakeEvaluator):
        def score(self, prompts, clips):
            table = super().score(prompts, clips)
            change(table)
            return table

    if change is deaf:  # the fake draws its noise by content: a deaf one answers alike everywhere
        monkeypatch.setattr(
            Broken, "score", lambda s, p, c: _constant(FakeEvaluator.score(s, p, c))
        )
    monkeypatch.setattr(doctor, "build_evaluator", lambda *a, **k: (Broken(), frozenset()))
    assert main(["--checkpoint", "fake"]) == 1
    out = capsys.readouterr().out
    assert message in out and "BROKEN" in out and "->" in out


def _constant(table):
    table.logp[:] = np.log([0.6, 0.4])
    return table


def test_symptoms_of_unsure_missing_and_short():
    truth = np.array([0] * 40 + [1] * 40)
    lengths = np.tile([200, 1000], 40)
    right = np.ones(80, bool)
    right[np.flatnonzero(lengths == 200)[::2]] = False  # half of the short ones
    right[40:60] = False  # and half of the second class
    first = np.where(right, truth == 0, truth != 0)
    logp = np.log(np.where(first[:, None], [0.8, 0.2], [0.2, 0.8]))
    texts = " ".join(f.text for f in symptoms(SPEECH_TASK.labels, truth, lengths, logp))
    assert "confidence gap" in texts and "NONSPEECH is right in" in texts
    assert "at 200 ms" in texts
    well = np.log(np.where((truth == 0)[:, None], [0.8, 0.2], [0.2, 0.8]))
    assert not list(symptoms(SPEECH_TASK.labels, truth, lengths, well))


@pytest.mark.parametrize(
    ("losses", "message", "level"),
    [
        ([4.0, 0.5], "loss 4.00 at first, 0.50 at last", "ok"),
        ([14.2, 11.0], "above 10 the loss is taken over padding", "broken"),
        ([2.0, float("nan")], "lower --lr", "broken"),
    ],
)
def test_the_record_of_a_training_is_read(tmp_path, losses, message, level):
    adapter = tmp_path / "adapter"
    shutil.copytree(open_checkpoint("pocket-lora").adapter, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "pocket-base"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "training.json").unlink()  # as transformers' Trainer leaves it
    log = {"log_history": [{"step": i, "loss": loss} for i, loss in enumerate(losses)]}
    (adapter / "trainer_state.json").write_text(json.dumps(log))
    (found,) = doctor._training(open_checkpoint(str(adapter)))
    assert found.level == level and message in found.text + found.fix


def test_leaking_splits_and_wrong_files_are_findings(make_manifest, tmp_path, capsys):
    folder = make_manifest(change=lambda rows: rows[1].update(split="test"))
    assert main(["--manifest", str(folder), "--clips", "8"]) == 1
    assert "BROKEN  clips" in capsys.readouterr().out
    assert main(["--checkpoint", str(tmp_path / "nothing")]) == 1
    assert "BROKEN  checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda wave: 0 * wave, "48 clips are digital silence but not of category silence: "),
        (lambda wave: wave + 0.3, "48 clips have an offset (DC) above half of their RMS"),
        (lambda wave: np.stack([wave, -wave], 1), "48 clips have channels that cancel"),
        (
            lambda wave: 32_768 * wave,
            "48 clips hold samples far above full scale, floats in the range of integers",
        ),
    ],
)
def test_levels_are_named_before_wordings_are_blamed(make_manifest, capsys, spoil, message):
    folder = make_manifest()
    for path in folder.glob("*.wav"):
        soundfile.write(path, spoil(soundfile.read(path)[0]), 16_000, subtype="FLOAT")
    rewrite_digests(folder)
    main(["--checkpoint", "fake", "--manifest", str(folder), "--clips", "20"])
    out = capsys.readouterr().out
    assert (
        f"look    clips                 {message}" in out
        and "->" in out.partition(message)[2][:600]
    )


def test_durations_in_seconds_are_named(make_manifest, capsys):
    def in_seconds(rows):
        for row in rows:
            row["duration_ms"] /= 1000

    folder = make_manifest(change=in_seconds)
    main(["--checkpoint", "fake", "--manifest", str(folder)])
    out = capsys.readouterr().out
    assert (
        "48 clips have a duration_ms that is in seconds" in out
        and "multiply the column by 1,000" in out
    )


def rewrite_digests(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["sha256"] = hashlib.sha256((folder / row["path"]).read_bytes()).hexdigest()
    (folder / "manifest.csv").write_text(csv_text(rows, tuple(rows[0])))


@pytest.mark.parametrize("verb", [doctor.main, optimize.main, finetune.main])
def test_a_source_in_two_spellings_over_train_dev_and_test_is_refused_by_every_verb(
    make_manifest, tmp_path, capsys, verb
):
    def change(rows):
        for row in rows:
            number = int(row["source_id"].removeprefix("source"))
            row["split"] = ("train", "dev", "dev", "test")[number // 2 % 4]
        for row, name in zip(
            rows[::4], ("J\u00fcrgen", "Ju\u0308rgen", "J\u00dcRGEN "), strict=False
        ):
            row["source_id"] = name

    folder = make_manifest(sources=48, change=change)
    argv = [
        "--checkpoint",
        "fake" if verb is not finetune.main else "pocket-base",
        "--manifest",
        str(folder),
    ]
    argv += {
        optimize.main: ["--runs-dir", str(tmp_path)],
        finetune.main: ["--out", str(tmp_path / "x")],
    }.get(verb, [])
    code = run_verb(lambda: verb(argv))
    shown = capsys.readouterr()
    assert code in (1, 2) and "is in split 'train' and in 'dev'" in shown.out + shown.err
    assert "which is one name" in shown.out + shown.err and not (tmp_path / "x").exists()
