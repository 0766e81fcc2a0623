"""Hyperparameters of a fine-tuning, and where a checkpoint or an adapter sets its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluators.errors import UserError
from evaluators.files import read_json, read_yaml

TargetModules = Literal["attention", "attention+mlp", "llm-only"]
Loss = Literal["answer", "full"]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
OWN_DEFAULTS = "finetune.yaml"  # beside base weights that need other defaults
OWN_KEYS = ("epochs", "lr", "rank")  # what that file may set


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a training. The defaults are the published ones.

    A study names its folders by the repr of this class: keep its name and its fields, or studies begun earlier
    cannot be resumed.
    """

    epochs: int = 3
    lr: float = 2e-4  # the highest; it falls linearly to 0
    rank: int = 16  # alpha is twice the rank
    targets: TargetModules = "attention"
    loss: Loss = "answer"
    swap: bool = False  # train on both orders of each prompt's options
    batch: int = 16  # samples of an optimizer step, over all devices
    dropout: float = 0.05
    warmup: float = 0.1  # share of the steps
    seed: int = 0
    augment: bool = True


def target_modules(targets: TargetModules) -> list[str] | str:
    """Names of the adapted layers, or a regular expression that they match, as peft takes them."""
    if targets == "attention+mlp":
        return [*ATTENTION, *FEED_FORWARD]
    if targets == "llm-only":
        return rf".*language_model\..*\.({'|'.join(ATTENTION)})"
    return list(ATTENTION)


def own_defaults(base: Path) -> dict[str, Any]:
    """Values of `OWN_KEYS` that a checkpoint sets in its ``finetune.yaml``; empty without such a file.

    Raises:
        UserError: The file has another key.
    """
    path = base / OWN_DEFAULTS
    own: dict[str, Any] = read_yaml(path) if path.is_file() else {}
    wrong = set(own) - set(OWN_KEYS)
    if wrong:
        raise UserError(f"{path}: key {sorted(wrong)[0]!r} is unknown")
    return own


def adapter_rank(adapter: Path, wanted: int | None) -> int:
    """Rank of an adapter that is trained further, which cannot change.

    Raises:
        UserError: `wanted` is another rank.
    """
    rank: int = read_json(adapter / "adapter_config.json").get("r")
    if wanted not in (None, rank):
        raise UserError(f"--rank is {wanted}; the adapter that is trained further has rank {rank}")
    return rank
