"""Bad recipes are one sentence that names file, key and what was expected."""

import re
from pathlib import Path

import pytest
from small_recordings import make

from data.building.recipe import read_recipe
from evaluators.errors import UserError

RECIPES = {
    "typo": ("duration_ms: [200]", "key 'duration_ms' is unknown; did you mean 'durations_ms'"),
    "twice": ("seed: 1\nseed: 2", "key 'seed' stands twice"),
    "type": ("clips_per_cell: many", "clips_per_cell is 'many'; expected a whole number"),
    "list": ("durations_ms: 200", "durations_ms is 200; expected a list"),
    "nan": ("snrs_db: [.nan]", "snrs_db, entry 1 is nan; expected a number"),
    "bool": ("snrs_db: [yes]", "entry 1 is .*; expected a number"),
    "far": ("snrs_db: [300]", "snrs_db, entry 1 is 300; expected -40 to 60 dB"),
    "short": ("durations_ms: [1]", "durations_ms, entry 1 is 1; expected 20 to 30,000 ms"),
    "share": ("splits: {train: 0}", "splits is .*; expected numbers"),
    "split": ("splits: {held: 1}", "splits: 'held' is not one of train, dev, test"),
    "category": ("categories: {birds: 1}", "categories: 'birds' is not one of"),
    "noise": ("noise: {brown: 1}", "noise: 'brown' is not one of"),
    "layout": ("recordings: [{layout: wav}]", "layout is 'wav'; expected one of csv"),
    "level": ("level: loud", "level is 'loud'; expected one of peak, rms"),
    "number": ("3: 4", "key 3 is unknown; known are design"),
    "text": ("seed: '2'", "seed is '2'; expected a whole number"),
    "nested": (
        "recordings: [{layout: csv, pth: x}]",
        "recordings, entry 1: key 'pth' is unknown; did you mean 'path'",
    ),
    "layout missing": ("recordings: [{path: x}]", "recordings, entry 1: key 'layout' is missing"),
    "nested type": (
        "recordings: [{layout: synthetic, count: x}]",
        "entry 1: count is 'x'; expected a whole number",
    ),
    "mapping": (
        "recordings: [x]",
        "recordings, entry 1 is 'x'; expected a mapping with layout and path",
    ),
    "range": ("vad_speech: 2", "vad_speech is 2; expected 0 to 1"),
    "below": ("min_active_dbfs: 3", "min_active_dbfs is 3; expected below 0"),
    "empty": ("durations_ms: []", r"durations_ms is \[\]; expected at least one entry"),
    "repeated": ("durations_ms: [200, 200]", "durations_ms: 200 stands twice"),
    "groups": ("together: [[a, b], [b]]", "together: 'b' stands in two groups; join them"),
    "cell": ("clips_per_cell: 2", "clips_per_cell is 2; expected one for each of 3 splits or more"),
    "design": ("design: latin", "design is 'latin'; expected one of"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_bad_recipe_is_one_sentence(tmp_path, recordings, name, capsys):

    text, message = RECIPES[name]
    path = tmp_path / "r.yaml"
    path.write_text(text if "design" in text else f"design: factorial\n{text}\n")
    assert make(path, recordings, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert re.search(message, err) and str(path) in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_clips: 3", "base_clips is 3; expected an even number, half of each class"),
        (
            "filters: [comb]",
            "filters, entry 1 is 'comb'; expected one of bandpass, lowpass, highpass",
        ),
        ("durations_ms: [2000]", "durations_ms: 2000 is longer than base_ms 1000"),
        ("vary: crossed\nt60_s: [1]", "vary: crossed takes durations and SNRs only"),
        ("responses: [rooms]", "responses are given but no t60_s"),
        ("categories: {silence: 1}", "categories: silence has no conditions to vary"),
    ],
)
def test_variants_that_make_no_sense_are_refused(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(f"design: variants\n{text}\n")
    with pytest.raises(UserError, match=message):
        read_recipe(path)


def test_paths_are_relative_to_the_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("design: import\nmanifests: [a.csv, /b.csv]\n")
    assert read_recipe(path).manifests == (tmp_path / "a.csv", Path("/b.csv"))
