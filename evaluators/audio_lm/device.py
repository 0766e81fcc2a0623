"""Devices: which one, in which precision, its memory and speed, and its faults as errors that a resume follows."""

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

import torch

from evaluators.audio_lm.memory import weight_counts
from evaluators.errors import DeviceLostError, PauseError, UserError
from evaluators.threads import sum_alike

sum_alike()  # whoever computes scores imports this module first

TOKENS_PER_EVAL = 55  # of a prompt of 45 tokens, with its share of the prefix
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TRITON_CAPABILITY = (8, 0)  # the lowest that Triton supports, of NVIDIA's cards
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
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(f"type {device.type!r} holds no weights here")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used ({str(error).splitlines()[0]}); expected auto, cpu,"
            " cuda or mps"
        ) from None
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether a CUDA card computes in bfloat16 itself, as NVIDIA's do from capability 8.0 on (not T4, V100, RTX 20)."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA, float16 on cards without bfloat16, float32 elsewhere.

    Float16 and not float32 there, for half the memory and the speed of the card's own products: it has three bits more
    than bfloat16 and lies eight times closer to float32 on the pocket checkpoints (tests/bench_precision.py). Its
    range is smaller; what leaves it ends as NaN, which the scorer refuses.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if has_bfloat16(device) else torch.float16
    return DTYPES[name]


def pick_training_dtype(name: str, device: torch.device) -> torch.dtype:
    """As `pick_dtype`, but never float16, in which small gradients vanish: float32 on cards without bfloat16.

    Raises:
        UserError: bfloat16 is asked for on such a card.
    """
    if device.type == "cuda" and name != "float32" and not has_bfloat16(device):
        if name == "bfloat16":
            raise UserError(
                f"--dtype bfloat16 is not what {torch.cuda.get_device_name(device)} computes in; give --dtype float32"
            )
        return torch.float32
    return pick_dtype(name, device)


def has_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device: CUDA cards of its lowest capability or a higher one."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= TRITON_CAPABILITY


def limits(device: torch.device, dtype: torch.dtype) -> list[str]:
    """What a card cannot do, and what is done in its place; nothing for other cards and devices."""
    if device.type != "cuda":
        return []
    major, minor = torch.cuda.get_device_capability(device)
    name = f"{torch.cuda.get_device_name(device)}, capability {major}.{minor},"
    lines = []
    if not has_bfloat16(device):
        plain = str(dtype).removeprefix("torch.")
        lines.append(
            f"{name} has no bfloat16: computed in {plain}"
            + (
                ", where a value beyond 65,504 ends as NaN and stops the run; --dtype float32 takes twice the memory"
                if dtype == torch.float16
                else ""
            )
        )
    if not has_kernels(device):
        lines.append(
            f"{name} is below {'.'.join(map(str, TRITON_CAPABILITY))}, where Triton begins: plain torch computes what"
            " lies between the products, with padding"
        )
    return lines


def card_gib(device: torch.device) -> float | None:
    """Memory of a CUDA card in GiB; None for any other device."""
    if device.type != "cuda":
        return None
    return float(torch.cuda.get_device_properties(device).total_memory / 2**30)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute on one processor thread: what is small, beside a card, or may round otherwise with others.

    Where threads outnumber the work, each product waits for all of them, and so does the card.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of large matrix products of random numbers that follow each other for so long, as long after they began.

    A card that is limited by power is fast for a moment and then slower: a search runs at the second rate.
    """
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def products(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            c = a @ b
        float(c[0, 0])  # waits for them
        return time.perf_counter() - begin

    products(2)  # loads what multiplies
    count = max(1, round(seconds / (products(3) / 3)))
    products(count)
    return count * 2 * size**3 / products(count)


@functools.cache
def rate_in_use(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """`matrix_rate` of a device, or of so many processor threads, once a process; 0 where memory has no room."""
    try:
        return matrix_rate(device, dtype, 0.2 if device.type == "cuda" else 0.05)
    except torch.OutOfMemoryError:
        return 0.0


def estimate_seconds_per_eval(config: Any, device: torch.device, dtype: torch.dtype) -> float:
    """An estimate from the model's size and a matrix product that is timed on the device.

    Args:
        config: As `evaluators.audio_lm.families.audio_config` gives it.
        device: Where it would be scored.
        dtype: In which precision.
    """
    weights = weight_counts(config)[1]
    return seconds_per_eval(weights, config.text_config.hidden_size * 2, device, dtype)


def seconds_per_eval(weights: int, size: int, device: torch.device, dtype: torch.dtype) -> float:
    """An estimate from the weights that each token meets, and products of a size that is not too large."""
    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else min(1024, size)
    a = torch.randn(size if on_gpu else 2048, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    float((a @ b).sum())
    begin = time.perf_counter()
    for _ in range(5):
        c = a @ b
    float(c.sum())
    rate = 5 * 2 * len(a) * size * size / (time.perf_counter() - begin)
    return 2 * weights * TOKENS_PER_EVAL / rate / RATE_REACHED
