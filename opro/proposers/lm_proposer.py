"""Proposers: where candidates come from. A language model with a scored history, checked before anything is scored."""

import itertools
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, Protocol

import numpy as np

from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.files import shipped
from evaluators.prompts import SPECIAL, Prompt, Task, prompt_from
from opro.proposers.evidence import Heard, about_parent, draw_parent, misjudged, standstill
from opro.proposers.openai_model import (
    LanguageModel,
    Ledger,
    Message,
    Reply,
    SpentError,
    most_tokens,
)
from opro.search.history import Candidate, History, Trial
from opro.search.objective import Reward

META = shipped("prompts/meta")  # what a language model is told, to edit
OPENINGS = 100  # brackets of a reply that are tried as the start of its JSON
LONGEST = 500  # characters of a proposed prompt
SHOWN = 20  # prompts of the history that a language model sees (OPRO's figure)
EXEMPLARS = 3  # clips of the paper's meta-prompt
FIELDS = (
    "task",
    "reward",
    "answers",
    "history",
    "parent",
    "exemplars",
    "progress",
    "refused",
    "n",
    "longest",
    "example",
)  # names a meta-prompt may use
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

    Strategy ``opro`` is the paper's (arXiv 2309.03409): one prompt a call, all calls of an iteration on one meta-prompt
    of the best prompts and three exemplars; a clip cannot be shown as text, so an exemplar is what is known of a clip
    that the best prompt misjudges. Otherwise every call shows a parent from the Pareto front (`evidence`).

    Args:
        lm: The model.
        task, reward: What the model is told.
        clips: The search half.
        ledger: Counts and limits its calls.
        record: Called with one dictionary per call: meta-prompt, reply, tokens, cost, and each refusal with its reason.
        temperature: Of sampling; at 0 a search gets stuck (arXiv 2309.03409).
        seed: Of the parents and clips that are shown.
        paid: Replies that an interrupted run has had, by iteration, call and meta-prompt: not asked for again.
        folder: Where the meta-prompts lie.
    """

    def __init__(
        self,
        lm: LanguageModel,
        task: Task,
        reward: Reward,
        clips: Sequence[Clip],
        ledger: Ledger,
        record: Callable[[dict[str, Any]], None],
        temperature: float = 1.0,
        strategy: str = "race",
        seed: int = 0,
        paid: Mapping[tuple[int, int, str], Reply] | None = None,
        folder: Path = META,
    ) -> None:
        self.name = f"language model {lm.name}"
        self.lm, self.task, self.reward, self.ledger, self.record = lm, task, reward, ledger, record
        self.temperature, self.strategy, self.seed = temperature, strategy, seed
        self.paid = paid or {}
        self.clips = clips
        self.truth = np.array([task.labels.index(c.label) for c in clips], np.int64)
        path = folder / ("opro.txt" if strategy == "opro" else "propose.txt")
        try:
            self._template = Template(path.read_text(encoding="utf-8"))
            self._fill({})
        except (OSError, UnicodeDecodeError, KeyError, ValueError) as error:
            raise UserError(
                f"{path}: the meta-prompt cannot be used ({type(error).__name__}: {error}); known names are"
                f" {', '.join('$' + n for n in FIELDS)}, and a dollar sign is written $$"
            ) from None

    def propose(self, history: History, n: int, iteration: int) -> list[Candidate]:
        """See `Proposer`. Stops early, with what it has, when the ledger's limit is near."""
        past = [t for t in history.trials if t.iteration < iteration]
        heard = Heard(self.clips, self.truth, history.heard)
        known = {normal(t.candidate.prompt) for t in past}
        out: list[Candidate] = []
        refusals: list[str] = []
        single = self.strategy == "opro"
        for call in range(n if single else CALLS):
            if len(out) >= n:
                break
            # The paper's calls of one iteration differ by sampling alone.
            rng = random.Random(f"{self.seed}|{iteration}|{0 if single else call}")
            meta, parents = self._render(past, heard, n - len(out), refusals, rng)
            room = REPLY_TOKENS * (1 + (1 if single else n - len(out)))
            reply = self.paid.get((iteration, call, meta))
            if reply is None:
                try:
                    spent = self.ledger.spent(most_tokens(meta), room)
                    if spent:
                        raise SpentError(spent)
                    asked = [Message("user", meta)]
                    reply = self.lm(asked, temperature=self.temperature, max_tokens=room)
                except SpentError as stopped:
                    self.record({"iteration": iteration, "call": call, "stopped": str(stopped)})
                    break
                self.ledger.add(reply)
            new, refused = self._checked(reply, n - len(out), known)
            out += [Candidate(prompt, "lm", parents) for prompt in new]
            refusals += [f"{r['text'][:80]!r}: {r['reason']}" for r in refused]
            if (iteration, call, meta) in self.paid:
                continue
            self.ledger.refused += len(refused)
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
                    "accepted": len(new),
                    "refused": refused,
                }
            )
        return out

    def _checked(
        self, reply: Reply, wanted: int, known: set[str]
    ) -> tuple[list[Prompt], list[dict[str, str]]]:
        """The usable prompts of a reply, and what was refused with its reason."""
        found = parse(reply.text)
        if not found:
            return [], [{"text": reply.text[:200], "reason": "no proposals found in the reply"}]
        good: list[Prompt] = []
        refused = []
        for raw in found:
            prompt = (
                refuse(raw, self.task, known) if len(good) < wanted else "more than were asked for"
            )
            if isinstance(prompt, Prompt):
                good.append(prompt)
            else:
                text = str(raw.get("text") if isinstance(raw, Mapping) else raw)[:200]
                refused.append({"text": text, "reason": prompt})
        return good, refused

    def _render(
        self,
        past: Sequence[Trial],
        heard: Heard,
        n: int,
        refusals: Sequence[str],
        rng: random.Random,
    ) -> tuple[str, tuple[str, ...]]:
        """The meta-prompt, and the ids of the prompts it starts from."""
        best = _best(past)
        shown = "\n\n".join(
            f"text:\n{t.candidate.prompt.text}\nscore:\n{round(100 * (t.reward or 0))}"
            for t in best
        )
        parents = tuple(t.candidate.prompt.prompt_id for t in best[-3:])
        parent, exemplars = "", ""
        if self.strategy == "opro":
            full = [t for t in best if t.number in heard.logp]
            lines = misjudged(heard, full[-1], self.task.labels, EXEMPLARS, rng) if full else []
            exemplars = "\n\n".join(f"<INS>\nclip: {line}" for line in lines)
        elif start := draw_parent(heard, past, rng):
            parents = (start.candidate.prompt.prompt_id,)
            parent = about_parent(heard, start, past, self.task.labels, rng)
        still = standstill(past)
        text = self._fill(
            {
                "history": shown,
                "parent": parent,
                "exemplars": exemplars,
                "progress": (
                    f"For {still} rounds nothing has scored higher: try something quite different."
                    if still > 1
                    else ""
                ),
                "refused": (
                    "Do not repeat these mistakes, the prompts were refused:\n"
                    + "\n".join(refusals[-5:])
                    + "\n"
                    if refusals
                    else ""
                ),
                "n": n,
            }
        )
        return text, parents

    def _fill(self, values: Mapping[str, Any]) -> str:
        letters = "ABCDEFGH"[: len(self.task.labels)]
        fixed = {
            "task": self.task.description,
            "reward": self.reward.describe(self.task),
            "answers": " and ".join(letters),
            "longest": LONGEST,
            "example": json.dumps(dict(zip(self.task.labels, letters, strict=True))),
        }
        text = self._template.substitute({**dict.fromkeys(FIELDS, ""), **fixed, **values})
        return re.sub(r"\n{3,}", "\n\n", text)


