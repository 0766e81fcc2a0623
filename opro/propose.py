"""Proposers: where candidates come from. A language model with a scored history, checked before anything is scored."""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, Protocol

from evaluators.errors import UserError
from evaluators.prompts import ROOT, SPECIAL, Prompt, Task, prompt_from
from opro.history import Candidate, History, Trial
from opro.lm import LanguageModel, Ledger, Message
from opro.reward import Reward

OPENINGS = 100  # brackets of a reply that are tried as the start of its JSON
LONGEST = 500  # characters of a proposed prompt
SHOWN = 20  # prompts of the history that a language model sees (OPRO's figure)
CALLS = 3  # calls an iteration may take to fill its candidates
REPLY_TOKENS = 200  # of a reply, and as many more for each prompt asked for
_CHATTER = re.compile(
    r"(?i)^(here (is|are)\b|sure\b|certainly\b|of course\b|i (can|will|would|am|have)\b|as an"
    r" ai\b|note that\b)"
    r"|```|</?ins>|\b(new|improved|revised) (prompt|instruction)s?\b|\bscore:|\{\"|\bprompts?"
    r" above\b"
)


class Proposer(Protocol):
    """Makes candidates from the history."""

    name: str

    def propose(self, history: History, n: int, iteration: int) -> list[Candidate]:
        """At most `n` candidates that differ from all trials before this iteration. Changes nothing."""


def refuse(raw: Any, task: Task, known: set[str], where: str = "reply") -> Prompt | str:
    """A checked prompt, or the reason why it is refused.

    Args:
        raw: A prompt's text, or a mapping with text and, if they differ from the default, answers.
        known: Normalised texts already tried or proposed.
    """
    entry = {"text": raw} if isinstance(raw, str) else raw
    if not isinstance(entry, Mapping) or not isinstance(entry.get("text"), str):
        return "no text"
    text = unwrap(entry["text"])
    if not text:
        return "empty"
    if len(text) > LONGEST:
        return f"longer than {LONGEST} characters ({len(text)})"
    if SPECIAL.search(text):
        return f"control token {SPECIAL.search(text).group(0)!r}"  # type: ignore[union-attr]
    if not all(ch.isprintable() or ch == "\n" for ch in text):
        return "control characters"
    if _CHATTER.search(text):
        return "talk about prompts instead of a prompt"
    given = {k: v for k, v in entry.items() if k in ("answers",)}
    if isinstance(given.get("answers"), Mapping):
        given["answers"] = {
            k: v.strip(" .):") if isinstance(v, str) else v for k, v in given["answers"].items()
        }
    else:
        given.pop("answers", None)
    try:
        prompt = prompt_from({"text": text, **given}, task.labels, where)
    except UserError as error:
        return str(error)
    if len({w.casefold() for _, words in prompt.answers for w in words}) < sum(
        len(words) for _, words in prompt.answers
    ):
        return "one answer stands for two classes"
    for label, words in prompt.answers:
        for word in words:
            if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text):
                return f"does not offer the answer {word!r} of {label}"
    key = normal(prompt)
    if key in known:
        return "already tried or proposed"
    known.add(key)
    return prompt


def normal(prompt: Prompt) -> str:
    """Texts that differ only in case, spaces or punctuation are the same prompt."""
    return re.sub(r"[\W_]+", " ", prompt.text).strip().casefold() + "|" + repr(prompt.answers)


def unwrap(text: str) -> str:
    """The prompt without the wrapping that models put round it: tags, quotes, a leading label or number."""
    text = text.strip()
    inner = re.search(r"<INS>(.*?)</INS>", text, re.DOTALL | re.IGNORECASE)
    text = inner.group(1).strip() if inner else text
    text = re.sub(
        r"^(?:\d+[.)]\s+|[-*]\s+)?(?:\*\*)?(?i:prompt|instruction|text)(?:"
        r" \d+)?(?:\*\*)?:(?:\*\*)?\s*",
        "",
        text,
    )
    while (
        len(text) > 1
        and not text.startswith("```")
        and (text[0], text[-1]) in {('"', '"'), ("'", "'"), ("`", "`"), ("“", "”")}
    ):
        text = text[1:-1].strip()
    return text


