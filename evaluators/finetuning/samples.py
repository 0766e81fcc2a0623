"""Clips with prompts and right answers as rows of tokens, in an order that depends on the seed alone.

Training and scoring share one template: a row is what the evaluator scores, followed by the answer. Where the answer
stands is known from how the row is made; nothing searches for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from evaluators.audio_lm.answer_tokens import find_answers
from evaluators.audio_lm.families import Family
from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.templates import encode
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.finetuning.line import in_line
from evaluators.finetuning.memory import RowLength
from evaluators.finetuning.recipe import Loss
from evaluators.orders import swapped
from evaluators.presentation import AS_IS
from evaluators.prompts import Prompt

MASK_BINS = 10  # SpecAugment (arXiv 1904.08779), light: mel bins of a band, at most
MASK_TIME = 0.05  # share of the clip's frames, at most
MASKED_SHARE = 0.5  # of the samples


@dataclass(frozen=True)
class Wording:
    """A prompt as token ids: before the audio, after it, and one answer for each label."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]  # by label


def tokenize_prompts(
    prompts: Sequence[Prompt], labels: Sequence[str], tokenizer: Any, family: Family, swap: bool
) -> list[Wording]:
    """The prompts as tokens, in the orders that `in_orders` gives.

    Raises:
        UserError: As `in_orders`.
    """
    return [
        Wording(
            tuple(encode(tokenizer, family.template.before(prompt.system))),
            tuple(encode(tokenizer, family.template.after(prompt.text))),
            answers_of(prompt, labels, tokenizer),
        )
        for prompt in in_orders(prompts, swap)
    ]


def answers_of(
    prompt: Prompt, labels: Sequence[str], tokenizer: Any
) -> tuple[tuple[int, ...], ...]:
    """The tokens that a model is taught to answer a prompt with, by label."""
    sequences = find_answers(tokenizer, prompt).sequences
    by_label = dict(zip((name for name, _ in prompt.answers), sequences, strict=True))
    return tuple(by_label[label][0] for label in labels)


def in_orders(prompts: Sequence[Prompt], swap: bool) -> list[Prompt]:
    """The prompts; with `swap` each is followed by itself with its options exchanged.

    Raises:
        UserError: A prompt has no lettered options, and `swap` asks for both orders; or it has a presentation.
    """
    out = []
    for prompt in prompts:
        if prompt.presentation != AS_IS:
            raise UserError(
                f"prompt {prompt.prompt_id} wants the clip {prompt.presentation.words}, and training gives clips as"
                " they are, before the question; take `presentation` out of the prompt"
            )
        other = swapped(prompt) if swap else None
        if swap and other is None:
            raise UserError(
                f"--swap: prompt {prompt.prompt_id} has no lettered options to exchange; leave it"
                " out or train without --swap"
            )
        out += [prompt] if other is None else [prompt, other]
    return out


def log_mel(store: FeatureStore, clip: Clip) -> tuple[NDArray[np.float32], int]:
    """(Log-mel features ``[bin, frame]``, frames that are the clip's), kept in the store.

    Raises:
        UserError: The clip cannot be decoded, or is longer than the model hears.
    """
    decoded = store.decode(clip)
    if decoded.mel is not None:
        return decoded.mel, decoded.frames
    assert decoded.wave is not None
    mel = store.log_mel([decoded.wave])[0]
    store.keep(decoded, mel)
    return mel, decoded.frames


def longest_row(
    clips: Sequence[Clip], wordings: Sequence[Wording], family: Family, config: Any, extractor: Any
) -> RowLength:
    """Length of the longest row. Decodes the longest clip, and only that one.

    Raises:
        UserError: That clip cannot be decoded, or is longer than the model hears.
    """
    longest = max(clips, key=lambda clip: clip.duration_ms)
    _, frames = log_mel(family.feature_store(None, extractor), longest)
    audio = family.tokens(config, frames)
    text = max(len(w.before) + len(w.after) + max(map(len, w.answers)) for w in wordings)
    return RowLength(audio + text, audio, max(2, family.positions_per_token))


