"""The design of the shipped clips: each SPEECH clip with the NONSPEECH mix closest to it in level, bandwidth, tilt.

Kept as it was when the clips were made, so that `python -m data.build demo --check` gives the same PCM. New sets use
data/design.py. Sources are split first, by shares within each category; then clips are cut, checked for voice activity,
mixed with noise, normalised and written as Ogg/Opus.
"""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from evaluators.audio import RATE, Wave, add_noise, coloured_noise, frame_power, load, normalise
from evaluators.detectors.detectors import FRAME as VOICE_FRAME
from evaluators.errors import UserError
from evaluators.files import read_yaml
from evaluators.splits import Registry, write_registry

from ..building.attribution import write_attribution
from ..building.cues import cues
from ..building.recordings import read_table, write_table
from ..building.render import encode, pcm_digest
from ..building.scan import stable
from ..building.voice import Silero

KEYS = {
    "design",
    "seed",
    "durations_ms",
    "snrs_db",
    "noise_slopes_db",
    "clips",
    "noise_share",
    "cap",
    "sources",
    "min_est_snr_db",
    "vad_speech",
    "vad_nonspeech",
    "min_active_dbfs",
    "matches",
    "together",
}


@dataclass(frozen=True)
class Recording:
    """One file of the recordings folder; `group` is the source id that must not cross a split."""

    path: str
    label: str
    category: str
    group: str
    source_package: str
    language: str
    licence: str
    est_snr_db: float


@dataclass(frozen=True)
class Window:
    """A candidate cut: `start` and the recording, with the share of voice activity on the clean segment."""

    recording: Recording
    start: int
    vad_fraction: float


def is_matched(path: Path) -> bool:
    """Whether a recipe file asks for this design."""
    raw = read_yaml(path)
    return isinstance(raw, dict) and raw.get("design") == "matched"


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe file; unknown and missing keys are errors."""
    recipe = read_yaml(path)
    if not isinstance(recipe, dict) or set(recipe) != KEYS:
        raise UserError(
            f"{path}: keys {sorted(set(recipe or {}) ^ KEYS)} are unknown or missing; expected"
            f" {sorted(KEYS)}"
        )
    return recipe


def read_recordings(folder: Path) -> list[Recording]:
    """The recordings folder's manifest."""
    path = folder / "manifest.csv"
    if not path.is_file():
        raise UserError(
            f"recordings {str(folder)!r} hold no manifest.csv; --recordings wants the folder of the"
            " recordings"
        )
    needed = ("path", "label", "category", "group", "source_package", "language", "licence")
    return [
        Recording(
            r["path"],
            r["label"],
            r["category"],
            r["group"],
            r["source_package"],
            r["language"],
            r["licence"],
            float(r["est_snr_db"] or "inf"),
        )
        for _, r in read_table(path, (*needed, "est_snr_db"))
    ]


