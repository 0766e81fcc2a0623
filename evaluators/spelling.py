"""How servers spell tokens, and what a list of a reply's likeliest first tokens says of a prompt's answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluators.prompts import Prompt

ROUNDING = 1e-6  # nats by which a log-probability may lie above zero
THOUGHTS = ("<think", "<|think", "<reason", "<|channel", "<seed:think", "[think", "◁think")
SHOWN = 5  # tokens that a sentence names
MOST_LISTED = 1000  # tokens of a list; those asked for are 20, and the answers' own
LEAST_LOGP = -3.4028235e38  # float32's least number, which some servers tell of what cannot be


def _byte_of() -> dict[str, int]:
    """GPT-2's characters for bytes, as in ``Ġ`` for a space, which byte-level tokenizers write their tokens with."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


_BYTES = _byte_of()


def forms(token: str) -> Iterator[str]:
    """The texts that a server may mean by a token, without white space around them.

    As it is, with SentencePiece's ``▁`` for a space, or byte by byte. ``A.`` and ``A)`` are other tokens than ``A``:
    the same model scored in process counts ``A`` and `` A`` alone, and a score is to be the same in both places.
    """
    yield token.replace("▁", " ").strip()
    if all(ch in _BYTES for ch in token):
        raw = bytes(_BYTES[ch] for ch in token)
        try:
            yield raw.decode().strip()
        except UnicodeDecodeError:
            return


@dataclass(frozen=True)
class Listing:
    """The likeliest first tokens of a reply, with their log-probabilities in nats."""

    tokens: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> "Listing":
        """From a chat completion.

        Raises:
            ValueError: It holds no log-probabilities, or some that cannot be; says which.
        """
        try:
            entries = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            if len(entries) > MOST_LISTED:
                raise ValueError(f"it lists {len(entries)} tokens; expected {MOST_LISTED} at most")
            pairs = [(_token(e), e["logprob"]) for e in entries]
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError("there is no list of them") from None
        if not pairs:
            raise ValueError("their list is empty")
        for token, value in pairs:
            if not _is_logp(value):
                told = repr(value)[:20]
                raise ValueError(f"{_shown(token)} is {told}; expected a number up to 0")
        return cls(tuple(dict.fromkeys(pairs)))

    def scores(self, prompt: Prompt) -> tuple[list[float], list[float]]:
        """Per label the sum over its tokens, and the likeliest of them.

        An answer that is not listed is at most as likely as the least token that is: its sum is that bound, its
        likeliest token NaN.
        """
        bound = min(value for _, value in self.tokens)
        sums, best = [], []
        for _, words in prompt.answers:
            found = [v for token, v in self.tokens if not set(words).isdisjoint(forms(token))]
            sums.append(float(np.logaddexp.reduce(found)) if found else bound)
            best.append(max(found, default=np.nan))
        return sums, best

    def trouble(self, prompt: Prompt) -> str:
        """Why no reply can be a score of the prompt, or an empty text: thoughts, or answers of several tokens."""
        first = max(self.tokens, key=lambda entry: entry[1])[0]
        if first.strip().lower().startswith(THOUGHTS):
            return (
                f"replies begin with {_shown(first.strip())}: a reasoning model, whose answer comes after its thoughts;"
                " serve it without thinking, or choose another model"
            )
        _, best = self.scores(prompt)
        unlisted = [
            words for (_, words), top in zip(prompt.answers, best, strict=True) if np.isnan(top)
        ]
        for word in (word for words in unlisted for word in words):
            if part := self._beginning(word, prompt):
                return _several(word, f"{part!r} is listed")
        return ""

    def missing(self, prompt: Prompt) -> str:
        """Why this reply tells nothing of the answers, or an empty text where it lists one."""
        if not np.isnan(self.scores(prompt)[1]).all():
            return ""
        likeliest = sorted(self.tokens, key=lambda entry: -entry[1])[:SHOWN]
        answers = _quoted(word for _, words in prompt.answers for word in words)
        return (
            f"none of the answers {answers} is among the likeliest first tokens"
            f" ({_quoted(token for token, _ in likeliest)}): the model begins with other text; say in the"
            " prompt to answer with these words alone, or change them"
        )

    def _beginning(self, word: str, prompt: Prompt) -> str:
        """A listed token of two letters or more that is the beginning of a word, and no answer itself."""
        answers = {w for _, words in prompt.answers for w in words}
        for token, _ in self.tokens:
            for text in forms(token):
                if 2 <= len(text) < len(word) and word.startswith(text) and text not in answers:
                    return text
        return ""


def several_tokens(word: str, count: int) -> str:
    """What is wrong with an answer that takes so many tokens."""
    return _several(word, f"{count} of them")


def _several(word: str, why: str) -> str:
    return (
        f"the answer {word!r} takes several tokens here ({why}), and a server tells the first one only; use answers of"
        " one token, such as A and B"
    )


def _quoted(words: Iterator[str]) -> str:
    return ", ".join(map(_shown, words))


def _shown(word: str) -> str:
    return repr("".join(ch if ch.isprintable() else "?" for ch in word[:20]))


def _token(entry: Mapping[str, Any]) -> str:
    """A token's text: what its bytes spell, where the server gives them and they are whole."""
    raw, token = entry.get("bytes"), str(entry["token"])
    if isinstance(raw, list) and raw:
        try:
            return bytes(raw).decode()
        except (ValueError, TypeError):
            return token
    return token


def _is_logp(value: Any) -> bool:
    """A number of float32 that is not above zero, but for rounding."""
    return type(value) in (int, float) and LEAST_LOGP <= value <= ROUNDING
