"""The ceiling: what a soft prompt reaches beside the words of people and of a search, and how it is said."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.classifier import Bias, Classifier, bias_from
from evaluators.errors import UserError
from evaluators.files import read_json
from evaluators.prompts import Prompt, prompt_from
from evaluators.statistics.compare import compare_pairs, resample
from evaluators.statistics.describe import interval
from evaluators.targets import Predictions
from opro.results.sheet import Column, Sheet, percent

RESULT = "ceiling.json"
VECTORS = "soft.safetensors"
NONE = {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "p_holm": 1.0}  # of what is the same
COLUMNS = (
    Column("prompt", text=True),
    Column("tokens", 3),
    Column("balanced accuracy"),
    Column("over hand-written"),
    Column("p (Holm)", 5),
    Column("search half", 2),
)
LIMITS = (
    "A soft prompt proves no upper bound: its training may fall short, or fit its clips better than others.",
    "It has the number of tokens, the system message and the answers of its prompt; a longer wording, other answers or"
    " another presentation of the clip may exceed it.",
    "It learned from the labels of the train split, which a search does not see.",
)


@dataclass(frozen=True)
class SoftFolder:
    """What `opro.ceiling` wrote.

    Attributes:
        weights: Digest of the checkpoint that it was trained on.
        sources: What it was trained on, beside what the checkpoint was.
    """

    path: Path
    checkpoint: str
    weights: str
    prompt: Prompt
    bias: Bias
    tokens: int
    digest: str
    sources: frozenset[str]

    @property
    def classifier(self) -> Classifier:
        """The prompt whose words the vectors replace, with the vectors' threshold."""
        return Classifier(self.prompt, self.bias)

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"soft prompt of {self.tokens} tokens, no words"


def read_soft_folder(path: Path, labels: tuple[str, ...]) -> SoftFolder:
    """A finished folder of `opro.ceiling`.

    Raises:
        UserError: It is none, it is damaged, or of other labels.
    """
    where = path / RESULT
    if not where.is_file():
        raise UserError(f"--soft {str(path)!r} holds no {RESULT}; give a folder of opro.ceiling")
    raw = read_json(where)
    try:
        return SoftFolder(
            path,
            str(raw["checkpoint"]),
            str(raw["weights"]),
            prompt_from(raw["prompt"], labels, str(where)),
            bias_from(raw["bias"]),
            int(raw["tokens"]),
            str(raw["digest"]),
            frozenset(map(str, raw["train"]["sources"])),
        )
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{where} is damaged; make it again with opro.ceiling") from None


@dataclass(frozen=True)
class Reached:
    """What was said of the judged clips, each with its threshold from the search half.

    Attributes:
        hand: By the best hand-written prompt.
        soft: By the soft prompt.
        searched: By what a search found; None: there was none.
    """

    hand: Predictions
    soft: Predictions
    searched: Predictions | None = None


def ceiling_of(reached: Reached, seed: int = 0) -> dict[str, Any]:
    """Scores and paired differences as plain data, and the sentence.

    Returns:
        ``scores`` of hand, soft and searched; ``room`` (soft over hand), ``found`` (searched over hand) and ``left``
        (soft over searched), the latter two None without a search; ``sentence``. Holm's correction is over those that
        are compared: where the search kept the hand-written prompt, that is one alone.
    """
    said = {"hand": reached.hand, "soft": reached.soft, "searched": reached.searched}
    given = {name: one for name, one in said.items() if one is not None}
    names = list(given)
    wanted = [("soft", "hand"), ("searched", "hand"), ("soft", "searched")]
    kept = reached.searched is not None and _alike(reached.searched, reached.hand)
    pairs = wanted[:1] if kept else [p for p in wanted if set(p) <= given.keys()]
    c = resample(reached.hand.targets, seed=seed)
    found = compare_pairs(
        list(given.values()),
        pairs=[(names.index(a), names.index(b)) for a, b in pairs],
        seed=seed,
    )
    gains = {pair: _gain(one) for pair, one in zip(pairs, found, strict=True)}
    out: dict[str, Any] = {
        "scores": {
            name: interval(c, c.balanced(one.right.astype(float))) for name, one in given.items()
        },
        "room": gains["soft", "hand"],
        "found": NONE if kept else gains.get(("searched", "hand")),
        "left": gains["soft", "hand"] if kept else gains.get(("soft", "searched")),
    }
    return {**out, "sentence": sentence(out)}


def beyond(
    soft: Predictions, tuned: Mapping[str, Predictions], seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """By how much fine-tuned checkpoints are better than a soft prompt on the one that was not, by their names."""
    said = [soft, *tuned.values()]
    pairs = compare_pairs(said, pairs=[(i, 0) for i in range(1, len(said))], seed=seed)
    return {name: _gain(one) for name, one in zip(tuned, pairs, strict=True)}


def _gain(pair: Mapping[str, Any]) -> dict[str, float | None]:
    return {"value": pair["difference"], **{k: pair[k] for k in ("low", "high", "p", "p_holm")}}


def _alike(one: Predictions, other: Predictions) -> bool:
    return bool((one.decided == other.decided).all())


def sentence(found: Mapping[str, Any]) -> str:
    """What follows, in one sentence or two; an estimate, never a proof."""
    room, has, left = found["room"], found["found"], found["left"]
    most = f"{100 * room['value']:+.1f} points {_bounds(room)} over the best hand-written prompt"
    if has is None:
        if _above(room):
            return f"wording of this length can gain at most about {most}"
        return f"no room is shown: the soft prompt has {most}"
    search = f"the search has {100 * has['value']:+.1f} {_bounds(has)}"
    if not _above(room):
        most += ", which these clips do not show"
    if left["high"] is not None and left["high"] < 0:
        return (
            f"{search}, more than the soft prompt, which has {100 * room['value']:+.1f} points over the best"
            " hand-written prompt: its training fell short, and it bounds nothing here"
        )
    rest = f"what is left, {100 * left['value']:+.1f} {_bounds(left)}"
    more = (
        f"{rest}, is shown: search on, or train"
        if _above(left)
        else f"{rest}, is not shown by these clips: stop searching, train for more"
    )
    of_them = " of them" if has["value"] <= room["value"] else ""
    return f"wording of this length can gain at most about {most}; {search}{of_them}; {more}"


def _above(gain: Mapping[str, Any]) -> bool:
    return gain["low"] is not None and gain["low"] > 0


def _bounds(gain: Mapping[str, Any]) -> str:
    low, high = ("?" if gain[k] is None else f"{100 * gain[k]:+.1f}" for k in ("low", "high"))
    return f"[{low}, {high}]"


def ceiling_sheet(result: Mapping[str, Any]) -> Sheet:
    """The rows of ceiling.json as people read them."""
    body = []
    for row in result["rows"]:
        gain = {"hand": None, "soft": result["room"], "searched": result["found"]}[row["kind"]]
        body.append(
            [
                row["name"],
                str(row["tokens"]),
                percent(result["scores"][row["kind"]]),
                "reference" if gain is None else percent(gain, signed=True),
                "" if gain is None else f"{gain['p_holm']:.4f}",
                f"{100 * row['search_half']:.1f}",
            ]
        )
    title = (
        f"{result['judged_on']}: {result['clips']} clips of {result['sources']} sources; each with the threshold that"
        " is best on the search half; 95 % intervals over sources"
    )
    return Sheet(title, COLUMNS, body)
