"""Shortcut cues: level, bandwidth and spectral tilt, and how well they alone predict the label."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluators.audio import RATE, Wave, load
from evaluators.clips import Clip

from .mixing import rms

MAX_ACCURACY = 0.60  # of the shortcut model, mean over folds, that a clip set may have
FOLDS = 5
CUES = ("rms_db", "peak_to_rms_db", "rolloff_95_khz", "bandwidth_khz", "tilt_db_per_octave")


def cues(wave: Wave) -> NDArray[np.float64]:
    """Level, bandwidth and tilt of a clip, in the order of `CUES`; the tilt of a few samples is 0."""
    power = np.abs(np.fft.rfft(wave.astype(np.float64) * np.hanning(len(wave)))) ** 2 + 1e-12
    khz = np.fft.rfftfreq(len(wave), 1 / RATE) / 1000
    share = power / power.sum()
    centre = (share * khz).sum()
    level = rms(wave) + 1e-9
    octaves = np.arange(np.log2(0.1), np.log2(7.5), 1 / 3)  # third octaves from 100 Hz to 7.5 kHz
    inside = [(khz >= 2**low) & (khz < 2 ** (low + 1 / 3)) for low in octaves]
    filled = np.array(
        [band.any() for band in inside]
    )  # a clip below 40 ms has bands without a line
    bands = [10 * np.log10(power[band].mean()) for band in inside if band.any()]
    tilt = np.polyfit(octaves[filled], bands, 1)[0] if len(bands) > 1 else 0.0
    return np.array(
        [
            20 * np.log10(level),
            20 * np.log10(max(np.abs(wave).max(), 1e-9) / level),
            khz[np.searchsorted(share.cumsum(), 0.95)],
            np.sqrt((share * (khz - centre) ** 2).sum()),
            tilt,
        ]
    )


def shortcut_accuracy(clips: Sequence[Clip], seed: int = 0) -> tuple[float, float, float]:
    """Balanced accuracy that level, bandwidth and tilt alone reach: (mean, low, high), shares of 1.

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
    for fit, held in folds.split(x, y, groups):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        model.fit(x[fit], y[fit])
        scores.append(balanced_accuracy_score(y[held], model.predict(x[held])))
    mean = float(np.mean(scores))
    half = 2.776 * float(np.std(scores, ddof=1)) / np.sqrt(FOLDS)  # t(0.975, 4)
    return mean, mean - half, mean + half