def windows(
    recording: Recording,
    wave: Wave,
    speech: NDArray[np.bool_],
    samples: int,
    recipe: dict[str, Any],
) -> Iterator[Window]:
    """Cuts of `samples`: the centre of the active part first, then its neighbours, all inside the active part."""
    power = frame_power(wave)
    loud = np.flatnonzero(power >= power.max() * 10 ** (-4.5))  # within 45 dB of the loudest frame
    first, last = loud[0] * 320, min(len(wave), (loud[-1] + 1) * 320)
    centre = (first + last - samples) // 2
    starts = [centre + side * samples for side in (0, -1, 1, -2, 2, -3, 3)]
    for start in starts:
        if start < first or start + samples > last:
            continue
        cut = wave[start : start + samples]
        frames = speech[start // VOICE_FRAME : -(-(start + samples) // VOICE_FRAME)]
        fraction = float(frames.mean())
        good = (
            fraction >= recipe["vad_speech"]
            if recording.label == "SPEECH"
            else fraction <= recipe["vad_nonspeech"]
        )
        level = 10 * np.log10(
            np.sort(frame_power(cut))[len(cut) // 640 :].mean() + 1e-12
        )  # the louder half of the frames
        quiet = (frame_power(cut) < 1e-9).mean()
        if good and level >= recipe["min_active_dbfs"] and quiet < 0.1:
            yield Window(recording, int(start), fraction)


def split_sources(
    recordings: Sequence[Recording], usable: set[str], recipe: dict[str, Any]
) -> dict[str, str]:
    """Source id -> split, before any clip is made: shares by recipe within each category, in hash order.

    Sources without a usable window go to train: they can train a model but give no clip. Sources named together
    share a split.
    """
    twin = {name: group[0] for group in recipe["together"] for name in group}
    members: dict[str, list[str]] = defaultdict(list)
    kind: dict[str, tuple[str, str]] = {}
    for recording in recordings:
        unit = twin.get(recording.group, recording.group)
        kind.setdefault(unit, (recording.label, recording.category))
        if recording.group not in members[unit]:
            members[unit].append(recording.group)
    out: dict[str, str] = {}
    for category in sorted(set(kind.values())):
        units = sorted(
            (u for u in members if kind[u] == category),
            key=lambda u: stable(recipe["seed"], "split", u),
        )
        shares = recipe["sources"][category[0]]
        able = [u for u in units if usable & set(members[u])]
        count = sum(len(members[u]) for u in able)
        filled: Counter[str] = Counter()
        for unit in able:
            # Test and dev are filled first, so that rounding never starves them.
            split = next(
                s
                for s in ("test", "dev", "train")
                if s == "train" or filled[s] < round(shares[s] * count)
            )
            filled[split] += len(members[unit])
            out.update(dict.fromkeys(members[unit], split))
        for unit in units:
            if unit not in able:
                out.update(dict.fromkeys(members[unit], "train"))
    return out


def plan(recipe: dict[str, Any], split: str) -> list[tuple[int, float | None, str]]:
    """The cells of a split: (duration, SNR, NONSPEECH category) of each pair of a SPEECH and a NONSPEECH clip."""
    pairs = recipe["clips"][split] // 2
    out: list[tuple[int, float | None, str]] = []
    events = ("environment", "music", "animal")
    durations, snrs = recipe["durations_ms"], recipe["snrs_db"]
    for i in range(pairs):
        duration, snr = durations[i % len(durations)], snrs[i // len(durations) % len(snrs)]
        turn = i // (len(durations) * len(snrs))
        # Every fourth pair has a noise clip; the offset by cell spreads it over all of them.
        cell = i % (len(durations) * len(snrs))
        slot = (turn + cell + cell // len(durations)) % round(1 / recipe["noise_share"])
        out.append((duration, snr, "noise" if slot == 0 else events[(slot + turn) % 3]))
    # Long clips first: fewer sources have them, and short ones can be cut from any.
    return sorted(out, key=lambda cell: -cell[0])


def build(recipe: dict[str, Any], folder: Path, out: Path) -> None:
    """Writes clips, manifest.csv, registry.json and ATTRIBUTION.md into `out` (a new folder)."""
    recordings = read_recordings(folder)
    voice = Silero()
    waves: dict[str, Wave] = {}
    pool: dict[tuple[str, int], list[Window]] = defaultdict(list)  # (source, duration) -> windows
    for recording in track(recordings, "voice activity", console=_stderr()):
        if recording.label == "SPEECH" and recording.est_snr_db < recipe["min_est_snr_db"]:
            continue
        wave = load(folder / recording.path)
        speech = voice(wave)
        for duration in recipe["durations_ms"]:
            found = list(windows(recording, wave, speech, duration * RATE // 1000, recipe))
            if found:
                waves[recording.path] = wave
                pool[recording.group, duration] += found
    splits = split_sources(recordings, {group for group, _ in pool}, recipe)
    rows: list[dict[str, Any]] = []
    (out / "clips").mkdir(parents=True)
    for split in ("train", "dev", "test"):
        rows += _build_split(recipe, split, splits, recordings, pool, waves, out)
    write_table(out / "manifest.csv", rows, list(rows[0]))
    write_registry(out / "registry.json", Registry(splits, {}))
    write_attribution(rows, [folder], out)


def _build_split(
    recipe: dict[str, Any],
    split: str,
    splits: dict[str, str],
    recordings: Sequence[Recording],
    pool: dict[tuple[str, int], list[Window]],
    waves: dict[str, Wave],
    out: Path,
) -> list[dict[str, Any]]:
    """The rows of one split: each SPEECH clip with the NONSPEECH clip closest to it in level, bandwidth, tilt."""
    category_of = {r.group: r.category for r in recordings}
    cap = recipe["cap"][split]
    used: Counter[str] = Counter()
    taken: set[tuple[str, int]] = set()  # (recording, start): no cut twice, whatever its duration
    rows: list[dict[str, Any]] = []
    scale: NDArray[np.float64] | None = None

    def free(category: str, duration: int, limit: int) -> list[Window]:
        found = [
            w
            for (group, d), ws in pool.items()
            if d == duration
            and splits[group] == split
            and category_of[group] == category
            and used[group] < limit
            for w in ws
            if (w.recording.path, w.start) not in taken
        ]
        return sorted(
            found,
            key=lambda w: (
                used[w.recording.group],
                stable(recipe["seed"], w.recording.path, w.start, duration),
            ),
        )

    def mix(window: Window, duration: int, snr: float, slope: float) -> tuple[Wave, float]:
        wave = waves[window.recording.path][window.start : window.start + duration * RATE // 1000]
        rng = np.random.default_rng(
            stable(recipe["seed"], window.recording.path, window.start, duration, snr)
        )
        mixed, measured = add_noise(wave, coloured_noise(len(wave), slope, rng), snr)
        return normalise(mixed), measured

    for number, (duration, snr, category) in enumerate(
        track(plan(recipe, split), f"{split} clips", console=_stderr())
    ):
        low, high = recipe["noise_slopes_db"]
        slope = float(
            np.random.default_rng(stable(recipe["seed"], split, number, "slope")).uniform(low, high)
        )
        speech = free("speech", duration, cap["SPEECH"])
        others = free(category, duration, cap["NONSPEECH"])[: recipe["matches"]]
        if not speech or not others:
            missing = "speech" if not speech else category
            raise UserError(
                f"recipe: no {missing} window of {duration} ms is left in split {split!r}; raise"
                " its cap or ask for fewer clips"
            )
        first = speech[0]
        heard, measured = mix(first, duration, snr, slope)
        mixes = [mix(w, duration, snr, slope) for w in others]
        looks = np.stack([cues(heard), *(cues(w) for w, _ in mixes)])
        scale = (
            looks.std(axis=0) + 1e-6
            if scale is None
            else 0.95 * scale + 0.05 * (looks.std(axis=0) + 1e-6)
        )
        best = int(np.argmin((((looks[1:] - looks[0]) / scale) ** 2).sum(axis=1)))
        for window, (wave, got) in ((first, (heard, measured)), (others[best], mixes[best])):
            used[window.recording.group] += 1
            taken.add((window.recording.path, window.start))
            rows.append(_write(window, wave, split, number, duration, snr, slope, got, out))
    return rows


def _write(
    window: Window,
    wave: Wave,
    split: str,
    number: int,
    duration: int,
    snr: float,
    slope: float,
    measured: float,
    out: Path,
) -> dict[str, Any]:
    recording = window.recording
    noisy = recording.category != "noise"  # noise on noise has no SNR
    clip_id = f"{split}-{'s' if recording.label == 'SPEECH' else 'n'}{number:03d}"
    encoded = encode(wave, "opus")
    (out / "clips" / f"{clip_id}.ogg").write_bytes(encoded)
    return {
        "clip_id": clip_id,
        "path": f"clips/{clip_id}.ogg",
        "label": recording.label,
        "category": recording.category,
        "duration_ms": round(1000 * len(wave) / RATE),
        "snr_db": f"{measured:.2f}" if noisy else "",
        "condition": f"dur{duration}_snr{snr:+03d}" if noisy else f"dur{duration}_noise",
        "source_id": recording.group,
        "split": split,
        "licence": recording.licence,
        "sha256": hashlib.sha256(encoded).hexdigest(),
        "pcm_sha256": pcm_digest(encoded),
        "snr_target_db": snr if noisy else "",
        "noise_slope_db": f"{slope:.2f}",
        "vad_fraction": f"{window.vad_fraction:.2f}",
        "recording": recording.path,
        "source_package": recording.source_package,
        "language": recording.language,
        "start_s": f"{window.start / RATE:.3f}",
    }


def compare(built: Path, shipped: Path) -> list[str]:
    """Clips whose manifest row (the container's digest aside) or file differs from a rebuild."""

    def read(path: Path) -> dict[str, dict[str, str]]:
        with (path / "manifest.csv").open(newline="", encoding="utf-8") as file:
            return {row["clip_id"]: row for row in csv.DictReader(file)}

    def whole(row: dict[str, str]) -> bool:
        file = shipped / row["path"]
        return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]

    new, old = read(built), read(shipped)
    return sorted(set(new) ^ set(old)) + [
        name
        for name in sorted(set(new) & set(old))
        if {**new[name], "sha256": ""} != {**old[name], "sha256": ""} or not whole(old[name])
    ]


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)
