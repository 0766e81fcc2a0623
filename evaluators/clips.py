"""Clips: one labelled piece of audio, and sets of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, overload

import numpy as np

from evaluators.audio import Wave, load, read_header, shuffle
from evaluators.presentation import AS_IS, Presentation, present
from evaluators.targets import Targets
from evaluators.tasks import Task

Audio = Literal["recorded", "silence", "shuffled"]


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled piece of audio.

    `duration_ms` and `snr_db` are measured; `snr_db` is None for clips without a foreground event (noise, silence).
    `source_id` is the cluster for every statistic. `audio` says what is played, for control conditions:
    digital silence, or the clip's own samples in random order (same level, no content). `checkpoint` says whose clip it
    is, where several checkpoints are searched at once. `question` and `options` are the clip's own, where the task has
    none for all clips.
    """

    clip_id: str
    path: Path
    label: str
    category: str
    duration_ms: float
    snr_db: float | None
    condition: str
    source_id: str
    split: str
    licence: str
    sha256: str
    audio: Audio = "recorded"
    checkpoint: str = ""
    question: str = ""
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The clip's id in results: with its checkpoint in front, where it has one."""
        return f"{self.checkpoint}|{self.clip_id}" if self.checkpoint else self.clip_id


@dataclass(frozen=True)
class ClipSet(Sequence[Clip]):
    """Clips of one task, in a fixed order; never empty. It is a sequence of clips.

    Attributes:
        task: Its labels are the clips'.
        clips: In balanced order, where `opro.problem.Data.split` made the set.
        manifest: That they were read from; None where they were not.
    """

    task: Task
    clips: tuple[Clip, ...]
    manifest: Path | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[Clip]:
        return iter(self.clips)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> "ClipSet": ...
    def __getitem__(self, index: int | slice) -> "Clip | ClipSet":
        found = self.clips[index]
        return found if isinstance(found, Clip) else replace(self, clips=found)

    @cached_property
    def targets(self) -> Targets:
        """The set as arrays: truth, sources, slices."""
        return Targets.of(self.clips, self.task.labels)

    def first(self, count: int) -> "ClipSet":
        """The first so many clips."""
        return self[:count]

    def take(self, index: Sequence[int]) -> "ClipSet":
        """Some clips, in the order of `index`."""
        return replace(self, clips=tuple(self.clips[i] for i in index))

    def repeat(self, checkpoints: Sequence[str]) -> "ClipSet":
        """Each clip once for every checkpoint, in turns, under the same source.

        So balanced accuracy is the mean over the checkpoints, and intervals over sources hold for it as they are.
        """
        parts = (replace(clip, checkpoint=name) for clip in self.clips for name in checkpoints)
        return replace(self, clips=tuple(parts))

    def as_control(self, audio: Audio) -> "ClipSet":
        """The same clips with silence, or their own samples in random order, in place of the recording."""
        return replace(self, clips=tuple(replace(c, audio=audio) for c in self.clips))


def clip_wave(clip: Clip, how: Presentation = AS_IS) -> Wave:
    """What is played: the recording, silence of its length, or its own samples in random order, as it is presented.

    Raises:
        UserError: It cannot be decoded.
    """
    return present(_played(clip), how)


def sound_of(clip: Clip) -> tuple[str | int, ...]:
    """Equal of clips that are the same samples, however they are presented. Decodes no samples that a header counts.

    Silence has nothing but its length: the file's number of samples, with the rate that they are resampled from. All
    else is told apart by content.

    Raises:
        UserError: A silent clip's file is no audio.
    """
    if clip.audio == "silence":
        header = read_header(clip.path)
        return clip.audio, header.samples, header.rate
    return clip.audio, clip.sha256


def _played(clip: Clip) -> Wave:
    wave = load(clip.path)
    if clip.audio == "silence":
        return np.zeros_like(wave)
    if clip.audio == "shuffled":
        return shuffle(wave, int(clip.sha256[:12], 16))
    return wave
