"""Recordings from Debian packages, without the network."""

from data import build
from data.building.debian import read_rcc, read_riffs


def test_debian_dry_run_lists_the_small_set(capsys, tmp_path):
    assert build.main(["debian", "--out", str(tmp_path / "x"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "sonic-pi-samples" in out and "580 recordings" in out and not (tmp_path / "x").exists()


def test_archives_inside_packages_are_read(tmp_path):
    import struct

    riffs = b"".join(b"RIFF" + struct.pack("<I", n) + bytes(n) for n in (10, 20))
    assert [len(r) for r in read_riffs(b"junk" + riffs)] == [18, 28]
    # One folder with one file, stored as it is: version 1, root -> "a" -> "b.wav".
    names = b"".join(struct.pack(">HI", len(n), 0) + n.encode("utf-16-be") for n in ("a", "b.wav"))
    tree = struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHII", 0, 2, 1, 2)
    tree += struct.pack(">IHHHI", 8, 0, 0, 0, 0)
    data = struct.pack(">I", 5) + b"sound"
    at = 20
    raw = b"qres" + struct.pack(">IIII", 1, at, at + len(tree), at + len(tree) + len(data))
    assert list(read_rcc(raw + tree + data + names)) == [("a/b.wav", b"sound")]
    assert list(read_rcc(b"something else")) == []
