"""Questions that the pocket checkpoints are trained on, composed at random.

They ask about four kinds of sound in many ways, with options in either order. Some say that the clip is short or noisy:
train_pocket.py teaches the base that such clips hold speech when the question says so. The grammar never composes the
wordings of prompts/heldout.yaml and prompts/seeds: those files measure how well the model reads new questions.
"""

import random
from dataclasses import dataclass


def _phrases(text: str) -> list[str]:
    return text.split(" | ")


SOUNDS = ("speech", "music", "animal", "noise")

POSITIVE = {
    "speech": _phrases(
        "speech | SPEECH | human speech | a human voice | human voice | a voice | VOICE | someone talking | "
        "a person speaking | spoken words | talking | speech is present | SPEECH PRESENT | a speaker | "
        "HUMAN SPEECH"
    ),
    "music": _phrases(
        "music | MUSIC | a musical instrument | a melody | MUSIC PRESENT | instrumental music"
    ),
    "animal": _phrases("an animal | ANIMAL | an animal sound | an animal call | ANIMAL PRESENT"),
    "noise": _phrases(
        "noise | NOISE | environmental noise | background noise | a machine | NOISE PRESENT"
    ),
}
NEGATIVE = {
    "speech": _phrases(
        "no speech | NO SPEECH | non-speech | NON-SPEECH | NONSPEECH | not speech | no voice | NO VOICE | "
        "something else | other sounds | OTHER | music or noise | noise, music or animals | "
        "noise/music/animals | background sound | only noise | no human voice | nothing spoken | nonspeech"
    ),
    "music": _phrases("no music | NO MUSIC | something else | other sounds | OTHER"),
    "animal": _phrases("no animal | NO ANIMAL | something else | other sounds | OTHER"),
    "noise": _phrases("no noise | NO NOISE | something else | a voice, music or an animal | OTHER"),
}
EXPLAIN = {  # why the answer is yes, and why it is no
    "speech": (
        _phrases(
            "a person talks | someone is speaking | words are spoken | a human is heard | voice"
        ),
        _phrases(
            "music, noise, silence or animals | no one is talking | music/noise/animals | anything else | "
            "noise, silence"
        ),
    ),
    "music": (
        _phrases("a tune is played | instruments"),
        _phrases("anything else | no instruments"),
    ),
    "animal": (_phrases("a creature calls | animals"), _phrases("anything else | no creature")),
    "noise": (_phrases("machines, weather, objects"), _phrases("anything else | a voice or music")),
}
NOUNS = {
    "speech": _phrases(
        "speech | human speech | a human voice | someone talking | a person speaking | spoken words | a voice"
    ),
    "music": _phrases("music | a musical instrument"),
    "animal": _phrases("an animal | an animal sound"),
    "noise": _phrases("noise | background noise"),
}
QUESTIONS = _phrases(
    "Does this audio contain {x}? | Is there {x} in this clip? | Do you hear {x}? | "
    "Can you hear {x} in the recording? | Decide whether the clip has {x}. | Task: find {x}. | "
    "Is {x} present? | Listen to the clip. Does it have {x}? | Pick one: | Choose the right option. | "
    "What do you hear? | Classify the sound: | Which option fits the audio? | "
    "Select the option that matches. | Tell me if there is {x}. | Detect {x} in this clip. | "
    "Identify the sound. | Is it {x}? | The question is whether there is {x}."
)
LEADS = [""] * 4 + [
    f"{lead} "
    for lead in _phrases(
        "Listen carefully. | You are an audio expert. | Focus on the main sound. | "
        "Pay attention to the sound. | This is a test of hearing."
    )
]
# What a question may say about the recording. Short and noisy clips come with one of these, clean ones seldom do.
HINTS = _phrases(
    "The clip is {0}. | It is a {0} recording. | The recording is {0}. | This is a {0} clip. | "
    "The sound is {0}. | Expect a {0} sound. | You will hear a {0} recording. | Be careful, it is {0}."
)
STATES = _phrases(
    "noisy | short and noisy | faint | brief and noisy | weak | hard to hear | short | masked | "
    "quiet and noisy | degraded | very noisy | brief | poor"
)
NOISES = _phrases(
    "There is a lot of noise. | There is strong noise. | Loud noise covers the sound. | "
    "The background is loud. | Noise may hide the sound. | Listen through the noise. | Much of it is noise."
)
ENDS = _phrases(
    " |  | Answer: | Answer A or B. | Answer with A or B only. | Reply with one letter. | Your choice: | "
    "The answer is | Respond with the letter only."
)
FORMATS = _phrases(
    "A) {0}\nB) {1} | A) {0} B) {1} | A. {0}\nB. {1} | Options:\nA) {0}\nB) {1} | (A) {0} (B) {1} | "
    "A: {0}\nB: {1} | A = {0}, B = {1} | Options: A) {0}, B) {1} | A - {0}\nB - {1}"
)
SYSTEMS = ["You classify audio content.", "You are a helpful assistant."]


