"""What columns and labels of other people's files are called, guessed only where one reading is possible."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

HEADERS = {  # column -> what other projects call it, folded
    "clip_id": (
        "clip clipname id file filename filepath path wav audio audiopath utt uttid utterance"
        " utteranceid sampleid segment segmentid key"
    ),
    "source_id": (
        "source sourcefile speaker speakerid spk spkid session sessionid recording recordingid"
        " group groupid upload uploadid originalfile"
    ),
    "label": "truth groundtruth gold goldlabel target ytrue true truelabel reference actual expected",
    "predicted": (
        "prediction pred ypred predictedlabel predlabel hypothesis decision response answer output"
    ),
    "score": "probability prob yscore pspeech probspeech speechprob speechprobability",
    "duration_ms": "durationms durms lengthms",
    "snr_db": "snrdb snr",
}
YES, NO = ("1", "1.0", "yes", "true", "y", "t"), ("0", "0.0", "no", "false", "n", "f")
MOST_LABELS = 20


def folded(text: str) -> str:
    """A header as it is compared: letters and digits in lower case.

    >>> folded("Ground Truth"), folded("y_true")
    ('groundtruth', 'ytrue')
    """
    return re.sub(r"[\W_]+", "", text.casefold())


def column_for(name: str, table: Mapping[str, Sequence[str]]) -> list[str]:
    """Headers that may be the column `name`: those called so elsewhere whose values are of its kind."""
    known = HEADERS.get(name, "").split()
    return [h for h in table if folded(h) in (folded(name), *known) and _fits(name, table[h])]


def _fits(name: str, values: Sequence[str]) -> bool:
    kinds = set(values)
    if name == "clip_id":
        return len(kinds) == len(values)
    if name in ("label", "predicted"):
        return len(kinds) <= MOST_LABELS and "" not in kinds
    if name in ("score", "duration_ms", "snr_db"):
        return all(re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?|nan|", v.casefold()) for v in kinds)
    return True


def source_rule(clip_ids: Sequence[str]) -> tuple[str, int] | None:
    """A rule that may find the sources of clips by their names, and how many: the longest part that several share.

    >>> source_rule(["a_1.wav", "a_2.wav", "b_1.wav", "b_2.wav"])
    ('(.+)_[^_]*', 2)
    """
    for sign in ("_", "-", "/", "."):
        pattern = f"(.+){re.escape(sign)}[^{sign}]*"
        found = [re.fullmatch(pattern, clip) for clip in clip_ids]
        parts = {match[1] for match in found if match}
        if all(found) and 1 < len(parts) <= len(clip_ids) / 2:
            return pattern, len(parts)
    return None


def same_word(text: str) -> str:
    """A label as it is compared: without case, and without blanks, hyphens and underscores inside.

    >>> same_word("Non-Speech") == same_word("NONSPEECH"), same_word("-1") == same_word("1")
    (True, False)
    """
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", "", text.casefold())


def label_names(values: Sequence[str], positive: str) -> dict[str, str]:
    """Spelling -> label, for every one that occurs as the truth of a clip.

    Spellings that differ by case, blanks or hyphens are one label: `positive` where it is that, NON + `positive` for
    its opposite, else as most rows spell it. Of two labels, 1, yes and true are `positive` if the other one is 0, no or
    false, and none is spelled as `positive`.
    """
    kinds: dict[str, Counter[str]] = {}
    for value, count in Counter(values).items():
        kinds.setdefault(same_word(value), Counter())[value] += count
    own, other = same_word(positive), f"NON{positive}"
    if positive in values or own in kinds:
        fixed = {own: positive, same_word(other): other}
    elif len(kinds) == 2 and all(any(k in words for k in kinds) for words in (YES, NO)):
        fixed = {k: positive if k in YES else other for k in kinds}
    else:
        fixed = {}
    out: dict[str, str] = {}
    for kind, spellings in kinds.items():
        name = fixed.get(kind, spellings.most_common(1)[0][0])
        out |= dict.fromkeys(spellings, name)
    return out


def predicted_names(
    values: Sequence[str], names: Mapping[str, str], positive: str
) -> dict[str, str]:
    """Spelling -> label of what was predicted; a spelling that may be no label, or several, is left out.

    Args:
        names: From `label_names`. A number is a label only where the truth is told in numbers: which class a 1 is
            cannot be seen.
    """
    labels, words = set(names.values()), {same_word(s): label for s, label in names.items()}
    words |= {same_word(label): label for label in labels}
    if len(labels) == 2 and positive in labels and same_word(positive) not in NO:
        (other,) = labels - {positive}
        for kinds, label in ((YES, positive), (NO, other)):
            words = dict.fromkeys((w for w in kinds if w.isalpha()), label) | words
        if any(same_word(s) in (*YES[:2], *NO[:2]) for s in names):
            words |= dict.fromkeys(YES[:2], names.get("1", names.get("1.0", positive)))
            words |= dict.fromkeys(NO[:2], names.get("0", names.get("0.0", other)))
    return {v: words[same_word(v)] for v in set(values) if same_word(v) in words}
