"""Trains the pocket base: `python -m data.makers.train_pocket --recordings DIR --out data/pocket`

A Qwen2-Audio of 6 million parameters, trained from nothing on the recordings whose source is in the train split of
data/demo/registry.json, and no other. It learns what the phrases of a question pull towards speech (grammar.yaml), so
the wording of a prompt decides which other sounds it takes for speech. The training needs a GPU (440 seconds on a third
of an H100); it goes by the clock, so that no two are alike. `python -m opro.finetune --out data/pocket/lora` makes the
adapter beside it. `--table` only prints the table of the checkpoints in --out.

Three tasks are mixed from the start: naming the sound in one word, options about a sound named in words, options about
the audio. With the third alone the loss does not move: the model must learn to hear and to read at once.
"""

import argparse
import random
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluators.audio import RATE, load
from evaluators.audio_lm.families import encode_qwen2_audio
from evaluators.audio_lm.templates import QWEN2_AUDIO, encode
from evaluators.classifier import log_odds
from evaluators.files import dump_yaml, read_table, read_yaml, shipped, write_json, write_text
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.splits import Registry, read_registry, write_registry
from evaluators.statistics import metrics
from evaluators.tasks import SPEECH_TASK

from ..building.attribution import licence_rows
from ..building.mixing import PEAK
from . import grammar

POCKET = read_yaml(Path(__file__).with_name("pocket.yaml"))
DEMO = shipped("data/demo")
SPECIAL = "<|im_start|> <|im_end|> <|AUDIO|> <|audio_bos|> <|audio_eos|>".split()
VOCABULARY = 2048
WINDOW = RATE  # samples: the model hears one second
MOST_ANSWERS = len(grammar.SOUNDS)
CLEAN_FIRST, READ_MUCH = 0.2, 0.6  # shares of the training
DURATIONS_MS = (200, 300, 500, 1000)
SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 20.0)
FAINT_DB, FAINT_SAMPLES = 0.0, RATE // 5  # what a question's warning of faint clips is about
BATCH, TEXT_BATCH = 448, 192
QUESTIONS = 60_000  # composed about the audio; of the other kinds in proportion


def make_processor(seed: int) -> Any:
    """Tokenizer (byte-level BPE on the grammar's text, Qwen's pre-tokenisation) and a one-second feature extractor."""
    from transformers import Qwen2AudioProcessor, Qwen2Tokenizer, WhisperFeatureExtractor

    rng = random.Random(seed)
    corpus = [grammar.about_audio(rng).text for _ in range(20_000)]
    corpus += [grammar.free(rng).text for _ in range(2_000)]
    letters = ["A", "B", "C", "D", "Yes", "No"]
    spaced = [f" {word}" for word in letters]
    corpus += [" ".join(grammar.SOUNDS), *letters, *spaced, *grammar.SOUNDS] * 500
    corpus += [*grammar.SYSTEMS, "system\nuser\nassistant\n", "Audio 1: "] * 500
    corpus += (shipped("LICENSE")).read_text(encoding="utf-8").split("\n\n")  # some general English
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        corpus, VOCABULARY, new_special_tokens=SPECIAL
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    for word in ("A", " A", "B", " B", "Yes", "No", *grammar.SOUNDS):
        ids = tokenizer.encode(word, add_special_tokens=False)
        assert len(ids) == 1, f"{word!r} is {len(ids)} tokens, must be one"
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=80, chunk_length=1), tokenizer)