def parse(reply: str) -> list[Any]:
    """The proposals in a reply: a JSON object or list anywhere in it, or <INS> tags. Empty if there is none."""
    decoder = json.JSONDecoder()
    for match in itertools.islice(re.finditer(r"[\[{]", reply), OPENINGS):
        try:
            found, _ = decoder.raw_decode(reply, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            found = found.get("prompts", [found] if "text" in found else None)
        if isinstance(found, list) and found and all(isinstance(e, str | dict) for e in found):
            return found
    return re.findall(r"<INS>.*?</INS>", reply, re.DOTALL | re.IGNORECASE)


class LMProposer:
    """Asks a language model.

    Args:
        lm: The model.
        task, reward: What the model is told.
        ledger: Counts and limits its calls.
        record: Called with one dictionary per call: meta-prompt, reply, tokens, cost, and each refusal with its reason.
        temperature: Of sampling; at 0 a search gets stuck (arXiv 2309.03409).
        strategy: ``opro`` asks for one prompt a call with the paper's layout, anything else for all in one reply.
        folder: Where the meta-prompts lie.
    """

    def __init__(
        self,
        lm: LanguageModel,
        task: Task,
        reward: Reward,
        ledger: Ledger,
        record: Callable[[dict[str, Any]], None],
        temperature: float = 1.0,
        strategy: str = "race",
        folder: Path = ROOT / "meta",
    ) -> None:
        self.name = f"language model {lm.name}"
        self.lm, self.task, self.reward, self.ledger, self.record = lm, task, reward, ledger, record
        self.temperature, self.strategy = temperature, strategy
        self._template = Template(
            (folder / ("opro.txt" if strategy == "opro" else "propose.txt")).read_text(
                encoding="utf-8"
            )
        )

    def propose(self, history: History, n: int, iteration: int) -> list[Candidate]:
        """See `Proposer`. Stops early, with what it has, when the ledger's limit is near."""
        past = [t for t in history.trials if t.iteration < iteration]
        known = {normal(t.candidate.prompt) for t in past}
        out: list[Candidate] = []
        refusals: list[str] = []
        for call in range(n if self.strategy == "opro" else CALLS):
            if len(out) >= n:
                break
            meta = self._render(past, n - len(out), refusals)
            room = REPLY_TOKENS * (1 + (1 if self.strategy == "opro" else n - len(out)))
            spent = self.ledger.spent(meta, room)
            if spent:
                self.record({"iteration": iteration, "call": call, "stopped": spent})
                break
            reply = self.lm([Message("user", meta)], temperature=self.temperature, max_tokens=room)
            self.ledger.add(reply)
            found = parse(reply.text)
            refused = (
                []
                if found
                else [{"text": reply.text[:200], "reason": "no proposals found in the reply"}]
            )
            for raw in found:
                prompt = (
                    refuse(raw, self.task, known) if len(out) < n else "more than were asked for"
                )
                if isinstance(prompt, Prompt):
                    out.append(
                        Candidate(
                            prompt,
                            "lm",
                            tuple(t.candidate.prompt.prompt_id for t in _best(past)[-3:]),
                        )
                    )
                else:
                    text = str(raw.get("text") if isinstance(raw, Mapping) else raw)[:200]
                    refused.append({"text": text, "reason": prompt})
            refusals += [f"{r['text'][:80]!r}: {r['reason']}" for r in refused]
            self.record(
                {
                    "iteration": iteration,
                    "call": call,
                    "model": reply.model,
                    "meta_prompt": meta,
                    "reply": reply.text,
                    "tokens_in": reply.tokens_in,
                    "tokens_out": reply.tokens_out,
                    "cost": reply.cost,
                    "finish": reply.finish,
                    "accepted": len(out),
                    "refused": refused,
                }
            )
        return out

    def _render(self, past: Sequence[Trial], n: int, refusals: Sequence[str]) -> str:
        best = _best(past)
        shown = "\n\n".join(
            f"text:\n{t.candidate.prompt.text}\nscore:\n{round(100 * (t.reward or 0))}"
            for t in best
        )
        words = [
            words[0]
            for _, words in Prompt(
                "x",
                tuple(
                    (label, (letter,))
                    for label, letter in zip(self.task.labels, "ABCDEFGH", strict=False)
                ),
            ).answers
        ]
        errors = ""
        if best:
            worst = sorted(best[-1].slices.items(), key=lambda item: item[1][0])[:4]
            errors = (
                "The best of them does worst on: "
                + ", ".join(
                    f"{name} ({100 * score:.0f} % of {clips} clips)"
                    for name, (score, clips) in worst
                )
                + "."
            )
        refused = (
            "Do not repeat these mistakes, the prompts were refused:\n"
            + "\n".join(refusals[-5:])
            + "\n"
            if refusals
            else ""
        )
        return self._template.substitute(
            task=self.task.description,
            reward=self.reward.describe(self.task),
            answers=" and ".join(words),
            history=shown,
            errors=errors,
            exemplars=errors,
            refused=refused,
            n=n,
            longest=LONGEST,
            example=json.dumps(dict(zip(self.task.labels, words, strict=False))),
        )


def _best(past: Sequence[Trial]) -> list[Trial]:
    """The best trials, ascending: models attend to the end (arXiv 2309.03409)."""
    return sorted((t for t in past if t.state in ("complete", "dropped")), key=lambda t: t.rank)[
        -SHOWN:
    ]
