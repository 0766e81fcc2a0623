"""Scores through a server: an OpenAI-compatible endpoint that takes audio and returns log-probabilities.

One request a pair of prompt and clip: the clip as WAV, one token asked for, the likeliest tokens read. Servers list few
tokens (20 at most), so an answer that is not among them is known only to be less likely than the last one listed; it
is scored as that, an upper bound, and counted. Answers must be single tokens, such as letters.
"""

import base64
import hashlib
import io
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import soundfile

from evaluators.audio import RATE
from evaluators.clips import Clip, clip_wave
from evaluators.errors import PauseError, UserError
from evaluators.evaluator import ScoreTable, Uncached
from evaluators.prompts import Prompt

SCORER = "endpoint 1"  # raise it whenever a change can change a score
LISTED = 20  # likeliest tokens asked for: the most that the protocol allows
TRIES = 5  # of the client, with growing waits; Retry-After is honoured
TIMEOUT_S = 60.0
ROUNDING = 1e-6  # nats by which a log-probability may lie above zero


class Endpoint(Uncached):
    """An Evaluator behind a server.

    The key comes from OPRO_AUDIO_API_KEY, else OPENAI_API_KEY; servers without keys take any.

    Args:
        model: The model's name, as the server knows it.
        base_url: Base URL, as in ``http://127.0.0.1:8000/v1``; None: OPRO_AUDIO_BASE_URL, else OPENAI_BASE_URL.
        parallel: Requests under way at once.
        retries: How often the client tries again after a fault that may pass.
    """

    def __init__(
        self, model: str, base_url: str | None = None, parallel: int = 8, retries: int = TRIES
    ) -> None:
        import openai

        url = base_url or os.environ.get("OPRO_AUDIO_BASE_URL") or os.environ.get("OPENAI_BASE_URL")
        if not model or not url:
            raise UserError(
                "an endpoint needs a model and a server: --checkpoint endpoint:MODEL with"
                " OPRO_AUDIO_BASE_URL=http://HOST:PORT/v1 in the environment"
            )
        self.model, self.parallel, self._url = model, parallel, url
        self._openai = openai
        self._client = openai.OpenAI(
            api_key=os.environ.get("OPRO_AUDIO_API_KEY")
            or os.environ.get("OPENAI_API_KEY")
            or "none",
            base_url=url,
            timeout=TIMEOUT_S,
            max_retries=retries,
        )
        self._lock = threading.Lock()
        self.forwards = 0
        self.unlisted = 0  # answers that no reply listed, scored as their upper bound

    @property
    def fingerprint(self) -> str:
        """Digest of server, model name and scorer. A server may change its weights without a word."""
        parts = [SCORER, self._url, self.model, LISTED]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`.

        Raises:
            UserError: The server refuses key, model or request, or returns no log-probabilities.
            PauseError: The server cannot be reached or fails; the same command goes on.
        """
        shape = (len(prompts), len(clips), len(prompts[0].answers))
        logp = np.zeros(shape, dtype=np.float32)
        top = logp.copy()
        waves = [_wav(clip) for clip in clips]

        def one(pair: tuple[int, int]) -> None:
            p, c = pair
            logp[p, c], top[p, c] = self._pair(prompts[p], waves[c])

        with ThreadPoolExecutor(self.parallel) as pool:
            jobs = [
                pool.submit(one, (p, c)) for c in range(len(clips)) for p in range(len(prompts))
            ]
            try:
                for job in jobs:
                    job.result()
            finally:  # what has not begun when one fails is not sent
                for job in jobs:
                    job.cancel()
        self.forwards += len(prompts) * len(clips)
        return ScoreTable(tuple(prompts), tuple(clips), logp, top)

    def _pair(self, prompt: Prompt, wav: str) -> tuple[list[float], list[float]]:
        """Per label the sum over its listed tokens, and the likeliest of them."""
        listed = self._ask(prompt, wav)
        bound = min(value for _, value in listed)
        sums, best = [], []
        for _, words in prompt.answers:
            found = [value for token, value in listed if token.strip() in words]
            if not found:
                with self._lock:
                    self.unlisted += 1
            values = found or [bound]
            sums.append(float(np.logaddexp.reduce(values)))
            best.append(max(values))
        return sums, best

    def _create(self, messages: Any) -> Any:
        """One request; the client tries faults of the wire again, this a body that is no JSON."""
        for left in range(self._client.max_retries, -1, -1):
            try:
                return self._client.chat.completions.create(
                    model=self.model,
                    messages=messages,
                    max_tokens=1,
                    temperature=0,
                    logprobs=True,
                    top_logprobs=LISTED,
                )
            except ValueError:
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _ask(self, prompt: Prompt, wav: str) -> list[tuple[str, float]]:
        """The likeliest first tokens and their log-probabilities."""
        audio = {"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}}
        messages: Any = [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": [audio, {"type": "text", "text": prompt.text}]},
        ]
        api = self._openai
        try:
            reply = self._create(messages)
        except (api.AuthenticationError, api.PermissionDeniedError) as error:
            raise UserError(f"{self._url} refuses the key ({error.status_code})") from None
        except (api.NotFoundError, api.BadRequestError, api.UnprocessableEntityError) as error:
            raise UserError(
                f"{self._url} refuses model {self.model!r} or audio ({_first_line(error)}); expected"
                " a model that takes input_audio and returns logprobs"
            ) from None
        except (api.APIError, ValueError) as error:
            raise PauseError(
                f"{self._url} failed {self._client.max_retries + 1} times ({_first_line(error)}); the"
                " same command goes on from here"
            ) from None
        try:
            entries = reply.choices[0].logprobs.content[0].top_logprobs
            listed = [(str(e.token), e.logprob) for e in entries]
        except (AttributeError, IndexError, TypeError):
            listed = []
        if not listed or not all(_is_logp(value) for _, value in listed):
            raise UserError(
                f"{self._url}: the reply of model {self.model!r} holds no log-probabilities; start the"
                " server with them, or choose a model that has them"
            )
        return listed


def _is_logp(value: Any) -> bool:
    """A finite number that is not above zero, but for rounding."""
    return isinstance(value, int | float) and -np.inf < value <= ROUNDING


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return "".join(
        ch if ch.isprintable() else "?" for ch in line
    )  # a server's words, on a terminal


def _wav(clip: Clip) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, clip_wave(clip), RATE, format="WAV", subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode()
