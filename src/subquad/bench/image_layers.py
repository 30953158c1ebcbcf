"""Layers over images side by side: attention of several kinds, and lambda layers in their forms.

Each is a (B, C, H, W) -> (B, C, H, W) layer of the same width, as in the place of a convolution.
Source: Bello 2021, section 4.2 (what is compared there).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from subquad.bench.memory import measured_apart, peak_bytes
from subquad.bench.timing import FAILURES, threads
from subquad.layers.image_attention import (
    AxialImageAttention,
    GlobalImageAttention,
    LinearImageAttention,
    LocalImageAttention,
)
from subquad.layers.lambda_layer import LambdaLayer, Lambdas
from subquad.ops.lambda_position import Form, chosen_form, pair_embeddings

Json = dict[str, Any]
KIND = "image-layer"
FORWARD, BOTH = "forward", "forward and backward"
STACKED = 3  # layers in a stack: those of a ResNet-50 that see the largest maps


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """What all layers share.

    Args:
        channels: C.
        attention_heads: of the layers with attention.
        heads, head_dim: queries of a token, and their width K, of the lambda layers.
        device: "cpu" or "cuda".
        dtype: "float32", or "bfloat16" by autocast.
        seed: of weights and images.
        threads: of torch, None for its own choice.
    """

    channels: int = 64
    attention_heads: int = 8
    heads: int = 4
    head_dim: int = 16
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    threads: int | None = None


Build = Callable[[LayerSizes, int], nn.Module]


def _attention(kind: Any, sizes: LayerSizes, side: int, **options: Any) -> nn.Module:
    layer: nn.Module = kind(sizes.channels, num_heads=sizes.attention_heads, **options)
    return layer


def _on_grid(kind: Any, sizes: LayerSizes, side: int) -> nn.Module:
    return _attention(kind, sizes, side, grid=(side, side))


def _lambda(
    sizes: LayerSizes,
    side: int,
    *,
    form: Form = "auto",
    window: int | None = None,
    thinner: int = 1,
    kind: type[LambdaLayer] = LambdaLayer,
) -> LambdaLayer:
    return kind(
        sizes.channels,
        num_heads=sizes.heads,
        head_dim=max(1, sizes.head_dim // thinner),
        window=window,
        grid=None if window else (side, side),
        form=form,
    )


def _stack(sizes: LayerSizes, side: int, *, form: Form, is_shared: bool) -> nn.Module:
    """Return three lambda layers, one behind the other, with one table if ``is_shared``."""
    kind = _GivenEmbeddings if is_shared and form == "einsum" else LambdaLayer
    layers = [_lambda(sizes, side, form=form, kind=kind) for _ in range(STACKED)]
    if is_shared:
        for layer in layers[1:]:
            layer.table = layers[0].table
    return _SharedStack(layers) if kind is _GivenEmbeddings else nn.Sequential(*layers)


LAYERS: dict[str, Build] = {
    "global attention": partial(_on_grid, GlobalImageAttention),
    "axial attention": partial(_on_grid, AxialImageAttention),
    "local attention 7 x 7": partial(_attention, LocalImageAttention, window=7),
    "linear attention": partial(_attention, LinearImageAttention),
    "lambda, einsum": partial(_lambda, form="einsum"),
    "lambda, FFT": partial(_lambda, form="fft"),
    "lambda": _lambda,
    "lambda, half of k, einsum": partial(_lambda, form="einsum", thinner=2),
    "lambda, half of k": partial(_lambda, thinner=2),
    "lambda 7 x 7": partial(_lambda, window=7),
    "lambda 23 x 23": partial(_lambda, window=23),
}
STACKS: dict[str, Build] = {
    "three lambdas, einsum": partial(_stack, form="einsum", is_shared=False),
    "three lambdas, einsum, shared embeddings": partial(_stack, form="einsum", is_shared=True),
    "three lambdas": partial(_stack, form="auto", is_shared=False),
    "three lambdas, shared embeddings": partial(_stack, form="auto", is_shared=True),
}
ALL = {**LAYERS, **STACKS}


def build_layer(name: str, sizes: LayerSizes, side: int) -> nn.Module:
    """Return a layer of ``ALL`` for images of ``side`` x ``side``, in training mode."""
    torch.manual_seed(sizes.seed)
    return ALL[name](sizes, side).to(sizes.device)


def layer_pass(
    name: str, sizes: LayerSizes, side: int, batch_size: int, which: str
) -> Callable[[], object]:
    """Return one pass of a layer: inference, or forward and backward to its input and weights."""
    layer = build_layer(name, sizes, side)
    x = torch.randn(batch_size, sizes.channels, side, side, device=sizes.device)

    def forward() -> object:
        with torch.inference_mode(), _autocast(sizes):
            return layer(x)

    if which == FORWARD:
        layer.eval()
        return forward
    x.requires_grad_()

    def both() -> object:
        with _autocast(sizes):
            y = layer(x)
        return torch.autograd.grad(y.float().sum(), [x, *layer.parameters()])

    return both


def form_taken(name: str, sizes: LayerSizes, side: int, batch_size: int) -> Form | None:
    """Return the form that a lambda layer's "auto" stands for here; None for other layers."""
    with torch.device("meta"):
        layer: Any = ALL[name](sizes, side)
        layer = layer[0] if isinstance(layer, nn.Sequential) else layer
        if not isinstance(layer, LambdaLayer) or layer.form != "auto":
            return None
        assert layer.table is not None
        tokens, columns = side * side, layer.out_channels // layer.num_heads
        q = torch.empty(batch_size, layer.num_heads, tokens, layer.head_dim)
        v = torch.empty(batch_size, layer.intra_depth, tokens, columns)
        return chosen_form(q, v, layer.table, grid=(side, side))


