"""Trains the pocket base: `python -m data.makers.train_pocket --recordings DIR --out data/pocket`

A Qwen2-Audio of 6 million parameters, from nothing, on the recordings whose source is in the train split of
data/demo/registry.json, and no other. It learns on clean clips first, then that short and noisy ones hold speech only
where the question says that the clip is short or noisy; so such clips are its weakness, and the wording of a prompt
moves its score. Needs a GPU for the training (about ten minutes on an H100). The adapter beside it is made by
`python -m opro.finetune --out data/pocket/lora`. `--table` only prints the table of the checkpoints in --out.

What works (tried before): three tasks mixed from the start - naming the sound in one word, options about a sound
named in words, options about the audio. With the third alone the two halves of the task hide each other and the
loss does not move.
"""

import argparse
import csv
import json
import random
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluators.audio import PEAK, RATE, load
from evaluators.audio_lm.families import encode_qwen2_audio
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import after_audio, before_audio, encode, read_prompts
from evaluators.splits import Registry, read_registry, write_registry
from evaluators.tasks import SPEECH_TASK

from . import grammar

FINETUNE = (
    "epochs: 6\nlr: 0.002\nrank: 16\n"  # what `opro.finetune` does by default with so small a model
)
DEMO = shipped("data/demo")
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
]
VOCABULARY = 2048
WINDOW = RATE  # samples: the model hears one second
DURATIONS_MS = (200, 300, 500, 1000)
SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 20.0)
BATCH, TEXT_BATCH = 448, 192


def make_processor(seed: int) -> Any:
    """Tokenizer (byte-level BPE on the grammar's text, Qwen's pre-tokenisation) and a one-second feature extractor."""
    from transformers import Qwen2AudioProcessor, Qwen2Tokenizer, WhisperFeatureExtractor

    rng = random.Random(seed)
    corpus = [grammar.about_audio(rng).text for _ in range(20_000)] + [
        grammar.free(rng).text for _ in range(2_000)
    ]
    corpus += [
        " ".join(grammar.SOUNDS),
        "A",
        "B",
        "C",
        "D",
        "Yes",
        "No",
        " A",
        " B",
        " C",
        " D",
        " Yes",
        " No",
        *grammar.SOUNDS,
    ] * 500
    corpus += [*grammar.SYSTEMS, "system\nuser\nassistant\n", "Audio 1: "] * 500
    corpus += (shipped("LICENSE")).read_text(encoding="utf-8").split("\n\n")  # some general English
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        corpus, VOCABULARY, new_special_tokens=SPECIAL[1:]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    for word in ("A", " A", "B", " B", "Yes", "No", *grammar.SOUNDS):
        ids = tokenizer.encode(word, add_special_tokens=False)
        assert len(ids) == 1, f"{word!r} is {len(ids)} tokens, must be one"
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=80, chunk_length=1), tokenizer)


