"""A sealed card is made again from the raw clips, and notices whatever was changed."""

import shutil

import numpy as np
import pytest
import yaml

import opro
from evaluators.files import shipped
from evaluators.statistics.resampling import Estimate
from opro import check, seal, verify
from opro.cli import run_verb
from opro.results.card import Card, read_card

CARDS = sorted(shipped("data/cards").glob("*.yaml"))
TEXTS = ["Is there speech in this clip?\nA) yes\nB) no", "A voice?\nA) yes\nB) no"]


def verb(module, *argv):
    return run_verb(lambda: module.main([str(a) for a in argv]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return opro.optimize("fake", TEXTS, "data/demo", iterations=1, runs_dir=folder, name="r")


@pytest.fixture(scope="module")
def card(run):
    assert verb(seal, run.path) == 0
    return run.path / "card.yaml"


def edited(card, folder, **changes):
    """The card with other values and a digest that fits them."""
    raw = yaml.safe_load(card.read_text())
    for name, value in changes.items():
        raw[name] = {**raw[name], **value} if isinstance(value, dict) else value
    path = folder / "edited.yaml"
    raw["digest"] = ""
    raw["digest"] = Card.model_validate(raw).sealed_digest()
    path.write_text(yaml.safe_dump(raw, allow_unicode=True))
    return path


def test_a_card_holds_what_the_run_found_and_is_made_again(run, card, capsys):
    found = read_card(card)
    assert found.classifier("chosen") == run.best
    assert found.holdout.reason == run.summary.reason
    assert found.holdout.gain.value == pytest.approx(run.summary.gain.estimate)
    assert found.rule.decisions == 1 and found.rule.test_uses == 0
    held = run.holdout[run.holdout.prompt_id == run.best.prompt_id]
    assert [row["clip_id"] for row in found.rows] == list(held.clip_id)
    assert np.allclose([float(row["p_chosen"]) for row in found.rows], held.score)
    assert verb(verify, card) == 0
    assert "same labels, P within" in capsys.readouterr().out


def test_looks_are_counted(run, card, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(run.path.parent, runs)
    opro.optimize("fake", TEXTS[:1], "data/demo", iterations=0, runs_dir=runs, name="other")
    opro.score("fake", run.best, opro.load_clips("data/demo", "test"), runs_dir=runs)
    assert verb(seal, runs / "r", "--out", tmp_path / "c.yaml") == 0
    rule = read_card(tmp_path / "c.yaml").rule
    assert (rule.decisions, rule.test_uses) == (2, 1)


def test_a_change_by_hand_is_noticed(card, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    text = card.read_text()
    for old, new in (("bias:", "bias: 1"), ("value: 0.", "value: 0.9"), ("trials: ", "trials: 1")):
        changed = text.replace(old, new, 1)
        if changed == text:
            continue
        path.write_text(changed)
        assert verb(verify, path) == 2
        err = capsys.readouterr().err
        assert "was changed since it was sealed" in err or "no sealed card" in err or "YAML" in err
    path.write_text("prompts: []")
    assert verb(verify, path) == 2 and "no sealed card" in capsys.readouterr().err


def test_verify_tells_what_differs(run, card, tmp_path, capsys):
    rows = yaml.safe_load(card.read_text())["clips"]["rows"]
    first = read_card(card).rows[0]
    line = next(x for x in rows.splitlines() if x.startswith(first["clip_id"]))
    other = "NONSPEECH" if first["chosen"] == "SPEECH" else "SPEECH"
    flipped = line.replace(f",{first['chosen']},{first['p_chosen']},", f",{other},0.5,", 1)
    assert flipped != line
    for changes, said in (
        ({"clips": {"rows": rows.replace(line, flipped)}}, "1 of 200 clips have another label"),
        ({"holdout": {"chosen": {"value": 0.1, "low": 0.0, "high": 1.0}}}, "chosen is"),
        ({"model": {"digest": "0" * 64}}, "another checkpoint"),
    ):
        assert verb(verify, edited(card, tmp_path, **changes)) == 1
        assert said in capsys.readouterr().out
    for changes, said in (
        (
            {"clips": {"rows": rows.replace(first["sha256"], "0" * 64)}},
            "the card says '000000000000'",
        ),
        ({"clips": {"manifest": "data/none"}}, "data/none"),
        (
            {"clips": {"rows": rows.replace(first["clip_id"], "gone", 1)}},
            "'gone' of the card is not",
        ),
    ):
        assert verb(verify, edited(card, tmp_path, **changes)) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("who", ["chosen", "baseline"])
def test_a_probability_that_moved_is_told_of_either_prompt(card, tmp_path, capsys, who):
    found = read_card(card)
    row = next(r for r in found.rows if float(r[f"p_{who}"]) < 0.5)
    line = next(x for x in found.clips.rows.splitlines() if x.startswith(f"{row['clip_id']},"))
    p = row[f"p_{who}"]
    old, new = f",{row[who]},{p}", f",{row[who]},{float(p) + 0.3:.6f}"
    moved = (
        line[::-1].replace(old[::-1], new[::-1], 1)[::-1]
        if who == "baseline"
        else line.replace(old, new, 1)
    )
    rows = found.clips.rows.replace(line, moved)
    assert verb(verify, edited(card, tmp_path, clips={"rows": rows})) == 1
    assert "a probability differs by 0.300" in capsys.readouterr().out


def test_other_libraries_are_told(card, tmp_path, capsys):
    assert verb(verify, edited(card, tmp_path, model={"versions": {"torch": "1.0"}})) == 0
    assert "then with torch 1.0 (here none)" in capsys.readouterr().out


def test_a_gate_lets_through_what_is_shown_to_be_no_worse():
    def verdict(low, high, margin):
        return check.verdict_of(Estimate(0.0, low, high, 100, 50), margin)

    assert verdict(-0.04, 0.02, 0.05) == "no worse"
    assert verdict(-0.05, 0.02, 0.05) == "not shown"
    assert verdict(-0.20, -0.06, 0.05) == "worse"
    assert verdict(-0.20, 0.06, 0.05) == "not shown"
    assert verdict(None, None, 0.05) == "not shown"


def test_the_gate_compares_with_what_was_sealed(run, card, tmp_path, capsys):
    assert verb(check, card, "--checkpoint", "fake", "--margin", 0.1, "--runs-dir", tmp_path) == 0
    assert "NO WORSE: +0.0 points" in capsys.readouterr().out
    found = read_card(card)
    rows = found.clips.rows
    for row in found.rows:  # sealed as if all had been right
        line = next(x for x in rows.splitlines() if x.startswith(f"{row['clip_id']},"))
        better = line.replace(
            f"{row['source_id']},{row['chosen']},{row['p_chosen']}",
            f"{row['source_id']},{row['label']},{row['p_chosen']}",
        )
        rows = rows.replace(line, better)
    perfect = edited(card, tmp_path, clips={"rows": rows})
    wrong = sum(row["chosen"] != row["label"] for row in found.rows)
    code = verb(check, perfect, "--checkpoint", "fake", "--margin", 1, "--runs-dir", tmp_path)
    out = capsys.readouterr().out
    assert wrong > 5 and code == 1 and out.startswith(("WORSE: -", "NOT SHOWN: -"))


def test_a_run_that_is_not_finished_or_not_its_own_is_not_sealed(run, tmp_path, capsys):
    copy = tmp_path / "r"
    shutil.copytree(run.path, copy)
    (copy / "summary.json").unlink()
    assert verb(seal, copy) == 2 and "is not finished" in capsys.readouterr().err
    shutil.copy(run.path / "summary.json", copy)
    journal = copy / "trials.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    lines[0] = lines[0].replace('"fingerprint": "', '"fingerprint": "0')
    journal.write_text("".join(lines))
    assert verb(seal, copy) == 2 and "is not the one that run 'r' scored" in capsys.readouterr().err


@pytest.mark.tiny
@pytest.mark.parametrize("path", CARDS[:1], ids=lambda p: p.stem)
def test_a_shipped_card_is_made_again(path, capsys):
    assert verb(verify, path) == 0, capsys.readouterr().out


def test_five_cards_ship_and_are_as_they_were_sealed():
    cards = [read_card(path) for path in CARDS]
    assert len(cards) == 5 and len({c.digest for c in cards}) == 5
    assert {c.model.name for c in cards} == {"pocket-base", "pocket-lora"}
    assert all(c.model.dtype == "float32" for c in cards)
