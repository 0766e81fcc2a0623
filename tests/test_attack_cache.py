"""The score cache against whoever can write into its folder: no file is touched, and no damaged score is used."""

import os
import sqlite3
from dataclasses import replace

import numpy as np
import pytest

from evaluators.cache import CachedEvaluator
from evaluators.fakes import FakeEvaluator

VALUE = "UPDATE Cache SET value = ?"
ATTACKS = {  # name -> statement, its values made of the value that is there
    "a file outside is named": ("UPDATE Cache SET filename = ?", lambda raw, out: [str(out)]),
    "a binary file outside is the value": (
        "UPDATE Cache SET mode = 2, value = NULL, filename = ?",
        lambda raw, out: [str(out)],
    ),
    "a text file outside is the value": (
        "UPDATE Cache SET mode = 3, value = NULL, filename = ?",
        lambda raw, out: [str(out)],
    ),
    "a pickle in a file outside": (
        "UPDATE Cache SET mode = 4, value = NULL, filename = ?",
        lambda raw, out: [str(out)],
    ),
    "expired, with a file outside": (
        "UPDATE Cache SET expire_time = 1, filename = ?",
        lambda raw, out: [str(out)],
    ),
    "labels exchanged": (
        VALUE,
        lambda raw, out: [b"".join([raw[:16], raw[20:24], raw[16:20], raw[24:]])],
    ),
    "a bit flipped": (VALUE, lambda raw, out: [raw[:19] + bytes([raw[19] ^ 1]) + raw[20:]]),
    "cut": (VALUE, lambda raw, out: [raw[:-5]]),
    "longer": (VALUE, lambda raw, out: [raw + raw]),
    "of another type": (VALUE, lambda raw, out: [17]),
    "text": (VALUE, lambda raw, out: ["seventeen"]),
    "null": (VALUE, lambda raw, out: [None]),
    "of another prompt": (
        "UPDATE Cache SET value = (SELECT value FROM Cache WHERE rowid = 2) WHERE rowid = 1",
        lambda raw, out: [],
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("outside", ["file", "fifo"])
def test_a_row_that_was_changed_is_made_again_and_no_file_is_touched(
    attack, outside, tmp_path, seeds, dev_clips, caplog
):
    clips, folder, out = dev_clips[:3], tmp_path / "cache", tmp_path / "precious"
    expected = FakeEvaluator().score(seeds[:2], clips)
    cached = CachedEvaluator(FakeEvaluator(), folder)
    cached.score(seeds[:2], clips)
    cached.close()
    if outside == "fifo":
        os.mkfifo(out)  # whoever opens it waits for ever
    else:
        out.write_bytes(b"kept")
    db = sqlite3.connect(folder / "cache.db")
    (raw,) = db.execute("SELECT value FROM Cache WHERE rowid = 1").fetchone()
    statement, values = ATTACKS[attack]
    db.execute(statement, values(raw, out))
    db.commit()
    db.close()
    again = CachedEvaluator(FakeEvaluator(), folder)
    for _ in range(2):  # the second time from memory
        np.testing.assert_array_equal(again.score(seeds[:2], clips).logp, expected.logp)
    again.close()
    assert out.exists() and (outside == "fifo" or out.read_bytes() == b"kept")
    if "expired" not in attack:
        assert "not what was written there; its scores are made again" in caplog.text
    caplog.clear()
    mended = CachedEvaluator(FakeEvaluator(), folder)
    assert mended.count_missing(seeds[:2], clips) == 0
    np.testing.assert_array_equal(mended.score(seeds[:2], clips).logp, expected.logp)
    mended.close()
    assert not caplog.text


def test_long_rows_get_no_files_of_their_own(tmp_path, seeds, dev_clips):
    many = [replace(dev_clips[i % 8], sha256=f"{i:064x}") for i in range(3000)]
    cached = CachedEvaluator(FakeEvaluator(), tmp_path / "cache")
    table = cached.score(seeds[:1], many)
    cached.close()
    assert {p.name.split("-")[0] for p in (tmp_path / "cache").rglob("*") if p.is_file()} == {
        "cache.db"
    }
    again = CachedEvaluator(FakeEvaluator(), tmp_path / "cache")
    assert again.count_missing(seeds[:1], many) == 0
    np.testing.assert_array_equal(again.score(seeds[:1], many).logp, table.logp)
