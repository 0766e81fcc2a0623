"""The answer options of a prompt: where their words stand, and scores averaged over both orders of them.

A model may prefer the first letter whatever the clip. Averaged over both orders of the options, that cancels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluators.clips import Clip
from evaluators.evaluator import Around, ScoreTable, require_presents
from evaluators.prompts import Prompt, is_frame

_MARK = r"[\(\[]?(?<!\w)({letter})(?:[\)\]]|\.|:| =| -)[\)\]]?\s+"


@dataclass(frozen=True)
class Option:
    """An option's label, and the place of its words in the prompt's text."""

    label: str
    mark: int  # where its letter's mark begins
    start: int
    end: int


def find_options(prompt: Prompt) -> tuple[Option, ...] | None:
    """The options in the order shown, of a prompt whose answers are the letters or digits that mark them; else None."""
    label_of = {words[0]: label for label, words in prompt.answers if len(words) == 1}
    if len(label_of) != len(prompt.answers) or not all(
        re.fullmatch("[A-Z1-9]", letter) for letter in label_of
    ):
        return None
    found: list[re.Match[str]] = []
    for letter in sorted(label_of):
        after = found[-1].end() if found else 0
        match = re.compile(_MARK.format(letter=letter)).search(prompt.text, after)
        if match is None:
            return None
        found.append(match)
    options = []
    for i, match in enumerate(found):
        last = i + 1 == len(found)
        words = prompt.text[match.end() : None if last else found[i + 1].start()]
        if last:
            words = words.partition("\n")[0]
        start = match.end() + len(words) - len(words.lstrip())
        end = start + len(words.strip().rstrip(",;"))
        options.append(Option(label_of[match.group(1)], match.start(), start, end))
    return tuple(options)


def swapped(prompt: Prompt) -> Prompt | None:
    """The prompt with its options in the opposite order, letters staying where they are; None if it has none."""
    options = find_options(prompt)
    if options is None:
        return None
    text, at = "", 0
    for option, other in zip(options, options[::-1], strict=True):
        text += prompt.text[at : option.start] + prompt.text[other.start : other.end]
        at = option.end
    given = dict(prompt.answers)
    answers = {
        other.label: given[option.label]
        for option, other in zip(options, options[::-1], strict=True)
    }
    return replace(
        prompt,
        text=text + prompt.text[at:],
        answers=tuple((label, answers[label]) for label, _ in prompt.answers),
    )


class BothOrders(Around):
    """An Evaluator that scores prompts with `both_orders` in both orders, in one pass, and averages probabilities.

    Other prompts, and those without lettered options, are scored as they are. The cache keeps scores of single orders.
    As it stands before every evaluator, it refuses presentations for one that would not heed them.

    Args:
        inner: Scores the single orders; where it has a cache, they are what is stored.
    """

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`. Both members of the table are averaged as probabilities."""
        require_presents(self, prompts)
        single = _single_orders(prompts)
        row = {prompt: i for i, prompt in enumerate(single)}
        table = self.inner.score(single, clips)
        orders = np.array([[row[a], row[b]] for a, b in map(_orders, prompts)])

        def averaged(logp: np.ndarray) -> np.ndarray:
            first, second = logp[orders[:, 0]], logp[orders[:, 1]]
            with np.errstate(invalid="ignore"):  # NaN marks an answer that a server did not list
                mean = np.asarray(np.logaddexp(first, second) - np.log(2), dtype=np.float32)
            once = orders[:, 0] == orders[:, 1]  # to the bit, where there is nothing to average
            mean[once] = first[once]
            return mean

        return ScoreTable(
            tuple(prompts), tuple(clips), averaged(table.logp), averaged(table.logp_top)
        )

    def count_missing(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> int:
        """See `Evaluator.count_missing`; both orders are counted."""
        return self.inner.count_missing(_single_orders(prompts), clips)


def evals_per_clip(prompt: Prompt) -> int:
    """Evals that a prompt takes on a clip at most: one for each order of its options, or rotation of the clip's."""
    if is_frame(prompt):
        return len(prompt.answers) if prompt.both_orders else 1
    return len(orders_of(prompt))


def orders_of(prompt: Prompt) -> tuple[Prompt, ...]:
    """The prompts of one order each whose probabilities are averaged; itself where there is nothing to average."""
    return tuple(dict.fromkeys(_orders(prompt)))


def _single_orders(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts in both orders of their options, each once."""
    return list(dict.fromkeys(p for pair in map(_orders, prompts) for p in pair))


def _orders(prompt: Prompt) -> tuple[Prompt, Prompt]:
    """Both orders, or the same one twice; each as a prompt of one order, under which its scores are kept."""
    one = replace(prompt, both_orders=False)
    return one, (swapped(one) or one) if prompt.both_orders else one
