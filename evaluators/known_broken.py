"""Released versions of libraries that are known to run an audio language model wrongly."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from evaluators.files import read_json
from evaluators.findings import Finding


@dataclass(frozen=True)
class KnownBroken:
    """Releases of a package with the same fault.

    Attributes:
        versions: As pip writes them.
        fault: What they do wrong.
        cure: Which release does not.
    """

    package: str
    versions: SpecifierSet
    fault: str
    cure: str


# Each was seen here, with the pocket checkpoint under that release.
KNOWN_BROKEN = (
    KnownBroken(
        "transformers",
        SpecifierSet(">=5.10.0,<5.10.4"),
        "ties the output head of Qwen2-Audio to its embeddings wherever a model is made from its configuration"
        " (servers and trainers do so), and its answers are then noise or control tokens",
        "transformers 5.10.4, or 5.11 and above",
    ),
    KnownBroken(
        "transformers",
        SpecifierSet(">=4.54.0,<4.55.0"),
        "cannot generate with Qwen2-Audio: its generate hands its own forward an argument that this refuses",
        "transformers 4.55 or above",
    ),
)


def check_installed() -> Iterator[Finding]:
    """A finding for each installed package whose version is known to be broken."""
    for known in KNOWN_BROKEN:
        try:
            version = metadata.version(known.package)
        except metadata.PackageNotFoundError:
            continue
        if _is_one(known, version):
            yield Finding(
                "broken",
                "software",
                f"{known.package} {version} {known.fault}",
                f"pip install -U {known.package}: {known.cure}",
            )


def check_trainer(adapter: Path) -> Iterator[Finding]:
    """A finding for each package that an adapter's folder says it was trained with, if that version is broken."""
    versions = trained_with(adapter)
    for known in KNOWN_BROKEN:
        version = versions.get(known.package)
        if version is not None and _is_one(known, version):
            yield Finding(
                "look",
                "training",
                f"the adapter was trained with {known.package} {version}, which {known.fault}",
                f"train it again with {known.cure}, unless the checks on clear clips below find nothing",
            )


def trained_with(adapter: Path) -> dict[str, str]:
    """The versions of packages that training.json, or the card that trainers write, tells of; {} where none does."""
    record = adapter / "training.json"
    if record.is_file():
        told: Any = read_json(record).get("versions")
        if isinstance(told, dict):
            return {str(name): str(version) for name, version in told.items()}
    card = adapter / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        lines = re.findall(r"^\W*(Transformers|PEFT)\W+(\d[\w.+]*)", text, re.MULTILINE)
        return {name.lower(): version for name, version in lines}
    return {}


def _is_one(known: KnownBroken, version: str) -> bool:
    try:
        return Version(version) in known.versions
    except InvalidVersion:
        return False
