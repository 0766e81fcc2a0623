"""Manifests: what is read, and that each wrong cell is named."""

import csv
import hashlib

import pytest
from common import LABELS

from evaluators.errors import LeakError, UserError
from evaluators.manifest import (
    COLUMNS,
    NEEDED,
    columns_of,
    manifest_digest,
    manifest_path,
    read_manifest,
    verify,
)
from evaluators.splits import halves


def ids(clips):
    return [c.clip_id for c in clips]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("label", "MUSIC", "label 'MUSIC' is not one of SPEECH, NONSPEECH"),
        ("split", "held", "split 'held' is not one of train, dev, test"),
        ("path", "../outside.wav", "leaves the folder"),
        ("path", "/etc/hostname", "leaves the folder"),
        ("duration_ms", "long", "duration_ms is 'long'; expected a number"),
        ("snr_db", "nan", "snr_db is 'nan'; expected a number"),
        (
            "clip_id",
            "s1-0",
            "manifest.csv:4: clip_id 's1-0' stands in two rows, the other is line 2",
        ),
    ],
)
def test_a_bad_row_is_named(make_manifest, field, value, message):
    folder = make_manifest(sources=4, change=lambda rows: rows[0].update({field: value}))
    with pytest.raises(UserError, match=message):
        read_manifest(folder, LABELS)


def test_a_missing_column_is_named(make_manifest):
    folder = make_manifest(sources=4, columns=("clip_id", "path", "label"))
    with pytest.raises(UserError, match="column 'category' is missing"):
        read_manifest(folder, LABELS)


def test_a_source_in_two_splits_is_refused(make_manifest):
    folder = make_manifest(sources=4, change=lambda rows: rows[0].update(split="test"))
    with pytest.raises(UserError, match="source 'source0' is in split 'test' and in 'dev'"):
        read_manifest(folder, LABELS)


def test_a_changed_file_is_found(make_manifest):
    folder = make_manifest(sources=4)
    clips = read_manifest(folder, LABELS)
    verify(clips)
    clips[2].path.write_bytes(b"other")
    with pytest.raises(UserError, match=f"clip '{clips[2].clip_id}'.*the manifest says"):
        verify(clips)
    clips[2].path.unlink()
    with pytest.raises(UserError, match="is missing"):
        verify(clips)


def test_each_split_is_read_alone_and_in_the_order_of_the_file(make_manifest):
    splits = ["test", "dev", "train", "dev"]

    def change(rows):
        for row in rows:
            row["split"] = splits[int(row["source_id"][-1])]

    folder = make_manifest(sources=4, change=change)
    everything = read_manifest(folder, LABELS)
    assert ids(everything) == [f"s{s}-{k}" for s in range(4) for k in range(2)]
    assert everything == read_manifest(folder / "manifest.csv", LABELS)
    for split in ("train", "dev", "test"):
        assert read_manifest(folder, LABELS, split) == [c for c in everything if c.split == split]
    first = everything[0]
    assert (first.path, first.label, first.category) == (folder / "s0-0.wav", "SPEECH", "speech")
    assert (first.duration_ms, first.snr_db, first.condition) == (200.0, 0.0, "k0")
    assert (first.source_id, first.licence, first.audio) == ("source0", "CC0", "recorded")
    assert first.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()


def test_a_split_without_clips_is_refused(make_manifest):
    folder = make_manifest(sources=2)
    with pytest.raises(UserError, match=r"no clip in split 'test'; it holds \['dev'\]"):
        read_manifest(folder, LABELS, "test")
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(folder / "nowhere", LABELS)


def test_leaking_sources_are_read_where_an_audit_asks_for_them(make_manifest):
    folder = make_manifest(sources=4, change=lambda rows: rows[0].update(split="test"))
    assert len(read_manifest(folder, LABELS, leaks=True)) == 8
    for split in (None, "dev", "test"):
        with pytest.raises(LeakError):
            read_manifest(folder, LABELS, split)


