"""Windows that may become clips, found in bounded memory."""

import subprocess
import sys

import numpy as np
import soundfile
from common import ROOT
from small_recordings import (
    RECIPE,
    build_variants,
    make,
    make_recordings,
    rows_of,
    sound,
)

from data.building.mixing import coloured_noise
from data.building.readers import Collection, read_collection
from data.building.recipe import read_recipe
from data.building.scan import scan_recording
from data.building.voice import ACTIVITIES
from evaluators.audio import RATE


def test_webrtc_calls_noise_speech(recordings, tmp_path):
    """Why it is not the default: it rejects the negatives that Silero keeps."""

    path = tmp_path / "recipe.yaml"
    path.write_text(
        RECIPE.replace("vad_nonspeech: 1", "vad_nonspeech: 0.05").replace("[200, 500]", "[500]")
    )
    recipe = read_recipe(path)
    noise = [r for r in read_collection(Collection("csv", recordings)) if r.category == "noise"]
    kept = {
        name: sum(bool(scan_recording(r, recipe, ACTIVITIES[name]()).windows) for r in noise)
        for name in ("silero", "webrtc")
    }
    assert kept["silero"] == len(noise) and kept["webrtc"] < len(noise) / 2


SCAN = """
import resource, sys
from pathlib import Path
from data.building import design, recipe, recordings, render, scan, voice

scan.MAX_PARTS = 3
made, activity = recipe.read_recipe(Path(sys.argv[1])), voice.WebRtcActivity()
for path in sys.argv[2:]:
    recording = recordings.Recording(path, Path(path), "NONSPEECH", "noise", path)
    windows = scan.scan_recording(recording, made, activity).windows
    render.cut_wave(design.Cut(recording, windows[-1]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_a_two_hour_recording_costs_no_more_memory_than_a_minute(tmp_path, recipe):
    # Two hours are 460 MB as floats at 16 kHz.
    minute = np.random.default_rng(0).normal(0, 0.1, 1_000 * 60).astype("float32")
    paths = [tmp_path / f"{minutes}.wav" for minutes in (1, 120)]
    for path in paths:
        with soundfile.SoundFile(path, "w", 1_000, 1, "PCM_U8") as file:
            for _ in range(int(path.stem)):
                file.write(minute)
    command = [sys.executable, "-c", SCAN, str(recipe), *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    one_minute, two_hours = map(int, done.stdout.split())
    assert two_hours < one_minute + 60


def test_a_gap_in_the_middle_of_a_recording_is_no_clip(tmp_path):
    root = make_recordings(tmp_path)
    gap = 0.1 * coloured_noise(3 * RATE, 0, np.random.default_rng(9))
    gap[int(1.48 * RATE) : int(1.52 * RATE)] = 0
    for i in range(16):
        soundfile.write(root / "speech" / f"{i}.flac", np.roll(gap, i), RATE)
    out = build_variants(tmp_path, root, "vary: crossed\ndurations_ms: [20, 1000]\nsnrs_db: [0]\n")
    speech = [r for r in rows_of(out) if r["label"] == "SPEECH"]
    assert speech and all(
        float(r["start_s"]) != 1.0 for r in speech if r["duration_ms"] == "1000.0"
    )


def test_a_turn_after_the_end_of_the_audio_is_refused(tmp_path, recipe, capsys):
    sound(tmp_path / "vox" / "abcde.wav", 2)
    (tmp_path / "vox" / "abcde.rttm").write_text("SPEAKER abcde 1 9 2 <NA> <NA> a <NA> <NA>\n")
    recordings = f"voxconverse={tmp_path / 'vox'}"
    assert make(recipe, recordings, tmp_path / "out") == 2
    assert "a turn starts at 9.00 s, but" in capsys.readouterr().err
