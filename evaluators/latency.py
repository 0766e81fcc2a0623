"""Time a clip takes by component: decoding, features, the model. Medians over clips, without caches."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from evaluators.audio import Wave
from evaluators.clips import Clip, clip_wave
from evaluators.detectors.tuned import TunedDetector
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt

CLIPS = 20


@runtime_checkable
class _Local(Protocol):
    """An evaluator that runs a checkpoint here."""

    def make_features(self, wave: Wave) -> None:
        """What it makes of a clip before the model."""

    def forget(self) -> None:
        """Drops what is kept from scores before."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds a clip.

    Attributes:
        decode: Reading and decoding the file.
        features: Log-mel features of one clip, on the generic path all that its processor does; 0 where the model takes
            the wave.
        single: One clip and one prompt through the model, its audio tower included, features ready.
        batch: The same, all clips in one call.
    """

    decode: float
    features: float
    single: float
    batch: float
    clips: int

    def to_dict(self) -> dict[str, float]:
        """As plain data, with three digits."""
        return {k: round(v, 3) for k, v in asdict(self).items()}


def measure(evaluator: Evaluator, prompt: Prompt, clips: Sequence[Clip]) -> Latency:
    """Latency of an evaluator on some clips, below its cache; what the first call loads or compiles is left out."""
    model = evaluator.innermost
    clips = clips[:CLIPS]
    waves = [clip_wave(clip) for clip in clips]
    decode = _median(lambda clip: clip_wave(clip), clips)
    features, forget = 0.0, _nothing
    if isinstance(model, TunedDetector):
        single = _median(lambda wave: model.detector(wave), waves)
        return Latency(decode, 0.0, single, single, len(clips))
    if model.about().checkpoint is not None:
        assert isinstance(model, _Local), "About.checkpoint"
        features = _median(model.make_features, waves)
        forget = model.forget

    def first_time(some: Sequence[Clip]) -> float:
        forget()
        begin = time.perf_counter()
        model.score([prompt], some)
        return 1e3 * (time.perf_counter() - begin)

    first_time(clips)
    single = statistics.median(first_time([clip]) for clip in clips)
    batch = min(first_time(clips) for _ in range(3)) / len(clips)
    return Latency(decode, features, single, batch, len(clips))


def _nothing() -> None:
    """Where nothing is kept, nothing has to be forgotten."""


def _median(work: Callable[[Any], Any], items: Sequence[Any]) -> float:
    """Median milliseconds over items, one unmeasured call before."""
    work(items[0])
    times = []
    for item in items:
        begin = time.perf_counter()
        work(item)
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)
