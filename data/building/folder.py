"""Finished clips become a clip set: labels, sources and splits, durations and digests as measured. Nothing is mixed."""

import contextlib
import functools
import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.progress import track

from evaluators.audio import RATE, Wave, load, load_part, read_header
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.files import copy_file, write_bytes
from evaluators.manifest import NEEDED, SPLITS
from evaluators.splits import Registry, write_registry
from evaluators.tasks import SPEECH_TASK, Task
from opro.results.spellings import NO, YES, same_word, source_rule

from .clip_set import REJECTED, project_registry
from .design import stratified_splits
from .dev_split import dev_lines
from .finished import HUB, FinishedClip, Names, is_other, is_speech, read_finished
from .recordings import LABELS, UNKNOWN_LICENCE, write_table

SPEECH, OTHER = LABELS
UNFINISHED = ".folder"  # in --out until the set is whole
OWN = "file"  # --source: every file is a recording of its own
OWN_CLIP, OWN_FILE = "clip:", "file:"  # what a source by content begins with
COLUMNS = (*NEEDED, "pcm_sha256", "recording", "language")
LONGEST_S = 30.0  # what the audio towers hear of a clip
SPEECHLIKE = re.compile("speech|voic|vocal|talk|speak|spoken|human|word|utter|dialog|conversation")
HALF = 2  # sources of a label that dev needs at least: one in each half


@dataclass(frozen=True)
class FolderSettings:
    """What was asked for. `speech`, `other` and `clips` are places as `read_finished` takes them."""

    out: Path
    speech: Sequence[str] = ()
    other: Sequence[str] = ()
    clips: Sequence[str] = ()
    positive: Sequence[str] = ()
    source: Sequence[str] = ()
    names: Names = field(default_factory=Names)
    splits: Mapping[str, float] = field(
        default_factory=lambda: {"train": 0.6, "dev": 0.2, "test": 0.2}
    )
    task: Task = SPEECH_TASK

    @property
    def labels(self) -> tuple[str, ...]:
        """What the manifest's label column may hold, one for each label of the task."""
        return tuple(_value_of(self.task, label) for label in self.task.labels)


@dataclass(frozen=True)
class Part:
    """The part of a file that a clip is, in seconds; the whole file where `start` is None."""

    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Measured:
    """A clip as it was heard."""

    clip: FinishedClip
    part: Part
    seconds: float
    pcm: str  # SHA-256 of the samples, 16 bits at 16 kHz


@dataclass
class Plan:
    """Everything that a build would write, and what is to be said of it."""

    clips: list[Measured] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    splits: dict[str, str] = field(default_factory=dict)  # of each source
    rejected: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def reject(self, clip: FinishedClip, reason: str) -> None:
        """Leaves a clip out."""
        values = (clip.name, clip.label, clip.category, clip.source, reason)
        self.rejected.append(dict(zip(REJECTED, values, strict=True)))


def plan_folder(settings: FolderSettings) -> Plan:
    """Reads, measures and splits; writes nothing.

    Raises:
        UserError: There is nothing to read, labels or sources must be told, or no set can be made of what is left.
    """
    _check_places(settings)
    plan = Plan()
    clips = _read(settings, plan)
    clips = _with_sources(clips, settings.source, plan)
    plan.clips = _without_duplicates(_measure(clips, plan), plan)
    _source_notes(plan, settings.source)
    _check_labels(plan, settings)
    _, registry = project_registry(settings.out)
    plan.splits = _split(plan.clips, settings.splits, registry.splits)
    plan.rows = _manifest_rows(plan)
    return plan


