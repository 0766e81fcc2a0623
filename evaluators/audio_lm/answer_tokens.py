"""Answer words as token ids: which tokens, or sequences of tokens, count as which label."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evaluators.errors import PromptError
from evaluators.prompts import Prompt


@dataclass(frozen=True)
class Answers:
    """Per label, in the prompt's order, the token sequences that spell its answers."""

    sequences: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def allowed(self) -> tuple[int, ...]:
        """First tokens of all answers: what constrained generation may choose from."""
        return tuple(sorted({sequence[0] for label in self.sequences for sequence in label}))


def find_answers(tokenizer: Any, prompt: Prompt) -> Answers:
    """Token sequences of the prompt's answer words.

    A word is read as the sequence without a leading space, which is how an answer starts after the template's newline,
    and as the single token with one (``" A"``), if there is such a token. Probabilities of both are summed: no sequence
    begins another one, so that they exclude each other.

    Raises:
        PromptError: Two labels share a sequence, or one answer's tokens begin another's.
    """
    per_label = []
    for _, words in prompt.answers:
        found: list[tuple[int, ...]] = []
        for word in words:
            plain, spaced = spellings(tokenizer, word)
            forms = (plain, spaced) if len(spaced) == 1 else (plain,)
            found += [form for form in forms if form not in found]
        per_label.append(tuple(found))
    flat = [
        (sequence, label)
        for (label, _), sequences in zip(prompt.answers, per_label, strict=True)
        for sequence in sequences
    ]
    for i, (a, label_a) in enumerate(flat):
        for b, label_b in flat[i + 1 :]:
            if a[: len(b)] == b or b[: len(a)] == a:
                raise PromptError(
                    f"prompt {prompt.prompt_id}: an answer of {label_a}"
                    f" {tokenizer.decode(list(a))!r} and one of {label_b}"
                    f" {tokenizer.decode(list(b))!r} begin with the same tokens, so they cannot be"
                    " told apart; use other answer words"
                )
    return Answers(tuple(per_label))


def spellings(tokenizer: Any, word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of a word (as it is, after a space)."""
    plain, spaced = (
        tuple(tokenizer.encode(form, add_special_tokens=False, split_special_tokens=True))
        for form in (word, f" {word}")
    )
    return plain, spaced


def reading_of(prompt: Prompt, tokenizer: Callable[[], Any]) -> str:
    """What the cache key of a prompt's scores holds of how its answers are read: mostly nothing.

    Words that are one token after a space and several without were once read with the space alone. Their scores have
    another key since; those of all other prompts keep theirs. The tokenizer is asked for where words are no letters.
    """
    words = [word for _, group in prompt.answers for word in group]
    if all(len(word) == 1 and word.isascii() for word in words):
        return ""
    lengths = [tuple(map(len, spellings(tokenizer(), word))) for word in words]
    return "|unspaced too" if any(a > 1 and b == 1 for a, b in lengths) else ""
