"""The mel scale: how a spectrum becomes the bands that front ends of audio models and detectors hear."""

import numpy as np
from numpy.typing import NDArray

LOG_FROM_HZ, LOG_FROM_MEL = 1000.0, 15.0  # from where on the scale is logarithmic


def mel_filters(frequencies: int, bins: int, rate: int) -> NDArray[np.float64]:
    """``[frequency, mel bin]``: triangles of equal area on the mel scale of Slaney's Auditory Toolbox, 0 to 8 kHz.

    Below 1 kHz a mel is 200/3 Hz, above it 27 mel are a factor of 6.4.
    """
    step = np.log(6.4) / 27.0
    top = LOG_FROM_MEL + np.log(8000.0 / LOG_FROM_HZ) * (27.0 / np.log(6.4))
    mels = np.linspace(0.0, top, bins + 2)
    edges = 200.0 * mels / 3.0
    high = mels >= LOG_FROM_MEL
    edges[high] = LOG_FROM_HZ * np.exp(step * (mels[high] - LOG_FROM_MEL))
    widths, distances = np.diff(edges), edges - np.linspace(0, rate // 2, frequencies)[:, None]
    rising, falling = -distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * (2.0 / (edges[2:] - edges[:-2]))
