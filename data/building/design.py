"""Which clips to make of which windows: pure functions, decided before any clip is written.

Sources get their split by a hash of their id, so added sources move no other. Within a split the sources take turns,
and each SPEECH clip has a NONSPEECH partner: same duration, SNR and noise, the nearest in bandwidth and tilt.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from evaluators.errors import UserError
from evaluators.manifest import SPLITS
from evaluators.names import by_key, name_key

from .recipe import Design, Factorial, Made, Variants
from .recordings import Recording, linked_sources
from .scan import Scan, Window, stable_seed


@dataclass(frozen=True, slots=True)
class Cut:
    """A window of a recording."""

    recording: Recording
    window: Window

    @property
    def key(self) -> tuple[str, float, int]:
        """Recording, part and first sample: no two clips of a set share it."""
        return self.recording.name, self.window.start_s, self.window.first


@dataclass(frozen=True, slots=True)
class Condition:
    """What is done to a cut. None and "" leave it unchanged."""

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
    rendering: int = 0  # 0 stands in the manifest


def split_of(source: str, shares: Mapping[str, float]) -> str:
    """The split of a source, from the hash of its id alone."""
    position = stable_seed("split", source) / 2**64 * sum(shares.values())
    for name in SPLITS:
        position -= shares.get(name, 0.0)
        if position < 0:
            return name
    return next(name for name in reversed(SPLITS) if shares.get(name))


def split_sources(
    recipe: Design, recordings: Sequence[Recording], known: Mapping[str, str]
) -> dict[str, str]:
    """Source id -> split: as registered, else by hash; ids of one group share the split of the first.

    Groups are those of `together`, and sources that are one artist or upload. Ids are found in any spelling.

    Raises:
        UserError: Ids of one group are registered in different splits, or some of them do not exist.
    """
    sources = {r.source_id for r in recordings}
    split_by_key = by_key(known)
    existing = {name_key(name) for name in (*sources, *known)}
    for group in recipe.together:
        absent = [name for name in group if name_key(name) not in existing]
        if absent and len(absent) < len(group):
            raise UserError(
                f"together: {absent[0]!r} is no source here, {group[0]!r} is; spell it as the"
                " recordings do, or take the group out"
            )
    groups = _joined([*recipe.together, *linked_sources(recordings)])
    first = {name_key(name): group[0] for group in groups for name in group}
    for group in groups:
        keys = map(name_key, group)
        splits = {split_by_key[key] for key in keys if key in split_by_key}
        if len(splits) > 1:
            raise UserError(
                f"together: {', '.join(group)} are registered in {' and '.join(sorted(splits))};"
                " they are or may be one source and must share a split"
            )
    fixed = {name_key(first.get(key, key)): split for key, split in split_by_key.items()}
    out = {}
    for source in sorted(sources):
        key = name_key(source)
        unit = first.get(key, source)
        out[source] = (
            split_by_key.get(key) or fixed.get(name_key(unit)) or split_of(unit, recipe.splits)
        )
    return out


def _joined(groups: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Groups of names without overlap: those that share a name are one."""
    out: list[tuple[str, ...]] = []
    for group in groups:
        keys = set(map(name_key, group))
        shared = [other for other in out if keys & set(map(name_key, other))]
        out = [other for other in out if other not in shared]
        out.append(tuple(dict.fromkeys([*itertools.chain(*shared), *group])))
    return out