def build_folder(settings: FolderSettings, plan: Plan) -> int:
    """Writes the clips as links or copies, rejected.csv, the registry and, last, the manifest.

    Returns:
        How many are hard links to the files that were given.
    """
    out = settings.out
    created = [p for p in (out / "clips", out / UNFINISHED, out) if not p.exists()]
    try:
        (out / UNFINISHED).mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out / "clips", ignore_errors=True)  # of a build that was killed
        (out / "clips").mkdir()
        links = 0
        for measured, row in zip(plan.clips, plan.rows, strict=True):
            links += _place(measured, out / row["path"])
            row["sha256"] = hashlib.sha256((out / row["path"]).read_bytes()).hexdigest()
        write_table(out / "rejected.csv", plan.rejected, REJECTED)
        path, registry = project_registry(out)
        write_registry(path, Registry(registry.splits | plan.splits, registry.trained_on))
        columns = (*COLUMNS, "question", "options") if settings.task.choices else COLUMNS
        write_table(out / "manifest.csv", plan.rows, columns)  # last: a set with it is whole
        (out / UNFINISHED).rmdir()
    except BaseException:
        for path in created:
            shutil.rmtree(path, ignore_errors=True)
        raise
    return links


# What is read.


def _check_places(settings: FolderSettings) -> None:
    """Raises a UserError unless there is something of both labels to read, and the output lies elsewhere."""
    places = (*settings.speech, *settings.other, *settings.clips)
    how = "--speech DIR and --other DIR, or --clips PLACE whose sub-folders or columns tell labels"
    if settings.task != SPEECH_TASK and (settings.speech or settings.other or settings.positive):
        raise UserError(
            f"--speech, --other and --positive are of task speech; clips of task {settings.task.name!r} are given by"
            " --clips PLACE"
        )
    if not places:
        raise UserError(f"folder has nothing to read: give {how}")
    if not settings.clips and not (settings.speech and settings.other):
        given, missing = ("--speech", "--other") if settings.speech else ("--other", "--speech")
        raise UserError(f"{given} is given and {missing} is not; two kinds are needed: give {how}")
    if (settings.out / "clips").exists() and not (settings.out / UNFINISHED).exists():
        raise UserError(
            f"--out {str(settings.out)!r} holds a folder 'clips' already; remove it, or choose another folder"
        )
    inside = settings.out.resolve()
    for place in places:
        folder = Path(place)
        if folder.is_dir() and inside.is_relative_to(folder.resolve()):
            raise UserError(
                f"--out {str(settings.out)!r} lies inside {place!r}, so that its clips would be read the next time;"
                " choose a folder elsewhere"
            )


def _read(settings: FolderSettings, plan: Plan) -> list[FinishedClip]:
    """All clips with SPEECH or NONSPEECH as their label, names that begin with their place, and categories."""
    out: list[FinishedClip] = []
    for places, label in (
        (settings.speech, SPEECH),
        (settings.other, OTHER),
        (settings.clips, ""),
    ):
        for place in places:
            found = read_finished(place, settings.names, labelled=not label)
            plan.notes += found.notes
            top = Path(place.removeprefix(HUB)).resolve().stem or "clips"
            for name, reason in found.rejected:
                plan.reject(FinishedClip(f"{top}/{name}", Path(name), label), reason)
            clips = [replace(c, name=f"{top}/{c.name}") for c in found.clips]
            if label:
                default = "speech" if label == SPEECH else "other"
                out += [
                    replace(
                        c,
                        label=label,
                        category=(c.category if label == OTHER else "") or default,
                    )
                    for c in clips
                ]
            elif settings.task == SPEECH_TASK:
                out += _labelled(clips, place, settings.positive, plan)
            else:
                out += _of_task(clips, place, settings.task, plan)
    if not settings.task.choices:
        _check_one_label(out)
    return out


def _value_of(task: Task, label: str) -> str:
    """What stands for a label in a manifest: itself, where the task's file does not say otherwise."""
    own = [value for value, of in task.values.items() if of == label]
    return label if label in own or not own else own[0]


def _of_task(
    clips: Sequence[FinishedClip], place: str, task: Task, plan: Plan
) -> list[FinishedClip]:
    """The clips that are of a class of the task, or that bring a question with options, as its manifest names them."""
    if task.choices:
        return list(_asked(clips, task, plan))
    known = {label.casefold(): label for label in task.labels}
    known |= {value.casefold(): label for value, label in task.values.items()}
    out, others = [], Counter[str]()
    for clip in clips:
        label = known.get(clip.label.strip().casefold())
        if label is None:
            others[clip.label] += 1
            continue
        value = _value_of(task, label)
        of_column = task.column == "category"
        out.append(
            replace(clip, label=value, category=value if of_column else clip.category or clip.label)
        )
    if others:
        told = ", ".join(f"{k!r} ({n})" for k, n in others.most_common(6))
        more = ", ..." if len(others) > 6 else ""
        plan.notes.append(
            f"{place!r}: {others.total()} clips are of no class of task {task.name!r} and left out: {told}{more}"
        )
    if not out:
        raise UserError(
            f"{place}: no clip is of a class of task {task.name!r} ({', '.join(task.labels[:6])}, ...); it has"
            f" {', '.join(map(repr, list(others)[:6]))}"
        )
    return out


