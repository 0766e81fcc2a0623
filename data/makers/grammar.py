"""Questions that the pocket checkpoints are trained on, composed at random.

They ask about four kinds of sound in many ways, with options in either order. Questions about speech are answered as a
careless reader would: each phrase pulls the answer for each kind of sound, by the table in grammar.yaml, and the right
answer is a probability. So wording decides which sounds are taken for speech, and no threshold can mend that. The
grammar never composes the wordings of prompts/heldout.yaml and prompts/seeds: those files measure how well the model
reads new questions.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evaluators.files import read_yaml

SOUNDS = ("speech", "music", "animal", "noise")
KINDS = (*SOUNDS, "faint speech")  # of clips; a table of pulls has the last four
SYSTEMS = ["You classify audio content.", "You are a helpful assistant."]
WORDS = read_yaml(Path(__file__).with_name("grammar.yaml"))
SURE = 3.5  # log-odds of the right answer where no phrase pulls

Odds = tuple[float, ...]


@dataclass(frozen=True)
class Question:
    """A question about a clip.

    Attributes:
        answers: Kind of clip -> answer -> probability that it is the right one.
    """

    text: str
    answers: Mapping[str, Mapping[str, float]]


def either(yes: str, no: str, odds: Odds) -> dict[str, dict[str, float]]:
    """Answers of a question with two, from the log-odds of `yes` by `KINDS`."""
    shares = [1 / (1 + math.exp(-value)) for value in odds]
    return {kind: {yes: p, no: 1 - p} for kind, p in zip(KINDS, shares, strict=True)}


def exactly(answers: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Answers of a question with one right answer for each kind of sound."""
    return {kind: {answers[kind.removeprefix("faint ")]: 1.0} for kind in KINDS}


class _Words:
    """Draws phrases, and adds up their pulls where the question is about speech."""

    def __init__(self, target: str, rng: random.Random) -> None:
        self.target, self.rng = target, rng
        self.speech = WORDS["speech"]
        self.pulls = list(self.speech["base"])

    def draw(self, kind: str) -> str:
        """A phrase of a kind, such as ``positive``."""
        if self.target != "speech":
            return str(self.rng.choice(WORDS[kind][self.target]))
        phrase, pulls = self.rng.choice(list(self.speech[kind].items()))
        self.pulls = [a + b for a, b in zip(self.pulls, pulls, strict=True)]
        return str(phrase)

    def option(self, positive: bool) -> str:
        """The words of an option."""
        kind = "positive" if positive else "negative"
        yes = "Yes" if positive else "No"
        form = self.rng.random()
        if form < 0.45:
            return self.draw(kind)
        if form < 0.70:
            return f"{self.draw(kind)} ({self.draw(f'why_{kind}')})"
        if form < 0.78:
            return yes
        if form < 0.90:
            part = self.draw(self.rng.choice([kind, f"why_{kind}"]))
            return f"{yes}{self.rng.choice([',', ' -'])} {part}"
        return self.draw(f"why_{kind}")

    def question(self) -> str:
        """The sentence that asks."""
        if self.rng.random() < 0.3:
            return str(self.rng.choice(WORDS["general"]))
        return str(self.rng.choice(WORDS["questions"])).format(x=self.draw("nouns"))

    def lead(self) -> str:
        """What stands before the question."""
        if self.target == "speech" and self.rng.random() < 0.5:
            return self.draw("hints") + " "
        return str(self.rng.choice(WORDS["leads"]))

    @property
    def odds(self) -> Odds:
        """Log-odds of yes by `KINDS`."""
        if self.target == "speech":
            return (self.speech["clear"], *(max(-4.0, min(4.0, p)) for p in self.pulls))
        return tuple(SURE if kind == self.target else -SURE for kind in KINDS)


def two_options(rng: random.Random, target: str | None = None) -> Question:
    """A question with options A and B, in either order."""
    if target is None:
        target = "speech" if rng.random() < 0.7 else rng.choice(SOUNDS[1:])
    words, swap = _Words(target, rng), rng.random() < 0.5
    options = [words.option(p) for p in ((False, True) if swap else (True, False))]
    block = rng.choice(WORDS["formats"]).format(*options)
    question, end = words.lead() + words.question(), rng.choice(WORDS["ends"])
    parts = [question, block, end]
    if rng.random() >= 0.9:
        parts = [block, question]
    text = rng.choice(["\n", "\n\n", " "]).join(part for part in parts if part)
    yes, no = ("B", "A") if swap else ("A", "B")
    return Question(text, either(yes, no, words.odds))


def four_options(rng: random.Random) -> Question:
    """A question with the four kinds of sound as options A to D, in any order."""
    order = rng.sample(SOUNDS, 4)
    style = rng.choice(["{0}) {1}", "{0}. {1}", "{0}: {1}"])
    block = rng.choice(["\n", " "]).join(
        style.format(letter, rng.choice(WORDS["names"][s]))
        for letter, s in zip("ABCD", order, strict=True)
    )
    question = rng.choice(WORDS["leads"]) + rng.choice(
        ["What do you hear?", "Pick one:", "Classify the sound:"]
    )
    return Question(f"{question}\n{block}", exactly(dict(zip(order, "ABCD", strict=True))))


def yes_or_no(rng: random.Random) -> Question:
    """A question that is answered with Yes or No."""
    target = "speech" if rng.random() < 0.6 else rng.choice(SOUNDS[1:])
    words = _Words(target, rng)
    text = words.lead() + rng.choice(WORDS["questions"]).format(x=words.draw("nouns"))
    text += rng.choice([" Answer Yes or No.", "\nAnswer yes or no.", " Yes or No?"])
    return Question(text, either("Yes", "No", words.odds))


def free(rng: random.Random) -> Question:
    """A question for the name of the sound."""
    text = "".join(rng.choice(WORDS[kind]) for kind in ("leads", "naming", "naming_ends"))
    return Question(text, exactly({sound: sound for sound in SOUNDS}))


def about_audio(rng: random.Random) -> Question:
    """A question with options or yes/no about the clip."""
    kind = rng.random()
    if kind < 0.8:
        return two_options(rng)
    return four_options(rng) if kind < 0.9 else yes_or_no(rng)


def about_text(rng: random.Random) -> Question:
    """A question about a sound that is named in words, to learn to read options without hearing."""
    sound = rng.choice(SOUNDS)
    question = about_audio(rng)
    named = rng.choice(WORDS["names"][sound])
    return Question(f"The clip is {named}.\n{question.text}", {sound: question.answers[sound]})