@dataclass(frozen=True)
class Schedule:
    """How often and in which order clips are shown. The default shows each once, in their order, in the first wording.

    Attributes:
        epochs: How often each clip is shown.
        batch: Samples of an optimizer step. The last ones are left out where they do not fill a step.
        seed: Decides order, wording and augmentation.
        shuffle: Show the clips of each epoch in a random order, and begin each with a random wording.
        augment: Apply light SpecAugment to half of the samples.
        every_wording: Show each clip in all wordings, instead of in turns with them.
    """

    epochs: int = 1
    batch: int = 1
    seed: int = 0
    shuffle: bool = False
    augment: bool = False
    every_wording: bool = False

    def order(self, n_clips: int, n_wordings: int) -> list[tuple[int, int]]:
        """(Clip, wording) of each sample, by index: every epoch each clip once, with the next wording."""
        if self.every_wording:
            return [(c, w) for w in range(n_wordings) for c in range(n_clips)]
        rng = np.random.default_rng([self.seed, 0])
        first = rng.integers(n_wordings, size=n_clips) if self.shuffle else np.zeros(n_clips, int)
        order = [
            (int(c), int((first[c] + epoch) % n_wordings))
            for epoch in range(self.epochs)
            for c in (rng.permutation(n_clips) if self.shuffle else range(n_clips))
        ]
        return order[: len(order) - len(order) % self.batch]


ONCE = Schedule()
ALL_WORDINGS = Schedule(every_wording=True)


