"""Clip sets of the first study."""

import re

import pytest
from common import LABELS
from small_recordings import sound, table

from data import build
from evaluators.manifest import read_manifest, verify


def study(tmp_path):
    root = tmp_path / "study"
    rows = []
    for i, (name, dataset) in enumerate(
        [
            ("voxconverse_abjxc_000_1000ms", "voxconverse"),
            ("esc50_1-100-A-14_000_1000ms", "esc50"),
            ("esc50_1-100-B-14_001_1000ms", "esc50"),
        ]
    ):
        for snr in (0, 10):
            file = sound(root / "data" / f"{name}_dur200ms_snr{snr:+d}dB.wav", 2.0)
            with file.open("r+b") as raw:  # a file of its own: its first sample
                raw.seek(44)
                raw.write(bytes([i + 1, snr]))
            rows.append((name, f"dur200ms_snr{snr:+d}dB", 200, snr, file.relative_to(root).as_posix(),
                         "SPEECH" if i == 0 else "NON-SPEECH", dataset))  # fmt: skip
    header = [
        "clip_id",
        "variant_name",
        "duration_ms",
        "snr_db",
        "audio_path",
        "ground_truth",
        "dataset",
    ]
    return root, table(root / "test_metadata.csv", header, *rows)


def test_manifests_of_the_first_study_are_imported_with_splits_by_source(tmp_path, capsys):
    root, manifest = study(tmp_path)
    out = tmp_path / "out"
    arguments = ["import", "--recordings", str(manifest), "--root", str(root), "--out", str(out)]
    assert build.main([*arguments, "--dry-run"]) == 0 and not out.exists()
    assert build.main(arguments) == 0
    clips = read_manifest(out, LABELS)
    verify(clips)
    assert len(clips) == 6
    assert {c.source_id for c in clips} == {"voxconverse:abjxc", "freesound:100"}
    assert len({c.split for c in clips if c.source_id == "freesound:100"}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("NON-SPEECH", "MUSIC"), ":4: ground_truth 'MUSIC'"),
        (
            lambda t: t.replace("data/esc50_1-100-A", "data/esc50_9-100-A"),
            ":4: audio_path .* no file",
        ),
        (lambda t: t.replace("data/esc", "../../esc"), ":4: audio_path .* leaves"),
        (lambda t: t.replace(",10,", ",ten,"), ":3: snr_db is 'ten'"),
        (lambda t: t.replace("snr+10dB,", "snr+0dB,"), ":3: clip .* stands twice"),
    ],
)
def test_a_bad_row_of_the_first_study_is_named(tmp_path, change, message, capsys):

    root, manifest = study(tmp_path)
    manifest.write_text(change(manifest.read_text()))
    out = tmp_path / "out"
    assert (
        build.main(
            ["import", "--recordings", str(manifest), "--root", str(root), "--out", str(out)]
        )
        == 2
    )
    assert re.search(message, capsys.readouterr().err) and not out.exists()