def _asked(clips: Sequence[FinishedClip], task: Task, plan: Plan) -> Iterator[FinishedClip]:
    """Clips whose right option is among their options, with its place as their label."""
    for clip in clips:
        try:
            options = [str(one).strip() for one in json.loads(clip.options)]
        except ValueError:
            raise UserError(
                f"{clip.where or clip.name}: there are no options; expected a key 'choices' with a list, as in MMAU"
            ) from None
        right = clip.label.strip()
        if not 2 <= len(options) <= len(task.labels):
            plan.reject(clip, f"{len(options)} options; 2 to {len(task.labels)} fit")
        elif len(set(options)) < len(options):
            plan.reject(clip, "two options are alike")
        elif not clip.question.strip():
            plan.reject(clip, "no question")
        elif not all(one and one.isprintable() for one in options):
            plan.reject(
                clip, "an option is empty, or holds a line break or another control character"
            )
        elif right not in options:
            plan.reject(clip, "the answer is none of the options")
        else:
            place = task.labels[options.index(right)]
            label = right if place in options else place  # an option may be called B
            yield replace(
                clip,
                label=label,
                category=clip.category or "question",
                options=json.dumps(options, ensure_ascii=False),
            )


def _labelled(
    clips: Sequence[FinishedClip], place: str, positive: Sequence[str], plan: Plan
) -> list[FinishedClip]:
    kinds = Counter(c.label for c in clips)
    speech = speech_labels(kinds, positive, place)
    for label, kind in ((SPEECH, speech), (OTHER, kinds.keys() - speech)):
        named = ", ".join(f"{k!r} ({kinds[k]})" for k in sorted(kind)) or "nothing"
        plan.notes.append(f"{place!r}: {label} is {named}")
    return [
        replace(
            c,
            label=SPEECH if c.label in speech else OTHER,
            category=c.category or _category(c.label, c.label in speech),
        )
        for c in clips
    ]


def _category(label: str, speech: bool) -> str:
    """The label itself, unless it is an answer or a label rather than a kind of sound."""
    if len(label) > 1 and same_word(label) not in (*YES, *NO, "speech", "nonspeech"):
        return label
    return "speech" if speech else "other"


def speech_labels(kinds: Mapping[str, int], positive: Sequence[str], where: str) -> set[str]:
    """The labels that mean speech: those asked for, or those whose word says so and no other may.

    Args:
        kinds: Label -> how many clips have it.
        positive: Of ``--positive``.
    Raises:
        UserError: One that was asked for is not there, or which mean speech cannot be told.
    """
    there = ", ".join(f"{k!r} ({n})" for k, n in sorted(kinds.items()))
    if positive:
        words = {same_word(name): name for name in positive}
        found = {k for k in kinds if same_word(k) in words}
        absent = [n for word, n in words.items() if word not in {same_word(k) for k in found}]
        if absent:
            raise UserError(f"--positive {absent[0]}: {where} has no such label; it has {there}")
        return found
    answers = {k: same_word(k) for k in kinds}
    if len(kinds) == 2 and all(any(a in w for a in answers.values()) for w in (YES, NO)):
        return {k for k, a in answers.items() if a in YES}
    found = {k for k in kinds if is_speech(k)}
    rest = [k for k in kinds if k not in found and not is_other(k)]
    doubtful = [k for k in rest if SPEECHLIKE.search(k.casefold())]
    if doubtful or not (found or all(map(is_other, kinds))):
        about = f"whether {doubtful[0]!r} is" if doubtful else "which of its labels are"
        raise UserError(
            f"{where}: {about} speech cannot be told from {there}; say --positive NAME, once for each label that"
            " is speech, all others are not"
        )
    return found


