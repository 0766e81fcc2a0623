"""How far half precision lies from float32: python tests/bench_precision.py

Mean and largest distance of log-probabilities (nats) and of P(first label), over clips and the three seed prompts: of
the shipped checkpoints, and of a small model of the architecture with random weights, on the CPU.
"""

import sys

import numpy as np
from common import DEMO, LABELS, ROOT

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.device import DTYPES
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.splits import balanced_order

sys.path.insert(0, str(ROOT / "tests" / "evaluators" / "audio_lm"))
from test_scorer import evaluator_with, random_model

PRECISIONS = ("float32", "bfloat16", "float16")


def share(logp: np.ndarray) -> np.ndarray:
    return np.exp(logp - np.logaddexp.reduce(logp, -1, keepdims=True))[..., 0]


def random_weights(dtype: str) -> AudioScorer:
    model, processor = random_model(1)
    return evaluator_with(model.to(DTYPES[dtype]), processor, dtype=dtype)


def main() -> None:
    prompts = read_prompts(shipped("prompts/seeds/baselines.yaml"), LABELS)
    clips = balanced_order(read_manifest(DEMO, LABELS, "dev"))[:200]
    makers = {
        name: lambda dtype, name=name: AudioScorer(open_checkpoint(name), "cpu", dtype)
        for name in ("pocket-base", "pocket-lora")
    }
    makers["random weights"] = random_weights
    print(
        "| checkpoint | precision | nats, mean | most | P, mean | most |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, make in makers.items():
        exact, *others = (make(dtype).score(prompts, clips).logp for dtype in PRECISIONS)
        for dtype, logp in zip(PRECISIONS[1:], others, strict=True):
            nats, p = np.abs(logp - exact), np.abs(share(logp) - share(exact))
            print(
                f"| {name} | {dtype} | {nats.mean():.5f} | {nats.max():.4f} | {p.mean():.5f} | {p.max():.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
