"""The shipped clips: each SPEECH clip beside the NONSPEECH mix that is closest to it in level, bandwidth and tilt.

Frozen, so that `python -m data.build demo --check` gives the same samples; new sets use data/building/design.py.
Sources are split first, by shares within each category; then clips are cut, checked for voice activity, mixed with
noise, normalised and written as Ogg/Opus.
"""

import hashlib
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from evaluators.audio import RATE, Wave, load
from evaluators.detectors.detectors import FRAME as VOICE_FRAME
from evaluators.errors import UserError
from evaluators.files import read_table, read_yaml
from evaluators.renderings import FILE
from evaluators.splits import Registry, write_registry

from ..building.attribution import write_attribution
from ..building.clip_set import differing_clips
from ..building.cues import cues
from ..building.mixing import active_span, add_noise, coloured_noise, frame_power, normalise
from ..building.recordings import Recording, write_table
from ..building.render import encode, pcm_digest
from ..building.renderings import told
from ..building.scan import OFFSETS, RANGE_DB, stable_seed
from ..building.voice import SileroActivity

KEYS = set(
    "design seed durations_ms snrs_db noise_slopes_db clips noise_share cap sources min_est_snr_db vad_speech"
    " vad_nonspeech min_active_dbfs matches together renderings".split()
)
AGAIN_OF = "dev"  # split that is rendered more than once: what decisions are made on
Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Window:
    """A cut that may become a clip: its first sample, and the share of voice activity before mixing."""

    recording: Recording
    start: int
    vad_fraction: float

    @property
    def key(self) -> tuple[str, int]:
        """Recording and first sample: no two clips share it, whatever their durations."""
        return self.recording.name, self.start


def read_recipe(path: Path) -> Recipe:
    """The recipe of the shipped clips.

    Raises:
        UserError: A key is unknown or missing.
    """
    recipe = read_yaml(path)
    if not isinstance(recipe, dict) or set(recipe) != KEYS:
        raise UserError(
            f"{path}: keys {sorted(set(recipe or {}) ^ KEYS)} are unknown or missing; expected"
            f" {sorted(KEYS)}"
        )
    return recipe


def read_recordings(folder: Path) -> list[Recording]:
    """The recordings of the folder's manifest; column `group` is the source id."""
    path = folder / "manifest.csv"
    if not path.is_file():
        raise UserError(
            f"recordings {str(folder)!r} hold no manifest.csv; --recordings wants the folder of the"
            " recordings"
        )
    needed = "path label category group licence source_package language".split()
    out = []
    for _, row in read_table(path, (*needed, "est_snr_db")):
        name, *values = (row[column] for column in needed)
        snr = float(row["est_snr_db"] or "inf")
        out.append(Recording(name, folder / name, *values, est_snr_db=snr))
    return out