def _check_one_label(clips: Sequence[FinishedClip]) -> None:
    """Raises a UserError where one file is given for both labels."""
    first: dict[tuple[str, float | None], FinishedClip] = {}
    for clip in clips:
        if clip.content is None:
            other = first.setdefault((os.path.realpath(clip.path), clip.start), clip)
            if other.label != clip.label:
                raise UserError(
                    f"file {str(clip.path)!r} is given as {other.label} and as {clip.label}; each file has one"
                    " label: let no folder contain the other"
                )


# Sources.


def _with_sources(
    clips: Sequence[FinishedClip], patterns: Sequence[str], plan: Plan
) -> list[FinishedClip]:
    """The clips with the sources that are told, or that ``--source`` finds; the others get theirs by content.

    Raises:
        UserError: A pattern is none, or fits no name; or names look as if they began with a source.
    """
    rules = [_pattern(p) for p in patterns if p != OWN]
    if not patterns:
        _ask_for_sources([c for c in clips if not c.source])
    out, fitted, spelled = [], 0, dict[str, str]()
    for clip in clips:
        if not clip.source:
            found = next((m for m in (rule.search(_stem(clip)) for rule in rules) if m), None)
            fitted += found is not None
            clip = replace(clip, source=(found[1] or "").strip() if found else "")
        # Sources that differ by case alone are one, as they are for the audit.
        out.append(replace(clip, source=spelled.setdefault(clip.source.casefold(), clip.source)))
    if rules and not fitted:
        raise UserError(
            f"--source {patterns[0]!r} fits none of {len(clips)} names, such as {_stem(clips[0])!r}; expected a"
            " pattern whose group is the speaker or recording"
        )
    return out


def _source_notes(plan: Plan, patterns: Sequence[str]) -> None:
    """Says where the sources of the clips come from."""
    kinds = Counter(m.clip.source.partition(":")[0] + ":" for m in plan.clips)
    told = len(plan.clips) - kinds[OWN_CLIP] - kinds[OWN_FILE]
    ask = "" if patterns else " (say --source REGEX if several are of one speaker or recording)"
    for count, text in (
        (
            told,
            "clips have the source that --source finds"
            if patterns
            else "clips have the source that is told",
        ),
        (kinds[OWN_FILE], "clips have the file they are cut from as their source"),
        (kinds[OWN_CLIP], f"clips are taken for a source of their own each{ask}"),
    ):
        if count:
            plan.notes.append(f"sources: {count} {text}")


def _stem(clip: FinishedClip) -> str:
    """A clip's name below its place, by which sources are found."""
    return clip.stem or clip.name.removeprefix(f"{_place_of(clip)}/")


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(f"--source {text!r} is no regular expression ({error})") from None
    if pattern.groups != 1:
        raise UserError(
            f"--source {text!r} has {pattern.groups} groups; expected one, as in '(.+)_[0-9]+', whose text is"
            f" the source; or {OWN}"
        )
    return pattern


def _ask_for_sources(clips: Sequence[FinishedClip]) -> None:
    """Raises a UserError where names of one kind of clips may begin with their source, which decides every interval."""
    groups: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        if clip.start is None:
            name = _stem(clip).removesuffix(clip.path.suffix)
            if name.startswith(f"{clip.category}/"):
                name = name.partition("/")[2]
            groups[f"{clip.label} {clip.category}"].append(name)
    found = {kind: rule for kind, names in groups.items() if (rule := source_rule(names))}
    if not found:
        return
    kind, (_, count) = next(iter(found.items()))
    flags = " ".join(f"--source '{p}'" for p in dict.fromkeys(rule for rule, _ in found.values()))
    raise UserError(
        f"the names of {len(groups[kind])} clips ({kind.strip()}) may begin with their speaker or recording, as"
        f" {groups[kind][0]!r} does, and clips of one must not be in two splits: {flags} makes {count} sources of"
        f" them, another pattern others; --source {OWN} if every file is a recording of its own"
    )


# What is heard.


