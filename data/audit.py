"""Checks a clip set: `python -m data.audit data/demo`

Prints, per split: clips, sources, files that differ from their digest, sources that stand in two splits, and how
well a linear model tells the classes apart from level, bandwidth and spectral tilt alone, over five folds grouped
by source. Exits with 1 when a source leaks, a file differs, or the mean of that model is above the limit.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluators.audio import RATE, Wave, load
from evaluators.clips import Clip, check_registry, read_manifest, read_registry, verify
from evaluators.errors import UserError

LIMIT = 0.60  # mean grouped accuracy of the shortcut model that a clip set may have at most
FOLDS = 5
CUES = ("rms_db", "peak_to_rms_db", "rolloff_95_khz", "bandwidth_khz", "tilt_db_per_octave")


def cues(wave: Wave) -> NDArray[np.float64]:
    """Level, bandwidth and tilt of a clip, in the order of `CUES`."""
    power = np.abs(np.fft.rfft(wave.astype(np.float64) * np.hanning(len(wave)))) ** 2 + 1e-12
    khz = np.fft.rfftfreq(len(wave), 1 / RATE) / 1000
    share = power / power.sum()
    centre = (share * khz).sum()
    rms = np.sqrt((wave.astype(np.float64) ** 2).mean()) + 1e-9
    octaves = np.arange(np.log2(0.1), np.log2(7.5), 1 / 3)  # third octaves from 100 Hz to 7.5 kHz
    bands = [
        10 * np.log10(power[(khz >= 2**low) & (khz < 2 ** (low + 1 / 3))].mean()) for low in octaves
    ]
    return np.array(
        [
            20 * np.log10(rms),
            20 * np.log10(np.abs(wave).max() / rms),
            khz[np.searchsorted(share.cumsum(), 0.95)],
            np.sqrt((share * (khz - centre) ** 2).sum()),
            np.polyfit(octaves, bands, 1)[0],
        ]
    )


def shortcut_accuracy(clips: Sequence[Clip], seed: int = 0) -> tuple[float, float, float]:
    """How far level, bandwidth and tilt alone tell the labels apart: (mean, low, high) of balanced accuracy.

    A logistic regression over five folds grouped by source; the interval is the t interval over the folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.stack([cues(load(clip.path)) for clip in clips])
    y = np.array([clip.label for clip in clips])
    groups = [clip.source_id for clip in clips]
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    scores = []
    for fit, judge in folds.split(x, y, groups):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")).fit(
            x[fit], y[fit]
        )
        scores.append(balanced_accuracy_score(y[judge], model.predict(x[judge])))
    mean, half = (
        float(np.mean(scores)),
        2.776 * float(np.std(scores, ddof=1)) / np.sqrt(FOLDS),
    )  # t(0.975, 4)
    return mean, mean - half, mean + half


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "manifest", type=Path, help="manifest CSV, or the folder that holds manifest.csv"
    )
    parser.add_argument(
        "--labels",
        default="SPEECH,NONSPEECH",
        help="labels, separated by commas (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    try:
        clips = read_manifest(args.manifest, args.labels.split(","))
        check_registry(clips, read_registry(args.manifest))
        verify(clips)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(clips)} clips: digests equal, no source in two splits")
    good = True
    for split in ("train", "dev", "test"):
        part = [clip for clip in clips if clip.split == split]
        if not part:
            continue
        sources = ", ".join(
            f"{label} {sum(c.label == label for c in part)} clips of"
            f" {len({c.source_id for c in part if c.label == label})} sources"
            for label in sorted({c.label for c in part})
        )
        mean, low, high = shortcut_accuracy(part)
        good &= mean <= LIMIT
        print(
            f"{split:5}  {sources};  level, bandwidth and tilt alone: {100 * mean:.1f} %"
            f" [{100 * low:.1f}, {100 * high:.1f}]"
        )
    mean, low, high = shortcut_accuracy(clips)
    good &= mean <= LIMIT
    print(
        f"all    level, bandwidth and tilt alone: {100 * mean:.1f} % [{100 * low:.1f},"
        f" {100 * high:.1f}], limit {100 * LIMIT:.0f} %"
    )
    if not good:
        print("error: a shortcut gives the label away", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
