"""Name -> evaluator: the only place that imports heavy modules, and only when it is called."""

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from evaluators import fakes
from evaluators.audio_lm.checkpoint import Checkpoint, Quantization, open_checkpoint
from evaluators.cache import CachedEvaluator
from evaluators.choices import in_orders
from evaluators.errors import UserError
from evaluators.evaluator import Evaluator
from evaluators.threads import wait_asleep
from evaluators.wake import wake_card

FEATURES = ".features"  # beside the score cache: features of clips by content


def build_evaluator(
    checkpoint: str,
    *,
    adapter: Path | None = None,
    quantization: Quantization = "none",
    device: str = "auto",
    dtype: str = "auto",
    cache: Path | None = None,
    ray: str | None = None,
    ray_cpus: int = 1,
) -> tuple[Evaluator, frozenset[str] | None]:
    """An evaluator for a checkpoint, and the source ids that the checkpoint was trained on. Loads no weights.

    Args:
        checkpoint: A shipped name, a folder, a hub id; ``fake``: a deterministic stand-in that needs no weights;
            ``endpoint:MODEL`` or ``endpoint:MODEL#TAG``: a model behind a server, and a tag for its weights.
        adapter: Folder of a LoRA adapter.
        quantization: Of the weights.
        device: See `AudioScorer`, or `GenericScorer` of a model that has no packed path.
        dtype: See `AudioScorer`.
        cache: Folder of the score cache; None: scores are not stored, and prompts are scored in one order alone.
        ray: Address of a Ray cluster, or ``auto``: scores on all its devices.
        ray_cpus: CPUs of a worker where the cluster has no GPU.
    """
    trained_on: frozenset[str] | None
    make: Callable[[], Evaluator]
    if checkpoint == "fake":
        given = {"adapter": adapter, "quantization": quantization, "device": device, "dtype": dtype}
        for name, value in given.items():
            if value not in (None, "none", "auto", "cpu", "float32"):
                raise UserError(
                    f"--{name} is {str(value)!r}; checkpoint 'fake' has no weights, so it would change nothing: leave"
                    " it out, or give a checkpoint"
                )
        make, trained_on = fakes.FakeEvaluator, frozenset[str]()
    elif checkpoint.startswith("python:"):
        raise UserError(
            f"checkpoint {checkpoint!r} is an evaluator that was given from Python; there opro.predict(...,"
            " evaluator=...) and opro.score take it"
        )
    elif checkpoint.startswith("endpoint:"):
        from evaluators.endpoint import Endpoint

        make = functools.partial(Endpoint, checkpoint.removeprefix("endpoint:"))
        trained_on = None
    else:
        opened = open_checkpoint(checkpoint, adapter, quantization)
        if ray is None:
            wake_card(device)
        make = functools.partial(_audio_scorer(opened, cache), opened, device, dtype)
        trained_on = opened.trained_on
    if ray is not None:
        from evaluators.ray_pool import RayPool

        inner: Evaluator = RayPool(make, ray, ray_cpus)
    else:
        inner = make()
    if cache is None:
        return inner, trained_on
    cached = CachedEvaluator(inner, cache, mirrors=checkpoint != "fake")
    return in_orders(cached), trained_on


def _audio_scorer(checkpoint: Checkpoint, cache: Path | None) -> Callable[..., Evaluator]:
    """What scores a checkpoint, once what it needs is known to be installed."""
    wait_asleep()
    _offline_is_fine()
    from evaluators.audio_lm.generic import scorer_class

    if checkpoint.quantization == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "--quantization nf4 needs the package bitsandbytes: pip install bitsandbytes"
        )
    features = None if cache is None else cache.with_name(FEATURES)
    return scorer_class(checkpoint, features)


def _offline_is_fine() -> None:
    """transformers must not wait for a network that a local checkpoint does not need."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
