"""Trivial edits of a prompt, which change no meaning: what a prompt that is sound should not care about.

How far a model's score moves with such edits is known to be large (Sclar et al. 2024, arXiv 2310.11324, of layout;
Mizrahi et al. 2024, TACL 12, of paraphrases). Each edit is made from the text alone, so that a prompt has the same ones
everywhere, and whatever names the answers stays in its place.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from evaluators.orders import Option, find_options, swapped
from evaluators.prompts import OPTIONS, QUESTION, Prompt, is_frame
from opro.settings import MOST_EDITS

MARKS = ("{0}) {1}", "{0}. {1}", "({0}) {1}", "{0}: {1}", "[{0}] {1}", "{0} = {1}", "{0} - {1}")
SYNONYMS = (  # (what stands there, what is put in its place)
    ("audio clip", "audio recording"),
    ("clip", "recording"),
    ("recording", "clip"),
    ("contain", "include"),
    ("contains", "includes"),
    ("include", "contain"),
    ("detect", "spot"),
    ("decide", "determine"),
    ("determine", "decide"),
    ("classify", "categorize"),
    ("identify", "recognize"),
    ("choose", "pick"),
    ("choose", "select"),
    ("pick", "choose"),
    ("select", "choose"),
    ("answer", "reply"),
    ("answer", "respond"),
    ("reply", "answer"),
    ("respond", "answer"),
    ("audio", "sound"),
    ("whether", "if"),
    ("talking", "speaking"),
    ("speaking", "talking"),
    ("task", "job"),
    ("options", "choices"),
    ("choices", "options"),
    ("following", "given"),
    ("correct", "right"),
    ("this", "the"),
    ("any", "some"),
    ("carefully", "closely"),
    ("audible", "to be heard"),
)


@dataclass(frozen=True)
class Edit:
    """An edited prompt.

    Attributes:
        kind: blanks, lines, punctuation, case, synonym, order, marks, system or typo.
        name: What was done, in words.
    """

    kind: str
    name: str
    prompt: Prompt


def trivial_edits(prompt: Prompt, most: int = MOST_EDITS) -> tuple[Edit, ...]:
    """Edits of a prompt, each another text; of so many kinds as it allows, in turns, so that fewer are of all kinds.

    Fewer than `most` where the text is too short for more. None makes an answer unreadable, see `answers_kept`.
    """
    if most < 1:
        return ()
    kinds = [
        [Edit(kind, name, one) for name, one in make(prompt)]
        for kind, make in (
            ("blanks", _blanks), ("lines", _lines), ("punctuation", _punctuation), ("case", _case),
            ("synonym", _synonyms), ("order", _orders), ("marks", _marks), ("system", _system), ("typo", _typos),
        )
    ]  # fmt: skip
    found, known = list[Edit](), {prompt.digest}
    for edit in itertools.chain.from_iterable(itertools.zip_longest(*kinds)):
        if edit is None or edit.prompt.digest in known or not answers_kept(prompt, edit.prompt):
            continue
        known.add(edit.prompt.digest)
        found.append(edit)
        if len(found) == most:
            break
    return tuple(found)


def answers_kept(prompt: Prompt, edited: Prompt) -> bool:
    """Whether all that names the answers in a prompt does so in the edited one: options, words, a clip's own places."""
    text = edited.text
    if not text.strip():
        return False
    if any(text.count(place) != prompt.text.count(place) for place in (QUESTION, OPTIONS)):
        return False
    if find_options(prompt) is not None:
        after = find_options(edited)
        return after is not None and all(o.end > o.start for o in after)
    words = [word for _, own in prompt.answers for word in own]
    return is_frame(prompt) or all(_stands(w, text) for w in words if _stands(w, prompt.text))


def _whole(word: str) -> str:
    return rf"(?<!\w){re.escape(word)}(?!\w)"


def _stands(word: str, text: str) -> bool:
    return re.search(_whole(word), text) is not None


def _kept(prompt: Prompt) -> re.Pattern[str]:
    """What no edit of words touches: answers, and the places of a clip's own question and options."""
    words = sorted({w for _, own in prompt.answers for w in own}, key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, (QUESTION, OPTIONS)), *map(_whole, words)]))