@pytest.mark.parametrize("column", NEEDED)
def test_every_needed_column_is_asked_for_by_name(make_manifest, column):
    folder = make_manifest(sources=1, columns=[c for c in NEEDED if c != column])
    with pytest.raises(UserError, match=f"manifest.csv:1: column '{column}' is missing") as error:
        read_manifest(folder, LABELS)
    assert "data.build import" not in str(error.value)


@pytest.mark.parametrize("column", NEEDED)
def test_no_cell_may_hold_control_characters(make_manifest, column):
    folder = make_manifest(sources=2, change=lambda rows: rows[1].update({column: "a\x1b[2J"}))
    with pytest.raises(UserError, match=f"manifest.csv:3: {column} is .*control characters"):
        read_manifest(folder, LABELS)


def test_a_manifest_of_the_first_study_is_told_how_to_be_imported(tmp_path):
    (tmp_path / "manifest.csv").write_text("clip_id,ground_truth\n")
    with pytest.raises(UserError, match=r"data\.build import"):
        read_manifest(tmp_path, LABELS)


def test_a_short_row_is_named_by_its_line(make_manifest):
    folder = make_manifest(sources=2)
    with (folder / "manifest.csv").open("a") as file:
        file.write("half,a row\n")
    with pytest.raises(
        UserError, match=r"manifest\.csv:6: the row has fewer fields than the header, 2 for 11"
    ):
        read_manifest(folder, LABELS)


def test_an_empty_snr_is_none_and_a_byte_order_mark_does_no_harm(make_manifest):
    folder = make_manifest(sources=2, change=lambda rows: rows[0].update(snr_db=""))
    path = folder / "manifest.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [c.snr_db for c in read_manifest(folder, LABELS)] == [None, 10.0, 0.0, 10.0]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "", "1,5"])
def test_a_duration_must_be_a_finite_number(make_manifest, value):
    folder = make_manifest(sources=2, change=lambda rows: rows[0].update(duration_ms=value))
    with pytest.raises(UserError, match=r"manifest\.csv:2: duration_ms is .*expected a number"):
        read_manifest(folder, LABELS)


def test_a_file_inside_a_folder_of_the_manifest_may_be_named(make_manifest):
    def change(rows):
        rows[0]["path"] = f"deep/../{rows[0]['path']}"

    folder = make_manifest(sources=1, change=change)
    assert read_manifest(folder, LABELS)[0].path == folder / "s0-0.wav"


def test_every_file_is_verified_to_the_last(make_manifest):
    folder = make_manifest(sources=3)
    clips = read_manifest(folder, LABELS)
    verify(clips)
    with clips[-1].path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=f"clip '{clips[-1].clip_id}'.*the manifest says"):
        verify(clips)
    verify(clips[:-1])


def test_the_digest_of_a_clip_set_is_that_of_its_manifest_file(make_manifest):
    folder = make_manifest(sources=2)
    path = folder / "manifest.csv"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest_digest(folder) == manifest_digest(path) == digest
    rows = list(csv.reader(path.open()))
    rows[-1][-1] = rows[-2][-1]
    path.write_text("\n".join(map(",".join, rows)))
    assert manifest_digest(folder) != digest


def test_the_columns_of_a_manifest_are_told_and_the_needed_ones_are_the_first_eleven(make_manifest):
    folder = make_manifest(sources=1, columns=[*NEEDED, "noise", "extra"])
    assert columns_of(folder) == columns_of(folder / "manifest.csv") == [*NEEDED, "noise", "extra"]
    assert list(COLUMNS)[:11] == list(NEEDED) and all(COLUMNS.values())
    assert manifest_path(folder) == folder / "manifest.csv"
    assert len(read_manifest(folder, LABELS)) == 2  # other columns do no harm


NFC, NFD = "J\u00fcrgen", "Ju\u0308rgen"


