"""Which families share prefixes on the generic path, and what it gains: python tests/bench_generic.py

Tiny models with random weights, float32 on the CPU, in processor time (--device cuda: by the clock). `one by one` is a
whole forward of the library for each pair, which is what a model falls back to. Families whose
processors need a library that is not installed are named, not tried.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import tiny_generic
from transformers.utils import logging as hf_logging

from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.generic import GenericScorer
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.splits import balanced_order
from evaluators.tasks import SPEECH_TASK

COLUMNS = (
    "family",
    "class in transformers",
    "path",
    "parity, nats",
    "one by one, ms",
    "here, ms",
    "times as fast",
)


def measure(name, folder, prompts, clips, device, dtype):
    """The row of a family."""
    checkpoint = Checkpoint(name, folder, None, "none", None, None)
    one, whole = (GenericScorer(checkpoint, device, dtype, share=share) for share in (None, False))
    way, clock = one.way, time.process_time if device == "cpu" else time.perf_counter
    milliseconds, tables = [], []
    for each in (whole, one):
        each.score(prompts[:1], clips[:1])
        each.forget()
        begin = clock()
        tables.append(each.score(prompts, clips).logp)
        milliseconds.append(1e3 * (clock() - begin) / len(prompts) / len(clips))
    apart = float(np.abs(tables[0] - tables[1]).max())
    theirs, ours = milliseconds
    path = "shared" if way.shared else f"one by one: {way.why}"
    gain = f"{theirs / ours:.1f}" if way.shared else "1"
    return name, one.kind.model_class, path, f"{apart:.1e}", f"{theirs:.1f}", f"{ours:.1f}", gain


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    labels = SPEECH_TASK.labels
    files = "prompts/heldout.yaml", "prompts/seeds/baselines.yaml"
    prompts = [prompt for file in files for prompt in read_prompts(shipped(file), labels)]
    clips = balanced_order(read_manifest(shipped("data/demo"), labels, "dev"))[: args.clips]
    print(f"{args.clips} clips x {len(prompts[: args.prompts])} prompts")
    print("| " + " | ".join(COLUMNS) + " |")
    print("| --- " * len(COLUMNS) + "|")
    for name, (maker, _) in tiny_generic.FAMILIES.items():
        if lacking := tiny_generic.lacking(name):
            print(f"| {name} | needs {', '.join(lacking)} |" + " |" * (len(COLUMNS) - 2))
            continue
        with tempfile.TemporaryDirectory() as root:
            folder = tiny_generic.write_folder(Path(root) / name, maker)
            print(
                "| "
                + " | ".join(
                    measure(name, folder, prompts[: args.prompts], clips, args.device, args.dtype)
                )
                + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
