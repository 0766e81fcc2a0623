"""Files of predictions: what is written is read back, clip by clip."""

import dataclasses

import numpy as np
import pytest
from common import LABELS

from evaluators.classifier import Classifier, log_odds
from evaluators.errors import UserError
from evaluators.fakes import FakeEvaluator
from evaluators.manifest import read_manifest
from evaluators.prompts import Prompt
from evaluators.targets import SLICES
from opro.results.predictions import (
    joined,
    number_or_text,
    read_predictions,
    write_predictions,
)

PROMPT = Prompt("Is it speech? A or B")


@pytest.fixture
def said(make_manifest):
    clips = read_manifest(make_manifest(sources=20, per_source=3), LABELS, "dev")
    return FakeEvaluator().score([PROMPT], clips).predict(Classifier(PROMPT, bias=0.8), "mine")


def test_what_is_written_is_read_back(said, tmp_path):
    path = tmp_path / "deep" / "p.csv"
    write_predictions(path, said)
    back = read_predictions(path, LABELS[0])
    assert back.name == str(path) and back.targets.labels == LABELS
    assert back.targets.clip_ids == said.targets.clip_ids
    for name in ("truth", "sources"):
        assert (getattr(back.targets, name) == getattr(said.targets, name)).all()
    assert (back.decided == said.decided).all() and 0 < said.right.mean() < 1
    np.testing.assert_allclose(back.probability, said.probability, atol=1e-6)
    for name in SLICES:
        assert (back.targets.slices[name] == said.targets.slices[name]).all(), name


def test_ids_that_look_like_formulas_are_read_back_equal(make_manifest, tmp_path):
    """As of uploads, whose ids may begin with a dash."""

    def change(rows):
        for row in rows:
            row["clip_id"], row["source_id"] = f"-{row['clip_id']}", f"={row['source_id']}"

    clips = read_manifest(make_manifest(sources=20, change=change), LABELS, "dev")
    said = FakeEvaluator().score([PROMPT], clips).predict(Classifier(PROMPT))
    write_predictions(tmp_path / "p.csv", said)
    back = read_predictions(tmp_path / "p.csv", LABELS[0])
    assert back.targets.clip_ids == said.targets.clip_ids == tuple(c.clip_id for c in clips)
    assert back.targets.sources.tolist() == [c.source_id for c in clips]
    assert (joined(said, back).decided == said.decided).all()


def test_the_score_of_a_file_is_of_the_decision_with_its_threshold(said, tmp_path):
    """Probabilities carry the bias, so that what is above a half is what was decided."""
    write_predictions(tmp_path / "p.csv", said)
    back = read_predictions(tmp_path / "p.csv", LABELS[0])
    assert ((back.probability > 0.5) == (back.decided == 0)).all()
    assert (np.argsort(back.ranking) == np.argsort(said.score)).mean() > 0.9


def test_decisions_alone_are_a_file(said, tmp_path):
    plain = dataclasses.replace(said, probability=None, score=None)
    write_predictions(tmp_path / "p.csv", plain)
    back = read_predictions(tmp_path / "p.csv", LABELS[0])
    assert back.probability is None and (back.decided == said.decided).all()


def test_log_probabilities_decide_without_a_column_of_decisions(said, tmp_path):
    rng = np.random.default_rng(0)
    logp = np.log(rng.dirichlet([1, 1], len(said.targets)))
    lines = ["clip_id,source_id,label,logp_NONSPEECH,logp_SPEECH"]
    for i, clip in enumerate(said.targets.clip_ids):
        label = LABELS[said.targets.truth[i]]
        lines.append(f"{clip},{said.targets.sources[i]},{label},{logp[i, 1]},{logp[i, 0]}")
    (tmp_path / "p.csv").write_text("\n".join(lines) + "\n")
    back = read_predictions(tmp_path / "p.csv", LABELS[0])
    assert (back.decided == logp.argmax(-1)).all()
    np.testing.assert_allclose(back.score, log_odds(logp))


def test_files_are_joined_by_clip_in_the_order_of_the_first(said):
    order = np.random.default_rng(1).permutation(len(said.targets))
    shuffled = dataclasses.replace(said.take(order), name="other")
    back = joined(said, shuffled)
    assert back.name == "other" and back.targets.clip_ids == said.targets.clip_ids
    assert (back.decided == said.decided).all()
    assert (back.probability == said.probability).all()


@pytest.mark.parametrize("what", ["clips", "label", "source_id"])
def test_files_of_other_clips_are_not_joined(said, what):
    targets = said.targets
    if what == "clips":
        other, words = said.take(np.arange(1, len(targets))), "do not hold the same clips"
    elif what == "label":
        truth = targets.truth.copy()
        truth[3] = 1 - truth[3]
        other = dataclasses.replace(said, targets=dataclasses.replace(targets, truth=truth))
        words = f"clip {targets.clip_ids[3]!r}: label is"
    else:
        sources = targets.sources.astype(object)
        sources[3] = "elsewhere"
        other = dataclasses.replace(
            said, targets=dataclasses.replace(targets, sources=sources.astype(str))
        )
        words = f"clip {targets.clip_ids[3]!r}: source_id is"
    with pytest.raises(UserError, match=words):
        joined(said, other)


def test_numbers_of_slices_are_numbers():
    assert number_or_text("200") == 200.0 and number_or_text("200 to 300") == "200 to 300"
    assert number_or_text("") == ""
