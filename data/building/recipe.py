"""Recipes: what a clip set is made of, as a closed schema. Unknown, repeated or ill-typed keys are errors."""

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from evaluators.errors import UserError
from evaluators.files import read_yaml, shipped
from evaluators.manifest import SPLITS

from .recordings import CATEGORIES, Collection
from .rooms import BANDS

RECIPES = shipped("data/recipes")
NOISES = ("white", "pink", "recorded")


@dataclass(frozen=True)
class Design:
    """Fields that every made clip set has. Shares and weights are relative; they need not add up to 1."""

    design: str
    seed: int = 1
    recordings: tuple[Collection, ...] = ()
    voice: Literal["silero", "webrtc"] = "silero"
    vad_speech: float = 0.70  # SPEECH windows: at least this share of voice activity, before mixing
    vad_nonspeech: float = 0.05  # NONSPEECH windows: at most this
    min_active_dbfs: float = -50.0  # quieter windows are left out: near silence is no foreground
    min_source_snr_db: float = 25.0  # speech recordings noisier than this cannot be mixed at 20 dB
    categories: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("environment", "music", "animal", "noise"), 0.25)
    )
    splits: dict[str, float] = field(
        default_factory=lambda: {"train": 0.6, "dev": 0.2, "test": 0.2}
    )
    together: tuple[tuple[str, ...], ...] = ()  # source ids that may be one person: one split
    cap: dict[str, int] = field(default_factory=lambda: {"SPEECH": 60, "NONSPEECH": 20})
    noise: dict[str, float] = field(default_factory=lambda: {"white": 1.0})
    match: int = 40  # NONSPEECH windows tried for each SPEECH clip; the nearest in bandwidth and tilt is taken
    durations_ms: tuple[int, ...] = (200, 300, 500, 1000)
    snrs_db: tuple[float, ...] = (-5.0, 0.0, 5.0, 10.0, 20.0)
    level: Literal["peak", "rms"] = "peak"


@dataclass(frozen=True)
class Factorial(Design):
    """Durations x SNRs x both classes, every clip cut on its own."""

    clips_per_cell: int = 50


@dataclass(frozen=True)
class Variants(Design):
    """Base clips, each under every condition: one factor at a time, or durations x SNRs crossed."""

    base_clips: int = 100
    base_ms: int = 1000
    vary: Literal["one_factor", "crossed"] = "one_factor"
    t60_s: tuple[float, ...] = ()  # one_factor only; the dry condition is always there
    responses: tuple[Path, ...] = ()  # folders of recorded impulse responses; none: synthetic ones
    filters: tuple[str, ...] = ()  # one_factor only; the unfiltered condition is always there


@dataclass(frozen=True)
class Import:
    """Manifests of the first study (`*_metadata.csv`), with splits of our own."""

    design: str
    manifests: tuple[Path, ...] = ()
    root: Path = Path(".")  # what audio_path is relative to
    source_pattern: str = ""  # regular expression, group 1 of a match in clip_id is the source
    splits: dict[str, float] = field(
        default_factory=lambda: {"train": 0.6, "dev": 0.2, "test": 0.2}
    )
    licence: str = "unknown"


@dataclass(frozen=True)
class Packages:
    """Recordings from Debian packages, as listed in a catalogue beside the recipe."""

    design: str
    catalogue: Path = Path("debian.csv")
    packages: tuple[str, ...] = ()  # empty: all of the catalogue


DESIGNS = {"factorial": Factorial, "variants": Variants, "import": Import, "packages": Packages}
AnyRecipe = Factorial | Variants | Import | Packages


def recipe_path(name: str) -> Path:
    """The file of a recipe given by name or path."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise UserError(f"recipe {name!r} does not exist; known are {known}, or give a YAML file")
    return path


def read_recipe(path: Path) -> AnyRecipe:
    """A recipe file; paths in it are relative to the file.

    Raises:
        UserError: The file is no recipe, or a key or value is wrong; names file, key and what was expected.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict) or str(raw.get("design")) not in DESIGNS:
        got = raw.get("design") if isinstance(raw, dict) else raw
        raise UserError(f"{path}: design is {got!r}; expected one of {', '.join(DESIGNS)}")
    recipe = _build(DESIGNS[str(raw["design"])], raw, str(path), path.parent)
    if isinstance(recipe, Design):
        _check(recipe, str(path))
    elif isinstance(recipe, Import):
        _check_shares(recipe, "splits", SPLITS, str(path))
    return recipe  # type: ignore[no-any-return]


def _build(kind: type, raw: dict[str, Any], where: str, base: Path) -> Any:
    hints = get_type_hints(kind)
    values = {}
    for key, value in raw.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, 1)
            raise UserError(
                f"{where}: key {key!r} is unknown"
                + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(hints)}")
            )
        values[key] = _convert(hints[key], value, f"{where}: {key}", base)
    required = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    for name in required:
        if name not in values:
            raise UserError(f"{where}: key {name!r} is missing")
    return kind(**values)


