"""Tables of recordings: good ones are read, bad ones are one sentence with its line."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_recordings import RECIPE, make, make_recordings

from data import build
from evaluators.audio import RATE

GOOD = "speech/0.flac,SPEECH,speech,s0,CC0"


TABLE = {
    "label typo": ("speech/0.flac,SPEACH,speech,s0,CC0", ":2: label 'SPEACH' is not one of"),
    "wrong category": ("speech/0.flac,SPEECH,music,s0,CC0", ":2: category 'music' does not go"),
    "outside": ("../x.wav,SPEECH,speech,s0,CC0", ":2: path '../x.wav' leaves the folder"),
    "no source": ("speech/0.flac,SPEECH,speech,,CC0", ":2: source_id is empty"),
    "short row": ("speech/0.flac,SPEECH", ":2: the row has fewer fields"),
    "long row": ("speech/0.flac,SPEECH,speech,s0,CC0,a,b", ":2: the row has more fields"),
    "twice": (f"{GOOD}\n{GOOD}", ":3: path .* stands in .*:2 too"),
    "two labels": (f"{GOOD}\nmusic/0.flac,NONSPEECH,music,s0,CC0", ":2: source 's0' has label NONSPEECH elsewhere"),
    "latin-1": (b"speech/0.flac,SPEECH,speech,caf\xe9,CC0", "is not UTF-8"),
    "empty": ("", "nothing found; layout 'csv' expects"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_a_bad_table_is_one_sentence_with_its_line(tmp_path, recipe, name, capsys):

    root = make_recordings(tmp_path, speech=1, other=1, seconds=0.3)
    text, message = TABLE[name]
    header = b"path,label,category,source_id,licence\n"
    (root / "manifest.csv").write_bytes(
        header + (text if isinstance(text, bytes) else text.encode())
    )
    assert make(recipe, root, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert re.search(message, err) and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_missing_column_and_a_missing_table(tmp_path, recipe, capsys):
    root = make_recordings(tmp_path, speech=1, other=1, seconds=0.3)
    (root / "manifest.csv").write_text("path,label\nspeech/0.flac,SPEECH\n")
    assert make(recipe, root, tmp_path / "out") == 2
    assert "manifest.csv:1: column 'category' is missing" in capsys.readouterr().err
    (root / "manifest.csv").unlink()
    assert make(recipe, root, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "manifest.csv' does not exist; expected" in err and "source_id (the speaker" in err


def test_a_name_that_is_not_utf8_is_refused(tmp_path, recipe, capsys):
    folder = tmp_path / "odd"
    folder.mkdir()
    soundfile.write(folder / "x.wav", np.zeros(100), RATE)
    try:
        (folder / "x.wav").rename(Path(str(folder) + "/\udcff.wav"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    recipe.write_text(
        RECIPE + "recordings:\n  - {layout: folder, path: odd, label: NONSPEECH, category: noise}\n"
    )
    assert build.main([str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "is not UTF-8; rename the file" in capsys.readouterr().err