def embedding_bytes(name: str, sizes: LayerSizes, side: int) -> int:
    """Return the bytes of a lambda layer's tables, once if shared; 0 for other layers."""
    with torch.device("meta"):
        layer = ALL[name](sizes, side)
    tables = [p for key, p in layer.named_parameters() if key.split(".")[-1] == "table"]
    has_lambdas = any(isinstance(m, LambdaLayer) for m in layer.modules())
    return sum(p.numel() * p.element_size() for p in tables) if has_lambdas else 0


def expected_bytes(name: str, sizes: LayerSizes, side: int, batch_size: int) -> int:
    """Return about what forward and backward will hold at most, rather too much than too little.

    Counted is what grows fastest: maps of attention, embeddings of all pairs, transforms.
    """
    tokens = side * side
    activations = 4 * batch_size * tokens * sizes.channels
    maps = 4 * batch_size * sizes.attention_heads * tokens
    count = STACKED if name in STACKS else 1
    if name == "global attention":
        return 24 * activations + 4 * maps * tokens
    if name == "axial attention":
        return 20 * activations + 5 * maps * side
    if "einsum" in name:
        rows = sizes.head_dim // (2 if "half" in name else 1)
        pairs = 4 * tokens * tokens * rows
        lambdas = activations * rows // sizes.heads
        # Three layers that share E have fewer of it, and more of its gradients to be added up.
        copies = 3 if count == 1 else 5
        return 24 * count * activations + copies * pairs + 3 * (count + 1) * lambdas
    # A form by parts holds at most a few transforms of some rows; all rows of a small image.
    parts = min(2**28, 24 * sizes.head_dim * activations // sizes.heads)
    return 48 * count * activations + parts


def layer_peaks(
    name: str, sizes: LayerSizes, cells: list[tuple[int, int]], passes: tuple[str, ...]
) -> Iterator[Json]:
    """Yield the peak memory beyond inputs and weights, for each side and batch size, and pass.

    On a CPU they are measured in one process of their own; what comes after its end is not yielded.
    """
    job = {"name": name, "sizes": asdict(sizes), "cells": cells, "passes": list(passes)}
    if sizes.device == "cpu":
        yield from measured_apart({"kind": KIND, **job})
        return
    found: list[Json] = []
    with suppress(*FAILURES):
        memory_in_this_process(job, found.append)
    yield from found


def memory_in_this_process(job: Json, tell: Callable[[Json], None]) -> None:
    """Measure the peaks of one layer; see ``child``."""
    sizes, name = LayerSizes(**job["sizes"]), job["name"]
    with threads(sizes.threads):
        for which in job["passes"]:
            layer_pass(name, sizes, 4, 1, which)()  # loads what a first call loads
        for side, batch_size in job["cells"]:
            for which in job["passes"]:
                run = layer_pass(name, sizes, side, batch_size, which)
                found = {"side": side, "batch_size": batch_size, "pass": which}
                tell({**found, "peak_bytes": peak_bytes(run, sizes.device)})
                del run


class _GivenEmbeddings(LambdaLayer):
    """A lambda layer in the paper's form, told the embeddings of all pairs."""

    embeddings: Tensor

    def _interact(self, q: Tensor, lambdas: Lambdas) -> Tensor:
        position = torch.einsum("nmku,bumv->bnkv", self.embeddings, lambdas.values)
        return q @ lambdas.content.unsqueeze(1) + torch.einsum("bhnk,bnkv->bhnv", q, position)


class _SharedStack(nn.Module):
    """Layers of one table, whose embeddings are made once for all of them."""

    def __init__(self, layers: list[LambdaLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        table: Tensor = self.layers[0].table  # type: ignore[assignment]
        embeddings = pair_embeddings(table, tuple(x.shape[2:]))
        for layer in self.layers:
            layer.embeddings = embeddings
            x = layer(x)
            del layer.embeddings
        return x


def _autocast(sizes: LayerSizes) -> AbstractContextManager[Any]:
    narrow = sizes.dtype != "float32"
    return torch.autocast(sizes.device, dtype=getattr(torch, sizes.dtype), enabled=narrow)