def _between(prompt: Prompt, change: Callable[[str], str], text: str | None = None) -> str:
    """The text with what stands between its answers changed, piece by piece."""
    whole = prompt.text if text is None else text
    out, at = "", 0
    for found in _kept(prompt).finditer(whole):
        out += change(whole[at : found.start()]) + found[0]
        at = found.end()
    return out + change(whole[at:])


_Made = Iterator[tuple[str, Prompt]]


def _subs(prompt: Prompt, *rules: tuple[str, str, str, int]) -> _Made:
    """(name, prompt) of each (name, pattern, replacement, how often; 0 is everywhere)."""
    for name, pattern, new, count in rules:
        yield name, replace(prompt, text=re.sub(pattern, new, prompt.text, count=count))


def _blanks(prompt: Prompt) -> _Made:
    return _subs(
        prompt,
        ("a blank at the end", r"\Z", " ", 1),
        ("two blanks between sentences", r"(?<=[.!?:]) (?=\S)", "  ", 0),
        ("a blank at the beginning", r"\A", " ", 1),
        ("two blanks for the first one", r"(?<=\S) (?=\S)", "  ", 1),
        ("a blank at the end of each line", r"(?<=\S)\n", " \n", 0),
        ("two blanks for each", r"(?<=\S) (?=\S)", "  ", 0),
        ("a blank before the question mark", r"(?<=\w)\?", " ?", 1),
        ("a tab for the first blank", r"(?<=\S) (?=\S)", "\t", 1),
    )


def _lines(prompt: Prompt) -> _Made:
    return _subs(
        prompt,
        ("a line break at the end", r"\Z", "\n", 1),
        ("no blank lines", r"\n[ \t]*\n+", "\n", 0),
        ("a blank line for each line break", r"\n+", "\n\n", 0),
        ("a line break after each sentence", r"(?<=[.!?]) +(?=\S)", "\n", 0),
        ("a line break at the beginning", r"\A", "\n", 1),
        ("further lines indented", r"\n(?=\S)", "\n  ", 0),
        ("the last line break is a blank", r"\n+(?=[^\n]+\Z)", " ", 1),
        ("all in one line", r"\s*\n\s*", " ", 0),
    )


def _punctuation(prompt: Prompt) -> _Made:
    return _subs(
        prompt,
        ("without its last mark", r"[.:!?]\s*\Z", "", 1),
        ("a stop at the end", r"(?<=[\w)\]])\s*\Z", ".", 1),
        ("a colon at the end", r"[.!?]?\s*\Z", ":", 1),
        ("a comma less", r",(?= )", "", 1),
        ("a stop for the first question mark", r"\?", ".", 1),
        ("a stop for the first colon", r"(?<=\w):(?=\s)", ".", 1),
        ("an exclamation mark for the first stop", r"(?<=\w)\.(?=\s|\Z)", "!", 1),
        ("square brackets for round ones", r"\((\w[^()\n]{2,})\)", r"[\1]", 0),
        ("a dash for brackets", r" \((\w[^()\n]{2,})\)", r" - \1", 0),
        ("commas for slashes", r"(?<=\w)/(?=\w)", ", ", 0),
        ("blanks around slashes", r"(?<=\w)/(?=\w)", " / ", 0),
        ("long dashes", r"(?<=\w) - (?=\w)", " \u2013 ", 0),
        ("semicolons for commas", r",(?= )", ";", 0),
        ("dots for the first stop", r"(?<=\w)\.(?=\s|\Z)", "...", 1),
        ("a stop after each line", r"(?<=\w)(?=\n)", ".", 0),
        ("straight quotes are curly", r"'", "\u2019", 0),
    )