def assign_splits(
    recipe: Design, recordings: Sequence[Recording], known: Mapping[str, str]
) -> dict[str, str]:
    """Source id -> split, as the recipe says: `split_sources`, or `stratified_splits` of its groups.

    Raises:
        UserError: As `split_sources`.
    """
    by_hash = split_sources(recipe, recordings, known)
    if recipe.split_by == "hash":
        return by_hash
    groups = _joined([*recipe.together, *linked_sources(recordings)])
    first = {name_key(name): group[0] for group in groups for name in group}
    unit_of = {source: first.get(name_key(source), source) for source in by_hash}
    labels: dict[str, set[str]] = defaultdict(set)
    categories: dict[str, set[str]] = defaultdict(set)
    for r in recordings:
        labels[unit_of[r.source_id]].add(r.label)
        categories[unit_of[r.source_id]].add(r.category)
    kinds = {u: ("+".join(sorted(labels[u])), "+".join(sorted(categories[u]))) for u in labels}
    fixed = {first.get(source, source): split for source, split in known.items()}
    found = stratified_splits(kinds, recipe.splits, fixed, {"dev": 2})
    return {source: found[unit] for source, unit in unit_of.items()}


def stratified_splits(
    kinds: Mapping[str, tuple[str, str]],
    shares: Mapping[str, float],
    known: Mapping[str, str],
    at_least: Mapping[str, int],
) -> dict[str, str]:
    """Source id -> split: as registered, else so that each label, and in it each category, has its shares.

    Within a category sources stand in the order of a hash and are cut at the shares, so that an added source moves
    only those beside a cut. What is left over by rounding goes to the split that is furthest behind in its label.

    Args:
        kinds: Source id -> (label, category).
        shares: Of the splits; relative.
        known: Splits that are registered.
        at_least: Sources of each label that a split has at least, where there are enough.
    """
    out = {source: known[source] for source in kinds if source in known}
    for label in sorted({label for label, _ in kinds.values()}):
        before: Counter[str] = Counter()
        for category in sorted({c for name, c in kinds.values() if name == label}):
            group = sorted(
                (s for s, kind in kinds.items() if kind == (label, category)),
                key=lambda s: (stable_seed("split", s), s),
            )
            new = [source for source in group if source not in out]
            wanted = _quota(len(group), shares, before)
            have = Counter(out[source] for source in group if source in out)
            need = {name: max(0, wanted[name] - have[name]) for name in wanted}
            while sum(need.values()) > len(
                new
            ):  # the register holds more of another split than its share
                need[max(need, key=lambda name: need[name])] -= 1
            names = [name for name in SPLITS for _ in range(need.get(name, 0))]
            out |= dict(zip(new, names, strict=True))
            before.update(out[source] for source in group)
        movable = sorted(
            (s for s, kind in kinds.items() if kind[0] == label and s not in known),
            key=lambda s: (stable_seed("split", s), s),
        )
        _top_up(out, movable, before, {"test": 1, **at_least, "train": 1}, shares)
    return out


def _top_up(
    out: dict[str, str],
    movable: list[str],
    counts: Counter[str],
    least: Mapping[str, int],
    shares: Mapping[str, float],
) -> None:
    """Moves the last movable sources, of train rather than of others, to splits that have too few."""
    for name in (n for n in ("test", "dev") if shares.get(n)):
        for donor in ("train", "test", "dev"):
            for source in [s for s in reversed(movable) if out[s] == donor]:
                if counts[name] >= least[name] or counts[donor] <= least[donor]:
                    break
                out[source] = name
                counts.update({name: 1, donor: -1})


def _quota(count: int, shares: Mapping[str, float], before: Mapping[str, int]) -> dict[str, int]:
    """`count` more by shares; what rounding leaves goes to whoever is furthest behind, with those of `before`."""
    whole, total = sum(shares.values()), count + sum(before.values())
    out = {name: int(count * share / whole + 1e-9) for name, share in shares.items() if share}
    for _ in range(count - sum(out.values())):
        behind = {n: round(total * shares[n] / whole - before.get(n, 0) - out[n], 9) for n in out}
        out[max(behind, key=lambda name: behind[name])] += 1
    return out


