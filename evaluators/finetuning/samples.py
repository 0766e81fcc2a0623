"""What a fine-tuning is shown: clips with prompts and right answers, as rows of tokens in an order a seed decides.

One template for training and scoring: the row of a sample is what the evaluator scores, followed by the answer. Which
tokens are answers is known from how the row is made, not searched for afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from evaluators.audio_lm.answer_tokens import find_answers
from evaluators.audio_lm.families import Family
from evaluators.audio_lm.features import FeatureStore
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.orders import swapped
from evaluators.prompts import Prompt, encode

Loss = Literal["answer", "full"]
BAND, STRETCH, SHARE = (
    10,
    0.05,
    0.5,
)  # SpecAugment: mel bins, part of the length, part of the samples


@dataclass(frozen=True)
class Wording:
    """A prompt as tokens: what stands before and after the audio, and one answer for each label."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]  # by label


def wordings(
    prompts: Sequence[Prompt], labels: Sequence[str], tokenizer: Any, family: Family, swap: bool
) -> list[Wording]:
    """The prompts, with `swap` in both orders of their options, as tokens.

    Raises:
        UserError: A prompt without lettered options when `swap` asks for both orders.
    """
    out = []
    for prompt in prompts:
        other = swapped(prompt) if swap else None
        if swap and other is None:
            raise UserError(
                f"--swap: prompt {prompt.prompt_id} has no lettered options to exchange; leave it"
                " out or train without --swap"
            )
        for asked in (prompt, other):
            if asked is None:
                continue
            found = find_answers(tokenizer, asked)
            of = dict(zip((label for label, _ in asked.answers), found.sequences, strict=True))
            out.append(
                Wording(
                    tuple(encode(tokenizer, family.before(asked.system))),
                    tuple(encode(tokenizer, family.after(asked.text))),
                    tuple(of[label][0] for label in labels),
                )
            )
    return out


class Samples(Dataset[dict[str, Any]]):
    """All epochs one after another: an order, wordings and augmentation that depend on the seed alone.

    Every epoch shows each clip once, in another order and with the next wording. A label's loss is weighted by how rare
    it is.

    Args:
        clips: What is shown.
        asked: In which words.
        labels: The task's labels.
        store: Gives the features.
        epochs: How often each clip is shown.
        multiple: Samples of an optimizer step: what is over is left out, so that all steps are alike.
        seed: Decides order, wording and augmentation.
        augment: Light SpecAugment (arXiv 1904.08779) on half of the samples.
        audio: Embeddings ``[token, channel]`` by clip id, where the audio tower is not trained.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        asked: Sequence[Wording],
        labels: Sequence[str],
        store: FeatureStore,
        *,
        epochs: int = 1,
        multiple: int = 1,
        seed: int = 0,
        augment: bool = False,
        audio: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.clips, self.asked, self.store = list(clips), list(asked), store
        self.seed, self.augment, self.audio = seed, augment, audio
        self.label = np.array([labels.index(c.label) for c in clips])
        counts = np.bincount(self.label, minlength=len(labels))
        self.weight = len(clips) / (np.count_nonzero(counts) * counts[self.label])
        rng = np.random.default_rng([seed, 0])
        first = (
            rng.integers(len(asked), size=len(clips)) if augment or epochs > 1 else 0 * self.label
        )
        order = [
            (int(c), int((first[c] + epoch) % len(asked)))
            for epoch in range(epochs)
            for c in (rng.permutation(len(clips)) if augment or epochs > 1 else range(len(clips)))
        ]
        self.order = order[: len(order) - len(order) % multiple]
        self._mels: dict[str, tuple[NDArray[np.float32], int]] = {}

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> dict[str, Any]:
        c, w = self.order[number]
        clip, wording = self.clips[c], self.asked[w]
        item = {
            "wording": wording,
            "answer": wording.answers[self.label[c]],
            "weight": self.weight[c],
        }
        if self.audio is not None:
            return {**item, "audio": self.audio[clip.clip_id]}
        mel, frames = self.mel(clip)
        if self.augment:
            mel = mask(mel, frames, np.random.default_rng([self.seed, 1, number]))
        return {**item, "mel": mel, "frames": frames}

    def mel(self, clip: Clip) -> tuple[NDArray[np.float32], int]:
        """(log-mel features ``[bin, frame]``, frames that are the clip's), made once."""
        if clip.clip_id not in self._mels:
            heard = self.store.decode(clip)
            mel = heard.mel
            if mel is None:
                assert heard.wave is not None
                mel = self.store.log_mel([heard.wave])[0]
                self.store.keep(heard, mel)
            self._mels[clip.clip_id] = mel, heard.frames
        return self._mels[clip.clip_id]


def mask(mel: NDArray[np.float32], frames: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """On half of the samples a band of up to 10 bins and a stretch of up to 5 % of the clip, set to its mean."""
    if rng.random() >= SHARE:
        return mel
    out = mel.copy()
    mean = mel[:, :frames].mean()
    width = int(rng.integers(BAND + 1))
    low = int(rng.integers(mel.shape[0] - width + 1))
    out[low : low + width, :frames] = mean
    length = int(rng.integers(round(STRETCH * frames) + 1))
    begin = int(rng.integers(frames - length + 1))
    out[:, begin : begin + length] = mean
    return out


@dataclass(frozen=True)
class Collate:
    """Samples -> a batch of padded rows. Padding stands at the end, where causal attention never looks from."""

    family: Family
    config: Any
    loss: Loss

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Tensors of a batch.

        Returns:
            ``ids`` ``[sample, token]``; ``groups`` of samples with equally long audio: ``mel`` and ``frames`` or
            ``audio``, their ``row`` and the ``place`` where the audio begins; and for each supervised token its
            ``target_row``, ``target_place`` (of the state that predicts it), ``target_id`` and ``target_weight``;
            weights sum to about one.
        """
        audio_tokens = [
            len(item["audio"])
            if "audio" in item
            else self.family.tokens(self.config, item["frames"])
            for item in items
        ]
        rows, targets = [], []
        for r, (item, count) in enumerate(zip(items, audio_tokens, strict=True)):
            wording, answer = item["wording"], item["answer"]
            begin = len(wording.before) + count + len(wording.after)
            row = [*wording.before, *([0] * count), *wording.after, *answer]
            if self.loss == "answer":
                places = list(range(begin, len(row)))
                assert [row[p] for p in places] == list(answer) and len(places) == len(answer)
            else:  # everything that is text and has something before it
                sound = range(len(wording.before), len(wording.before) + count)
                places = [p for p in range(1, len(row)) if p not in sound]
            each = item["weight"] / (len(items) * len(places))
            targets += [(r, p - 1, row[p], each) for p in places]
            rows.append(row)
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for r, row in enumerate(rows):
            ids[r, : len(row)] = row
        row_, place, id_, weight = zip(*targets, strict=True)
        return {
            "ids": torch.from_numpy(ids),
            "groups": self._groups(items, audio_tokens),
            "target_row": torch.tensor(row_),
            "target_place": torch.tensor(place),
            "target_id": torch.tensor(id_),
            "target_weight": torch.tensor(weight, dtype=torch.float32),
        }

    def _groups(
        self, items: Sequence[dict[str, Any]], audio_tokens: Sequence[int]
    ) -> list[dict[str, Any]]:
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