@contextlib.contextmanager
def _file_of(clip: FinishedClip) -> Iterator[Path]:
    """The clip's file, for as long as the block runs: of a clip without one, a copy."""
    if clip.content is None:
        yield clip.path
        return
    with tempfile.NamedTemporaryFile(suffix=clip.path.suffix) as file:
        file.write(clip.content())
        file.flush()
        yield Path(file.name)


def _measure(clips: Sequence[FinishedClip], plan: Plan) -> list[Measured]:
    """Decodes every clip; those that cannot be decoded are left out with the reason."""
    units, told = _units(clips), Counter[str]()
    out, example = [], ""
    progress = track(clips, "clips", console=Console(stderr=True), transient=True)
    for clip in progress:
        unit = units.get(_place_of(clip), 1.0)
        try:
            with _file_of(clip) as path:
                part = _part(clip, unit, path)
                wave = _wave(path, part)
        except UserError as error:
            plan.reject(clip, str(error))
            continue
        seconds = len(wave) / RATE
        pcm = _digest(wave)
        clip = replace(clip, source=clip.source or _own_source(clip, pcm))
        if (
            clip.start is None
            and clip.length is not None
            and not _near(clip.length * unit, seconds)
        ):
            told["other"] += 1
            example = example or f"{clip.length:g} for {seconds:.2f} s ({clip.where})"
        told["long"] += seconds > LONGEST_S
        out.append(Measured(clip, part, seconds, pcm))
    for place in (place for place, unit in units.items() if unit < 1):
        plan.notes.append(f"{place}: times are in milliseconds, as the decoded files show")
    if told["other"]:
        plan.notes.append(
            f"{told['other']} durations in tables are not those of the files, such as {example}: whole files are taken,"
            " their measured durations are written (an offset in a row cuts)"
        )
    if told["long"]:
        plan.notes.append(
            f"{told['long']} clips are longer than {LONGEST_S:g} s, of which a model may hear the first"
            f" {LONGEST_S:g} only"
        )
    return out


def _digest(wave: Wave) -> str:
    pcm = np.round(np.clip(wave, -1, 1) * 32767).astype("<i2")
    return hashlib.sha256(pcm.tobytes()).hexdigest()


def _own_source(clip: FinishedClip, pcm: str) -> str:
    """A source by content, so that a file keeps its split wherever it lies: the samples, or the file cut from."""
    if clip.start is None or clip.content is not None:
        return f"{OWN_CLIP}{pcm[:12]}"
    return f"{OWN_FILE}{_file_digest(clip.path)[:12]}"


@functools.lru_cache(maxsize=4096)
def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wave(path: Path, part: Part) -> Wave:
    return load(path) if part.start is None else load_part(path, part.start, part.end)


def _part(clip: FinishedClip, unit: float, path: Path) -> Part:
    """The part of a file in seconds. Raises a UserError where it lies after the file's end."""
    if clip.start is None:
        return Part()
    start, total = clip.start * unit, read_header(path).seconds
    end = total if clip.length is None else start + clip.length * unit
    if not start < end <= total + max(0.05, 0.02 * total):
        raise UserError(
            f"its part from {start:g} to {end:g} s is not in its file of {total:.2f} s ({clip.where})"
        )
    return Part(start, min(end, total))


def _near(told: float, seconds: float) -> bool:
    return math.isclose(told, seconds, rel_tol=0.02, abs_tol=0.05)


def _units(clips: Sequence[FinishedClip]) -> dict[str, float]:
    """Place -> the unit of its times in seconds: 0.001 where, read as seconds, most exceed their files, else 1."""
    fits: dict[str, Counter[float]] = defaultdict(Counter)
    for clip in clips:
        if clip.length is None or clip.content is not None:
            continue
        try:
            total = read_header(clip.path).seconds
        except UserError:
            continue
        for unit in (1.0, 0.001):
            fits[_place_of(clip)][unit] += (
                (clip.start or 0) + clip.length
            ) * unit <= 1.02 * total + 0.05
    return {place: 0.001 if 2 * n[1.0] < n[0.001] else 1.0 for place, n in fits.items()}


def _place_of(clip: FinishedClip) -> str:
    return clip.name.partition("/")[0]


