"""Every published layout, on small trees that these tests make."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_recordings import sound, table

from data.building.design import split_sources
from data.building.mixing import coloured_noise, frame_power
from data.building.readers import (
    Collection,
    collection_notes,
    gtzan_facts,
    one_speaker,
    read_collection,
    read_collections,
    read_rttm,
)
from data.building.recipe import Factorial
from data.building.scan import scan_recording
from evaluators.audio import RATE, load, load_part
from evaluators.errors import UserError


def test_voxconverse_takes_what_one_person_says_alone(tmp_path):
    sound(tmp_path / "audio" / "abjxc.wav", 10)
    sound(tmp_path / "audio" / "unused.wav")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "abjxc.rttm").write_text(
        "SPEAKER abjxc 1 1.00 3.00 <NA> <NA> spk00 <NA> <NA>\n"
        "SPEAKER abjxc 1 3.50 2.00 <NA> <NA> spk01 <NA> <NA>\n"
        "SPEAKER abjxc 1 6.00 0.02 <NA> <NA> spk00 <NA> <NA>\n"
        "SPEAKER abjxc 1 7.00 0.00 <NA> <NA> spk00 <NA> <NA>\n"
    )
    (found,) = read_collection(Collection("voxconverse", tmp_path))
    assert found.source_id == "voxconverse:abjxc" and found.label == "SPEECH"
    assert np.array(found.parts) == pytest.approx(np.array([(1.0, 3.5), (4.0, 5.5), (6.0, 6.02)]))


def test_overlap_of_one_speaker_with_himself_is_one_turn(tmp_path):
    path = tmp_path / "x.rttm"
    path.write_text(
        "SPEAKER x 1 0 2 <NA> <NA> a <NA> <NA>\nSPEAKER x 1 1 2 <NA> <NA> a <NA> <NA>\n"
        ";; comment\nSPKR-INFO x 1 <NA> <NA> <NA> unknown a <NA>\n"
    )
    assert one_speaker(read_rttm(path)) == ((0.0, 3.0),)


def test_esc50_groups_by_upload_and_names_its_policy(tmp_path):
    names = [
        ("1-100-A-14.wav", "chirping_birds"),
        ("1-100-B-14.wav", "chirping_birds"),
        ("2-200-A-10.wav", "rain"),
        ("3-300-A-26.wav", "laughing"),
        ("4-400-A-0.wav", "dog"),
    ]
    for name, _ in names:
        sound(tmp_path / "audio" / name)
    table(
        tmp_path / "meta" / "esc50.csv",
        ["filename", "fold", "target", "category"],
        *[(name, 1, 1, kind) for name, kind in names],
    )

    def read(policy):
        return read_collection(Collection("esc50", tmp_path, policy=policy))

    everything = read("keep-all")
    assert [r.category for r in everything] == [
        "animal",
        "animal",
        "noise",
        "environment",
        "animal",
    ]
    assert len({r.source_id for r in everything}) == 4  # two files of upload 100 are one source
    assert {r.policy for r in everything} == {"keep-all"}
    assert [r.name for r in read("drop-human")] == [
        f"esc50/{n}" for n, kind in names if kind != "laughing"
    ]
    assert len(read("drop-voiced")) == 3


def test_musan_drops_vocals_and_groups_by_artist(tmp_path):
    for name in ("music/fma/music-fma-0000", "music/fma/music-fma-0001", "music/fma/music-fma-0002",
                 "noise/free-sound/noise-free-sound-0000", "speech/librivox/speech-librivox-0000"):  # fmt: skip
        sound(tmp_path / f"{name}.wav")
    (tmp_path / "music" / "fma" / "ANNOTATIONS").write_text(
        "music-fma-0000 baroque N Quatuor_X Bach\nmusic-fma-0001 pop Y Someone Someone\n"
        "music-fma-0002 baroque N Quatuor_X Haydn\n"
    )
    found = {r.name.split("/")[-1]: r for r in read_collection(Collection("musan", tmp_path))}
    assert len(found) == 5
    assert found["music-fma-0000.wav"].source_id == found["music-fma-0002.wav"].source_id
    assert found["speech-librivox-0000.wav"].label == "SPEECH"
    assert found["noise-free-sound-0000.wav"].category == "environment"
    kept = read_collection(Collection("musan", tmp_path, policy="drop-human"))
    assert "music-fma-0001.wav" not in {r.name.split("/")[-1] for r in kept} and len(kept) == 4


def test_gtzan_and_fma(tmp_path):
    sound(tmp_path / "gtzan" / "genres_original" / "jazz" / "jazz.00054.wav")
    sound(tmp_path / "gtzan" / "genres_original" / "jazz" / "readme.wav")
    (found,) = read_collection(Collection("gtzan", tmp_path / "gtzan"))
    assert (found.source_id, found.category) == ("gtzan:jazz.00054", "music")
    for number in (2, 5, 10):
        sound(tmp_path / "fma" / "fma_small" / "000" / f"{number:06d}.mp3", format="MP3")
    (tmp_path / "fma" / "fma_metadata").mkdir()
    (tmp_path / "fma" / "fma_metadata" / "tracks.csv").write_text(
        ",artist,track,track\n,id,genre_top,license\ntrack_id,,,\n"
        "2,7,Rock,CC-BY\n5,7,Rock,CC-BY\n10,9,Spoken,CC0\n"
    )
    found = read_collection(Collection("fma", tmp_path / "fma"))
    assert [r.source_id for r in found] == ["fma:7", "fma:7"] and found[0].licence == "CC-BY"


def test_gtzan_keeps_artists_together_and_leaves_out_the_published_faults(tmp_path):
    jazz = ("jazz.00000", "jazz.00033", "jazz.00047", "jazz.00051")
    for name in ("blues.00000", "blues.00011", "classical.00047", *jazz):
        sound(tmp_path / name.split(".")[0] / f"{name}.wav", 0.1)
    found = {r.path.stem: r for r in read_collection(Collection("gtzan", tmp_path))}
    assert {n for n, r in found.items() if r.fault} == {"jazz.00033"}  # the same recording as 51
    assert "published fault-filtered list" in found["jazz.00033"].fault
    assert (
        found["blues.00000"].source_id
        == found["blues.00011"].source_id
        == "gtzan:artist:John Lee Hooker"
    )
    assert found["jazz.00000"].source_id == found["classical.00047"].source_id  # Bernstein
    assert found["jazz.00047"].source_id == "gtzan:jazz.00047"  # nobody knows
    (note,) = collection_notes([Collection("gtzan", tmp_path)], list(found.values()))
    assert note.startswith("the artist of 1 music files of gtzan is unknown")
    artists, faults = gtzan_facts()
    assert len(faults) == 70 and len(artists) == 798


def test_fma_without_its_table_is_refused_and_what_the_table_lacks_is_left_out(tmp_path):
    for number in (2, 5):
        sound(tmp_path / "000" / f"{number:06d}.mp3", format="MP3")
    with pytest.raises(
        UserError, match=r"hold no tracks.csv; without it neither artists,.* nor spoken"
    ):
        read_collection(Collection("fma", tmp_path))
    (tmp_path / "tracks.csv").write_text(TRACKS + "2,7,An Artist,Rock,CC-BY\n")
    known, unknown = read_collection(Collection("fma", tmp_path))
    assert known.source_id == "fma:7" and not known.fault
    assert unknown.fault.startswith("tracks.csv does not list it")


TRACKS = ",artist,artist,track,track\n,id,name,genre_top,license\ntrack_id,,,,\n"


def test_what_musan_took_from_fma_shares_its_split(tmp_path):
    """MUSAN writes an artist as Some_One, FMA as Some One with an id: one artist, one split, whatever is registered."""
    musan, fma = tmp_path / "musan", tmp_path / "fma"
    for i in range(4):
        sound(musan / "music" / "fma" / f"music-fma-000{i}.wav", 0.1)
        sound(fma / "000" / f"{i + 10:06d}.mp3", 0.1, format="MP3")
    (musan / "music" / "fma" / "ANNOTATIONS").write_text(
        "".join(f"music-fma-000{i} rock N Some_One{i} X\n" for i in range(4))
    )
    rows = [f"{i + 10},{i},some one{i},Rock,CC0" for i in range(4)]
    (fma / "tracks.csv").write_text(TRACKS + "\n".join(rows) + "\n")
    found = read_collections([Collection("musan", musan), Collection("fma", fma)])
    assert len({r.source_id for r in found}) == 8
    recipe = Factorial("factorial")
    splits = split_sources(recipe, found, {})
    assert all(splits[f"fma:{i}"] == splits[f"musan:artist:Some_One{i}"] for i in range(4))
    splits = split_sources(recipe, found, {"fma:2": "test", "Musan:artist:Some_One3": "dev"})
    assert splits["musan:artist:Some_One2"] == "test" and splits["fma:3"] == "dev"
    with pytest.raises(UserError, match="registered in dev and train"):
        split_sources(recipe, found, {"fma:2": "train", "musan:artist:Some_One2": "dev"})


def test_musan_beside_esc50_is_told_that_both_stem_from_freesound():
    notes = collection_notes([Collection("musan", Path("a")), Collection("esc50", Path("b"))], [])
    assert [n for n in notes if "both stem from Freesound" in n]


def noisy_talk(tmp_path, noise):
    """Speech-like bursts with pauses over steady noise, and the turns of one speaker."""
    rng = np.random.default_rng(0)
    wave = coloured_noise(20 * RATE, -3, rng) * (np.arange(20 * RATE) // 4_000 % 2)
    wave = (0.1 * wave + noise * coloured_noise(20 * RATE, 0, rng)).astype("float32")
    (tmp_path / "vox").mkdir()
    soundfile.write(tmp_path / "vox" / "abjxc.wav", wave, RATE)
    turns = "".join(f"SPEAKER abjxc 1 {t} 3 <NA> <NA> a <NA> <NA>\n" for t in (1, 6, 12))
    (tmp_path / "vox" / "abjxc.rttm").write_text(turns)
    (found,) = read_collection(Collection("voxconverse", tmp_path / "vox"))
    return found


@pytest.mark.parametrize(("noise", "kept"), [(0.02, False), (0.001, True)])
def test_the_noise_of_voxconverse_is_measured_not_assumed(tmp_path, noise, kept):
    class Loud:
        frame = 320

        def __call__(self, wave):
            return frame_power(wave) > 0.03**2

    recipe = Factorial("factorial", vad_speech=0.0, durations_ms=(200,))
    scan = scan_recording(noisy_talk(tmp_path, noise), recipe, Loud())
    if kept:
        assert scan.windows and not scan.reason
    else:
        assert not scan.windows and scan.reason == "its own SNR is 14 dB, below 25"


def test_links_are_named_as_links_with_their_cure(tmp_path):
    """git-annex and hub caches keep the content elsewhere: out of the folder, or not there at all."""
    sound(tmp_path / "blobs" / "abc", format="WAV")
    folder = tmp_path / "snapshots" / "one"
    folder.mkdir(parents=True)
    (folder / "a.wav").symlink_to("../../blobs/abc")
    c = Collection("folder", folder, label="NONSPEECH", category="noise")
    with pytest.raises(
        UserError, match=r"a.wav' is a link to '.*abc', outside the folder .*: copy .* \(cp -rL"
    ):
        read_collection(c)
    table(folder / "manifest.csv", ["path", "label", "category", "source_id"],
          ("a.wav", "SPEECH", "speech", "ann"))  # fmt: skip
    with pytest.raises(UserError, match=r":2: path 'a.wav' is a link to .* git annex unlock"):
        read_collection(Collection("csv", folder))
    (folder / "a.wav").unlink()
    (folder / "a.wav").symlink_to(".git/annex/objects/SHA256E-x.wav")
    for layout in (c, Collection("csv", folder)):
        (found,) = read_collection(layout)
        with pytest.raises(UserError, match=r"is a link to .*, whose content is not here; fetch"):
            load(found.path)
        assert bool(found.fault) == (layout is not c)
    (folder / "a.wav").unlink()
    (folder / "more").symlink_to(tmp_path / "blobs")
    with pytest.raises(UserError, match="more' is a link to"):
        read_collection(c)


def test_hidden_folders_hold_no_recordings(tmp_path):
    sound(tmp_path / "a.wav")
    sound(tmp_path / ".git" / "annex" / "objects" / "b.wav")
    found = read_collection(Collection("folder", tmp_path, label="NONSPEECH", category="noise"))
    assert [r.path.name for r in found] == ["a.wav"]


def test_a_file_under_another_spelling_is_found_and_told(tmp_path, capsys):
    sound(tmp_path / "A" / "Ju\u0308rgen.wav")
    table(tmp_path / "manifest.csv", ["Path", "label", "CATEGORY", "source_id "],
          ("a\\J\u00fcrgen.wav ", "SPEECH", "speech", "ann"))  # fmt: skip
    (found,) = read_collection(Collection("csv", tmp_path))
    assert found.path == tmp_path / "A" / "Ju\u0308rgen.wav" and not found.fault
    err = capsys.readouterr().err
    assert "1 paths are spelled otherwise than their files" in err and "A/Ju\\u0308rgen.wav" in err


def test_a_folder_and_a_table_of_recordings(tmp_path):
    sound(tmp_path / "rain" / "roof" / "a.flac", rate=44_100, channels=2)
    sound(tmp_path / "rain" / "roof" / "b.ogg")
    c = Collection("folder", tmp_path / "rain", label="NONSPEECH", category="noise", licence="CC0")
    assert [r.source_id for r in read_collection(c)] == ["rain:roof/a", "rain:roof/b"]
    grouped = Collection(
        "folder", tmp_path / "rain", label="NONSPEECH", category="noise", group="folder"
    )
    assert {r.source_id for r in read_collection(grouped)} == {"rain:roof"}
    sound(tmp_path / "own" / "x.wav")
    table(
        tmp_path / "own" / "manifest.csv",
        ["path", "label", "category", "source_id", "licence"],
        ("x.wav", "SPEECH", "speech", "ann", "CC0"),
    )
    (found,) = read_collection(Collection("csv", tmp_path / "own"))
    assert (found.source_id, found.licence) == ("ann", "CC0")
    synthetic = read_collection(Collection("synthetic", count=2))
    assert {r.category for r in synthetic} == {"noise", "silence"} and len(synthetic) == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("SPEAKER x 1 -1.0 2.0 <NA> <NA> a <NA> <NA>", "x.rttm:2: turn starts at -1.0"),
        ("SPEAKER x 1 1.0 -2.0 <NA> <NA> a <NA> <NA>", "x.rttm:2: .* lasts -2.0"),
        ("SPEAKER x 1 one 2.0 <NA> <NA> a <NA> <NA>", "x.rttm:2: turn starts at one"),
        ("SPEAKER x 1 nan 2.0 <NA> <NA> a <NA> <NA>", "x.rttm:2: turn starts at nan"),
        ("SPEAKER x 1 1.0", "x.rttm:2: 4 fields"),
    ],
)
def test_a_bad_rttm_line_is_named(tmp_path, line, message):
    path = tmp_path / "x.rttm"
    path.write_text(f"SPEAKER x 1 0.0 1.0 <NA> <NA> a <NA> <NA>\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_rttm(path)


def test_rttm_lines_of_any_kind_never_crash(tmp_path):
    from hypothesis import given, settings
    from hypothesis import strategies as st

    path = tmp_path / "x.rttm"

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=5))
    def check(lines):
        path.write_text("\n".join(f"SPEAKER {line}" for line in lines), encoding="utf-8")
        try:
            turns = read_rttm(path)
        except UserError as error:
            assert str(path) in str(error)
        else:
            parts = one_speaker(turns)
            assert all(a < b for a, b in parts)
            assert all(b <= c for (_, b), (c, _) in itertools.pairwise(parts))

    check()


def test_formats_of_any_rate_and_channel_count_are_read(tmp_path):
    sound(tmp_path / "a.wav", rate=48_000, channels=2)
    sound(tmp_path / "b.wav", rate=8_000, subtype="ULAW")
    sound(tmp_path / "c.mp3", rate=44_100, format="MP3")
    for path in tmp_path.iterdir():
        assert len(load(path)) == pytest.approx(RATE, abs=RATE // 10)


def test_a_part_of_a_recording_is_the_part_of_the_whole(tmp_path):

    wave = np.stack([coloured_noise(48_000, -3, np.random.default_rng(i)) * 0.1 for i in (0, 1)], 1)
    soundfile.write(tmp_path / "x.wav", wave, 48_000, subtype="FLOAT")
    whole = load(tmp_path / "x.wav")
    part = load_part(tmp_path / "x.wav", 0.25, 0.75)
    assert len(part) == RATE // 2
    assert part[200:-200] == pytest.approx(whole[RATE // 4 : 3 * RATE // 4][200:-200], abs=1e-4)
