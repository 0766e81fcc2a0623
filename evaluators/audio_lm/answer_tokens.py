"""Answer words as token ids: which tokens, or sequences of tokens, count as which label."""

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

    A word with single-token variants (``A`` and ``" A"``) is read as all of them; a word of several tokens as the
    full sequence without a leading space, which is how an answer starts after the template's newline.

    Raises:
        PromptError: Two labels share a sequence, or one answer's tokens begin another's.
    """
    per_label = []
    for _, words in prompt.answers:
        found: list[tuple[int, ...]] = []
        for word in words:
            variants = [
                tuple(tokenizer.encode(form, add_special_tokens=False, split_special_tokens=True))
                for form in (word, f" {word}")
            ]
            single = [v for v in variants if len(v) == 1]
            found += [v for v in single or variants[:1] if v not in found]
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
