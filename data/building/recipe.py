"""Recipes: what a clip set is made of, as a closed schema. Unknown, repeated and ill-typed keys are errors."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from evaluators.errors import UserError
from evaluators.files import read_yaml, shipped
from evaluators.manifest import SPLITS

from .readers import Collection
from .recordings import CATEGORIES, LABELS
from .rooms import BANDS
from .schema import (
    CLOSED,
    FilePath,
    Named,
    Number,
    Unique,
    Whole,
    check,
    explain,
    shares_of,
    within,
)

RECIPES = shipped("data/recipes")
NOISES = ("white", "pink", "recorded")

Duration = Annotated[Whole, within(20, 30_000, "ms")]
Snr = Annotated[Number, within(-40, 60, "dB")]
Level = Annotated[Number, within(0.05, 10, "s")]
Band = Annotated[str, check(BANDS.__contains__, f"one of {', '.join(BANDS)}")]
Share = Annotated[Number, within(0, 1)]
SplitShares = Annotated[dict[str, Number], Named, shares_of(SPLITS)]
CategoryShares = Annotated[dict[str, Number], Named, shares_of(CATEGORIES[1:])]
NoiseShares = Annotated[dict[str, Number], Named, shares_of(NOISES)]
Even = check(lambda n: n >= 2 and n % 2 == 0, "an even number, half of each class")
Both = check(lambda caps: len(caps) == 2, "SPEECH and NONSPEECH")
Caps = Annotated[dict[str, Whole], Named, shares_of(LABELS), Both]
BY_SPLIT = {"train": 0.6, "dev": 0.2, "test": 0.2}


def _check_groups(groups: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    names = [name for group in groups for name in set(group)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} stands in two groups; join them")
    return groups


@dataclass(frozen=True, config=CLOSED)
class Design:
    """Fields that every made clip set has. Shares and weights are relative; they need not add up to 1."""

    design: str
    seed: Whole = 1
    recordings: tuple[Collection, ...] = ()
    voice: Literal["silero", "webrtc"] = "silero"
    vad_speech: Share = 0.70  # SPEECH windows: at least this share of voice activity, before mixing
    vad_nonspeech: Share = 0.05  # NONSPEECH windows: at most this
    # Quieter windows are left out: near silence is no foreground.
    min_active_dbfs: Annotated[Number, Field(lt=0)] = -50.0
    min_source_snr_db: Number = 25.0  # speech recordings noisier than this cannot be mixed at 20 dB
    categories: CategoryShares = Field(
        default_factory=lambda: dict.fromkeys(("environment", "music", "animal", "noise"), 0.25)
    )
    splits: SplitShares = Field(default_factory=BY_SPLIT.copy)
    # How sources get their split: by the hash of their id alone, so that some splits have fewer than their share, or
    # with the shares held in each label and category.
    split_by: Literal["hash", "stratified"] = "hash"
    # Source ids that may be one person: one split.
    together: Annotated[tuple[tuple[str, ...], ...], AfterValidator(_check_groups)] = ()
    cap: Caps = Field(default_factory=lambda: {"SPEECH": 60, "NONSPEECH": 20})
    noise: NoiseShares = Field(default_factory=lambda: {"white": 1.0})
    # NONSPEECH windows tried for each SPEECH clip; the nearest in bandwidth and tilt is taken.
    match: Annotated[Whole, Field(ge=1)] = 40
    durations_ms: Annotated[tuple[Duration, ...], Field(min_length=1), Unique] = (
        200,
        300,
        500,
        1000,
    )
    snrs_db: Annotated[tuple[Snr, ...], Unique] = (-5.0, 0.0, 5.0, 10.0, 20.0)
    level: Literal["peak", "rms"] = "peak"
    # How often each clip of dev and test is rendered, the manifest's own included: further renderings, of other cuts
    # of the same sources, stand in renderings.csv.
    renderings: Annotated[Whole, within(1, 100)] = 1


@dataclass(frozen=True, config=CLOSED)
class Factorial(Design):
    """Durations x SNRs x both classes, every clip cut on its own."""

    clips_per_cell: Whole = 50

    @property
    def cut_ms(self) -> tuple[int, ...]:
        """Durations that are cut from recordings."""
        return self.durations_ms

    @model_validator(mode="after")
    def _check(self) -> "Factorial":
        used = sum(share > 0 for share in self.splits.values())
        if not self.snrs_db:
            raise ValueError("snrs_db is empty; expected at least one SNR")
        if self.clips_per_cell < used:
            text = (
                f"clips_per_cell is {self.clips_per_cell}; expected one for each of {used} splits"
            )
            raise ValueError(f"{text} or more")
        return self


@dataclass(frozen=True, config=CLOSED)
class Variants(Design):
    """Base clips, each under every condition: one factor at a time, or durations x SNRs crossed."""

    base_clips: Annotated[Whole, Even] = 100  # half of each class
    base_ms: Whole = 1000
    vary: Literal["one_factor", "crossed"] = "one_factor"
    t60_s: Annotated[
        tuple[Level, ...], Unique
    ] = ()  # one_factor only; the dry condition is always there
    responses: tuple[FilePath, ...] = ()  # folders of impulse responses; none: synthetic ones
    filters: Annotated[
        tuple[Band, ...], Unique
    ] = ()  # one_factor only; the unfiltered condition is always there

    @property
    def cut_ms(self) -> tuple[int, ...]:
        """Durations that are cut from recordings: the variants are made from one base clip."""
        return (self.base_ms,)

    @model_validator(mode="after")
    def _check(self) -> "Variants":
        longest, crossed = max(self.durations_ms), self.vary == "crossed"
        if self.categories.get("silence"):
            raise ValueError("categories: silence has no conditions to vary")
        if self.responses and not self.t60_s:
            raise ValueError("responses are given but no t60_s to use them for")
        if longest > self.base_ms:
            raise ValueError(f"durations_ms: {longest} is longer than base_ms {self.base_ms}")
        if crossed and not self.snrs_db:
            raise ValueError("snrs_db is empty; expected at least one SNR")
        if crossed and (self.t60_s or self.filters):
            raise ValueError("vary: crossed takes durations and SNRs only; remove t60_s, filters")
        return self


@dataclass(frozen=True, config=CLOSED)
class Import:
    """Manifests of the first study (`*_metadata.csv`), with splits of our own."""

    design: str
    manifests: tuple[FilePath, ...] = ()
    root: FilePath = Path(".")  # audio_path is relative to it
    source_pattern: str = ""  # regular expression, group 1 of a match in clip_id is the source
    splits: SplitShares = Field(default_factory=BY_SPLIT.copy)
    licence: str = "unknown"


@dataclass(frozen=True, config=CLOSED)
class Packages:
    """Recordings from Debian packages, as listed in a catalogue beside the recipe."""

    design: str
    catalogue: FilePath = Path("debian.csv")
    packages: tuple[str, ...] = ()  # empty: all of the catalogue


Made = Factorial | Variants  # clip sets that are cut from recordings
DESIGNS = {"factorial": Factorial, "variants": Variants, "import": Import, "packages": Packages}


def recipe_path(name: str) -> Path:
    """The file of a recipe given by name or path."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise UserError(
            f"recipe {name!r} does not exist; known are {known}, folder, or give a YAML file"
        )
    return path


def read_recipe(path: Path) -> Made | Import | Packages:
    """A recipe file; paths in it are relative to the file.

    Raises:
        UserError: The file is no recipe, or a key or value is wrong; names file, key and what was expected.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict) or str(raw.get("design")) not in DESIGNS:
        got = raw.get("design") if isinstance(raw, dict) else raw
        raise UserError(f"{path}: design is {got!r}; expected one of {', '.join(DESIGNS)}")
    kind = DESIGNS[raw["design"]]
    try:
        return TypeAdapter(kind).validate_python(raw, context={"base": path.parent})
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, kind)}") from None
