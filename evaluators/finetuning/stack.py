"""A stack of layers whose gradients are written out, as one step of autograd; on CUDA as two graphs.

The kernels of a LoRA step take less time than a host needs to launch them one by one. A CUDA graph of a shape launches
them all at once. Graphs share their memory, since one is replayed after another. Their gradients lie side by side in
one tensor, and are added to those of the weights at once: autograd would handle hundreds of small tensors one by one.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from evaluators.finetuning.products import Beside, Dropping, Product, cast_adapters

SEEDS = 2**31  # of a step's dropout
PRODUCTS = 4  # of a layer
TENSORS = ("index", "first", "seed", "cos", "sin", "keep", "seen")  # of a step


@dataclass(frozen=True, eq=False)
class Step:
    """What all layers share in a step.

    Attributes:
        index, first, shared: Of the `Line`.
        seed: ``[]`` of the dropout.
        share: Of the adapters' inputs that dropout leaves out; 0: none.
        again: Keep only the input of each layer, and compute the rest again in the backward pass.
        cos, sin: ``[token, channel of a head]`` of the tokens' positions, where heads are turned by them.
        keep: Tokens with which the last layer goes on, each once; None: all.
        seen: See `line.attend`.
        beside: The adapters of each product, layer by layer; put in by `Stack`.
    """

    index: Tensor
    first: Tensor
    shared: int
    seed: Tensor
    share: float
    again: bool
    cos: Tensor | None = None
    sin: Tensor | None = None
    keep: Tensor | None = None
    seen: Tensor | None = None
    beside: Sequence[Beside | None] = ()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        both = ((name, getattr(self, name)) for name in TENSORS)
        return {name: value for name, value in both if value is not None}

    def of_layer(self, number: int, ops: ModuleType) -> tuple[list[Dropping], list[Beside | None]]:
        """(Dropout, adapters) of each product of a layer."""
        first = number * PRODUCTS
        numbers = range(first, first + PRODUCTS)
        return (
            [Dropping(self.seed, n, self.share, ops) for n in numbers],
            [self.beside[n] for n in numbers],
        )


def new_seed(share: float, device: torch.device) -> Tensor:
    """``[]`` seed of a step. It comes from the CPU's random numbers, which a resumed training goes on with."""
    seed = int(torch.randint(SEEDS, ())) if share else 0
    # Filled there: a copy would wait for the device.
    return torch.full((), seed, dtype=torch.int64, device=device)


class StackedLayer(Protocol):
    """A layer."""

    @property
    def products(self) -> list[Product]:
        """Its matrix products, `PRODUCTS` of them."""

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, Any]:
        """(The float32 stream after the layer, what `backward` needs)."""

    def backward(self, grad: Tensor, kept: Any, step: Step) -> tuple[Tensor, list[Tensor]]:
        """(Gradient by the layer's input, those by the adapters), from that by its result."""


class Stack:
    """Layers, one after another.

    Args:
        layers: All of them.
        dtype: Of the weights.
        max_graphs: CUDA graphs that may be kept; 0: every kernel is launched by itself.
    """

    def __init__(
        self, layers: Sequence[StackedLayer], dtype: torch.dtype, max_graphs: int = 0
    ) -> None:
        self.layers, self.dtype, self.max_graphs = layers, dtype, max_graphs
        self.products = [product for layer in layers for product in layer.products]
        self.turn = 0  # forward passes for a backward one
        self._seen: set[Any] = set()
        self._graphs: dict[Any, _Graph] = {}
        self._pool: Any = None
        self._grads: Gradients | None = None

    @property
    def adapters(self) -> list[Tensor]:
        """All trained weights, product by product."""
        return [weight for product in self.products for weight in product.adapters]

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """The float32 stream ``[token, channel]`` after the layers, of the same before them."""
        if not torch.is_grad_enabled():
            step = replace(step, beside=cast_adapters(self.products, self.dtype))
            for layer in self.layers:
                x = layer.forward(x, step)[0]
            return x
        self.turn += 1
        graph = self.graph(x, step)
        out: Tensor
        if graph is None:
            out = _Run.apply(x, self, step, *self.adapters)
        else:  # with one adapter, by which autograd knows that there is a way back
            out = _Replay.apply(x, graph, step, self.adapters[0])
        return out

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, tuple[list[Any], Step]]:
        """(The stream, what `backward` needs)."""
        step = replace(step, beside=cast_adapters(self.products, self.dtype))
        every = []
        for layer in self.layers:
            before = x
            x, kept = layer.forward(before, step)
            every.append(before.to(self.dtype) if step.again else kept)
        return x, (every, step)

    def backward(self, grad: Tensor, kept: tuple[list[Any], Step]) -> tuple[Tensor, list[Tensor]]:
        """(Gradient by the stream before, those by the `adapters`). Lets go of what was kept, layer by layer."""
        every, step = kept
        found: list[list[Tensor]] = []
        for layer in reversed(self.layers):
            own = every.pop()
            if step.again:
                own = layer.forward(own.float(), step)[1]
            grad, adapters = layer.backward(grad, own, step)
            found.append(adapters)
        return grad, [one for adapters in reversed(found) for one in adapters]

    def graph(self, x: Tensor, step: Step) -> "_Graph | None":
        """The graph of this shape, from the second time that it comes."""
        if not self.max_graphs:
            return None
        shapes = tuple((name, tuple(t.shape)) for name, t in step.tensors.items())
        key = tuple(x.shape), shapes, step.shared, step.share, step.again
        if key not in self._graphs:
            if key not in self._seen or len(self._graphs) >= self.max_graphs:
                self._seen.add(key)
                return None
            if self._grads is None:
                self._pool = torch.cuda.graph_pool_handle()
                self._grads = Gradients(self.adapters)
            self._graphs[key] = _Graph(self, x, step, (self._pool, self._grads))
        return self._graphs[key]


