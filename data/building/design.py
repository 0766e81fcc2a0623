"""From recordings and their windows to the clips to make: pure, decided before any clip is written.

Sources get their split by a hash of their id, so adding sources moves none. Within a split the sources take turns, and
each SPEECH clip has a NONSPEECH partner: same duration, same SNR, same noise, the nearest in bandwidth and tilt.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evaluators.errors import UserError
from evaluators.manifest import SPLITS

from .recipe import Design, Factorial, Variants
from .recordings import Recording
from .scan import Scan, Window, stable


@dataclass(frozen=True, slots=True)
class Cut:
    """A window of a recording."""

    recording: Recording
    window: Window


@dataclass(frozen=True, slots=True)
class Condition:
    """What is done to a cut. None and "" leave it as it is."""

    name: str
    duration_ms: int
    snr_db: float | None = None
    t60_s: float | None = None
    filter: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One clip to make."""

    clip_id: str
    split: str
    cut: Cut
    condition: Condition
    noise: str = ""  # white, pink or recorded; "" without added noise
    noise_cut: Cut | None = None
    response: tuple[Path, float] | None = None  # recorded impulse response and its measured T60


def split_of(source: str, shares: Mapping[str, float]) -> str:
    """The split of a source by the hash of its id alone."""
    place = stable("split", source) / 2**64 * sum(shares.values())
    for name in SPLITS:
        place -= shares.get(name, 0.0)
        if place < 0:
            return name
    return next(name for name in reversed(SPLITS) if shares.get(name))


def split_sources(
    recipe: Design, sources: Sequence[str], known: Mapping[str, str]
) -> dict[str, str]:
    """Source id -> split: as registered, else by hash; ids named together share the split of the first.

    Raises:
        UserError: Ids that belong together are registered in different splits, or are known to nobody.
    """
    there = {*sources, *known}
    for group in recipe.together:
        strange = [name for name in group if name not in there]
        if strange and len(strange) < len(group):
            raise UserError(
                f"together: {strange[0]!r} is no source here, {group[0]!r} is; spell it as the"
                " recordings do, or take the group out"
            )
    first = {name: group[0] for group in recipe.together for name in group}
    for group in recipe.together:
        splits = {known[name] for name in group if name in known}
        if len(splits) > 1:
            raise UserError(
                f"together: {', '.join(group)} are registered in {' and '.join(sorted(splits))};"
                " they must share a split"
            )
    fixed = {first.get(name, name): split for name, split in known.items()}
    out = {}
    for source in sorted(set(sources)):
        unit = first.get(source, source)
        out[source] = known.get(source) or fixed.get(unit) or split_of(unit, recipe.splits)
    return out