def windows(
    recording: Recording, wave: Wave, speech: NDArray[np.bool_], samples: int, recipe: Recipe
) -> Iterator[Window]:
    """Cuts of `samples`: the centre of the active part first, then its neighbours, all inside the active part."""
    first, last = active_span(wave, RANGE_DB)
    centre = (first + last - samples) // 2
    for start in (centre + side * samples for side in OFFSETS):
        if start < first or start + samples > last:
            continue
        power = frame_power(wave[start : start + samples])
        fraction = float(speech[start // VOICE_FRAME : -(-(start + samples) // VOICE_FRAME)].mean())
        low, high = recipe["vad_speech"], recipe["vad_nonspeech"]
        good = fraction >= low if recording.label == "SPEECH" else fraction <= high
        louder_half = np.sort(power)[samples // 640 :]
        level = 10 * np.log10(louder_half.mean() + 1e-12)
        if good and level >= recipe["min_active_dbfs"] and (power < 1e-9).mean() < 0.1:
            yield Window(recording, start, fraction)


def split_sources(
    recordings: Sequence[Recording], usable: set[str], recipe: Recipe
) -> dict[str, str]:
    """Source id -> split, before any clip is made: shares by recipe within each category, in hash order.

    Sources without a usable window go to train: they can train a model but give no clip. Sources of one `together`
    group share a split.
    """
    first = {name: group[0] for group in recipe["together"] for name in group}
    members: dict[str, list[str]] = defaultdict(list)
    kind: dict[str, tuple[str, str]] = {}
    for recording in recordings:
        unit = first.get(recording.source_id, recording.source_id)
        kind.setdefault(unit, (recording.label, recording.category))
        if recording.source_id not in members[unit]:
            members[unit].append(recording.source_id)
    out: dict[str, str] = {}
    for category in sorted(set(kind.values())):
        units = sorted(
            (u for u in members if kind[u] == category),
            key=lambda u: stable_seed(recipe["seed"], "split", u),
        )
        shares = recipe["sources"][category[0]]
        able = [u for u in units if usable & set(members[u])]
        count = sum(len(members[u]) for u in able)
        filled: Counter[str] = Counter()
        for unit in able:
            # Test and dev are filled first, so that rounding never starves them.
            open_splits = [s for s in ("test", "dev") if filled[s] < round(shares[s] * count)]
            split = [*open_splits, "train"][0]
            filled[split] += len(members[unit])
            out.update(dict.fromkeys(members[unit], split))
        for unit in units:
            if unit not in able:
                out.update(dict.fromkeys(members[unit], "train"))
    return out


def plan(recipe: Recipe, split: str) -> list[tuple[int, float | None, str]]:
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


def build(path: Path, folder: Path, out: Path) -> None:
    """Builds the recipe at `path` from a folder of recordings; writes into `out` when all clips are made."""
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "built"
        _build(read_recipe(path), folder, built)
        out.mkdir(parents=True, exist_ok=True)
        shutil.copytree(built, out, dirs_exist_ok=True)


def rebuild_and_compare(path: Path, folder: Path, out: Path) -> list[str]:
    """Ids of the clips in `out` that differ from a rebuild elsewhere."""
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "built"
        _build(read_recipe(path), folder, built)
        return differing_clips(built, out)


def _build(recipe: Recipe, folder: Path, out: Path) -> None:
    """Writes clips, manifest.csv, registry.json and ATTRIBUTION.md into `out` (a new folder)."""
    recordings = read_recordings(folder)
    activity = SileroActivity()
    waves: dict[str, Wave] = {}
    pool: dict[tuple[str, int], list[Window]] = defaultdict(list)  # (source, duration) -> windows
    for recording in track(recordings, "voice activity", console=Console(stderr=True)):
        if recording.label == "SPEECH" and recording.est_snr_db < recipe["min_est_snr_db"]:
            continue
        wave = load(folder / recording.name)
        speech = activity(wave)
        for duration in recipe["durations_ms"]:
            found = list(windows(recording, wave, speech, duration * RATE // 1000, recipe))
            if found:
                waves[recording.name] = wave
                pool[recording.source_id, duration] += found
    splits = split_sources(recordings, {source for source, _ in pool}, recipe)
    category = {r.source_id: r.category for r in recordings}
    rows: list[dict[str, Any]] = []
    more: list[dict[str, Any]] = []
    (out / "clips").mkdir(parents=True)
    for split in ("train", "dev", "test"):
        in_split: dict[tuple[str, int], list[Window]] = defaultdict(list)
        for (source, duration), found in pool.items():
            if splits[source] == split:
                in_split[category[source], duration] += found
        made = _Split(recipe, split, in_split, waves)
        first = made.build(out)
        rows += first
        for number in range(1, recipe["renderings"] if split == AGAIN_OF else 1):
            more += made.again(number, first, out)
    write_table(out / "manifest.csv", rows, list(rows[0]))
    if more:
        write_table(out / FILE, more, list(more[0]))
        print("\n".join(told(rows, more)))
    write_registry(out / "registry.json", Registry(splits, {}))
    write_attribution([*rows, *more], [folder], out)


@dataclass(frozen=True)
class _Mix:
    """A window mixed with noise."""

    window: Window
    wave: Wave
    duration_ms: int
    snr_target_db: int
    snr_db: float  # measured
    slope_db: float


@dataclass
class _Split:
    """The clips of one split, made pair by pair."""

    recipe: Recipe
    split: str
    pool: Mapping[tuple[str, int], Sequence[Window]]  # (category, duration) -> windows
    waves: Mapping[str, Wave]
    used: Counter[str] = field(default_factory=Counter)
    taken: Counter[tuple[str, int]] = field(default_factory=Counter)
    made: set[tuple[str, int, int, float]] = field(default_factory=set)  # with duration and SNR

    def build(self, out: Path) -> list[dict[str, Any]]:
        """Writes the clips; returns their manifest rows."""
        rows: list[dict[str, Any]] = []
        scale: NDArray[np.float64] | None = None
        cells = plan(self.recipe, self.split)
        for number, (duration, snr, category) in enumerate(
            track(cells, f"{self.split} clips", console=Console(stderr=True))
        ):
            rng = np.random.default_rng(
                stable_seed(self.recipe["seed"], self.split, number, "slope")
            )
            slope = float(rng.uniform(*self.recipe["noise_slopes_db"]))
            speech = self._free("speech", duration)[0]
            others = self._free(category, duration)[: self.recipe["matches"]]
            mixes = [self._mix(w, duration, snr, slope) for w in (speech, *others)]
            features = np.stack([cues(mix.wave) for mix in mixes])
            spread = features.std(axis=0) + 1e-6
            scale = spread if scale is None else 0.95 * scale + 0.05 * spread
            distance = (((features[1:] - features[0]) / scale) ** 2).sum(axis=1)
            for mix in (mixes[0], mixes[1 + int(np.argmin(distance))]):
                self.used[mix.window.recording.source_id] += 1
                self._took(mix)
                letter = "s" if mix.window.recording.label == "SPEECH" else "n"
                rows.append(_write(mix, self.split, f"{self.split}-{letter}{number:03d}", out))
        return rows

    def again(
        self, number: int, first: Sequence[Mapping[str, Any]], out: Path
    ) -> list[dict[str, Any]]:
        """Writes a further rendering: of each clip another one, of the same source, in another cell.

        A cut that no clip has comes first, else the one heard least, with other noise. What can only be
        made as it was is left out.

        Args:
            number: Of the rendering, from 1.
            first: Rows of rendering 0, SPEECH and NONSPEECH in turns.
        """
        rows: list[dict[str, Any]] = []
        for place in range(0, len(first), 2):
            speech, other = first[place], first[place + 1]
            own = int(speech["duration_ms"]), int(speech["snr_target_db"])
            turned = self._turned(own, number)
            seed = stable_seed(self.recipe["seed"], self.split, place // 2, "slope", number)
            slope = float(np.random.default_rng(seed).uniform(*self.recipe["noise_slopes_db"]))
            target: NDArray[np.float64] | None = None
            for row, letter in ((speech, "s"), (other, "n")):
                found = next(filter(None, (self._another(row, cell, slope) for cell in turned)), [])
                if not found:
                    continue
                features = np.stack([cues(mix.wave) for mix in found])
                scale = features.std(axis=0) + 1e-6
                near = (
                    0
                    if target is None
                    else int((((features - target) / scale) ** 2).sum(1).argmin())
                )
                target = features[near] if target is None else target
                mix = found[near]
                self._took(mix)
                clip_id = f"{self.split}-r{number}-{letter}{place // 2:03d}"
                rows.append(_write(mix, self.split, clip_id, out) | {"rendering": number})
        return rows

    def _turned(self, own: tuple[int, int], number: int) -> list[tuple[int, int]]:
        """All cells: first those of a clip's own duration, SNRs turned on by the rendering, so that cells stay even."""
        snrs, durations = self.recipe["snrs_db"], self.recipe["durations_ms"]
        at = snrs.index(own[1]) + number
        turned = [snrs[(at + k) % len(snrs)] for k in range(len(snrs))]
        return [(d, snr) for d in sorted(durations, key=lambda d: d != own[0]) for snr in turned]

    def _took(self, mix: _Mix) -> None:
        self.taken[mix.window.key] += 1
        self.made.add((*mix.window.key, mix.duration_ms, mix.snr_target_db))

    def _another(self, row: Mapping[str, Any], cell: tuple[int, int], slope: float) -> list[_Mix]:
        """Mixes of one cell from cuts of a clip's source that were heard least; none where it has no such cut."""
        duration, snr = cell
        own = [
            w
            for w in self.pool.get((row["category"], duration), ())
            if w.recording.source_id == row["source_id"]
            and (*w.key, duration, snr) not in self.made
        ]
        least = min((self.taken[w.key] for w in own), default=0)
        seed = self.recipe["seed"]
        found = sorted(
            (w for w in own if self.taken[w.key] == least),
            key=lambda w: stable_seed(seed, *w.key, duration),
        )
        if row["label"] == "SPEECH":
            found = found[:1]
        return [self._mix(w, duration, snr, slope) for w in found[: self.recipe["matches"]]]

    def _free(self, category: str, duration: int) -> list[Window]:
        """Windows that are not taken, of sources below the cap; the least used sources first."""
        cap = self.recipe["cap"][self.split]["SPEECH" if category == "speech" else "NONSPEECH"]
        found = [
            w
            for w in self.pool.get((category, duration), ())
            if self.used[w.recording.source_id] < cap and w.key not in self.taken
        ]
        if not found:
            raise UserError(
                f"recipe: no {category} window of {duration} ms is left in split {self.split!r};"
                " raise its cap or ask for fewer clips"
            )
        seed = self.recipe["seed"]
        used = self.used
        return sorted(
            found, key=lambda w: (used[w.recording.source_id], stable_seed(seed, *w.key, duration))
        )

    def _mix(self, window: Window, duration: int, snr: int, slope: float) -> _Mix:
        wave = self.waves[window.recording.name]
        wave = wave[window.start : window.start + duration * RATE // 1000]
        seed = stable_seed(self.recipe["seed"], *window.key, duration, snr)
        noise = coloured_noise(len(wave), slope, np.random.default_rng(seed))
        mixed, measured = add_noise(wave, noise, snr)
        return _Mix(window, normalise(mixed), duration, snr, measured, slope)


def _write(mix: _Mix, split: str, clip_id: str, out: Path) -> dict[str, Any]:
    """Writes a clip; returns its manifest row."""
    recording, duration, snr = mix.window.recording, mix.duration_ms, mix.snr_target_db
    has_snr = recording.category != "noise"  # noise on noise has no SNR
    encoded = encode(mix.wave, "opus")
    (out / "clips" / f"{clip_id}.ogg").write_bytes(encoded)
    return {
        "clip_id": clip_id,
        "path": f"clips/{clip_id}.ogg",
        "label": recording.label,
        "category": recording.category,
        "duration_ms": round(1000 * len(mix.wave) / RATE),
        "snr_db": f"{mix.snr_db:.2f}" if has_snr else "",
        "condition": f"dur{duration}_snr{snr:+03d}" if has_snr else f"dur{duration}_noise",
        "source_id": recording.source_id,
        "split": split,
        "licence": recording.licence,
        "sha256": hashlib.sha256(encoded).hexdigest(),
        "pcm_sha256": pcm_digest(encoded),
        "snr_target_db": snr if has_snr else "",
        "noise_slope_db": f"{mix.slope_db:.2f}",
        "vad_fraction": f"{mix.window.vad_fraction:.2f}",
        "recording": recording.name,
        "source_package": recording.package,
        "language": recording.language,
        "start_s": f"{mix.window.start / RATE:.3f}",
    }