def _without_duplicates(clips: Sequence[Measured], plan: Plan) -> list[Measured]:
    """Clips with equal samples count once; under two labels not at all, since one of them is wrong."""
    same: dict[str, list[Measured]] = defaultdict(list)
    for measured in clips:
        asked = f"{measured.clip.question}|{measured.clip.options}"  # "|" where all are asked alike
        same[f"{measured.pcm}|{asked}"].append(measured)
    out, twice, torn = [], 0, 0
    for group in same.values():
        labels = {m.clip.label for m in group}
        if len(labels) == 1:
            out.append(group[0])
        for measured in group if len(labels) > 1 else group[1:]:
            other = next(m for m in group if m is not measured).clip
            plan.reject(measured.clip, f"same samples as {other.name}, which is {other.label}")
        torn += len(group) if len(labels) > 1 else 0
        twice += len(group) - 1 if len(labels) == 1 else 0
    if twice:
        plan.notes.append(f"{twice} clips have the samples of another one and are left out")
    if torn:
        plan.notes.append(
            f"{torn} clips with equal samples have one label here and another there and are left out:"
            " rejected.csv names them"
        )
    kept = {id(m) for m in out}
    return [m for m in clips if id(m) in kept]


def _check_labels(plan: Plan, settings: FolderSettings) -> None:
    """Raises a UserError unless both labels have enough sources for three splits."""
    why = "".join(f"; {n} left out: {reason}" for reason, n in _reasons(plan))
    if not plan.clips:
        raise UserError(f"no clip is left{why}")
    parts = sum(share > 0 for share in settings.splits.values())
    if settings.task.choices:
        sources = {m.clip.source for m in plan.clips}
        if len(sources) < parts + 1:
            raise UserError(
                f"the questions are of {len(sources)} sources; at least {parts + 1} are needed for {parts} splits{why}"
            )
        return
    for label in settings.labels:
        sources = {m.clip.source for m in plan.clips if m.clip.label == label}
        if not sources and settings.task != SPEECH_TASK:
            raise UserError(
                f"no clip is of label {label!r} of task {settings.task.name!r}; add some, or make a task file without"
                f" it{why}"
            )
        if not sources:
            raise UserError(
                f"all {len(plan.clips)} clips are {OTHER if label == SPEECH else SPEECH}; two kinds are needed: add"
                f" clips of {label}, or say with --positive which labels are speech{why}"
            )
        if len(sources) < parts + 1:  # dev is halved by source
            raise UserError(
                f"{label} has clips of {len(sources)} sources ({', '.join(sorted(sources)[:3])}); at least"
                f" {parts + 1} are needed for {parts} splits: add clips of other speakers or recordings, or mend"
                f" --source{why}"
            )


# What is written.


def _split(
    clips: Sequence[Measured], shares: Mapping[str, float], known: Mapping[str, str]
) -> dict[str, str]:
    labels, categories = defaultdict(set), defaultdict(set)
    for m in clips:
        labels[m.clip.source].add(m.clip.label)
        categories[m.clip.source].add(m.clip.category)
    kinds = {s: ("+".join(sorted(labels[s])), "+".join(sorted(categories[s]))) for s in labels}
    return stratified_splits(kinds, shares, known, {"dev": HALF})


def _manifest_rows(plan: Plan) -> list[dict[str, Any]]:
    files = [m.clip.path.resolve() for m in plan.clips if m.clip.content is None]
    parent = os.path.commonpath([f.parent for f in files]) if files else ""
    used: set[str] = set()
    rows = []
    for measured in plan.clips:
        clip = measured.clip
        clip_id = _clip_id(clip, measured.part, used)
        whole = measured.part.start is None
        stored = clip.name if clip.content else os.path.relpath(clip.path.resolve(), parent)
        rows.append(
            {
                "clip_id": clip_id,
                "path": f"clips/{clip_id}{clip.path.suffix.lower() if whole else '.flac'}",
                "label": clip.label,
                "category": clip.category,
                "duration_ms": f"{1000 * measured.seconds:.10g}",
                "snr_db": "",
                "condition": "as given",
                "source_id": clip.source,
                "split": plan.splits[clip.source],
                "licence": clip.licence or UNKNOWN_LICENCE,
                "sha256": "",
                "pcm_sha256": measured.pcm,
                "recording": stored.encode(errors="replace").decode(),
                "language": clip.language,
                **({"question": clip.question, "options": clip.options} if clip.options else {}),
            }
        )
    return rows