def allocate(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """`total` divided by shares, by largest remainder; the numbers add up to `total`.

    >>> allocate(5, {"train": 0.6, "dev": 0.2, "test": 0.2})
    {'train': 3, 'dev': 1, 'test': 1}
    """
    whole = sum(shares.values())
    exact = {name: total * share / whole for name, share in shares.items()}
    out = {name: int(value) for name, value in exact.items()}
    left = total - sum(out.values())
    for name in sorted(exact, key=lambda n: (out[n] - exact[n], n))[:left]:
        out[name] += 1
    return out


def conditions(recipe: Made) -> list[Condition]:
    """The conditions of a recipe, in order: a clip of a factorial has one, a base clip of variants has all."""
    if isinstance(recipe, Factorial) or recipe.vary == "crossed":
        return [
            Condition(f"dur{d}_snr{snr:+03g}", d, snr)
            for d in recipe.durations_ms
            for snr in recipe.snrs_db
        ]
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
    """The windows of one split that are still free; its sources take turns."""

    recipe: Made
    split: str
    windows: dict[tuple[str, int], dict[str, list[Cut]]]  # (category, duration) -> source -> cuts
    scale: np.ndarray  # spread of each match feature over all windows
    used: Counter[str] = field(default_factory=Counter)
    taken: Counter[tuple[str, float, int]] = field(default_factory=Counter)

    def next_cuts(self, category: str, duration: int, limit: int) -> list[Cut]:
        """One free cut of each of the sources that were used least, at most `limit`."""
        cap = self.recipe.cap["SPEECH" if category == "speech" else "NONSPEECH"]
        by_source = self.windows.get((category, duration), {})
        order = sorted(
            (s for s in by_source if self.used[s] < cap),
            key=lambda s: (self.used[s], stable_seed(self.recipe.seed, s)),
        )
        free = (
            next((cut for cut in by_source[source] if cut.key not in self.taken), None)
            for source in order
        )
        out = list(itertools.islice(filter(None, free), limit))
        if not out:
            raise UserError(
                f"recipe: no {category} window of {duration} ms is left in split {self.split!r}:"
                f" {len(by_source)} sources, at most {cap} clips of each; add recordings, raise cap"
                " or ask for fewer clips"
            )
        return out

    def take(self, cut: Cut) -> Cut:
        """The cut, marked as used."""
        self.used[cut.recording.source_id] += 1
        self.taken[cut.key] += 1
        return cut

    def heard_least(self, cut: Cut, duration: int) -> list[Cut]:
        """Cuts of the same source and category that fewest clips have: those that no clip has, where there are some."""
        own = self.windows.get((cut.recording.category, duration), {})
        found = own.get(cut.recording.source_id, [])
        least = min((self.taken[one.key] for one in found), default=0)
        return [one for one in found if self.taken[one.key] == least]

    def take_again(self, speech: Cut, other: Cut, duration: int) -> tuple[Cut, Cut]:
        """Further cuts of the sources of a pair: of the other one the nearest in bandwidth and tilt."""
        cut = self.take(self.heard_least(speech, duration)[0])
        others = self.heard_least(other, duration)[: self.recipe.match]
        return cut, self.take(others[int(np.argmin(self._distances(cut, others)))])

    def _distances(self, speech: Cut, others: Sequence[Cut]) -> list[float]:
        """How far others are from a SPEECH cut in bandwidth and tilt."""
        target = np.array(speech.window.match_features)
        return [
            (((np.array(c.window.match_features) - target) / self.scale) ** 2).sum() for c in others
        ]

    def take_pair(self, category: str, duration: int) -> tuple[Cut, Cut]:
        """A SPEECH cut and the free cut of another category that is nearest in bandwidth and tilt."""
        speech = self.take(self.next_cuts("speech", duration, 1)[0])
        others = self.next_cuts(category, duration, self.recipe.match)
        return speech, self.take(others[int(np.argmin(self._distances(speech, others)))])

    def draw_noise(
        self, rng: np.random.Generator, duration: int, pair: tuple[Cut, Cut]
    ) -> tuple[str, Cut | None]:
        """Kind of the noise to add, and the cut if it is recorded: never of a source of the pair."""
        weight_of = self.recipe.noise
        names = sorted(n for n, weight in weight_of.items() if weight > 0)
        weights = np.array([weight_of[n] for n in names])
        kind = str(rng.choice(names, p=weights / weights.sum()))
        return kind, self.draw_noise_cut(rng, duration, pair) if kind == "recorded" else None

    def draw_noise_cut(self, rng: np.random.Generator, duration: int, pair: tuple[Cut, Cut]) -> Cut:
        """A cut of recorded noise: never of a source of the pair."""
        avoid = {cut.recording.source_id for cut in pair}
        found = [
            cut
            for source, cuts in sorted(self.windows.get(("noise", duration), {}).items())
            for cut in cuts
            if source not in avoid and cut.window.steady
        ]
        if not found:
            raise UserError(
                f"recipe: no recorded noise of {duration} ms in split {self.split!r}; add"
                " recordings of category noise, or leave recorded out of noise"
            )
        return found[int(rng.integers(len(found)))]


Responses = Mapping[float, Sequence[tuple[Path, float]]]  # T60 level -> (file, measured T60)


def plan_clips(
    recipe: Made,
    recordings: Sequence[Recording],
    scans: Mapping[str, Scan],
    splits: Mapping[str, str],
    responses: Responses,
) -> list[Job]:
    """Every clip of the set, in the order of the manifest.

    Raises:
        UserError: A cell cannot be filled; names category, duration and split.
    """
    cuts: dict[str, dict[tuple[str, int], dict[str, list[Cut]]]] = {
        s: defaultdict(dict) for s in SPLITS
    }
    features = []
    for recording in sorted(recordings, key=lambda r: stable_seed(recipe.seed, r.name)):
        for window in scans[recording.name].windows:
            kind = (recording.category, window.duration_ms)
            cuts[splits[recording.source_id]][kind].setdefault(recording.source_id, []).append(
                Cut(recording, window)
            )
            features.append(window.match_features)
    if not features:
        raise UserError("recordings: no window passed the recipe's checks; expected some")
    scale = np.std(np.array(features), axis=0) + 1e-6
    jobs: list[Job] = []
    for split in SPLITS:
        if recipe.splits.get(split):
            pool = _Pool(recipe, split, dict(cuts[split]), scale)
            first = (
                _factorial(recipe, pool)
                if isinstance(recipe, Factorial)
                else _variants(recipe, pool, responses)
            )
            jobs += first
            for number in range(1, recipe.renderings if split != "train" else 1):
                jobs += _again(recipe, pool, first, number)
    return sorted(jobs, key=lambda job: job.rendering)


def _next_category(recipe: Design, in_cell: Counter[str], in_split: Counter[str]) -> str:
    """The category that is furthest behind its share of the cell, then of the split, so every cell holds all."""
    total = sum(recipe.categories.values())

    def behind(made: Counter[str], category: str) -> float:
        return round(recipe.categories[category] / total * (made.total() + 1) - made[category], 9)

    found = max(recipe.categories, key=lambda c: (behind(in_cell, c), behind(in_split, c)))
    in_cell[found] += 1
    in_split[found] += 1
    return found


def _factorial(recipe: Factorial, pool: _Pool) -> list[Job]:
    jobs: list[Job] = []
    split = pool.split
    made: Counter[str] = Counter()
    in_cell: dict[str, Counter[str]] = defaultdict(Counter)
    # Long clips first: fewer sources have them, and short ones can be cut from any.
    cells = sorted(conditions(recipe), key=lambda c: -c.duration_ms)
    for _ in range(allocate(recipe.clips_per_cell, recipe.splits)[split]):
        for cell in cells:
            category = _next_category(recipe, in_cell[cell.name], made)
            number = len(jobs) // 2
            rng = np.random.default_rng(stable_seed(recipe.seed, split, number, "noise"))
            speech, other = pair = pool.take_pair(category, cell.duration_ms)
            noise, noise_cut = pool.draw_noise(rng, cell.duration_ms, pair)
            jobs.append(Job(f"{split}-s{number:04d}", split, speech, cell, noise, noise_cut))
            if category in ("noise", "silence"):  # no foreground, no SNR: a cell of their own
                cell = Condition(f"dur{cell.duration_ms}_{category}", cell.duration_ms, cell.snr_db)
            if category == "silence":
                cell, noise, noise_cut = Condition(cell.name, cell.duration_ms), "", None
            jobs.append(Job(f"{split}-n{number:04d}", split, other, cell, noise, noise_cut))
    return jobs


def _again(recipe: Made, pool: _Pool, first: Sequence[Job], number: int) -> list[Job]:
    """A further rendering: of each clip another one, of the same source, category and duration.

    Cuts that no clip has come first, then those heard least. SNRs are turned on by the rendering, where each clip has
    one of its own, so that cells stay as even as they were. Clips in which nothing would differ are left out: silence,
    and cuts that were heard before and get no noise.
    """
    jobs: list[Job] = []
    pairs: dict[tuple[str, str], tuple[Cut, Cut]] = {}
    for speech, other in zip(first[::2], first[1::2], strict=True):
        whole = speech.cut.window.duration_ms
        key = speech.clip_id.split("-")[1], "" if isinstance(recipe, Variants) else speech.clip_id
        if key not in pairs:
            pairs[key] = pool.take_again(speech.cut, other.cut, whole)
        rng = np.random.default_rng(stable_seed(recipe.seed, speech.clip_id, "again", number))
        recorded = speech.noise == "recorded"
        noise_cut = pool.draw_noise_cut(rng, whole, pairs[key]) if recorded else None
        for job, cut in zip((speech, other), pairs[key], strict=True):
            made = replace(
                job,
                clip_id=job.clip_id.replace(f"{job.split}-", f"{job.split}-r{number}-", 1),
                cut=cut,
                condition=_turned(recipe, job.condition, number),
                noise_cut=noise_cut if job.noise else None,
                rendering=number,
            )
            fresh = pool.taken[cut.key] == 1 and job.cut.recording.category != "silence"
            jobs += [made] if fresh or made.noise else []
    return jobs


def _turned(recipe: Made, condition: Condition, number: int) -> Condition:
    """A condition of a factorial with the SNR that stands so many places further; a variant keeps its own."""
    if not isinstance(recipe, Factorial) or condition.snr_db is None:
        return condition
    snr = recipe.snrs_db[(recipe.snrs_db.index(condition.snr_db) + number) % len(recipe.snrs_db)]
    kind = condition.name.removeprefix(f"dur{condition.duration_ms}_")
    kind = f"snr{snr:+03g}" if kind.startswith("snr") else kind
    return replace(condition, name=f"dur{condition.duration_ms}_{kind}", snr_db=snr)


def _variants(recipe: Variants, pool: _Pool, responses: Responses) -> list[Job]:
    jobs: list[Job] = []
    split = pool.split
    made: Counter[str] = Counter()
    for number in range(allocate(recipe.base_clips // 2, recipe.splits)[split]):
        category = _next_category(recipe, made, Counter())
        pair = pool.take_pair(category, recipe.base_ms)
        for cell in conditions(recipe):
            rng = np.random.default_rng(stable_seed(recipe.seed, split, number, cell.name))
            noise, noise_cut = "", None
            if cell.snr_db is not None:
                noise, noise_cut = pool.draw_noise(rng, recipe.base_ms, pair)
            room = None
            if cell.t60_s is not None and recipe.responses:
                rooms = responses[cell.t60_s]
                room = rooms[int(rng.integers(len(rooms)))]
            for letter, cut in zip("sn", pair, strict=True):
                clip_id = f"{split}-{letter}{number:04d}-{cell.name}"
                jobs.append(Job(clip_id, split, cut, cell, noise, noise_cut, room))
    return jobs
