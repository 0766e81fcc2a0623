"""Scores through a server: an OpenAI-compatible endpoint that takes audio and returns log-probabilities.

One request a pair of prompt and clip: the clip as WAV, one token asked for, the likeliest tokens read. All prompts of a
clip are asked together, so that a server's prefix cache holds it. Where the server splits words into tokens
(``/tokenize``) and lists the tokens it is asked for (vLLM's ``logprob_token_ids``), the answers' are asked for by id.
Other servers list few tokens (20 at most), so an answer that is not among them is known only to be less likely than the
last one listed; it is scored as that, an upper bound, and marked. Answers must be single tokens, such as letters.
"""

import base64
import hashlib
import io
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile

from evaluators.audio import RATE
from evaluators.chat_client import ChatClient, ChatError, backoff
from evaluators.clips import Clip, clip_wave
from evaluators.environment import NO_KEY, audio_server
from evaluators.errors import PauseError, PromptError, UserError
from evaluators.evaluator import ScoreTable, Uncached
from evaluators.presentation import Presentation
from evaluators.prompts import Prompt
from evaluators.server_words import shortened
from evaluators.spelling import Listing, several_tokens
from evaluators.throttle import Throttle

SCORER = "endpoint 2"  # raise it whenever a change can change a score
LISTED = 20  # likeliest tokens asked for: the most that the protocol allows
TRIES = 5  # after the first one, with growing waits; Retry-After is honoured
PARALLEL = 64  # requests under way at most
TIMEOUT_S = 60.0
FIRST_WAIT_S = 0.5
MISSED = 0.05  # share of a prompt's replies that may list none of its answers
MOST_IDS = 2**31  # a token's number is below it
KEPT = 100_000  # scores of calls that failed which are not asked for again

Scores = tuple[
    list[float], list[float]
]  # per label: the sum over its tokens, the likeliest of them


@dataclass
class _Call:
    """A call of `score`: what is known, and what went wrong.

    Attributes:
        allowed: Replies to a prompt that may list none of its answers.
        missed: So many did, by prompt; on silence and shuffled audio they do not count.
        troubles: Prompt -> why it has no score.
        over: Nothing more is sent.
    """

    allowed: int = 0
    missed: Counter[int] = field(default_factory=Counter)
    scores: dict[tuple[int, int], Scores] = field(default_factory=dict)
    troubles: dict[int, str] = field(default_factory=dict)
    over: bool = False


