"""A second checkpoint of one base, loaded by itself or on the weights that are there: python tests/bench_resident.py

Seconds until weights are on the device and until a first prompt is scored on one clip, what the device holds then, and
whether all scores are the same to the bit. With --shape 7b the exact shape of Qwen2-Audio-7B with random weights, which
are written to a folder first, and adapters of two kinds. With --ray N the same over N workers of Ray, one a GPU.
"""

import argparse
import functools
import gc
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench_wording import rewritten
from safetensors.torch import save_file

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.stock import random_7b
from evaluators.evaluator import share
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.ray_pool import RayPool
from evaluators.splits import balanced_order
from evaluators.tasks import SPEECH_TASK

RANK = 16
KINDS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


def write_adapter(base, config, kind, folder):
    """A LoRA of random weights on the language model, as peft lays it out."""
    folder.mkdir()
    width, inner = config.hidden_size, config.intermediate_size
    sides = {"gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width)}
    noise = torch.Generator().manual_seed(len(kind))
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for name in KINDS[kind]:
            part = "self_attn" if name in KINDS["attention"] else "mlp"
            before, after = sides.get(name, (width, width))
            key = f"base_model.model.model.language_model.layers.{layer}.{part}.{name}.lora_"
            tensors[f"{key}A.weight"] = torch.randn(RANK, before, generator=noise) * before**-0.5
            tensors[f"{key}B.weight"] = torch.randn(after, RANK, generator=noise) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    names = "|".join(KINDS[kind])
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": rf"model\.language_model\..*\.({names})",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return str(folder)


def made_7b(folder):
    """Names of a base of the 7B shape and of two adapters on it."""
    begin = time.perf_counter()
    model, processor = random_7b(torch.device("cuda"))
    base = folder / "base"
    model.save_pretrained(base)
    processor.save_pretrained(base)
    text = model.config.text_config
    names = [str(base), *(write_adapter(base, text, kind, folder / kind) for kind in KINDS)]
    del model
    gc.collect()
    torch.cuda.empty_cache()
    print(f"written in {time.perf_counter() - begin:.0f} s, {torch.cuda.get_device_name()}\n")
    return names


class Timed:
    """Loads and scores, and prints a row about it."""

    def __init__(self, prompts, clips, device):
        self.prompts, self.clips = prompts, clips
        self.on_gpu = device.startswith("cuda")
        self.scores = {}

    def __call__(self, how, name, scorer):
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        _ = scorer.config  # reads headers
        opened = time.perf_counter() - begin
        _ = scorer.decoder
        self._wait()
        loaded = time.perf_counter() - begin
        scorer.score(self.prompts[:1], self.clips[:1])
        first = time.perf_counter() - begin
        held, peak = (
            (torch.cuda.memory_allocated() / 2**30, torch.cuda.max_memory_allocated() / 2**30)
            if self.on_gpu
            else (float("nan"), float("nan"))
        )
        begin = time.perf_counter()
        scorer.forget()
        table = scorer.score(self.prompts, self.clips)
        took = time.perf_counter() - begin
        known = self.scores.setdefault(name, table.logp)
        same = "yes" if np.array_equal(known, table.logp) else "NO"
        print(
            f"| {how} | {Path(name).name} | {opened:.2f} | {loaded:.2f} | {first:.2f} | {held:.1f} | {peak:.1f} |"
            f" {took:.2f} | {same} |",
            flush=True,
        )

    def _wait(self):
        if self.on_gpu:
            torch.cuda.synchronize()


def over_ray(count, makes, timed):
    """Rows of checkpoints over so many workers: each with workers of its own, and taking turns."""
    print(
        f"\n| over {count} workers: how | checkpoint | each answers, s | each has loaded and scored, s |"
        f" {len(timed.prompts)} x {len(timed.clips)} all in, s | same scores |"
    )
    print("| --- " * 6 + "|")
    apart = {name: RayPool(make, workers=count) for name, make in makes.items()}
    together = {name: RayPool(make, workers=count) for name, make in makes.items()}
    share(list(together.values()))
    names = list(makes)
    for how, pools, order in (
        ("workers of its own", apart, names[:2]),
        ("taking turns", together, names),
        ("and back", together, names[::-1]),
    ):
        for name in order:
            pool, begin = pools[name], time.perf_counter()
            pool.score(timed.prompts[:1], [])
            while pool.usable < count:
                pool.fingerprint  # noqa: B018
                pool._next()
            answers = time.perf_counter() - begin
            pool.score(timed.prompts[:1], timed.clips)
            loaded = time.perf_counter() - begin
            pool.forget()
            begin = time.perf_counter()
            table = pool.score(timed.prompts, timed.clips)
            took = time.perf_counter() - begin
            same = "yes" if np.array_equal(timed.scores[name], table.logp) else "NO"
            print(
                f"| {how} | {Path(name).name} | {answers:.2f} | {loaded:.2f} | {took:.2f} | {same} |",
                flush=True,
            )
            if pools is apart:
                pool.release()
    for pool in together.values():
        pool.release()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=["7b"], help="random weights instead of the pocket's")
    parser.add_argument("--quantization", default="none", choices=["none", "nf4"])
    parser.add_argument("--ray", type=int, help="workers, besides this process")
    parser.add_argument("--size", type=int, nargs=2, default=[100, 10], help="clips, prompts")
    args = parser.parse_args()
    labels = SPEECH_TASK.labels
    clips = balanced_order(read_manifest(shipped("data/demo"), labels, "dev"))[: args.size[0]]
    prompts = read_prompts(shipped("prompts/heldout.yaml"), labels)
    prompts = (prompts + rewritten(prompts[:3], args.size[1]))[: args.size[1]]
    with tempfile.TemporaryDirectory() as folder:
        names = made_7b(Path(folder)) if args.shape else ["pocket-base", "pocket-lora"]
        device = "cuda" if args.shape else "cpu"

        def make(name):
            checkpoint = open_checkpoint(name, quantization=args.quantization)
            return functools.partial(AudioScorer, checkpoint, device)

        timed = Timed(prompts, clips, device)
        print(
            f"| {args.quantization}: how | checkpoint | headers, s | weights there, s | first score, s | GiB held |"
            f" GiB at most | {len(prompts)} x {len(clips)} all in, s | same scores |"
        )
        print("| --- " * 9 + "|")
        for name in names:
            scorer = make(name)()
            timed("by itself", name, scorer)
            scorer.release()
            del scorer
            gc.collect()
        if args.ray:
            if device == "cuda":
                torch.cuda.empty_cache()
            over_ray(args.ray, {name: make(name) for name in names}, timed)
            return
        together = {name: make(name)() for name in names}
        share(list(together.values()))
        for name in names:
            timed("shared base", name, together[name])
            together[name].unload()
        for name in names[::-1]:
            timed("and back", name, together[name])
            together[name].unload()


if __name__ == "__main__":
    main()