def quotas(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """`total` divided by shares, by largest remainder; the sum is exact."""
    whole = sum(shares.values())
    exact = {name: total * share / whole for name, share in shares.items()}
    out = {name: int(value) for name, value in exact.items()}
    left = total - sum(out.values())
    for name in sorted(exact, key=lambda n: (out[n] - exact[n], n))[:left]:
        out[name] += 1
    return out


def conditions(recipe: Design) -> list[Condition]:
    """The conditions of a recipe, in order. In a factorial every clip has one, of variants every base clip has all."""
    if isinstance(recipe, Factorial) or (isinstance(recipe, Variants) and recipe.vary == "crossed"):
        return [
            Condition(f"dur{d}_snr{snr:+03g}", d, snr)
            for d in recipe.durations_ms
            for snr in recipe.snrs_db
        ]
    assert isinstance(recipe, Variants)
    whole = recipe.base_ms
    out = [Condition(f"dur{d}", d) for d in recipe.durations_ms]
    out += [Condition(f"snr{snr:+03g}", whole, snr) for snr in recipe.snrs_db]
    if recipe.t60_s:
        out.append(Condition("t60_none", whole))
        out += [Condition(f"t60_{level:g}", whole, t60_s=level) for level in recipe.t60_s]
    if recipe.filters:
        out.append(Condition("filter_none", whole))
        out += [Condition(f"filter_{name}", whole, filter=name) for name in recipe.filters]
    return out


@dataclass
class _Pool:
    """Windows of one split that are still free; sources take turns."""

    windows: dict[tuple[str, int], dict[str, list[Cut]]]  # (category, duration) -> source -> cuts
    cap: Mapping[str, int]
    seed: int
    split: str
    used: Counter[str] = field(default_factory=Counter)
    taken: set[tuple[str, float, int]] = field(default_factory=set)

    def next_cuts(self, category: str, duration: int, limit: int) -> list[Cut]:
        """One free cut of each of the sources that were used least."""
        cap = self.cap["SPEECH" if category == "speech" else "NONSPEECH"]
        by_source = self.windows.get((category, duration), {})
        order = sorted(
            (s for s in by_source if self.used[s] < cap),
            key=lambda s: (self.used[s], stable(self.seed, s)),
        )
        out = []
        for source in order:
            for cut in by_source[source]:
                if (cut.recording.name, cut.window.start_s, cut.window.first) not in self.taken:
                    out.append(cut)
                    break
            if len(out) == limit:
                break
        if not out:
            raise UserError(
                f"recipe: no {category} window of {duration} ms is left in split {self.split!r}:"
                f" {len(by_source)} sources, at most {cap} clips of each; add recordings, raise cap"
                " or ask for fewer clips"
            )
        return out

    def take(self, cut: Cut) -> Cut:
        self.used[cut.recording.source_id] += 1
        self.taken.add((cut.recording.name, cut.window.start_s, cut.window.first))
        return cut


def plan(
    recipe: Factorial | Variants,
    recordings: Sequence[Recording],
    scans: Mapping[str, Scan],
    splits: Mapping[str, str],
    responses: Mapping[float, Sequence[tuple[Path, float]]],
) -> list[Job]:
    """Every clip of the set, in the order of the manifest.

    Raises:
        UserError: A cell cannot be filled; names category, duration and split.
    """
    jobs: list[Job] = []
    cuts: dict[str, dict[tuple[str, int], dict[str, list[Cut]]]] = {
        s: defaultdict(dict) for s in SPLITS
    }
    looks = []
    for recording in sorted(recordings, key=lambda r: stable(recipe.seed, r.name)):
        for window in scans[recording.name].windows:
            kind = (recording.category, window.duration_ms)
            cuts[splits[recording.source_id]][kind].setdefault(recording.source_id, []).append(
                Cut(recording, window)
            )
            looks.append(window.looks)
    if not looks:
        why = Counter(scans[r.name].reason for r in recordings).most_common(3)
        raise UserError(
            "recordings: no window passed the recipe's checks ("
            + "; ".join(f"{n} times: {reason}" for reason, n in why)
            + ")"
        )
    scale = np.std(np.array(looks), axis=0) + 1e-6
    for split in SPLITS:
        if not recipe.splits.get(split):
            continue
        pool = _Pool(dict(cuts[split]), recipe.cap, recipe.seed, split)
        if isinstance(recipe, Factorial):
            jobs += _factorial(recipe, split, pool, scale)
        else:
            jobs += _variants(recipe, split, pool, scale, responses)
    return jobs


def _category(recipe: Design, in_cell: Counter[str], in_all: Counter[str]) -> str:
    """The category that is furthest behind its share of the cell, then of the split: every cell holds all of them."""
    total = sum(recipe.categories.values())

    def behind(made: Counter[str], category: str) -> float:
        return round(recipe.categories[category] / total * (made.total() + 1) - made[category], 9)

    found = max(recipe.categories, key=lambda c: (behind(in_cell, c), behind(in_all, c)))
    in_cell[found] += 1
    in_all[found] += 1
    return found


def _pair(
    recipe: Design, pool: _Pool, category: str, duration: int, scale: np.ndarray
) -> tuple[Cut, Cut]:
    speech = pool.take(pool.next_cuts("speech", duration, 1)[0])
    others = pool.next_cuts(category, duration, recipe.match)
    target = np.array(speech.window.looks)
    distance = [(((np.array(c.window.looks) - target) / scale) ** 2).sum() for c in others]
    return speech, pool.take(others[int(np.argmin(distance))])


def _noise(
    recipe: Design, pool: _Pool, rng: np.random.Generator, duration: int, avoid: set[str]
) -> tuple[str, Cut | None]:
    names = sorted(n for n, weight in recipe.noise.items() if weight > 0)
    weights = np.array([recipe.noise[n] for n in names])
    kind = str(rng.choice(names, p=weights / weights.sum()))
    if kind != "recorded":
        return kind, None
    found = [
        cut
        for source, cuts in sorted(pool.windows.get(("noise", duration), {}).items())
        for cut in cuts
        if source not in avoid and cut.window.steady
    ]
    if not found:
        raise UserError(
            f"recipe: no recorded noise of {duration} ms in split {pool.split!r}; add recordings of"
            " category noise, or leave recorded out of noise"
        )
    return kind, found[int(rng.integers(len(found)))]


def _factorial(recipe: Factorial, split: str, pool: _Pool, scale: np.ndarray) -> list[Job]:
    jobs: list[Job] = []
    made: Counter[str] = Counter()
    in_cell: dict[str, Counter[str]] = defaultdict(Counter)
    count = quotas(recipe.clips_per_cell, recipe.splits)[split]
    # Long clips first: fewer sources have them, and short ones can be cut from any.
    cells = sorted(conditions(recipe), key=lambda c: -c.duration_ms)
    for _ in range(count):
        for cell in cells:
            category = _category(recipe, in_cell[cell.name], made)
            number = len(jobs) // 2
            rng = np.random.default_rng(stable(recipe.seed, split, number, "noise"))
            speech, other = _pair(recipe, pool, category, cell.duration_ms, scale)
            avoid = {speech.recording.source_id, other.recording.source_id}
            noise, noise_cut = _noise(recipe, pool, rng, cell.duration_ms, avoid)
            jobs.append(Job(f"{split}-s{number:04d}", split, speech, cell, noise, noise_cut))
            if category in ("noise", "silence"):  # no foreground, no SNR: a cell of their own
                cell = Condition(f"dur{cell.duration_ms}_{category}", cell.duration_ms, cell.snr_db)
            if category == "silence":
                cell, noise, noise_cut = Condition(cell.name, cell.duration_ms), "", None
            jobs.append(Job(f"{split}-n{number:04d}", split, other, cell, noise, noise_cut))
    return jobs


def _variants(
    recipe: Variants,
    split: str,
    pool: _Pool,
    scale: np.ndarray,
    responses: Mapping[float, Sequence[tuple[Path, float]]],
) -> list[Job]:
    jobs: list[Job] = []
    made: Counter[str] = Counter()
    for number in range(quotas(recipe.base_clips // 2, recipe.splits)[split]):
        category = _category(recipe, made, Counter())
        pair = _pair(recipe, pool, category, recipe.base_ms, scale)
        for cell in conditions(recipe):
            rng = np.random.default_rng(stable(recipe.seed, split, number, cell.name))
            noise, noise_cut = "", None
            if cell.snr_db is not None:
                avoid = {cut.recording.source_id for cut in pair}
                noise, noise_cut = _noise(recipe, pool, rng, recipe.base_ms, avoid)
            room = None
            if cell.t60_s is not None and recipe.responses:
                rooms = responses[cell.t60_s]
                room = rooms[int(rng.integers(len(rooms)))]
            for letter, cut in zip("sn", pair, strict=True):
                clip_id = f"{split}-{letter}{number:04d}-{cell.name}"
                jobs.append(Job(clip_id, split, cut, cell, noise, noise_cut, room))
    return jobs