def renamed(splits):
    """Gives the first sources other names and splits."""

    def change(rows):
        for row in rows:
            number = int(row["source_id"][6:])
            if number < len(splits):
                row["source_id"], row["split"] = splits[number]

    return change


@pytest.mark.parametrize("other", [NFD, f"{NFC} ", f" {NFC}", "J\u00dcRGEN", "\uff2a\u00fcrgen"])
def test_one_source_in_two_spellings_may_not_stand_in_two_splits(make_manifest, other):
    folder = make_manifest(sources=4, change=renamed([(NFC, "train"), (other, "test")]))
    with pytest.raises(
        LeakError, match=r"is in split 'train' and in 'test' .written .*, which is one name"
    ):
        read_manifest(folder, LABELS)
    assert len(read_manifest(folder, LABELS, leaks=True)) == 8


def test_source_ids_that_look_alike_are_one_and_told_once(make_manifest, caplog):
    folder = make_manifest(
        sources=4, change=renamed([(NFC, "dev"), ("x", "dev"), (f"{NFD} ", "dev")])
    )
    for _ in range(3):
        found = {c.source_id for c in read_manifest(folder, LABELS)}
    assert found == {NFC, "x", "source3"}
    assert [r.getMessage() for r in caplog.records] == [
        f"{folder / 'manifest.csv'}: 1 sources are written in several ways, such as 'J\\xfcrgen' and"
        " 'Ju\\u0308rgen '; each counts as one"
    ]


def test_sources_that_differ_in_case_stay_two_but_never_cross_the_halves(make_manifest):
    names = [("Xylo", "dev"), ("a", "dev"), ("xylo", "dev")]
    folder = make_manifest(sources=12, change=renamed(names))
    clips = read_manifest(folder, LABELS)
    assert {"Xylo", "xylo"} <= {c.source_id for c in clips}
    for half in halves(clips):
        assert len({c.source_id for c in half} & {"Xylo", "xylo"}) in (0, 2)


def test_a_clip_is_found_under_another_spelling_and_verified(make_manifest, caplog):
    folder = make_manifest(sources=2)
    (folder / "s0-0.wav").rename(folder / f"{NFD}.wav")
    path = folder / "manifest.csv"
    path.write_text(path.read_text().replace("s0-0.wav", f".\\{NFC}.WAV "), encoding="utf-8")
    clips = read_manifest(folder, LABELS)
    assert clips[0].path == folder / f"{NFD}.wav"
    verify(clips)
    assert "1 paths are spelled otherwise than their files" in caplog.text


def test_a_link_out_of_the_folder_is_named_as_a_link(make_manifest, tmp_path):
    folder = make_manifest(sources=2)
    (folder / "s0-0.wav").rename(tmp_path / "blob")
    (folder / "s0-0.wav").symlink_to(tmp_path / "blob")
    with pytest.raises(
        UserError,
        match=r"manifest.csv:2: path 's0-0.wav' is a link to '.*blob', outside .* cp -rL|cp -rL",
    ):
        read_manifest(folder, LABELS)
    (folder / "s0-0.wav").unlink()
    (folder / "s0-0.wav").symlink_to(".git/annex/objects/k.wav")
    clips = read_manifest(folder, LABELS)
    with pytest.raises(
        UserError, match=r"is missing .is a link to .*k.wav', whose content is not here"
    ):
        verify(clips)


def test_a_manifest_that_excel_saved_is_the_same_clips(make_manifest):
    folder = make_manifest(sources=4)
    path = folder / "manifest.csv"
    expected = read_manifest(folder, LABELS)
    rows = list(csv.reader(path.open()))
    for row in rows[1:]:
        row[4] = row[4].replace(".", ",") + ",0"
    path.write_text(
        "\ufeffsep=;\r\n" + "\r\n".join(map(";".join, rows)) + "\r\n;;;;;;;;;;\r\n",
        encoding="utf-8",
    )
    assert read_manifest(folder, LABELS) == expected