def _convert(kind: Any, value: Any, where: str, base: Path) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in args:
            raise UserError(f"{where} is {value!r}; expected one of {', '.join(args)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where} is {value!r}; expected a list, as in [a, b]")
        return tuple(
            _convert(args[0], v, f"{where}, entry {i}", base) for i, v in enumerate(value, 1)
        )
    if origin is dict:
        if not isinstance(value, dict) or not value:
            raise UserError(f"{where} is {value!r}; expected names and numbers")
        return {str(k): _convert(args[1], v, f"{where}: {k}", base) for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{where} is {value!r}; expected a mapping with layout and path")
        return _build(kind, value, where, base)  # type: ignore[arg-type]
    if kind is Path:
        if not isinstance(value, str) or not value:
            raise UserError(f"{where} is {value!r}; expected a path")
        return base / value
    if kind in (int, float):
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not abs(value) < 1e15 or (kind is int and value != int(value)):
            raise UserError(
                f"{where} is {value!r}; expected {'a whole number' if kind is int else 'a number'}"
            )
        return kind(value)
    if not isinstance(value, str):
        raise UserError(f"{where} is {value!r}; expected text")
    return value


def _check_shares(r: Any, name: str, allowed: tuple[str, ...], where: str) -> None:
    shares = getattr(r, name)
    unknown = sorted(set(shares) - set(allowed))
    if unknown:
        raise UserError(f"{where}: {name}: {unknown[0]!r} is not one of {', '.join(allowed)}")
    if not all(v >= 0 for v in shares.values()) or not sum(shares.values()) > 0:
        raise UserError(
            f"{where}: {name} is {shares}; expected numbers of zero or more, one above zero"
        )


def _check(r: Design, where: str) -> None:
    def need(good: bool, what: str) -> None:
        if not good:
            raise UserError(f"{where}: {what}")

    for name, allowed in (
        ("categories", CATEGORIES[1:]),
        ("splits", SPLITS),
        ("noise", NOISES),
        ("cap", ("SPEECH", "NONSPEECH")),
    ):
        _check_shares(r, name, allowed, where)
    for name in ("vad_speech", "vad_nonspeech"):
        need(0 <= getattr(r, name) <= 1, f"{name} is {getattr(r, name):g}; expected 0 to 1")
    need(r.min_active_dbfs < 0, f"min_active_dbfs is {r.min_active_dbfs:g}; expected below 0")
    for name in ("durations_ms", "snrs_db", "t60_s", "filters"):
        values = [v if isinstance(v, str) else f"{v:g}" for v in getattr(r, name, ())]
        twice = sorted({v for v in values if values.count(v) > 1})
        need(not twice, f"{name}: {twice and twice[0]} stands twice")
    for group in r.together:
        for name in group:
            need(
                sum(name in other for other in r.together) == 1,
                f"together: {name!r} stands in two groups; join them",
            )
    need(set(r.cap) == {"SPEECH", "NONSPEECH"}, f"cap is {r.cap}; expected SPEECH and NONSPEECH")
    need(bool(r.durations_ms), "durations_ms is empty; expected at least one duration")
    for duration in r.durations_ms:
        need(20 <= duration <= 30_000, f"durations_ms: {duration} is not within 20 to 30,000 ms")
    for snr in r.snrs_db:
        need(-40 <= snr <= 60, f"snrs_db: {snr:g} is not within -40 to 60 dB")
    need(r.match >= 1, f"match is {r.match}; expected 1 or more")
    if isinstance(r, Factorial):
        need(bool(r.snrs_db), "snrs_db is empty; expected at least one SNR")
        used = sum(share > 0 for share in r.splits.values())
        need(
            r.clips_per_cell >= used,
            f"clips_per_cell is {r.clips_per_cell}; expected one for each of {used} splits or more",
        )
    if isinstance(r, Variants):
        need(
            r.base_clips >= 2 and r.base_clips % 2 == 0,
            f"base_clips is {r.base_clips}; expected an even number, half of each class",
        )
        need(not r.categories.get("silence"), "categories: silence has no conditions to vary")
        need(not r.responses or bool(r.t60_s), "responses are given but no t60_s to use them for")
        need(
            max(r.durations_ms) <= r.base_ms,
            f"durations_ms: {max(r.durations_ms)} is longer than base_ms {r.base_ms}",
        )
        for name in r.filters:
            need(name in BANDS, f"filters: {name!r} is not one of {', '.join(BANDS)}")
        for level in r.t60_s:
            need(0.05 <= level <= 10, f"t60_s: {level:g} is not within 0.05 to 10 s")
        crossed = r.vary == "crossed"
        need(bool(r.snrs_db) or not crossed, "snrs_db is empty; expected at least one SNR")
        need(
            not (crossed and (r.t60_s or r.filters)),
            "vary: crossed takes durations and SNRs only; remove t60_s and filters",
        )
