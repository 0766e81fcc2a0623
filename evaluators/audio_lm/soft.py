"""Soft prompts: free vectors in the place of a prompt's words, scored by the packed step, and the way of the gradient.

What stands round the words (system message, clip, chat template, answers) stays, and so does their number of tokens: a
wording of as many tokens is one of the points that the vectors may take (prompt tuning: Lester et al. 2021). peft's
prompt tuning puts its vectors before everything, in front of system message and clip, where no wording stands and
where nothing that is kept of a clip could be used; so it is done here.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from evaluators.audio_lm.answer_tokens import find_answers
from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.decoder import Decoder, DecoderLayer
from evaluators.audio_lm.packing import CacheSegment, Ints, Job, PromptRow, pack_prompt
from evaluators.audio_lm.scorer import AudioScorer, LoadedModel
from evaluators.audio_lm.templates import Template, encode
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.evaluator import ScoreTable
from evaluators.files import write_bytes
from evaluators.presentation import AS_IS
from evaluators.prompts import Prompt

NAME = "vectors"  # of the tensor in a file


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """Vectors in the place of a prompt's words.

    Attributes:
        prompt: Its system message and answers are kept; its words gave the number of vectors, and where they began.
        vectors: ``[token, channel]`` float32, on the CPU.
    """

    prompt: Prompt
    vectors: Tensor

    @property
    def digest(self) -> str:
        """SHA-256 of vectors and prompt."""
        raw = self.vectors.detach().contiguous().numpy().tobytes()
        return hashlib.sha256(self.prompt.digest.encode() + raw).hexdigest()


def save_soft(path: Path, soft: SoftPrompt) -> None:
    """Writes the vectors; all else of the prompt stands elsewhere."""
    write_bytes(path, save({NAME: soft.vectors.detach().contiguous()}))


def load_soft(path: Path, prompt: Prompt, digest: str) -> SoftPrompt:
    """The vectors of a file.

    Raises:
        UserError: They are not those whose digest is known, or there are none.
    """
    try:
        vectors = load(path.read_bytes())[NAME]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{str(path)!r} holds no soft prompt ({error}); make it again") from None
    soft = SoftPrompt(prompt, vectors)
    if soft.digest != digest:
        raise UserError(
            f"{str(path)!r} is not the soft prompt that its record tells of; restore the file, or make it again"
        )
    return soft


def soft_places(tokenizer: Any, template: Template, prompt: Prompt) -> Ints:
    """Places of a prompt's words among the tokens from the end of the audio to the answer.

    They are what differs from the template without words. A break that became one token with the first word is among
    them.

    Raises:
        UserError: The prompt has no words there, or wants the clip in another way than as it is.
    """
    if prompt.presentation != AS_IS or prompt.both_orders:
        how = "both orders" if prompt.both_orders else f"the clip {prompt.presentation.words}"
        raise UserError(
            f"prompt {prompt.prompt_id} wants {how}; a soft prompt has one order of options and the clip as it is: take"
            " that out of the prompt"
        )
    full, bare = (encode(tokenizer, template.after(text)) for text in (prompt.text, ""))
    first = _alike(full, bare)
    last = min(_alike(full[::-1], bare[::-1]), len(bare) - first)
    places = np.arange(first, len(full) - last)
    if not len(places):
        raise UserError(f"prompt {prompt.prompt_id} has no words that vectors could stand for")
    return places


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their beginning on."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


class SoftScorer(AudioScorer):
    """Scores a soft prompt as `AudioScorer` scores words, in the same batches; all other prompts are scored as words.

    Args:
        checkpoint: What it was trained on.
        soft: The prompt; None: its words' own vectors are asked for, see `embed`.
        device, dtype, options: As of `AudioScorer`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        soft: SoftPrompt | None = None,
        device: str = "auto",
        dtype: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(checkpoint, device, dtype, **options)
        self.soft = soft
        self._numbers: frozenset[int] = frozenset()  # of the call's prompts, those that are soft

    @property
    def fingerprint(self) -> str:
        """That of the checkpoint with the vectors."""
        plain = super().fingerprint
        if self.soft is None:
            return plain
        return hashlib.sha256(f"{plain}|soft|{self.soft.digest}".encode()).hexdigest()

    def places(self, prompt: Prompt) -> Ints:
        """See `soft_places`."""
        return soft_places(self.front.tokenizer, self.family.template, prompt)

    def row(self, prompt: Prompt) -> PromptRow:
        """The tokens that score the prompt."""
        tokenizer = self.front.tokenizer
        suffix = encode(tokenizer, self.family.template.after(prompt.text))
        return pack_prompt(0, suffix, find_answers(tokenizer, prompt))

    def embed(self, ids: Ints) -> Tensor:
        """``[token, channel]`` vectors of token ids, on the device."""
        table: Any = self.decoder.model.model.language_model.embed_tokens
        return table(torch.from_numpy(ids).to(self.device))

    def words(self, prompt: Prompt) -> SoftPrompt:
        """The prompt's own words as vectors."""
        ids = self.row(prompt).ids[self.places(prompt)]
        return SoftPrompt(prompt, self.embed(ids).detach().float().cpu())

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`."""
        soft, before = self.soft, self._numbers
        if self._untested is not None:  # the self-test asks in words, maybe in the very same
            self.soft = None
            try:
                super().score(prompts[:1], clips[:1])
            finally:
                self.soft = soft
        self._numbers = frozenset(
            i for i, p in enumerate(prompts) if soft is not None and p == soft.prompt
        )
        try:
            return super().score(prompts, clips)
        finally:
            self._numbers = before

    def _load(self) -> LoadedModel:
        with torch.inference_mode(False):  # weights loaded within it let no gradient through
            return super()._load()

    def _tokens(self, jobs: Sequence[Job]) -> Ints | Tensor:
        ids = super()._tokens(jobs)
        soft = [i for i, job in enumerate(jobs) if job.row.prompt in self._numbers]
        if not soft or self.soft is None:
            return ids
        assert isinstance(ids, np.ndarray)
        begins = np.cumsum([0, *(len(job.row.ids) for job in jobs)])[soft]
        places = (begins[:, None] + self.places(self.soft.prompt)).ravel()
        x = self.embed(ids)
        vectors = self.soft.vectors.to(x.device, x.dtype)
        x[torch.from_numpy(places).to(x.device)] = vectors.repeat(len(soft), 1)
        return x


@dataclass(frozen=True)
class Heard:
    """Keys and values of some clips after a system message, padded to the longest.

    Attributes:
        clips: Their positions in the call.
        length: ``[clip]`` places that are theirs.
        layers: Of each layer ``[clip, place, key heads * dim]`` keys, and values.
    """

    clips: list[int]
    length: Tensor
    layers: list[tuple[Tensor, Tensor]]


def hear(scorer: AudioScorer, system: str, clips: Sequence[Clip]) -> Iterator[Heard]:
    """Keys and values of clips, from the store that scoring has: what is kept there is not computed again."""
    before = (system, "")
    with torch.inference_mode():
        for ready in scorer.prefixes.compute([before], clips, scorer.shape, AS_IS):
            if isinstance(ready, CacheSegment):  # each is used at once, so that none waits for it
                continue
            own = [(*_range(ready.segment), *_range(segment)) for _, segment in ready.clips]
            length = torch.tensor([len(one) for one in own], device=scorer.device)
            places = np.zeros((len(own), max(map(len, own))), dtype=np.int64)
            for i, one in enumerate(own):
                places[i, : len(one)] = one
            index = torch.from_numpy(places).to(scorer.device)
            layers = [(kv.keys[index], kv.values[index]) for kv in scorer.prefixes.layers]
            yield Heard([i for i, _ in ready.clips], length, layers)


def _range(segment: CacheSegment) -> range:
    return range(segment.begin, segment.begin + segment.length)


def answer_logp(
    scorer: SoftScorer, prompt: Prompt, vectors: Tensor, clips: Sequence[Clip]
) -> Tensor:
    """``[clip, label]`` nats of a soft prompt, from which gradients flow to the vectors.

    The same numbers as `SoftScorer.score` gives, by plain torch; what stands before the words is taken from the store,
    and no gradient goes there.

    Args:
        vectors: ``[token, channel]``, on the device.
    """
    row, places = scorer.row(prompt), torch.from_numpy(scorer.places(prompt)).to(scorer.device)
    x = scorer.embed(row.ids).detach()
    x = x.index_put((places,), vectors.to(x.dtype))
    found: dict[int, Tensor] = {}
    for heard in list(hear(scorer, prompt.system, clips)):
        logp = _read(scorer.decoder, _states(scorer.decoder, x, row, heard), row)
        found |= dict(zip(heard.clips, logp, strict=True))
    return torch.stack([found[i] for i in range(len(clips))])


def _read(decoder: Decoder, hidden: Tensor, row: PromptRow) -> Tensor:
    """``[clip, label]`` nats from the kept states of ``[clip, token, channel]``."""
    state, token, sequence = torch.from_numpy(row.reads).to(hidden.device).T
    kept = hidden[:, -row.kept :]
    nats = decoder.model.lm_head(kept).float().log_softmax(-1)[:, state, token]
    sums = torch.zeros(len(hidden), len(row.labels), device=hidden.device)
    sums = sums.index_add(1, sequence, nats)
    labels = np.array(row.labels)
    by_label = [np.flatnonzero(labels == k) for k in range(labels.max() + 1)]
    return torch.stack([sums[:, torch.from_numpy(own)].logsumexp(1) for own in by_label], 1)


def _states(decoder: Decoder, x: Tensor, row: PromptRow, heard: Heard) -> Tensor:
    """Last hidden states ``[clip, token, channel]`` of one row of vectors after each of the clips."""
    lm: Any = decoder.model.model.language_model
    count, tokens = len(heard.clips), len(x)
    positions = heard.length[:, None] + torch.from_numpy(row.positions).to(x.device)
    mask = _mask(row, heard, x.dtype)
    x = x[None].expand(count, -1, -1).reshape(count * tokens, -1)
    cos, sin = (part[0] for part in lm.rotary_emb(x[None], decoder.rotary_rows(positions.ravel())))
    for layer, (keys, values) in zip(decoder.layers, heard.layers, strict=True):
        q, k, v = _heads(decoder, layer, layer.norm_1(x), (cos, sin), tokens)
        before = [t.unflatten(-1, (decoder.heads.keys, -1)).transpose(1, 2) for t in (keys, values)]
        k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=decoder.heads.keys != decoder.heads.queries
        )
        x = x + layer.out(out.transpose(1, 2).reshape(count * tokens, -1))
        x = x + _feed_forward(layer, layer.norm_2(x))
    return lm.norm(x).view(count, tokens, -1)


def _mask(row: PromptRow, heard: Heard, dtype: torch.dtype) -> Tensor:
    """``[clip, 1, token, place and token]``: 0 where a token attends, else the least number there is."""
    device = heard.length.device
    place = torch.arange(heard.layers[0][0].shape[1], device=device)
    branch = torch.from_numpy(row.branch).to(device)
    own = (branch == 0) | (branch == branch[:, None])
    own = own & torch.ones_like(own).tril()
    before = (place < heard.length[:, None])[:, None].expand(-1, len(branch), -1)
    seen = torch.cat([before, own.expand(len(before), -1, -1)], -1)[:, None]
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(
        ~seen, torch.finfo(dtype).min
    )


def _heads(
    decoder: Decoder, layer: DecoderLayer, h: Tensor, turn: tuple[Tensor, Tensor], tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[clip, head, token, dim]`` of normalized states, rotated to their positions."""
    heads = decoder.heads
    q, k, v = layer.qkv(h).split([heads.query_width, heads.key_width, heads.key_width], -1)
    q, k, v = (part.unflatten(-1, (-1, heads.dim)) for part in (q, k, v))
    if layer.q_norm is not None:
        q, k = layer.q_norm(q), layer.k_norm(k)
    cos, sin = (part[:, None] for part in turn)

    def rotated(part: Tensor) -> Tensor:
        half = heads.dim // 2
        return part * cos + torch.cat([-part[..., half:], part[..., :half]], -1) * sin

    shaped = (t.unflatten(0, (-1, tokens)).transpose(1, 2) for t in (rotated(q), rotated(k), v))
    q, k, v = shaped
    return q, k, v


def _feed_forward(layer: DecoderLayer, h: Tensor) -> Tensor:
    if layer.experts is not None:
        return layer.experts(h[None])[0]
    gate, up = layer.gate_up(h).chunk(2, -1)
    return layer.down(F.silu(gate) * up)
