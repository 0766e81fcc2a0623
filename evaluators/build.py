"""Name -> evaluator: the only place that imports heavy modules, and only when it is called."""

import functools
from collections.abc import Callable
from pathlib import Path

from evaluators.audio_lm.checkpoint import Quantisation, open_checkpoint
from evaluators.cache import CachedEvaluator
from evaluators.errors import UserError
from evaluators.evaluator import Evaluator
from evaluators.orders import BothOrders

FEATURES = ".features"  # beside the score cache: features of clips by content


def build_evaluator(
    checkpoint: str,
    *,
    adapter: Path | None = None,
    quantisation: Quantisation = "none",
    device: str = "auto",
    dtype: str = "auto",
    cache: Path | None = None,
    ray: str | None = None,
    ray_cpus: int = 1,
) -> tuple[Evaluator, frozenset[str] | None]:
    """An evaluator for a checkpoint, cached if a folder is given, and the source ids the checkpoint has heard.

    Prompts with `both_orders` need a cache. ``fake`` is a deterministic stand-in that needs
    no weights, ``endpoint:MODEL`` a model behind a server.
    Nothing is loaded before the first score. With `ray`, an address or ``auto``, it is one of `evaluators.ray_pool`.
    """
    heard: frozenset[str] | None
    make: Callable[[], Evaluator]
    if checkpoint == "fake":
        from evaluators.fakes import FakeEvaluator

        make, heard = FakeEvaluator, frozenset[str]()
    elif checkpoint.startswith("endpoint:"):
        from evaluators.endpoint import Endpoint

        make, heard = functools.partial(Endpoint, checkpoint.removeprefix("endpoint:")), None
    else:
        opened = open_checkpoint(checkpoint, adapter, quantisation)
        _offline_is_fine()
        from evaluators.audio_lm.scorer import QwenAudio

        if quantisation == "nf4":
            try:
                import bitsandbytes  # noqa: F401
            except ImportError:
                raise UserError(
                    "--quantization nf4 needs the package bitsandbytes: pip install bitsandbytes"
                ) from None
        features = None if cache is None else cache.with_name(FEATURES)
        make = functools.partial(QwenAudio, opened, device, dtype, features=features)
        heard = opened.trained_on
    if ray is not None:
        from evaluators.ray_pool import RayPool

        inner: Evaluator = RayPool(make, ray, ray_cpus)
    else:
        inner = make()
    if cache is None:
        return inner, heard
    cached = CachedEvaluator(inner, cache)
    return BothOrders(cached), heard


def _offline_is_fine() -> None:
    """transformers must not wait for a network that a local checkpoint does not need."""
    import os

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