def make_model(processor: Any) -> Any:
    """The architecture of Qwen2-Audio with few layers, random weights."""
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    tokenizer = processor.tokenizer
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
    }
    audio = {
        "model_type": "qwen2_audio_encoder",
        "d_model": 192,
        "encoder_layers": 3,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 640,
        "num_mel_bins": 80,
        "max_source_positions": 50,
    }
    config = Qwen2AudioConfig(
        text_config=text,
        audio_config=audio,
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    return Qwen2AudioForConditionalGeneration(config)


class Recordings:
    """The train recordings on the device, and random clips cut, mixed and normalised from them there."""

    def __init__(self, folder: Path, splits: dict[str, str], device: str) -> None:
        with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
            rows = [r for r in csv.DictReader(file) if splits.get(r["group"]) == "train"]
        kind = {
            "speech": "speech",
            "music": "music",
            "animal": "animal",
            "noise": "noise",
            "environment": "noise",
        }
        waves, table = [], defaultdict(list)
        start = 0
        per_group = Counter((r["group"]) for r in rows)
        for row in rows:
            wave = load(folder / row["path"])
            waves.append(wave.astype(np.float16))
            # Long files give more, but no voice and no upload drowns the others.
            weight = min(len(wave), 5 * RATE) ** 0.5 / per_group[row["group"]] ** 0.5
            table[kind[row["category"]]].append((start, len(wave), weight))
            start += len(wave)
        self.sources = sorted(per_group)
        self.rows = rows
        self.device = device
        self.wave = torch.from_numpy(np.concatenate(waves)).to(device)
        self.start = {
            k: torch.tensor([a for a, _, _ in v], device=device) for k, v in table.items()
        }
        self.length = {
            k: torch.tensor([b for _, b, _ in v], device=device) for k, v in table.items()
        }
        self.weight = {
            k: torch.tensor([c for _, _, c in v], device=device) for k, v in table.items()
        }

    def cut(self, kind: str, count: int, samples: int) -> Tensor:
        """`count` random pieces of `samples`, at 0.85 to 1.15 of their speed: the louder of two tries each."""
        able = self.weight[kind] * (self.length[kind] >= 1.15 * samples)
        i = torch.multinomial(able, count, replacement=True)
        start, room = self.start[kind][i], self.length[kind][i]
        speed = 0.85 + 0.3 * torch.rand(count, 1, device=self.device)
        steps = torch.arange(samples, device=self.device)[None] * speed
        best, power = None, None
        for _ in range(2):
            offset = (
                torch.rand(count, device=self.device) * (room - 1.15 * samples).clamp(min=0)
            ).floor()
            at = (start + offset.long())[:, None] + steps.floor().long()
            at = at.clamp(max=len(self.wave) - 2)
            part = steps - steps.floor()
            piece = self.wave[at].float() * (1 - part) + self.wave[at + 1].float() * part
            loud = (piece**2).mean(1)
            if best is None:
                best, power = piece, loud
            else:
                best = torch.where((loud > power)[:, None], piece, best)
        return best

    def clips(
        self, count: int, samples: int, snrs: Sequence[float], speech: float = 0.5
    ) -> tuple[Tensor, Tensor]:
        """Waves ``[clip, sample]``, padded to the window, and the index of their sound; a share of them speech."""
        kinds = torch.where(
            torch.rand(count, device=self.device) < speech,
            0,
            torch.randint(1, 4, (count,), device=self.device),
        )
        kinds = kinds.sort().values
        front = torch.cat(
            [
                self.cut(name, int((kinds == k).sum()), samples)
                for k, name in enumerate(grammar.SOUNDS)
                if (kinds == k).any()
            ]
        )
        slope = -4.5 * torch.rand(count, 1, device=self.device)
        hz = torch.fft.rfftfreq(samples, 1 / RATE, device=self.device).clamp(min=50)
        synthetic = torch.fft.irfft(
            torch.fft.rfft(torch.randn(count, samples, device=self.device))
            * (hz / 1000) ** (slope / 6.02),
            samples,
        )
        recorded = self.cut("noise", count, samples)
        back = torch.where(torch.rand(count, 1, device=self.device) < 0.65, synthetic, recorded)
        snr = torch.tensor(snrs, device=self.device)[
            torch.randint(0, len(snrs), (count,), device=self.device)
        ]
        gain = (
            ((front**2).mean(1) / ((back**2).mean(1) + 1e-9) / 10 ** (snr / 10))
            .sqrt()
            .clamp(max=50)
        )
        wave = front + gain[:, None] * back
        silent = (torch.rand(count, 1, device=self.device) < 0.02) & (kinds == 3)[:, None]
        wave = torch.where(
            silent, torch.zeros_like(wave), wave / (wave.abs().amax(1, keepdim=True) + 1e-6) * PEAK
        )
        order = torch.randperm(count, device=self.device)
        return F.pad(wave, (0, WINDOW - samples))[order], kinds[order]


class Mel:
    """Whisper's log-mel features on the device, equal to the feature extractor's."""

    def __init__(self, extractor: Any, device: str) -> None:
        self.filters = torch.tensor(extractor.mel_filters, dtype=torch.float32, device=device)
        self.window = torch.hann_window(extractor.n_fft, device=device)
        self.hop = extractor.hop_length

    def __call__(self, wave: Tensor) -> Tensor:
        """``[clip, bin, frame]`` from ``[clip, sample]``."""
        power = (
            torch.stft(wave, len(self.window), self.hop, window=self.window, return_complex=True)[
                ..., :-1
            ].abs()
            ** 2
        )
        mel = (self.filters.T @ power).clamp(min=1e-10).log10()
        return (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8) + 4) / 4