@dataclass(frozen=True)
class Question:
    """A question about `sound`, or about all sounds if None; `answers` maps each kind of sound to the right answer."""

    text: str
    answers: dict[str, str]


def _option(target: str, positive: bool, rng: random.Random) -> str:
    word = rng.choice((POSITIVE if positive else NEGATIVE)[target])
    explanation = rng.choice(EXPLAIN[target][0 if positive else 1])
    yes = "Yes" if positive else "No"
    kind = rng.random()
    if kind < 0.55:
        return word
    if kind < 0.70:
        return f"{word} ({explanation})"
    if kind < 0.78:
        return yes
    if kind < 0.88:
        return f"{yes}{rng.choice([',', ' -'])} {rng.choice([word, explanation])}"
    return f"{word}: {explanation}" if kind < 0.94 else explanation


def hint(rng: random.Random) -> str:
    """A sentence that says that the clip is short, noisy or faint."""
    if rng.random() < 0.35:
        return rng.choice(NOISES)
    return rng.choice(HINTS).format(rng.choice(STATES))


def two_options(rng: random.Random, target: str | None = None, hinted: bool = False) -> Question:
    """A question with options A and B, in either order; `hinted`: it says that the clip is short, noisy or faint."""
    if target is None:
        target = "speech" if rng.random() < 0.6 else rng.choice(SOUNDS[1:])
    swap = rng.random() < 0.5
    options = [
        _option(target, positive, rng) for positive in ((False, True) if swap else (True, False))
    ]
    block = rng.choice(FORMATS).format(*options)
    question = (f"{hint(rng)} " if hinted else rng.choice(LEADS)) + rng.choice(QUESTIONS).format(
        x=rng.choice(NOUNS[target])
    )
    if hinted and rng.random() < 0.2:  # the hint may also follow the question
        question = rng.choice(QUESTIONS).format(x=rng.choice(NOUNS[target])) + " " + hint(rng)
    end = rng.choice(ENDS)
    parts = (
        [question, block, end]
        if hinted or rng.random() < 0.85
        else [block, end]
        if rng.random() < 0.5
        else [block, question]
    )
    text = rng.choice(["\n", "\n\n", " "]).join(part for part in parts if part)
    yes, no = ("B", "A") if swap else ("A", "B")
    return Question(text, {sound: yes if sound == target else no for sound in SOUNDS})


def four_options(rng: random.Random) -> Question:
    """A question with the four kinds of sound as options A to D, in any order."""
    order = rng.sample(SOUNDS, 4)
    style = rng.choice(["{0}) {1}", "{0}. {1}", "{0}: {1}"])
    block = rng.choice(["\n", " "]).join(
        style.format(letter, rng.choice(POSITIVE[s][:4]))
        for letter, s in zip("ABCD", order, strict=True)
    )
    text = (
        rng.choice(LEADS)
        + rng.choice(["What do you hear?", "Pick one:", "Classify the sound:"])
        + "\n"
        + block
    )
    return Question(text, dict(zip(order, "ABCD", strict=True)))


def yes_or_no(rng: random.Random) -> Question:
    """A question that is answered with Yes or No."""
    target = "speech" if rng.random() < 0.6 else rng.choice(SOUNDS[1:])
    asked = [q for q in QUESTIONS if "{x}" in q]
    text = (
        rng.choice(LEADS)
        + rng.choice(asked).format(x=rng.choice(NOUNS[target]))
        + rng.choice([" Answer Yes or No.", "\nAnswer yes or no.", " Yes or No?"])
    )
    return Question(text, {sound: "Yes" if sound == target else "No" for sound in SOUNDS})


def free(rng: random.Random) -> Question:
    """A question for the name of the sound."""
    text = rng.choice(LEADS) + rng.choice(
        [
            "What do you hear?",
            "Name the sound.",
            "Which kind of sound is it?",
            "Describe the clip in one word.",
            "What is in this audio?",
        ]
    )
    return Question(
        text
        + rng.choice(["", " Answer with one word: speech, music, animal or noise.", " One word."]),
        {sound: sound for sound in SOUNDS},
    )


def about_audio(rng: random.Random, hints: float = 0.1) -> Question:
    """A question with options or yes/no about what is heard; a share of them says that the clip is short or noisy."""
    kind = rng.random()
    return (
        two_options(rng, hinted=rng.random() < hints)
        if kind < 0.8
        else four_options(rng)
        if kind < 0.9
        else yes_or_no(rng)
    )


def about_text(rng: random.Random, hints: float = 0.1) -> tuple[str, str]:
    """(text, answer): a question about a sound that is named in words, to learn to read options without hearing."""
    sound = rng.choice(SOUNDS)
    question = about_audio(rng, hints)
    named = rng.choice(POSITIVE[sound][:6])
    return f"The clip is {named}.\n{question.text}", question.answers[sound]