class Mixed:
    """Language model and rewriter share an iteration's candidates.

    Each gets one at least; of the others the share of the past iterations that its candidates won. What a language
    model fails to deliver the rewriter fills, so that a useless one costs little.
    """

    def __init__(self, lm: LMProposer, rewriter: Proposer) -> None:
        self.name = f"{lm.name} and {rewriter.name}"
        self.lm, self.rewriter = lm, rewriter

    def propose(self, history: History, n: int, iteration: int) -> list[Candidate]:
        """See `Proposer`."""
        won, judged = 0, 0
        for number in range(1, iteration):
            told = [t for t in history.scored if t.iteration == number]
            if told:
                judged += 1
                won += told[0].candidate.origin == "lm"
        asked = round((1 + won) / (2 + judged) * n)
        asked = min(max(asked, 1), max(1, n - 1))
        given = self.lm.propose(history, asked, iteration)
        known = {normal(c.prompt) for c in given}
        rest = self.rewriter.propose(history, n, iteration) if len(given) < n else []
        return [*given, *(c for c in rest if normal(c.prompt) not in known)][:n]


class Shared:
    """Prompts that other runs found good are tried in the first round, in at most half of its places.

    Args:
        proposer: Makes all other candidates.
        tried: The prompts, best first.
    """

    def __init__(self, proposer: Proposer, tried: Sequence[Candidate]) -> None:
        self.name, self.proposer, self.tried = proposer.name, proposer, tried

    def propose(self, history: History, n: int, iteration: int) -> list[Candidate]:
        """See `Proposer`."""
        if iteration != 1:
            return self.proposer.propose(history, n, iteration)
        known = {normal(t.candidate.prompt) for t in history.trials if t.iteration < iteration}
        first = [c for c in self.tried if normal(c.prompt) not in known][: (n + 1) // 2]
        known = {normal(c.prompt) for c in first}
        rest = self.proposer.propose(history, n - len(first), iteration) if len(first) < n else []
        return [*first, *(c for c in rest if normal(c.prompt) not in known)]


def _best(past: Sequence[Trial]) -> list[Trial]:
    """The best trials, ascending: models attend to the end (arXiv 2309.03409)."""
    return sorted((t for t in past if t.state in ("complete", "dropped")), key=lambda t: t.rank)[
        -SHOWN:
    ]
