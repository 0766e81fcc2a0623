"""The command: wrong use is one sentence."""

import pytest

from data import build


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--out", "x"], "recipe 'nothing' does not exist; known are"),
        (["factorial", "--out", "x"], "no recordings: give --recordings"),
        (["factorial", "--out", "x", "--recordings", "esc51=/"], "layout 'esc51' is not one of"),
        (["factorial", "--out", "x", "--recordings", "esc50=/nowhere"], "is no folder"),
        (["factorial", "--out", "x", "--processes", "0"], "--processes is 0; expected 1 or more"),
        (["debian", "--out", "x", "--packages", "vlc"], "'vlc' is not in the catalogue"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build.main(arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()