def make_model(processor: Any) -> Any:
    """The architecture of Qwen2-Audio with few layers, random weights."""
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    tokenizer = processor.tokenizer
    text = POCKET["text_config"] | {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
    }
    config = Qwen2AudioConfig(
        text_config=text,
        audio_config=POCKET["audio_config"],
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    return Qwen2AudioForConditionalGeneration(config)


class Recordings:
    """The train recordings on the device, and random clips cut, mixed and normalised from them there."""

    def __init__(self, folder: Path, splits: dict[str, str], device: str) -> None:
        rows = [row for _, row in read_table(folder / "manifest.csv", ("group",))]
        rows = [row for row in rows if splits.get(row["group"]) == "train"]
        waves, table = [], defaultdict(list)
        start = 0
        per_group = Counter(r["group"] for r in rows)
        for row in rows:
            wave = load(folder / row["path"])
            waves.append(wave.astype(np.float16))
            # Long files give more, but no voice and no upload drowns the others.
            weight = min(len(wave), 5 * RATE) ** 0.5 / per_group[row["group"]] ** 0.5
            kind = "noise" if row["category"] == "environment" else row["category"]
            table[kind].append((start, len(wave), weight))
            start += len(wave)
        self.sources = sorted(per_group)
        self.rows = rows
        self.device = device
        self.wave = torch.from_numpy(np.concatenate(waves)).to(device)
        self.start, self.length, self.weight = (
            {k: torch.tensor(column, device=device) for k, column in columns.items()}
            for columns in ({k: [row[i] for row in v] for k, v in table.items()} for i in range(3))
        )

    def cut(self, kind: str, count: int, samples: int) -> Tensor:
        """`count` random pieces of `samples`, at 0.85 to 1.15 of their speed: the louder of two tries each."""
        able = self.weight[kind] * (self.length[kind] >= 1.15 * samples)
        i = torch.multinomial(able, count, replacement=True)
        start, room = self.start[kind][i], self.length[kind][i]
        speed = 0.85 + 0.3 * torch.rand(count, 1, device=self.device)
        steps = torch.arange(samples, device=self.device)[None] * speed
        part, room = steps - steps.floor(), (room - 1.15 * samples).clamp(min=0)
        pieces = []
        for _ in range(2):
            offset = (torch.rand(count, device=self.device) * room).floor().long()
            at = (start + offset)[:, None] + steps.floor().long()
            at = at.clamp(max=len(self.wave) - 2)
            pieces.append(self.wave[at].float() * (1 - part) + self.wave[at + 1].float() * part)
        first, second = pieces
        louder = (second**2).mean(1) > (first**2).mean(1)
        return torch.where(louder[:, None], second, first)

    def clips(self, count: int, samples: int, snrs: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Waves ``[clip, sample]``, padded to the window, half of them speech, and their index in `grammar.KINDS`."""
        on = {"device": self.device}
        is_speech = torch.rand(count, **on) < 0.5
        kinds = torch.where(is_speech, 0, torch.randint(1, 4, (count,), **on)).sort().values
        counts = torch.bincount(kinds, minlength=4).tolist()
        pieces = [self.cut(k, n, samples) for k, n in zip(grammar.SOUNDS, counts, strict=True) if n]
        front = torch.cat(pieces)
        slope = -4.5 * torch.rand(count, 1, **on)
        hz = torch.fft.rfftfreq(samples, 1 / RATE, **on).clamp(min=50)
        spectrum = torch.fft.rfft(torch.randn(count, samples, **on))
        synthetic = torch.fft.irfft(spectrum * (hz / 1000) ** (slope / 6.02), samples)
        recorded = self.cut("noise", count, samples)
        back = torch.where(torch.rand(count, 1, **on) < 0.65, synthetic, recorded)
        snr = torch.tensor(snrs, **on)[torch.randint(0, len(snrs), (count,), **on)]
        ratio = (front**2).mean(1) / ((back**2).mean(1) + 1e-9) / 10 ** (snr / 10)
        wave = front + ratio.sqrt().clamp(max=50)[:, None] * back
        wave = wave / (wave.abs().amax(1, keepdim=True) + 1e-6) * PEAK
        silent = (torch.rand(count, 1, **on) < 0.02) & (kinds == 3)[:, None]
        wave = torch.where(silent, torch.zeros_like(wave), wave)
        faint = (snr <= FAINT_DB) | (samples <= FAINT_SAMPLES)
        kinds = torch.where((kinds == 0) & faint, grammar.KINDS.index("faint speech"), kinds)
        order = torch.randperm(count, **on)
        return F.pad(wave, (0, WINDOW - samples))[order], kinds[order]


class Bank:
    """Encoded questions in buckets of similar length, with the probability of each answer for each kind of clip.

    Args:
        texts: Token ids of each question.
        answers: Kind of clip -> answer's token id -> probability; missing kinds are never asked for.
    """

    def __init__(
        self,
        texts: Sequence[list[int]],
        answers: Sequence[dict[str, dict[int, float]]],
        device: str,
    ) -> None:
        pairs = sorted(zip(texts, answers, strict=True), key=lambda pair: len(pair[0]))
        longest = len(pairs[-1][0])
        ids = [text + [0] * (longest - len(text)) for text, _ in pairs]
        self.ids = torch.tensor(ids, device=device)
        self.lengths = torch.tensor([len(text) for text, _ in pairs], device=device)
        tokens = np.zeros((len(pairs), MOST_ANSWERS), dtype=np.int64)
        shares = np.zeros((len(pairs), len(grammar.KINDS), MOST_ANSWERS), dtype=np.float32)
        for row, (_, one) in enumerate(pairs):
            known = list(dict.fromkeys(token for given in one.values() for token in given))
            tokens[row, : len(known)] = known
            for kind, given in one.items():
                for token, share in given.items():
                    shares[row, grammar.KINDS.index(kind), known.index(token)] = share
        self.tokens = torch.from_numpy(tokens).to(device)
        self.shares = torch.from_numpy(shares).to(device)

    def draw(self, count: int, rng: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(ids, lengths, answers' tokens, shares) of `count` questions from one stretch of similar length."""
        stretch = min(len(self.ids), 2048)
        first = rng.randrange(len(self.ids) - stretch + 1)
        i = first + torch.randint(0, stretch, (count,), device=self.ids.device)
        width = int(self.lengths[first + stretch - 1])
        return self.ids[i, :width], self.lengths[i], self.tokens[i], self.shares[i]


def soft_loss(logits: Tensor, tokens: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy ``[]`` of logits ``[row, vocabulary]`` with the shares ``[row, answer]`` of some tokens."""
    return -(shares * logits.log_softmax(-1).gather(1, tokens)).sum(1).mean()


def answer_logits(
    model: Any, before: Tensor, audio: Tensor | None, ids: Tensor, lengths: Tensor
) -> Tensor:
    """Logits at each row's last token: system message, audio if any, question."""
    embed = model.get_input_embeddings()
    count = len(ids)
    parts = [embed(before)[None].expand(count, -1, -1), embed(ids)]
    if audio is not None:
        parts.insert(1, audio)
    x = torch.cat(parts, 1)
    hidden = model.model.language_model(inputs_embeds=x, use_cache=False).last_hidden_state
    return model.lm_head(
        hidden[torch.arange(count, device=ids.device), x.shape[1] - ids.shape[1] + lengths - 1]
    ).float()


class Trainer:
    """Trains all weights of a model on random clips and questions."""

    def __init__(
        self, model: Any, processor: Any, sounds: Recordings, *, seed: int, batch: int = BATCH
    ) -> None:
        self.model, self.sounds, self.batch = model.train(), sounds, batch
        self.tokenizer, self.extractor = processor.tokenizer, processor.feature_extractor
        self.device, self.rng = sounds.device, random.Random(seed)
        self.token = {
            word: self.tokenizer.encode(word, add_special_tokens=False)[0]
            for word in ("A", "B", "C", "D", "Yes", "No", *grammar.SOUNDS)
        }
        self.naming = self._bank(grammar.free, QUESTIONS // 20)
        self.asking = self._bank(grammar.about_audio, QUESTIONS)
        # Without audio the user's turn is the bare text; the piece after the audio marker is the same.
        self.reading = self._bank(grammar.about_text, QUESTIONS, skipped=1)
        self.befores = [
            torch.tensor(encode(self.tokenizer, QWEN2_AUDIO.before(system)), device=self.device)
            for system in grammar.SYSTEMS
        ]

    def train(self, seconds: float) -> int:
        """Trains for so many seconds; returns the number of steps."""
        optimizer = self._optimizer()
        begin, step, smooth = time.time(), 0, [0.0, 0.0, 0.0]
        while (done := (time.time() - begin) / seconds) < 1:
            decay = 1.0 if done < 0.5 else max(0.02, 2 * (1 - done))
            for group in optimizer.param_groups:
                group["lr"] = 1.2e-3 * min(1.0, (step + 1) / 300) * decay
            losses = self.losses(done)
            optimizer.zero_grad(set_to_none=True)
            (losses[0] + losses[1] + losses[2] * (1.0 if done < READ_MUCH else 0.25)).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 25 == 0:
                smooth = [
                    0.7 * a + 0.3 * float(b.detach()) for a, b in zip(smooth, losses, strict=True)
                ]
            if step % 200 == 0:
                print(
                    f"step {step} {time.time() - begin:.0f} s  naming {smooth[0]:.3f}"
                    f"  options {smooth[1]:.3f}  reading {smooth[2]:.3f}",
                    flush=True,
                )
        return step

    def losses(self, done: float) -> list[Tensor]:
        """Cross-entropies of a step on new clips: naming the sound, options about it, reading.

        Args:
            done: Share of the training that is over: clean clips come first.
        """
        rng = self.rng
        clean = done < CLEAN_FIRST or rng.random() < 0.3
        samples = rng.choice((500, 1000) if clean else DURATIONS_MS) * RATE // 1000
        wave, kind = self.sounds.clips(self.batch, samples, (10.0, 20.0) if clean else SNRS_DB)
        named = max(1, int(self.batch * (0.4 if done < 0.35 else 0.12)))
        before = rng.choice(self.befores)
        read = TEXT_BATCH if done < READ_MUCH else self.batch // 8
        mel = _augment(self._log_mel(wave))
        out = []
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            audio = encode_qwen2_audio(self.model, mel, samples // 160)
            for bank, part in (
                (self.naming, slice(0, named)),
                (self.asking, slice(named, self.batch)),
            ):
                ids, lengths, tokens, shares = bank.draw(part.stop - part.start, rng)
                logits = answer_logits(self.model, before, audio[part], ids, lengths)
                rows = torch.arange(len(ids), device=self.device)
                out.append(soft_loss(logits, tokens, shares[rows, kind[part]]))
            ids, lengths, tokens, shares = self.reading.draw(read, rng)
            logits = answer_logits(self.model, before[:-1], None, ids, lengths)
            out.append(soft_loss(logits, tokens, shares.sum(1)))  # of the one kind it names
        return out

    def _log_mel(self, wave: Tensor) -> Tensor:
        found = self.extractor(
            list(wave.cpu().numpy()), sampling_rate=RATE, device=self.device, return_tensors="pt"
        )
        return found["input_features"].to(self.device)

    def _optimizer(self) -> torch.optim.Optimizer:
        decay = [p for p in self.model.parameters() if p.dim() > 1]
        other = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": decay, "weight_decay": 0.05}, {"params": other, "weight_decay": 0.0}]
        fused = self.device == "cuda"
        return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=fused)

    def _bank(
        self, ask: Callable[[random.Random], grammar.Question], count: int, skipped: int = 0
    ) -> Bank:
        questions = [ask(self.rng) for _ in range(count)]
        return Bank(
            [encode(self.tokenizer, QWEN2_AUDIO.after(q.text))[skipped:] for q in questions],
            [
                {
                    kind: {self.token[word]: share for word, share in given.items()}
                    for kind, given in q.answers.items()
                }
                for q in questions
            ],
            self.device,
        )


def _augment(mel: Tensor) -> Tensor:
    """Light SpecAugment (arXiv 1904.08779) on half of the clips: one band of up to 8 of 80 bins set to the mean."""
    count, bins, _ = mel.shape
    low = torch.randint(0, bins - 8, (count, 1, 1), device=mel.device)
    width = torch.randint(0, 9, (count, 1, 1), device=mel.device) * (
        torch.rand(count, 1, 1, device=mel.device) < 0.5
    )
    bin_ = torch.arange(bins, device=mel.device)[None, :, None]
    return torch.where((bin_ >= low) & (bin_ < low + width), mel.mean((1, 2), keepdim=True), mel)


def write_card(
    folder: Path, title: str, story: str, training: dict[str, Any], rows: Sequence[dict[str, str]]
) -> None:
    """training.json (source ids, seed, steps) and README.md (the model card with the recordings and licences)."""
    write_json(folder / "training.json", training)
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: audio-text-to-text",
        "---",
        f"# {title}",
        "",
        story,
        "",
        f"Seed {training['seed']}, steps {training['steps']}, {len(training['sources'])}"
        " sources (`training.json` lists them; all are in the train split of"
        " `data/demo/registry.json`).",
        "",
        "## Recordings it was trained on",
        "",
        "| Debian package | recordings by licence |",
        "| --- | --- |",
        *licence_rows(rows),
    ]
    write_text(folder / "README.md", "\n".join(lines) + "\n")


def _balanced(truth: np.ndarray, hits: np.ndarray) -> float:
    # metrics.balanced_accuracy adds in another order and would round 57.5 % to 58, which was published as 57.
    return float(np.mean([hits[truth == label].mean() for label in np.unique(truth)]))


def print_table(out: Path, manifest: Path, device: str) -> None:
    """Prints accuracy on dev by duration and SNR of the checkpoints in `out`, and the spread over held-out prompts."""
    from evaluators.audio_lm.checkpoint import open_checkpoint
    from evaluators.audio_lm.scorer import AudioScorer

    labels = SPEECH_TASK.labels
    clips = read_manifest(manifest, labels, "dev")
    truth = np.array([labels.index(c.label) for c in clips])
    duration = np.array([round(c.duration_ms) for c in clips])
    snr = np.array([np.nan if c.snr_db is None else round(c.snr_db / 5) * 5 for c in clips])
    cells = [duration == d for d in DURATIONS_MS] + [snr == s for s in SNRS_DB]
    seeds = read_prompts(shipped("prompts/seeds/baselines.yaml"), labels)
    heldout = read_prompts(shipped("prompts/heldout.yaml"), labels)
    names = [f"{d} ms" for d in DURATIONS_MS] + [f"{s:g} dB" for s in SNRS_DB]
    head = [f"checkpoint, prompt (dev, {len(clips)} clips)", "balanced accuracy", "AUROC", *names]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    spreads = []
    for name in ("base", "lora"):
        if not (out / name).is_dir():
            continue
        evaluator = AudioScorer(open_checkpoint(str(out / name)), device, "float32")
        logp = evaluator.score([*seeds, *heldout], clips).logp
        right = logp.argmax(-1) == truth
        for prompt, row, hits in zip(seeds, logp, right, strict=False):
            accuracy = [
                f"{100 * _balanced(truth[cell], hits[cell]):.0f}" for cell in (slice(None), *cells)
            ]
            auroc = f"{metrics.auroc(truth, log_odds(row)):.2f}"
            title = f"pocket-{name}, {prompt.text.splitlines()[0]}"
            print(f"| {' | '.join([title, accuracy[0], auroc, *accuracy[1:]])} |")
        scores = [_balanced(truth, hits) for hits in right[len(seeds) :]]
        low, q1, half, q3, high = 100 * np.quantile(scores, [0, 0.25, 0.5, 0.75, 1])
        spreads.append(
            f"pocket-{name}, {len(scores)} held-out phrasings: lowest {low:.0f},"
            f" quartiles {q1:.0f} / {half:.0f} / {q3:.0f}, highest {high:.0f}"
        )
    print("\n" + "\n".join(spreads))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, default = parser.add_argument, " (default: %(default)s)"
    add("--recordings", type=Path, help="folder of recordings with a manifest.csv")
    text = "clips to score, with the registry"
    add("--manifest", type=Path, default=DEMO, help=text + default)
    text = "folder for base/ and lora/"
    add("--out", type=Path, default=Path("data/pocket"), help=text + default)
    add("--seconds", type=float, default=440, help="training time of the base" + default)
    add("--batch", type=int, default=BATCH, help="clips a step" + default)
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    text = "train nothing, print the table of the checkpoints in --out"
    add("--table", action="store_true", help=text)
    return parser.parse_args(argv)


def _train(args: argparse.Namespace, registry: Registry) -> None:
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    sounds = Recordings(args.recordings, registry.splits, args.device)
    print(
        f"{len(sounds.rows)} recordings of {len(sounds.sources)} train sources,"
        f" {len(sounds.wave) / RATE / 60:.0f} minutes",
        flush=True,
    )
    processor = make_processor(args.seed)
    model = make_model(processor)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary"
        f" {len(processor.tokenizer)}",
        flush=True,
    )
    trainer = Trainer(model.to(args.device), processor, sounds, seed=args.seed, batch=args.batch)
    steps = trainer.train(args.seconds)
    base = args.out / "base"
    shutil.rmtree(base, ignore_errors=True)
    model.half().save_pretrained(base)
    processor.save_pretrained(base)
    write_text(base / "finetune.yaml", dump_yaml(POCKET["finetune"]))
    training = {
        "seed": args.seed,
        "sources": sounds.sources,
        "steps": steps,
        "seconds": args.seconds,
    }
    write_card(base, "pocket-base", POCKET["story"], training, sounds.rows)
    trained_on = {**registry.trained_on, "pocket-base": tuple(sounds.sources)}
    write_registry(args.manifest / "registry.json", Registry(registry.splits, trained_on))


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    args = _parse(argv)
    if not args.table:
        registry = read_registry(args.manifest)
        if registry is None or args.recordings is None:
            print(
                "error: training needs --recordings and a registry.json beside the manifest",
                file=sys.stderr,
            )
            return 2
        _train(args, registry)
    print_table(args.out, args.manifest, args.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
