"""A language model in this process."""

import functools
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluators.audio_lm.model_folder import (
    check_model_folder,
    check_weights,
    read_model,
    read_processor,
    reason_of,
)
from evaluators.errors import UserError
from opro.proposers.language_model import Message, Reply


class LocalModel:
    """A transformers chat model in this process: a directory with its weights in safetensors.

    Raises:
        UserError: The directory is no whole model. Weights are read when it is asked for the first time.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        check_model_folder(folder, f"--lm-model {str(folder)!r}")
        self.name = str(folder)
        self.prices: tuple[float, float] | None = None
        self.on_loss: Callable[[int, int, str], str] = lambda tokens_in, tokens_out, why: ""
        self.may_take: Callable[[int, int], str] = lambda tokens_in, tokens_out: ""
        self._alone = threading.Lock()
        self._folder = folder
        self._seed = seed
        self._loaded: Any = None

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        temperature: float,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply:
        """See `LanguageModel`. Sampling is seeded by the conversation, so a resumed run gets the same reply.

        The seed is torch's own, so one call is made at a time. A schema holds it to nothing.
        """
        with self._alone:
            return self._answer(messages, temperature, max_tokens)

    def _answer(self, messages: Sequence[Message], temperature: float, max_tokens: int) -> Reply:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if self._loaded is None:
            read = functools.partial(AutoTokenizer.from_pretrained, trust_remote_code=False)
            tokenizer = read_processor(self._folder, read)
            if not tokenizer.chat_template:
                raise UserError(
                    f"--lm-model {self.name!r}: its tokenizer has no chat template; give a model that"
                    " was trained to chat"
                )
            check_weights(AutoModelForCausalLM, self._folder)
            model = read_model(AutoModelForCausalLM, self._folder)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self._loaded = tokenizer, model.to(device).eval()
        tokenizer, model = self._loaded
        chat = [{"role": m.role, "content": m.content} for m in messages]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        digest = hashlib.sha256(f"{self._seed}|{messages!r}|{temperature}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:4], "big"))
        try:
            with torch.inference_mode():
                out = model.generate(
                    **ids,
                    max_new_tokens=max_tokens,
                    do_sample=temperature > 0,
                    temperature=temperature or None,
                )
        except (ValueError, TypeError, AttributeError) as error:  # of its generation_config.json
            raise UserError(
                f"--lm-model {self.name!r} cannot write ({reason_of(error)}); mend its"
                " generation_config.json, or remove it"
            ) from error
        new = out[0, ids["input_ids"].shape[1] :]
        return Reply(
            tokenizer.decode(new, skip_special_tokens=True),
            int(ids["input_ids"].shape[1]),
            len(new),
            0.0,
            self.name,
            "stop",
        )