@contextlib.contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Work on a stream of its own, between what was launched before and what comes after."""
    outer, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    own.wait_stream(outer)
    with torch.cuda.stream(own):
        yield
    outer.wait_stream(own)


def capture(run: Callable[[], None], pool: Any) -> Callable[[], None]:
    """What launches the kernels of `run` again, all at once."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on, such as the one that watches over several processes.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        run()
    return graph.replay


class Gradients:
    """Gradients of weights, side by side: those of a backward pass, and what the weights have.

    Args:
        weights: Of one type.

    Attributes:
        new: What a backward pass writes, by weight.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = weights
        self._new, self.new = _side_by_side(weights)
        self._sum, self._sums = _side_by_side(weights)

    def add(self) -> None:
        """Adds what a backward pass wrote to what the weights have, which is None at first.

        They then have parts of one tensor, which the first pass after they were forgotten writes anew.
        """
        grads = [weight.grad for weight in self._weights if weight.grad is not None]
        if not grads:
            self._sum.copy_(self._new)
            for weight, grad in zip(self._weights, self._sums, strict=True):
                weight.grad = grad
        else:
            torch._foreach_add_(grads, self.new)  # as many: all have one, or none


def _side_by_side(weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Room for as many numbers, in one tensor and by weight."""
    whole = torch.empty(
        sum(map(Tensor.numel, weights)), dtype=weights[0].dtype, device=weights[0].device
    )
    parts = whole.split([weight.numel() for weight in weights])
    return whole, [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


class _Graph:
    """Forward and backward pass of a stack for one shape, each as a CUDA graph.

    Args:
        stack: The layers, which have run on this shape before: kernels are compiled.
        x, step: Of this shape.
        shared: With the stack's other graphs: (memory, where gradients are put).
    """

    def __init__(self, stack: Stack, x: Tensor, step: Step, shared: tuple[Any, Gradients]) -> None:
        pool, self.grads = shared
        self.stack, self.x = stack, x.detach().clone()
        own: dict[str, Any] = {name: value.clone() for name, value in step.tensors.items()}
        self.step = replace(step, **own)
        with torch.no_grad():
            with side_stream(x.device):  # what a thread opens by its first products
                self._forward()
                self.come = torch.zeros_like(self.out)
                self._backward()
            self.first = capture(self._forward, pool)
            self.second = capture(self._backward, pool)

    def _forward(self) -> None:
        self.out, self.kept = self.stack.forward(self.x, self.step)

    def _backward(self) -> None:
        self.by_x, grads = self.stack.backward(self.come, self.kept)
        torch._foreach_copy_(self.grads.new, grads)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """The stream after the layers."""
        self.x.copy_(x)
        for name, value in step.tensors.items():
            getattr(self.step, name).copy_(value)
        self.first()
        return self.out.clone()

    def backward(self, grad: Tensor) -> Tensor:
        """As of the stack, but what is for the adapters is added to their gradients."""
        self.come.copy_(grad)
        self.second()
        self.grads.add()
        return self.by_x.clone()


class _Run(torch.autograd.Function):
    """The stack. Its adapters are arguments, so that autograd gives them their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stack: Stack, step: Step, *adapters: Tensor) -> Tensor:
        ctx.stack = stack
        out, ctx.kept = stack.forward(x, step)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_x, adapters = ctx.stack.backward(grads[0], ctx.kept)
        return by_x, None, None, *adapters


class _Replay(torch.autograd.Function):
    """The stack by a graph, which gives the adapters their gradients itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: _Graph, step: Step, _: Tensor) -> Tensor:
        ctx.graph, ctx.turn = graph, graph.stack.turn
        return graph.forward(x, step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.turn == ctx.graph.stack.turn, (
            "graphs share memory: each pass goes back before the next"
        )
        return ctx.graph.backward(grads[0]), None, None, None
