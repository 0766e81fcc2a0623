"""Voice activity on clean recordings: Silero, the default, or WebRTC, only to reproduce the first study."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluators.audio import Wave
from evaluators.detectors import detectors


class VoiceActivity(Protocol):
    """Tells which frames of a wave are speech; keeps no state from one wave to the next."""

    frame: int  # samples

    def __call__(self, wave: Wave) -> NDArray[np.bool_]:
        """One value per frame; an incomplete last frame counts as one."""
        ...


class SileroActivity:
    """Silero VAD: probability 0.5 and above is speech."""

    frame = detectors.FRAME

    def __init__(self) -> None:
        self._detector = detectors.Silero()

    def __call__(self, wave: Wave) -> NDArray[np.bool_]:
        """See `VoiceActivity`."""
        return np.asarray(self._detector.frames(wave) >= 0.5)


class WebRtcActivity:
    """WebRTC VAD at mode 3. It calls white noise and most music speech: not for new work."""

    frame = 480  # samples, 30 ms

    def __init__(self) -> None:
        self._detector = detectors.WebRtc()

    def __call__(self, wave: Wave) -> NDArray[np.bool_]:
        """See `VoiceActivity`."""
        return self._detector.frames(wave, 30, 3)


ACTIVITIES = {"silero": SileroActivity, "webrtc": WebRtcActivity}