def weigh(
    clips: Sequence[Clip], labels: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(Number of each clip's label, its weight: rare labels weigh more, and the mean is 1)."""
    label = np.array([labels.index(clip.label) for clip in clips])
    counts = np.bincount(label, minlength=len(labels))
    return label, len(clips) / (np.count_nonzero(counts) * counts[label])


class Samples(Dataset[dict[str, Any]]):
    """The samples of a whole training, one epoch after the other.

    A sample has its ``wording``, its ``answer`` as token ids, its ``weight`` (rare labels weigh more; the mean is 1)
    and either ``mel`` ``[bin, frame]`` with ``frames``, or ``audio``.

    Args:
        clips: What is shown.
        wordings: In which words, in turns.
        labels: The task's labels.
        store: Gives the features.
        schedule: How often and in which order.
        audio: Embeddings ``[token, channel]`` by clip id, where the audio tower is not trained.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        wordings: Sequence[Wording],
        labels: Sequence[str],
        store: FeatureStore,
        *,
        schedule: Schedule = ONCE,
        audio: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.clips, self.wordings, self.store = list(clips), list(wordings), store
        self.schedule, self.audio = schedule, audio
        self.label, self.weight = weigh(clips, labels)
        self.order = schedule.order(len(self.clips), len(self.wordings))
        self._mels: dict[str, tuple[NDArray[np.float32], int]] = {}

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> dict[str, Any]:
        c, w = self.order[number]
        clip, wording = self.clips[c], self.wordings[w]
        item = {
            "wording": wording,
            "answer": wording.answers[self.label[c]],
            "weight": self.weight[c],
        }
        if self.audio is not None:
            return {**item, "audio": self.audio[clip.clip_id]}
        if clip.clip_id not in self._mels:
            self._mels[clip.clip_id] = log_mel(self.store, clip)
        mel, frames = self._mels[clip.clip_id]
        if self.schedule.augment:
            mel = mask(mel, frames, np.random.default_rng([self.schedule.seed, 1, number]))
        return {**item, "mel": mel, "frames": frames}


def mask(mel: NDArray[np.float32], frames: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Half of the time the features ``[bin, frame]`` as they are, else with a band and a stretch set to the mean.

    The band has up to 10 bins, the stretch up to 5 % of the clip's `frames`.
    """
    if rng.random() >= MASKED_SHARE:
        return mel
    out = mel.copy()
    mean = mel[:, :frames].mean()
    width = int(rng.integers(MASK_BINS + 1))
    low = int(rng.integers(mel.shape[0] - width + 1))
    out[low : low + width, :frames] = mean
    length = int(rng.integers(round(MASK_TIME * frames) + 1))
    begin = int(rng.integers(frames - length + 1))
    out[:, begin : begin + length] = mean
    return out


@dataclass(frozen=True)
class Collate:
    """Samples -> a batch of padded rows. Padding stands at the end, where causal attention never looks from.

    With `padded` the line is filled, see `in_line`.
    """

    family: Family
    config: Any
    loss: Loss
    padded: bool = False

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch as tensors.

        Returns:
            ``ids`` ``[sample, token]``; ``groups`` of samples with equally long audio: ``mel`` and ``frames`` or
            ``audio``, their ``row`` and the ``place`` where the audio begins; and for each supervised token its
            ``target_row``, ``target_place`` (of the state that predicts it), ``target_id`` and ``target_weight``;
            weights sum to about one. The same rows ``packed``: the fields of a `Line`, ``line``; its tokens that
            predict something, ``keep``; and for each supervised token the number of that among them, ``state``.
        """
        audio_tokens = [
            len(item["audio"])
            if "audio" in item
            else self.family.tokens(self.config, item["frames"])
            for item in items
        ]
        rows, targets = [], []
        for r, (item, count) in enumerate(zip(items, audio_tokens, strict=True)):
            row, places = self._row(item, count)
            weight = item["weight"] / (len(items) * len(places))
            targets += [(r, p - 1, row[p], weight) for p in places]
            rows.append(row)
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for r, row in enumerate(rows):
            ids[r, : len(row)] = row
        target_row, target_place, target_id, target_weight = zip(*targets, strict=True)
        # No state of a row's last token predicts anything.
        before = min(len(item["wording"].before) for item in items)
        line = in_line([row[:-1] for row in rows], before, self.padded)
        keep, state = line.index[target_row, target_place].unique(return_inverse=True)
        return {
            "ids": torch.from_numpy(ids),
            "groups": _groups(items, audio_tokens),
            "target_row": torch.tensor(target_row),
            "target_place": torch.tensor(target_place),
            "target_id": torch.tensor(target_id),
            "target_weight": torch.tensor(target_weight, dtype=torch.float32),
            "packed": {"line": vars(line), "keep": keep, "state": state},
        }

    def _row(self, item: dict[str, Any], audio_tokens: int) -> tuple[list[int], list[int]]:
        """(Token ids, places that are supervised) of a sample."""
        wording, answer = item["wording"], item["answer"]
        sound = range(len(wording.before), len(wording.before) + audio_tokens)
        row = [*wording.before, *([0] * audio_tokens), *wording.after, *answer]
        if self.loss == "answer":
            places = list(range(len(row) - len(answer), len(row)))
            assert [row[p] for p in places] == list(answer) and len(places) == len(answer)
        else:  # all text but the first token, which nothing predicts
            places = [p for p in range(1, len(row)) if p not in sound]
        return row, places


def _groups(items: Sequence[dict[str, Any]], audio_tokens: Sequence[int]) -> list[dict[str, Any]]:
    by_length: dict[int, list[int]] = {}
    for r, item in enumerate(items):
        by_length.setdefault(item.get("frames", audio_tokens[r]), []).append(r)
    groups = []
    for length, rows in sorted(by_length.items()):
        part: dict[str, Any] = {
            "row": torch.tensor(rows),
            "place": torch.tensor([len(items[r]["wording"].before) for r in rows]),
        }
        if "audio" in items[rows[0]]:
            part["audio"] = torch.stack([items[r]["audio"] for r in rows])
        else:
            part["mel"] = torch.from_numpy(np.stack([items[r]["mel"] for r in rows]))
            part["frames"] = length
        groups.append(part)
    return groups