def _case(prompt: Prompt) -> _Made:
    text = prompt.text

    def made(new: str) -> Prompt:
        return replace(prompt, text=new)

    def title(piece: str) -> str:
        return re.sub(r"[^\W\d_]+", lambda m: m[0][:1].upper() + m[0][1:], piece)

    yield "all in small letters", made(_between(prompt, str.lower))
    yield "all in capitals", made(_between(prompt, str.upper))
    yield "each word with a capital", made(_between(prompt, title))
    first = re.match(r"\s*[^\W\d_]+", text)
    if first and not _kept(prompt).match(first[0].lstrip()):
        rest = text[first.end() :]
        yield "the first word in small letters", made(first[0].lower() + rest)
        yield "the first word in capitals", made(first[0].upper() + rest)
    head, line, last = text.rstrip().rpartition("\n")
    yield "the last line in small letters", made(head + line + _between(prompt, str.lower, last))
    yield "the last line in capitals", made(head + line + _between(prompt, str.upper, last))
    for name, change in (("small letters", str.lower), ("capitals", str.upper)):
        yield f"the options in {name}", made(_in_options(prompt, change))
    yield "each option with a capital", made(_in_options(prompt, lambda s: s[:1].upper() + s[1:]))


def _in_options(prompt: Prompt, change: Callable[[str], str]) -> str:
    """The text with the words of its options changed."""
    text = prompt.text
    for option in reversed(find_options(prompt) or ()):
        own = text[option.start : option.end]
        text = text[: option.start] + change(own) + text[option.end :]
    return text


def _synonyms(prompt: Prompt) -> _Made:
    for old, new in SYNONYMS:
        pattern = re.compile(_whole(old), re.IGNORECASE)

        def like(found: re.Match[str], new: str = new) -> str:
            own = found[0]
            if own.isupper():
                return new.upper()
            return new[:1].upper() + new[1:] if own[:1].isupper() else new

        changed = _between(prompt, lambda s, p=pattern, f=like: p.sub(f, s))  # type: ignore[misc]
        yield f"{new!r} for {old!r}", replace(prompt, text=changed)


def _orders(prompt: Prompt) -> _Made:
    if (other := swapped(prompt)) is not None:
        yield "the options in the opposite order", other
    words = {word for _, own in prompt.answers for word in own}
    either = "|".join(map(re.escape, sorted(words, key=lambda w: (-len(w), w))))
    pair = rf"(?<!\w)({either})((?:,? or | and |/|, ))({either})(?!\w)"
    turned = re.sub(pair, r"\3\2\1", prompt.text)
    yield "the answers named in the opposite order", replace(prompt, text=turned)


def _marks(prompt: Prompt) -> _Made:
    options = find_options(prompt) or ()
    for form in MARKS if options else ():
        yield f"options marked {form.format('A', '').strip()}", _marked(prompt, options, form)


def _marked(prompt: Prompt, options: tuple[Option, ...], form: str) -> Prompt:
    text = prompt.text
    letter_of = {label: own[0] for label, own in prompt.answers}
    for option in reversed(options):
        new = form.format(letter_of[option.label], "")
        text = text[: option.mark] + new + text[option.start :]
    return replace(prompt, text=text)


def _system(prompt: Prompt) -> _Made:
    own = prompt.system
    yield "the system message without its stop", replace(prompt, system=own.rstrip(". "))
    yield "the system message in small letters", replace(prompt, system=own.lower())
    yield "the system message in capitals", replace(prompt, system=own.upper())


def _typos(prompt: Prompt) -> _Made:
    """Two letters exchanged, one left out, one doubled, in the middle of a word; the longest words first."""
    text, kept = prompt.text, [m.span() for m in _kept(prompt).finditer(prompt.text)]
    words = [
        m
        for m in re.finditer(r"[^\W\d_]{4,}", text)
        if not any(a < m.end() and m.start() < b for a, b in kept)
    ]
    words.sort(key=lambda m: (-len(m[0]), m.start()))

    ways: Sequence[tuple[str, int, Callable[[str, int], str]]] = (
        ("two letters exchanged", 4, lambda w, i: w[: i - 1] + w[i] + w[i - 1] + w[i + 1 :]),
        ("a letter left out", 5, lambda w, i: w[:i] + w[i + 1 :]),
        ("a letter doubled", 4, lambda w, i: w[: i + 1] + w[i:]),
    )
    for how, least, change in ways:
        for m in words:
            if len(m[0]) >= least:
                new = text[: m.start()] + change(m[0], len(m[0]) // 2) + text[m.end() :]
                yield f"{how} in {m[0]!r}", replace(prompt, text=new)
