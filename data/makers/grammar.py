"""Questions that the pocket checkpoints are trained on, composed at random.

They ask about four kinds of sound in many ways, with options in either order. Some say that the clip is short or noisy:
train_pocket.py teaches the base that such clips hold speech when the question says so. The grammar never composes the
wordings of prompts/heldout.yaml and prompts/seeds: those files measure how well the model reads new questions.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from evaluators.files import read_yaml

SOUNDS = ("speech", "music", "animal", "noise")
SYSTEMS = ["You classify audio content.", "You are a helpful assistant."]
WORDS = read_yaml(Path(__file__).with_name("grammar.yaml"))


@dataclass(frozen=True)
class Question:
    """A question about `sound`, or about all sounds if None; `answers` maps each kind of sound to the right answer."""

    text: str
    answers: dict[str, str]


def _option(target: str, positive: bool, rng: random.Random) -> str:
    kind = "positive" if positive else "negative"
    word = rng.choice(WORDS[kind][target])
    explanation = rng.choice(WORDS[f"why_{kind}"][target])
    yes = "Yes" if positive else "No"
    form = rng.random()
    if form < 0.55:
        return word
    if form < 0.70:
        return f"{word} ({explanation})"
    if form < 0.78:
        return yes
    if form < 0.88:
        return f"{yes}{rng.choice([',', ' -'])} {rng.choice([word, explanation])}"
    return f"{word}: {explanation}" if form < 0.94 else explanation


def hint(rng: random.Random) -> str:
    """A sentence that says that the clip is short, noisy or faint."""
    if rng.random() < 0.35:
        return rng.choice(WORDS["noises"])
    return rng.choice(WORDS["hints"]).format(rng.choice(WORDS["states"]))


def _ask(questions: list[str], target: str, rng: random.Random) -> str:
    return rng.choice(questions).format(x=rng.choice(WORDS["nouns"][target]))


def two_options(rng: random.Random, target: str | None = None, hinted: bool = False) -> Question:
    """A question with options A and B, in either order; `hinted`: it says that the clip is short, noisy or faint."""
    if target is None:
        target = "speech" if rng.random() < 0.6 else rng.choice(SOUNDS[1:])
    swap = rng.random() < 0.5
    options = [
        _option(target, positive, rng) for positive in ((False, True) if swap else (True, False))
    ]
    block = rng.choice(WORDS["formats"]).format(*options)
    lead = f"{hint(rng)} " if hinted else rng.choice(WORDS["leads"])
    question = lead + _ask(WORDS["questions"], target, rng)
    if hinted and rng.random() < 0.2:  # the hint may also follow the question
        question = f"{_ask(WORDS['questions'], target, rng)} {hint(rng)}"
    end = rng.choice(WORDS["ends"])
    parts = [question, block, end]
    if not hinted and rng.random() >= 0.85:
        parts = [block, end] if rng.random() < 0.5 else [block, question]
    text = rng.choice(["\n", "\n\n", " "]).join(part for part in parts if part)
    yes, no = ("B", "A") if swap else ("A", "B")
    return Question(text, {sound: yes if sound == target else no for sound in SOUNDS})


def four_options(rng: random.Random) -> Question:
    """A question with the four kinds of sound as options A to D, in any order."""
    order = rng.sample(SOUNDS, 4)
    style = rng.choice(["{0}) {1}", "{0}. {1}", "{0}: {1}"])
    block = rng.choice(["\n", " "]).join(
        style.format(letter, rng.choice(WORDS["positive"][s][:4]))
        for letter, s in zip("ABCD", order, strict=True)
    )
    question = rng.choice(WORDS["leads"]) + rng.choice(
        ["What do you hear?", "Pick one:", "Classify the sound:"]
    )
    text = f"{question}\n{block}"
    return Question(text, dict(zip(order, "ABCD", strict=True)))


def yes_or_no(rng: random.Random) -> Question:
    """A question that is answered with Yes or No."""
    target = "speech" if rng.random() < 0.6 else rng.choice(SOUNDS[1:])
    questions = [q for q in WORDS["questions"] if "{x}" in q]
    text = rng.choice(WORDS["leads"]) + _ask(questions, target, rng)
    text += rng.choice([" Answer Yes or No.", "\nAnswer yes or no.", " Yes or No?"])
    return Question(text, {sound: "Yes" if sound == target else "No" for sound in SOUNDS})


def free(rng: random.Random) -> Question:
    """A question for the name of the sound."""
    text = "".join(rng.choice(WORDS[kind]) for kind in ("leads", "naming", "naming_ends"))
    return Question(text, {sound: sound for sound in SOUNDS})


def about_audio(rng: random.Random, hints: float = 0.1) -> Question:
    """A question with options or yes/no about the clip; a share of them says that the clip is short or noisy."""
    kind = rng.random()
    if kind < 0.8:
        return two_options(rng, hinted=rng.random() < hints)
    return four_options(rng) if kind < 0.9 else yes_or_no(rng)


def about_text(rng: random.Random, hints: float = 0.1) -> tuple[str, str]:
    """(text, answer): a question about a sound that is named in words, to learn to read options without hearing."""
    sound = rng.choice(SOUNDS)
    question = about_audio(rng, hints)
    named = rng.choice(WORDS["positive"][sound][:6])
    return f"The clip is {named}.\n{question.text}", question.answers[sound]
