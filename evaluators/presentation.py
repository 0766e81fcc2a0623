"""How a clip is given to a model: repeated, levelled, padded, before or after the question. Needs numpy alone.

The file is copied beside exported scripts as it is, so that what is taken elsewhere presents clips to the same bits.
A change of what `present` makes of a clip changes scores: raise SCORER of `audio_lm.scorer` and `endpoint` with it.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float32]
RATE = 16_000  # samples a second
LONGEST_MS = 30_000  # what Whisper-style front ends hear
GRAIN_MS = (
    20  # of a clip's own noise: long enough for its spectrum, short enough to fit between words
)
FINE = 16  # of its grains begin within the length of one
QUIETEST = 0.1  # share of the grains that count as noise
FEWEST = 8  # that do


@dataclass(frozen=True)
class Presentation:
    """How a clip is given to a model. The default is the clip as it is, after nothing and before the question.

    The order is: repeat, level, pad.

    Attributes:
        repeat_to_ms: The clip is repeated end to end until it lasts so long; the last turn is cut. 0: once. A clip
            that is longer stays.
        gain: ``peak`` or ``rms`` sets that level of the clip (with its repetitions, before it is padded) to
            `level_dbfs`. Where RMS would take the peak beyond full scale, the peak is set to full scale: nothing clips.
        level_dbfs: dB below full scale, 0 or less.
        pad_to_ms: The clip stands in the middle of so much. 0: of nothing. A clip that is longer stays.
        pad: Digital silence, or the clip's own noise.
        text_first: The question stands before the audio. No two prompts then share what is computed of a clip.
    """

    repeat_to_ms: int = 0
    gain: Literal["none", "peak", "rms"] = "none"
    level_dbfs: float = 0.0
    pad_to_ms: int = 0
    pad: Literal["silence", "noise"] = "silence"
    text_first: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what is not as it is by default, and the level of a gain."""
        levelled = ("level_dbfs",) if self.gain != "none" else ()
        defaults = {field.name: field.default for field in fields(self)}
        return {
            name: value
            for name, value in asdict(self).items()
            if value != defaults[name] or name in levelled
        }

    @property
    def sound(self) -> "Presentation":
        """What of it changes the samples: presentations that are alike in this share what is computed of a clip."""
        return Presentation(self.repeat_to_ms, self.gain, self.level_dbfs, self.pad_to_ms, self.pad)

    @property
    def words(self) -> str:
        """In words, as in ``repeated to 1000 ms, peak at -3 dBFS``; what is only approximated is said."""
        return ", ".join(self.parts) or "as it is"

    @property
    def parts(self) -> list[str]:
        """What is done, in words, one by one."""
        parts = []
        if self.repeat_to_ms:
            parts.append(f"repeated to {self.repeat_to_ms} ms")
        if self.gain == "peak":
            parts.append(f"peak at {self.level_dbfs:g} dBFS")
        if self.gain == "rms":
            parts.append(f"RMS at {self.level_dbfs:g} dBFS or as near as its peak allows")
        if self.pad_to_ms:
            what = "its own noise" if self.pad == "noise" else "silence"
            parts.append(f"padded with {what} to {self.pad_to_ms} ms")
        if self.text_first:
            parts.append("after the question")
        return parts


AS_IS = Presentation()


def present(wave: Wave, how: Presentation) -> Wave:
    """The clip as it is presented: ``[sample]`` float32 at 16 kHz, full scale 1.

    Deterministic. Nothing clips that was within full scale; digital silence has no level that a gain could set, and
    stays.

    >>> present(np.ones(160, dtype=np.float32), Presentation(repeat_to_ms=25, gain="peak", level_dbfs=-20)).sum()
    np.float32(40.0)
    """
    out = wave
    wanted = how.repeat_to_ms * RATE // 1000
    if wanted > len(out):
        out = np.resize(out, wanted)
    if how.gain != "none":
        out = _levelled(out, how.gain, how.level_dbfs)
    missing = how.pad_to_ms * RATE // 1000 - len(out)
    if missing > 0:
        around = own_noise(out, missing) if how.pad == "noise" else np.zeros(missing, out.dtype)
        out = np.concatenate([around[: missing // 2], out, around[missing // 2 :]])
    return out


def _levelled(wave: Wave, gain: str, level_dbfs: float) -> Wave:
    peak = float(np.abs(wave).max())
    if not peak:
        return wave
    level = 10 ** (level_dbfs / 20)
    factor = level / peak
    if gain == "rms":
        power = np.square(wave, dtype=np.float64).mean()
        factor = min(level / float(np.sqrt(power)), 1 / peak)
    return (wave.astype(np.float64) * factor).astype(np.float32)


def own_noise(wave: Wave, samples: int) -> Wave:
    """``[samples]`` of noise like that of a clip: its quietest tenth, in grains of 20 ms that overlap by half.

    The grains begin anywhere, about every millisecond, and are drawn with replacement and either sign, so that few of
    them make no tone; they are weighted so that the power of what is uncorrelated stays as it is. The draw depends on
    the clip's length, not on its bits: decoders that differ in the last one must not draw other noise. A clip in which
    nothing is quiet gives noise as loud as itself.
    """
    grain = min(GRAIN_MS * RATE // 1000, len(wave))
    hop = max(1, grain // 2)
    begin = np.arange(0, len(wave) - grain + 1, max(1, grain // FINE))
    so_far = np.append(0.0, np.square(wave, dtype=np.float64).cumsum())
    order = np.argsort(so_far[begin + grain] - so_far[begin], kind="stable")
    kept = begin[order[: max(FEWEST, round(QUIETEST * len(order)))]]
    quiet = wave[kept[:, None] + np.arange(grain)].astype(np.float64)
    rng = np.random.default_rng(len(wave))
    count = samples // hop + 2
    window = np.sin(np.pi * (np.arange(grain) + 0.5) / grain)
    drawn = quiet[rng.integers(len(quiet), size=count)] * window
    drawn *= rng.choice((-1.0, 1.0), size=(count, 1))
    out = np.zeros(count * hop + grain)
    for i, one in enumerate(drawn):
        out[i * hop : i * hop + grain] += one
    return out[hop : hop + samples].astype(np.float32)