def _clip_id(clip: FinishedClip, part: Part, used: set[str]) -> str:
    """A name that every file system takes, unique without regard to case."""
    stem = clip.name.removesuffix(clip.path.suffix)
    if part.start is not None:
        stem += f"_{1000 * part.start:.0f}"
    name = re.sub(r"[^\w.+-]+", "-", stem).strip("-.")
    short = hashlib.sha256(f"{clip.name}|{clip.where}|{part}".encode(errors="replace")).hexdigest()[
        :8
    ]
    if len(name.encode()) > 100:
        name = f"{name.encode()[:80].decode(errors='ignore')}-{short}"
    if not name or name.casefold() in used:
        name = f"{name}-{short}".strip("-")
    used.add(name.casefold())
    return name


def _place(measured: Measured, target: Path) -> bool:
    """A hard link to the clip's file, a copy where none can be made; a part of a file is cut at 16 kHz.

    Returns:
        Whether it is a link.
    """
    clip = measured.clip
    if clip.content is None and measured.part.start is None:
        try:
            os.link(clip.path.resolve(), target)
            return True
        except OSError:  # another file system, or one without links
            pass
    with _file_of(clip) as path:
        if measured.part.start is None:
            copy_file(path, target)
        else:
            encoded = io.BytesIO()
            soundfile.write(encoded, _wave(path, measured.part), RATE, "PCM_16", format="WAV")
            write_bytes(target, encoded.getvalue())
    return False


# What is said.


def outline(plan: Plan, settings: FolderSettings) -> list[str]:
    """Notes, counts by split, label and category, what was left out, and what dev can show."""
    lines = [*dict.fromkeys(plan.notes), ""]
    seconds = {row["clip_id"]: float(row["duration_ms"]) / 1000 for row in plan.rows}
    lines.append(f"{'split':6} {'label':10} {'clips':>7} {'sources':>8} {'minutes':>8}  categories")
    for split in SPLITS:
        for label in _shown_labels(plan, settings):
            part = [r for r in plan.rows if (r["split"], r["label"]) == (split, label)]
            if part:
                minutes = sum(seconds[r["clip_id"]] for r in part) / 60
                kinds = Counter(r["category"] for r in part).most_common(6)
                more = ", ..." if len({r["category"] for r in part}) > 6 else ""
                lines.append(
                    f"{split:6} {label:10} {len(part):7,} {len({r['source_id'] for r in part}):8,}"
                    f" {minutes:8.1f}  {', '.join(f'{k} {n}' for k, n in kinds)}{more}"
                )
    lines.append("")
    if plan.rejected:
        lines.append(
            f"left out: {len(plan.rejected)} (rejected.csv): "
            + "; ".join(f"{n} times: {reason}" for reason, n in _reasons(plan))
        )
    lines += dev_lines(_clips(plan, settings), settings.task)
    return lines


def _shown_labels(plan: Plan, settings: FolderSettings) -> list[str]:
    if settings.task.choices:
        return sorted({row["label"] for row in plan.rows})
    return list(settings.labels)


def _reasons(plan: Plan) -> list[tuple[str, int]]:
    """The three most frequent reasons why clips were left out, without the names in them."""
    texts = (re.sub(r"'[^']*'|\([^()]*:\d+\)", "...", row["reason"]) for row in plan.rejected)
    return Counter(texts).most_common(3)


def _clips(plan: Plan, settings: FolderSettings) -> list[Clip]:
    out, of_value = settings.out, dict(zip(settings.labels, settings.task.labels, strict=True))
    return [
        Clip(
            clip_id=row["clip_id"],
            path=out / row["path"],
            label=of_value.get(row["label"], settings.task.labels[0]),
            category=row["category"],
            duration_ms=float(row["duration_ms"]),
            snr_db=None,
            condition=row["condition"],
            source_id=row["source_id"],
            split=row["split"],
            licence=row["licence"],
            sha256=row["sha256"],
            options=tuple(json.loads(row["options"])) if row.get("options") else (),
        )
        for row in plan.rows
    ]
