"""Voice activity on clean recordings: Silero, the default, or WebRTC, only to reproduce the first study."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluators.audio import Wave
from evaluators.detectors import detectors


class Voice(Protocol):
    """Which frames of a wave are speech; no state is left from one wave to the next."""

    frame: int  # samples

    def __call__(self, wave: Wave) -> NDArray[np.bool_]:
        """One value per frame; a last part frame counts as one."""
        ...


class Silero:
    """Silero VAD: probability 0.5 and above is speech."""

    frame = detectors.FRAME

    def __init__(self) -> None:
        self._detector = detectors.Silero()

    def __call__(self, wave: Wave) -> NDArray[np.bool_]:
        """See `Voice`."""
        return np.asarray(self._detector.frames(wave) >= 0.5)


class WebRtc:
    """WebRTC VAD at mode 3. It calls white noise and most music speech: not for new work."""

    frame = 480  # samples, 30 ms

    def __init__(self) -> None:
        self._detector = detectors.WebRtc()

    def __call__(self, wave: Wave) -> NDArray[np.bool_]:
        """See `Voice`."""
        return self._detector.frames(wave, 30, 3)


VOICES = {"silero": Silero, "webrtc": WebRtc}
