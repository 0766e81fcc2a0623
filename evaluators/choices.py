"""Questions whose options differ from clip to clip (multiple choice): a prompt is the frame around them.

A model may prefer the first option whatever the clip; averaged over all rotations of the options, that cancels.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from evaluators.clips import Clip
from evaluators.errors import PromptError, UserError
from evaluators.evaluator import Around, Evaluator, ScoreTable
from evaluators.orders import BothOrders
from evaluators.prompts import OPTIONS, QUESTION, Prompt, is_frame

ABSENT = -30.0  # nats of an option that a clip does not have


def filled(prompt: Prompt, clip: Clip, turn: int = 0) -> Prompt:
    """The prompt with a clip's question and options in it, the options moved up by `turn` places, the first to the end.

    Options stand on lines of their own where the place for them does, else in a row. Answers are those of the letters
    under which the options now stand.
    """
    count = len(clip.options)
    order = [(place + turn) % count for place in range(count)]
    words = [own for _, own in prompt.answers]
    shown = [f"{words[i][0]}) {clip.options[k]}" for i, k in enumerate(order)]
    alone = re.search(rf"^[ \t]*{re.escape(OPTIONS)}[ \t]*$", prompt.text, re.MULTILINE)
    put = {QUESTION: clip.question, OPTIONS: ("\n" if alone else " ").join(shown)}
    pattern = "|".join(map(re.escape, put))
    text = re.sub(pattern, lambda found: put[found[0]], prompt.text)  # once, whatever options hold
    answers = tuple((prompt.answers[k][0], words[order.index(k)]) for k in range(count))
    return replace(prompt, text=text, answers=answers, both_orders=False)


class Choices(Around):
    """An Evaluator that fills prompts with each clip's own question and options; others go through as they are.

    A prompt with `both_orders` is scored in every rotation of the options, and their probabilities averaged. A label is
    an option's place in the manifest; a clip with fewer options has none of the last labels.

    Args:
        inner: Scores filled prompts; where it has a cache, they are what is stored.
    """

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`.

        Raises:
            PromptError: A prompt has no place for the options of the clips, or too few answers.
            UserError: It has one, and a clip has no options.
        """
        if not _ask(prompts, clips):
            return self.inner.score(prompts, clips)
        shape = (len(prompts), len(clips), len(prompts[0].answers))
        logp, top = (np.full(shape, ABSENT, dtype=np.float32) for _ in range(2))
        for index in _alike(clips):
            turned = [_turns(prompt, clips[index[0]]) for prompt in prompts]
            table = self.inner.score(
                list(dict.fromkeys(p for turns in turned for p in turns)), [clips[i] for i in index]
            )
            row = {p: i for i, p in enumerate(table.prompts)}
            for p, turns in enumerate(turned):
                rows, count = [row[turn] for turn in turns], table.logp.shape[-1]
                logp[p, index, :count] = _mean(table.logp[rows])
                top[p, index, :count] = _mean(table.logp_top[rows])
        return ScoreTable(tuple(prompts), tuple(clips), logp, top)

    def count_missing(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> int:
        """See `Evaluator.count_missing`; every rotation is counted."""
        if not _ask(prompts, clips):
            return self.inner.count_missing(prompts, clips)
        return sum(
            self.inner.count_missing(
                list(dict.fromkeys(t for p in prompts for t in _turns(p, clips[index[0]]))),
                [clips[i] for i in index],
            )
            for index in _alike(clips)
        )


def in_orders(evaluator: Evaluator) -> Evaluator:
    """The evaluator with everything that turns a prompt of many orders, or of each clip's options, into single ones."""
    return evaluator if isinstance(evaluator, Choices) else Choices(BothOrders(evaluator))


def chosen_by_turn(
    evaluator: Evaluator, prompt: Prompt, clips: Sequence[Clip]
) -> list[NDArray[np.integer]]:
    """For each clip: ``[turn]`` the option chosen in each rotation, as its place in the manifest."""
    inner = evaluator.inner if isinstance(evaluator, Choices) else evaluator
    out: list[NDArray[np.integer]] = [np.zeros(0, dtype=np.int64)] * len(clips)
    for index in _alike(clips):
        turns = _turns(replace(prompt, both_orders=True), clips[index[0]])
        chosen = inner.score(turns, [clips[i] for i in index]).logp.argmax(axis=-1)
        for column, i in enumerate(index):
            out[i] = chosen[:, column]
    return out


def consistency(chosen: NDArray[np.integer]) -> float:
    """Share of the pairs of orders in which the same option is chosen, of one question with two orders or more.

    Its mean over questions is the consistency rate of López, Kesiraju and Luque (arXiv 2510.04584).

    Args:
        chosen: ``[order]``.
    """
    orders = len(chosen)
    same = (chosen[:, None] == chosen[None]).sum() - orders
    return float(same / (orders * (orders - 1)))


def correctness(chosen: NDArray[np.integer], right: int) -> float:
    """Share of the orders in which the right option is chosen: over questions their correctness rate."""
    return float((chosen == right).mean())


def _ask(prompts: Sequence[Prompt], clips: Sequence[Clip]) -> bool:
    """Whether the clips bring questions that the prompts are to be filled with."""
    asked = [bool(clip.options) for clip in clips]
    if not any(asked):
        return False
    if not all(asked):
        clip = clips[asked.index(False)]
        raise UserError(f"clip {clip.clip_id!r} has no options; expected some in column 'options'")
    most = max(len(clip.options) for clip in clips)
    for prompt in prompts:
        if not is_frame(prompt):
            raise PromptError(
                f"prompt {prompt.prompt_id} has no {OPTIONS}, where each clip's own options are put"
            )
        if len(prompt.answers) < most:
            raise PromptError(
                f"prompt {prompt.prompt_id} has {len(prompt.answers)} answers; a clip has {most} options"
            )
    return True


def _turns(prompt: Prompt, clip: Clip) -> list[Prompt]:
    count = len(clip.options) if prompt.both_orders else 1
    return [filled(prompt, clip, turn) for turn in range(count)]


def _alike(clips: Sequence[Clip]) -> list[list[int]]:
    """Indices of the clips of each question with its options."""
    found: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for i, clip in enumerate(clips):
        found.setdefault((clip.question, clip.options), []).append(i)
    return list(found.values())


def _mean(logp: NDArray[np.floating]) -> NDArray[np.floating]:
    """Of ``[turn, clip, label]`` nats, as probabilities; one turn to the bit."""
    if len(logp) == 1:
        return np.asarray(logp[0])
    with np.errstate(invalid="ignore"):  # NaN marks an answer that a server did not list
        return np.asarray(np.logaddexp.reduce(logp.astype(np.float64), axis=0) - np.log(len(logp)))