class Endpoint(Uncached):
    """An Evaluator behind a server.

    Server and key are those of `environment.audio_server`. How many requests are under way at once is learned from the
    server, see `Throttle`.

    Args:
        model: The model's name, as the server knows it; after a # a tag of your own for the weights behind it.
        base_url: Base URL, as in ``http://127.0.0.1:8000/v1``; None: OPRO_AUDIO_BASE_URL, else OPENAI_BASE_URL.
        parallel: Requests under way at once, at most.
        retries: How often a request is tried again after a fault that may pass. Refusals for too many requests do not
            count while others get through.
        wait: Called with seconds instead of sleeping, for tests.
    """

    presents = True

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        parallel: int = PARALLEL,
        retries: int = TRIES,
        wait: Callable[[float], None] | None = None,
    ) -> None:
        server = audio_server(base_url)
        name, tagged, self.tag = model.partition("#")
        if tagged and not self.tag:
            raise UserError(
                f"--checkpoint endpoint:{model} has no tag after its #; give endpoint:MODEL#TAG, or no #"
            )
        if not name or server is None:
            raise UserError(
                "an endpoint needs a model and a server: --checkpoint endpoint:MODEL with"
                " OPRO_AUDIO_BASE_URL=http://HOST:PORT/v1 in the environment"
            )
        self.model, self.parallel, self._url, self._retries = name, parallel, server.url, retries
        self._keyless = server.key == NO_KEY
        self._client = ChatClient(server, TIMEOUT_S, {})
        self._throttle, self._wait = Throttle(parallel), wait or time.sleep
        self._ids: dict[str, tuple[int, ...]] = {}  # word -> its tokens
        self._tokenizes = True  # until it turns out that the server does not
        self._answers = False  # a reply has listed one
        self._missing: dict[str, str] = {}  # prompt -> what a reply without its answers began with
        self._kept: dict[tuple[str, str, str], Scores | str] = {}
        self._lock = threading.Lock()
        self.forwards = 0
        self.unlisted = 0  # answers that no reply listed, scored as their upper bound

    @property
    def fingerprint(self) -> str:
        """Digest of server, model name, tag and scorer. A server may change its weights without a word."""
        parts = [SCORER, self._url, self.model, LISTED, *([self.tag] if self.tag else [])]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`. NaN in `logp_top` marks an answer that was not listed.

        Raises:
            PromptError: More than a twentieth of the replies to a prompt list none of its answers, one of these takes
                several tokens, or the model thinks before it answers: that is no score.
            UserError: The server refuses key, model or request, or returns no log-probabilities; or no prompt so far
                has had a score.
            PauseError: The server cannot be reached or fails; the same command goes on.
        """
        call = _Call(int(MISSED * sum(clip.audio == "recorded" for clip in clips)))
        ids = [self._tokens(p, prompt, call) for p, prompt in enumerate(prompts)]
        pairs = [(p, c) for c in range(len(clips)) for p in range(len(prompts))]
        for p, c in pairs:  # of a call that failed
            kept = self._kept.get(_key(prompts[p], clips[c]))
            if isinstance(kept, str):
                call.troubles.setdefault(p, kept)
            elif kept:
                self._note(call, (p, c), prompts[p], clips[c], kept)
        kinds = {prompt.presentation.sound for prompt in prompts}
        waves = {(c, how): _wav(clip, how) for how in kinds for c, clip in enumerate(clips)}

        def one(pair: tuple[int, int]) -> None:
            p, c = pair
            if pair in call.scores or p in call.troubles or call.over:
                return
            wav = waves[c, prompts[p].presentation.sound]
            listing = self._ask(request_of(self.model, prompts[p], wav, ids[p]), call)
            if listing is None:
                return
            if trouble := listing.trouble(prompts[p]):
                call.troubles.setdefault(p, trouble)
                self._keep(prompts[p], clips[c], trouble)
                return
            if missing := listing.missing(prompts[p]):
                self._missing[prompts[p].digest] = missing
            else:
                self._answers = True
            self._note(call, pair, prompts[p], clips[c], listing.scores(prompts[p]))

        self._run(one, pairs, call)
        if call.troubles:
            for p, c in pairs:
                if (p, c) in call.scores:
                    self._keep(prompts[p], clips[c], call.scores[p, c])
            raise self._unscored(prompts, call)
        self.forwards += len(pairs)
        return self._table(prompts, clips, call)

    def _note(
        self, call: _Call, pair: tuple[int, int], prompt: Prompt, clip: Clip, scores: Scores
    ) -> None:
        """Notes a pair's scores, and that its prompt has none where too many of its replies list no answer."""
        call.scores[pair] = scores
        if clip.audio == "recorded" and np.isnan(scores[1]).all():
            with self._lock:
                call.missed[pair[0]] += 1
                if call.missed[pair[0]] > call.allowed:
                    call.troubles.setdefault(pair[0], self._missing[prompt.digest])

    def _run(
        self, one: Callable[[tuple[int, int]], None], pairs: list[tuple[int, int]], call: _Call
    ) -> None:
        """Asks about all pairs, in their order; what is not sent when one fails never is."""
        with ThreadPoolExecutor(self.parallel) as pool:
            jobs = [pool.submit(one, pair) for pair in pairs]
            try:
                for job in jobs:
                    job.result()
            finally:
                call.over = True
                for job in jobs:
                    job.cancel()

    def _table(self, prompts: Sequence[Prompt], clips: Sequence[Clip], call: _Call) -> ScoreTable:
        shape = (len(prompts), len(clips), len(prompts[0].answers))
        logp = np.zeros(shape, dtype=np.float32)
        top = logp.copy()
        for (p, c), (sums, best) in call.scores.items():
            logp[p, c], top[p, c] = sums, best
        self.unlisted += int(np.isnan(top).sum())
        return ScoreTable(tuple(prompts), tuple(clips), logp, top)

    def _unscored(self, prompts: Sequence[Prompt], call: _Call) -> UserError:
        """What is said of a call in which prompts have no score."""
        first = min(call.troubles)
        why = call.troubles[first]
        if len(call.troubles) == len(prompts) > 1 and not self._answers:
            return UserError(
                f"{self._client.address}, model {self.model!r}: none of the {len(prompts)} prompts can be scored; {why}"
            )
        return PromptError(f"prompt {prompts[first].prompt_id}: {why}")

    def _keep(self, prompt: Prompt, clip: Clip, found: Scores | str) -> None:
        """Remembers what a call that fails has learned: its prompts are asked for again, one by one."""
        with self._lock:
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[_key(prompt, clip)] = found

    def _tokens(self, p: int, prompt: Prompt, call: _Call) -> list[int]:
        """Ids of the single tokens that spell a prompt's answers; none where the server does not tell."""
        found: list[int] = []
        for word in (word for _, words in prompt.answers for word in words):
            split = [self._split(form) for form in (word, f" {word}")]
            single = [one[0] for one in split if len(one) == 1]
            if not self._tokenizes:
                return []
            if not single:
                call.troubles[p] = several_tokens(word, len(split[0]))
                return []
            found += [one for one in single if one not in found]
        return found

    def _split(self, text: str) -> tuple[int, ...]:
        """A text's tokens, or nothing where the server does not tell."""
        if self._tokenizes and text not in self._ids:
            # `content` is llama.cpp's name for it.
            body = {
                "model": self.model,
                "prompt": text,
                "content": text,
                "add_special_tokens": False,
            }
            try:
                raw = self._client.post("/tokenize", body)
                found = raw["tokens"]
                self._tokenizes = bool(found) and all(
                    type(one) is int and 0 <= one < MOST_IDS for one in found
                )
                self._ids[text] = tuple(found)
            except (ChatError, KeyError, TypeError):
                self._tokenizes = False
        return self._ids[text] if self._tokenizes else ()

    def _ask(self, request: Mapping[str, Any], call: _Call) -> Listing | None:
        """The likeliest first tokens; None when the call is over before this is sent."""
        failed, others = 0, self._throttle.answered
        while True:
            try:
                with self._throttle.slot() as begun:
                    if call.over:
                        return None
                    reply = self._client.chat(request)
                break
            except ChatError as error:
                if not error.passes:
                    raise self._refused(error) from None
                if error.status is None or error.status in (408, 429) or error.status >= 500:
                    self._throttle.overloaded(begun)
                through = error.status == 429 and self._throttle.answered > others
                failed, others = 1 if through else failed + 1, self._throttle.answered
                if failed > self._retries:
                    raise PauseError(
                        f"{self._client.address} failed {failed} times ({error}); the same command goes on from here"
                    ) from None
                self._wait(backoff(error, failed, FIRST_WAIT_S) * random.uniform(0.75, 1.0))
        try:
            return Listing.of(reply)
        except ValueError as error:
            raise UserError(
                f"{self._client.address}: the reply of model {self.model!r} holds no log-probabilities ({error}); start"
                " the server with them, or choose a model that has them"
            ) from None

    def _refused(self, error: ChatError) -> UserError:
        if error.status in (401, 403):
            words = f'; it says "{shortened(error.told)}"' if error.told else ""
            unset = ""
            if self._keyless:
                unset = (
                    ", for none was sent; set OPRO_AUDIO_API_KEY (OPENAI_API_KEY goes to the server of OPENAI_BASE_URL"
                    " alone)"
                )
            return UserError(
                f"{self._client.address} refuses the key ({error.status}){words}{unset}"
            )
        return UserError(
            f"{self._client.address} refuses model {self.model!r} or audio ({error}); expected a model that takes"
            " input_audio and returns logprobs"
        )


def request_of(model: str, prompt: Prompt, wav: str, ids: Sequence[int]) -> dict[str, Any]:
    """The body of a request for the likeliest first tokens of an answer.

    Args:
        wav: A WAV file in base64.
        ids: Tokens to list whatever their rank, where the server can; else none.
    """
    audio = {"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}}
    content = [audio, {"type": "text", "text": prompt.text}]
    request = {
        "model": model,
        "messages": [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": content[:: -1 if prompt.presentation.text_first else 1]},
        ],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": LISTED,
    }
    return request | ({"logprob_token_ids": list(ids)} if ids else {})


def _key(prompt: Prompt, clip: Clip) -> tuple[str, str, str]:
    return prompt.digest, clip.sha256, clip.audio


def _wav(clip: Clip, how: Presentation) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, clip_wave(clip, how), RATE, format="WAV", subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode()