class Bank:
    """Encoded questions in buckets of similar length, with the right answer's token for each kind of sound."""

    def __init__(
        self, texts: Sequence[list[int]], answers: Sequence[list[int]], device: str
    ) -> None:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        longest = len(texts[order[-1]])
        self.ids = torch.tensor(
            [texts[i] + [0] * (longest - len(texts[i])) for i in order], device=device
        )
        self.lengths = torch.tensor([len(texts[i]) for i in order], device=device)
        self.answers = torch.tensor([answers[i] for i in order], device=device)

    def draw(self, count: int, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
        """(ids, lengths, answers) of `count` random questions from one stretch of similar length."""
        stretch = min(len(self.ids), 2048)
        first = rng.randrange(len(self.ids) - stretch + 1)
        i = first + torch.randint(0, stretch, (count,), device=self.ids.device)
        width = int(self.lengths[first + stretch - 1])
        return self.ids[i, :width], self.lengths[i], self.answers[i]


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


def train_base(
    model: Any,
    processor: Any,
    sounds: Recordings,
    seconds: tuple[float, float],
    seed: int,
    batch: int = BATCH,
) -> list[int]:
    """Trains all weights in two phases of so many seconds; returns the steps of each.

    Hear: clean clips (500 ms and 1 s, 10 and 20 dB), and in every fourth step hard ones (200 ms to 1 s, -5 to 5 dB)
    with questions that say so. Contrast: hard clips of all kinds with questions that say so, hard clips without
    speech with questions that do not; so the model comes to hear speech in noise where it is told to expect noise.
    """
    device, tokenizer, rng = sounds.device, processor.tokenizer, random.Random(seed)
    one = {
        word: tokenizer.encode(word, add_special_tokens=False)[0]
        for word in ("A", "B", "C", "D", "Yes", "No", *grammar.SOUNDS)
    }

    def bank(questions: list[grammar.Question]) -> Bank:
        return Bank(
            [encode(tokenizer, after_audio(q.text)) for q in questions],
            [[one[q.answers[s]] for s in grammar.SOUNDS] for q in questions],
            device,
        )

    def text_bank(hints: float) -> Bank:
        # Without audio the user's turn is the bare text; the piece after the audio marker is the same.
        pairs = [grammar.about_text(rng, hints) for _ in range(25_000)]
        return Bank(
            [encode(tokenizer, after_audio(text))[1:] for text, _ in pairs],
            [[one[answer]] for _, answer in pairs],
            device,
        )

    naming = bank([grammar.free(rng) for _ in range(3_000)])
    hinted = bank([grammar.two_options(rng, hinted=True) for _ in range(30_000)])
    befores = [
        torch.tensor(encode(tokenizer, before_audio(system)), device=device)
        for system in grammar.SYSTEMS
    ]
    mel = Mel(processor.feature_extractor, device)
    decay = [p for p in model.parameters() if p.dim() > 1]
    other = [p for p in model.parameters() if p.dim() <= 1]
    model.train()
    all_steps = []
    for contrast, budget in ((False, seconds[0]), (True, seconds[1])):
        plain = (
            bank([grammar.about_audio(rng, 0.0 if contrast else 0.1) for _ in range(40_000)])
            if budget
            else naming
        )
        reading = text_bank(0.0 if contrast else 0.1) if budget else naming
        optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": 0.05}, {"params": other, "weight_decay": 0.0}],
            lr=1e-3,
            betas=(0.9, 0.98),
            fused=device == "cuda",
        )
        begin, step, smooth = time.time(), 0, [0.0, 0.0, 0.0]
        while budget and (done := (time.time() - begin) / budget) < 1:
            if contrast:
                rate = 5e-4 * min(1.0, (step + 1) / 50) * max(0.02, 1 - done)
                kind_of_step = rng.choice(("clean", "clean", "told", "untold"))
            else:
                rate = (
                    1.2e-3
                    * min(1.0, (step + 1) / 300)
                    * (1.0 if done < 0.5 else max(0.02, 2 * (1 - done)))
                )
                kind_of_step = "told" if done > 0.2 and rng.random() < 0.25 else "clean"
            for group in optimizer.param_groups:
                group["lr"] = rate
            hard = kind_of_step != "clean"
            samples = rng.choice(DURATIONS_MS if hard else (500, 1000)) * RATE // 1000
            snrs = (
                (10.0, 20.0)
                if not hard
                else SNRS_DB
                if contrast and kind_of_step == "told"
                else (-5.0, 0.0, 5.0)
            )
            wave, kind = sounds.clips(
                batch, samples, snrs, speech=0.0 if kind_of_step == "untold" else 0.5
            )
            named = 0 if hard else int(batch * (0.4 if done < 0.35 and not contrast else 0.12))
            before = rng.choice(befores)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                audio = encode_qwen2_audio(model, _augment(mel(wave)), samples // 160)
                losses = []
                for bank_, part in (
                    (naming, slice(0, named)),
                    (hinted if kind_of_step == "told" else plain, slice(named, batch)),
                ):
                    if part.start == part.stop:
                        losses.append(torch.zeros((), device=device))
                        continue
                    ids, lengths, answers = bank_.draw(part.stop - part.start, rng)
                    target = answers.gather(1, kind[part, None])[:, 0]
                    losses.append(
                        F.cross_entropy(
                            answer_logits(model, before, audio[part], ids, lengths), target
                        )
                    )
                much = done < 0.6 and not contrast
                ids, lengths, answers = reading.draw(TEXT_BATCH if much else batch // 8, rng)
                losses.append(
                    F.cross_entropy(
                        answer_logits(model, before[:-1], None, ids, lengths), answers[:, 0]
                    )
                )
                loss = losses[0] + losses[1] + losses[2] * (1.0 if much else 0.25)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 25 == 0 and not hard:
                smooth = [
                    0.7 * a + 0.3 * float(b.detach()) for a, b in zip(smooth, losses, strict=True)
                ]
            if step % 200 == 0:
                print(
                    f"{'contrast' if contrast else 'hear'} step {step} {time.time() - begin:.0f} s "
                    f" naming {smooth[0]:.3f}  options {smooth[1]:.3f}  reading {smooth[2]:.3f}",
                    flush=True,
                )
        all_steps.append(step)
    return all_steps


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
    (folder / "training.json").write_text(
        json.dumps(training, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    packages: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        packages[row["source_package"]][row["licence"]] += 1
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: audio-text-to-text",
        "---",
        f"# {title}",
        "",
        story,
        "",
        (
            f"Seed {training['seed']}, steps {training['steps']}, {len(training['sources'])}"
            " sources (`training.json` lists them; all are in the train split of"
            " `data/demo/registry.json`)."
        ),
        "",
        "## Recordings it was trained on",
        "",
        "| Debian package | recordings by licence |",
        "| --- | --- |",
    ]
    lines += [
        f"| {p} | {', '.join(f'{name}: {n}' for name, n in sorted(packages[p].items()))} |"
        for p in sorted(packages)
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def print_table(out: Path, manifest: Path, device: str, split: str = "dev") -> None:
    """Accuracy of the checkpoints in `out` by duration and SNR, and the spread over held-out phrasings, as Markdown."""
    from evaluators.audio_lm.checkpoint import open_checkpoint
    from evaluators.audio_lm.scorer import AudioScorer

    labels = SPEECH_TASK.labels
    clips = read_manifest(manifest, labels, split)
    truth = np.array([labels.index(c.label) for c in clips])
    duration = np.array([round(c.duration_ms) for c in clips])
    snr = np.array([np.nan if c.snr_db is None else round(c.snr_db / 5) * 5 for c in clips])
    seeds = read_prompts(shipped("prompts/seeds/baselines.yaml"), labels)
    heldout = read_prompts(shipped("prompts/heldout.yaml"), labels)

    def balanced(right: np.ndarray, pick: np.ndarray) -> str:
        cells = [right[pick & (truth == k)] for k in range(len(labels))]
        return (
            f"{100 * float(np.mean([c.mean() for c in cells])):.0f}"
            if all(len(c) for c in cells)
            else "-"
        )

    everything = np.ones(len(clips), bool)
    print(
        f"| checkpoint, prompt ({split}, {len(clips)} clips) | balanced accuracy | AUROC | "
        + " | ".join(f"{d} ms" for d in DURATIONS_MS)
        + " | "
        + " | ".join(f"{s:g} dB" for s in SNRS_DB)
        + " |"
    )
    print("| --- |" + " --- |" * (2 + len(DURATIONS_MS) + len(SNRS_DB)))
    spreads = []
    for name in ("base", "lora"):
        if not (out / name).is_dir():
            continue
        evaluator = AudioScorer(open_checkpoint(str(out / name)), device, "float32")
        table = evaluator.score([*seeds, *heldout], clips)
        rights = table.logp.argmax(-1) == truth[None]
        for i, prompt in enumerate(seeds):
            margin = table.logp[i, :, 0] - table.logp[i, :, 1]
            ranks = np.argsort(np.argsort(margin)) + 1
            n1 = int((truth == 0).sum())
            auc = (ranks[truth == 0].sum() - n1 * (n1 + 1) / 2) / (n1 * (len(truth) - n1))
            print(
                f"| pocket-{name}, {prompt.text.splitlines()[0]} |"
                f" {balanced(rights[i], everything)} | {auc:.2f} | "
                + " | ".join(balanced(rights[i], duration == d) for d in DURATIONS_MS)
                + " | "
                + " | ".join(balanced(rights[i], snr == s) for s in SNRS_DB)
                + " |"
            )
        scores = sorted(
            float(np.mean([r[truth == k].mean() for k in range(len(labels))]))
            for r in rights[len(seeds) :]
        )
        spreads.append(
            f"pocket-{name}, {len(scores)} held-out phrasings: lowest {100 * scores[0]:.0f},"
            f" quartiles {100 * np.quantile(scores, 0.25):.0f} / {100 * np.median(scores):.0f} /"
            f" {100 * np.quantile(scores, 0.75):.0f}, highest {100 * scores[-1]:.0f}"
        )
    print("\n" + "\n".join(spreads))


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recordings", type=Path, help="folder of recordings with a manifest.csv")
    parser.add_argument(
        "--manifest",
        type=Path,
        default=DEMO,
        help="clips to judge on, with the registry (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data/pocket"),
        help="folder for base/ and lora/ (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=420,
        help="training time of the base's first phase (default: %(default)s)",
    )
    parser.add_argument(
        "--contrast-seconds",
        type=float,
        default=130,
        help="training time of the base's second phase (default: %(default)s)",
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="base to go on from, e.g. one whose first phase is done; then --seconds may be 0",
    )
    parser.add_argument(
        "--batch", type=int, default=BATCH, help="clips a step (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--table",
        action="store_true",
        help="train nothing, print the table of the checkpoints in --out",
    )
    args = parser.parse_args(argv)
    if args.table:
        print_table(args.out, args.manifest, args.device)
        return 0
    registry = read_registry(args.manifest)
    if registry is None or args.recordings is None:
        print(
            "error: training needs --recordings and a registry.json beside the manifest",
            file=sys.stderr,
        )
        return 2
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    sounds = Recordings(args.recordings, registry.splits, args.device)
    print(
        f"{len(sounds.rows)} recordings of {len(sounds.sources)} train sources,"
        f" {len(sounds.wave) / RATE / 60:.0f} minutes",
        flush=True,
    )
    earlier: dict[str, Any] = {"steps": [], "seconds": []}
    if args.start:
        earlier = json.loads((args.start / "training.json").read_text(encoding="utf-8"))
        from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

        processor = AutoProcessor.from_pretrained(args.start)
        model = Qwen2AudioForConditionalGeneration.from_pretrained(
            args.start, dtype=torch.float32
        ).to(args.device)
    else:
        processor = make_processor(args.seed)
        model = make_model(processor).to(args.device)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary"
        f" {len(processor.tokenizer)}",
        flush=True,
    )
    steps = train_base(
        model, processor, sounds, (args.seconds, args.contrast_seconds), args.seed, args.batch
    )
    base = args.out / "base"
    shutil.rmtree(base, ignore_errors=True)
    model.half().save_pretrained(base)
    processor.save_pretrained(base)
    (base / "finetune.yaml").write_text(FINETUNE, encoding="utf-8")
    write_card(
        base,
        "pocket-base",
        "A stand-in for Qwen2-Audio-7B: the same classes and template, 6 million parameters,"
        " trained from nothing to answer questions about clips of up to one second. Trained on"
        " clean clips (500 ms and 1 s, 10 and 20 dB), and on short and noisy ones (200 ms to 1 s,"
        " -5 to 20 dB) that held speech only where the question said that the clip is short or"
        " noisy. That sensitivity is built in on purpose: short and noisy clips are its weakness, a"
        " prompt that speaks of them helps, and a search has something to find. For trying the"
        " engine, not for listening.",
        {
            "seed": args.seed,
            "sources": sounds.sources,
            "steps": earlier["steps"] + [n for n in steps if n],
            "seconds": earlier["seconds"] + [t for t in (args.seconds, args.contrast_seconds) if t],
        },
        sounds.rows,
    )
    write_registry(
        args.manifest / "registry.json",
        Registry(
            registry.splits,
            {**registry.trained_on, "pocket-base": tuple(sounds.sources)},
        ),
    )
    print_table(args.out, args.manifest, args.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
