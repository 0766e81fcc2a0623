"""Devices: which one, in which precision, its memory and speed, and its faults as errors that a resume follows."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from evaluators.audio_lm.memory import weight_counts
from evaluators.errors import DeviceLostError, PauseError, UserError

TOKENS_PER_EVAL = 55  # of a prompt of 45 tokens, with its share of the prefix
RATE_REACHED = 0.45  # share of a matrix product's rate that scoring reaches


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU."""
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used ({str(error).splitlines()[0]}); expected auto, cpu,"
            " cuda or mps"
        ) from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA, float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def card_gib(device: torch.device) -> float | None:
    """Memory of a CUDA card in GiB; None for any other device."""
    if device.type != "cuda":
        return None
    return float(torch.cuda.get_device_properties(device).total_memory / 2**30)


@contextlib.contextmanager
def device_faults() -> Iterator[None]:
    """Raises PauseError for exhausted memory and DeviceLostError for a lost device; other errors pass."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise PauseError(
            "out of memory even with the smallest batches: close what else uses the device, or give --quantization nf4;"
            " the same command goes on from here"
        ) from None
    except RuntimeError as error:
        # torch names it only since 2.8
        named = isinstance(error, getattr(torch, "AcceleratorError", ()))
        if not named and "CUDA error" not in str(error):
            raise
        raise DeviceLostError(
            f"the device was lost ({str(error).splitlines()[0][:200]}); nothing that was scored is lost, the same"
            " command goes on from here"
        ) from None


def estimate_seconds_per_eval(config: Any, device: torch.device, dtype: torch.dtype) -> float:
    """An estimate from the model's size and a matrix product that is timed on the device.

    Args:
        config: As `evaluators.audio_lm.families.audio_config` gives it.
        device: Where it would be scored.
        dtype: In which precision.
    """
    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else min(1024, config.text_config.hidden_size * 2)
    a = torch.randn(size if on_gpu else 2048, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    float((a @ b).sum())
    begin = time.perf_counter()
    for _ in range(5):
        c = a @ b
    float(c.sum())
    rate = 5 * 2 * len(a) * size * size / (time.perf_counter() - begin)
    return 2 * weight_counts(config)[1] * TOKENS_PER_EVAL / rate / RATE_REACHED
