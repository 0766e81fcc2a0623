"""Training without a packed path, beside the packed one, on the same weights: python tests/bench_generic_training.py

Audio Flamingo 3's shape with random weights (8.3 thousand million numbers, bfloat16), on a CUDA card: milliseconds a
step of 16 samples and the largest memory, beside what the plan says. Tiny weights with --tiny, on the CPU.
"""

import argparse
import gc
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny_generic
import torch
from transformers import TrainerCallback

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.generic_chat import read_chat
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.finetuning import measure
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.train import Machine, Training, train
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.splits import balanced_order
from evaluators.tasks import SPEECH_TASK

TEXT = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 8192}  # fmt: skip
TOWER = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
         "num_mel_bins": 128, "max_source_positions": 1500}  # fmt: skip


class Stamps(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.at = []

    def on_step_end(self, args, state, control, **kw):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.at.append(time.perf_counter())


def write_large(out: Path) -> Path:
    """The folder of a model of the exact shape, with random weights."""
    import transformers

    tiny, processor = tiny_generic.audioflamingo3()
    config = tiny.config
    for part, shape in ((config.text_config, TEXT), (config.audio_config, TOWER)):
        for name, value in shape.items():
            setattr(part, name, value)
    config.text_config.layer_types = ["full_attention"] * TEXT["num_hidden_layers"]
    config.text_config.vocab_size = 151_936
    processor.feature_extractor = transformers.WhisperFeatureExtractor(feature_size=128)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.AudioFlamingo3ForConditionalGeneration(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    (out / "training.json").write_text('{"sources": []}', encoding="utf-8")
    return out


def row(way, training, folder):
    """A line of the table."""
    on_card = training.machine.device.type == "cuda"
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    watch = Stamps()
    trained = train(training, folder / way, [watch])
    gib = torch.cuda.max_memory_allocated() / 2**30 if on_card else 0.0
    loss = trained.best_loss
    del trained
    gc.collect()
    if on_card:
        torch.cuda.empty_cache()
    step = 1e3 * float(np.median(np.diff(watch.at)))
    plan = training.plan
    print(
        f"| {way} | {plan.micro_batch_size} | {step:.0f} | {plan.gib:.1f} | {gib:.1f} |"
        f" {loss:.3f} |",
        flush=True,
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--clips", type=int, default=96)
    args = parser.parse_args()
    device = torch.device("cpu" if args.tiny else "cuda")
    dtype = torch.float32 if args.tiny else torch.bfloat16
    demo = shipped("data/demo")
    clips = balanced_order(read_manifest(demo, SPEECH_TASK, "train"))[: args.clips]
    prompts = read_prompts(shipped("prompts/seeds/baselines.yaml"), SPEECH_TASK.labels)[:1]
    print("| way | samples at once | ms a step of 16 | plan, GiB | peak, GiB | dev loss |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make = write_large if not args.tiny else (
            lambda out: tiny_generic.write_folder(out, tiny_generic.audioflamingo3)
        )  # fmt: skip
        checkpoint = open_checkpoint(str(make(folder / "model")))
        recipe = Recipe(epochs=1, targets="llm-only", dropout=0.0, augment=False)
        machine = Machine(device, dtype)
        shown = ClipSet(SPEECH_TASK, tuple(clips))
        room = measure.Room(machine.gib, recipe.batch)
        found = measure.measure(checkpoint, recipe, shown, prompts, room)
        training = Training(
            checkpoint=checkpoint, recipe=recipe, prompts=tuple(prompts), labels=SPEECH_TASK.labels,
            clips=clips, validation=clips[:16], processor=found.processor, plan=found.plan,
            machine=machine,
        )  # fmt: skip
        row("packed, llm-only", training, folder)
        chat = read_chat(checkpoint.base, "it")
        for targets in ("llm-only", "attention"):
            recipe = replace(recipe, targets=targets)
            plan = measure.measure_generic(checkpoint, recipe, shown, prompts, room).plan
            row(
                f"generic, {targets}",
                replace(training, recipe=recipe, plan=plan, chat=chat),
                folder,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
