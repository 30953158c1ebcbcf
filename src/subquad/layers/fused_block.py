"""A block's step as one native call, where the block is what the C++ kernel knows.

One token at a few sequences is a chain of tiny products, and what lies between them (dispatch,
views, new tensors) takes as long as they do. ``kernels/cpu/block_step.py`` does it in one call.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from subquad.kernels.cpu import library
from subquad.kernels.cpu.block_step import (
    MOST_SEQUENCES,
    Affine,
    BlockStep,
    BlockWeights,
    Norm,
)
from subquad.kernels.dispatch import Impl
from subquad.layers.feed_forward import FeedForward
from subquad.layers.frozen import is_plain
from subquad.layers.heads import Heads
from subquad.layers.linear_attention import LinearAttention
from subquad.ops.feature_maps import EluPlusOne


def fused_step(block: Any, batch_size: int) -> Callable[[Tensor, Any], tuple[Tensor, Any]] | None:
    """Return a step of ``block`` for a loop over tokens, or None where the kernel does not fit.

    It fits linear attention with elu + 1 in a block of this package without hooks, dropout at work
    or parts of your own, in float32 on the CPU, at 1 to ``MOST_SEQUENCES`` sequences, and gives no
    gradient.

    Args:
        block: a ``Block``.
        batch_size: how many sequences there will be.
    """
    mixer = block.mixer
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    if not 1 <= batch_size <= MOST_SEQUENCES or not _is_known(block) or not _is_native(mixer.impl):
        return None
    heads, feed_forward = mixer.heads, block.feed_forward
    weights = BlockWeights(
        qkv=_affine(heads.qkv_proj),
        out=_affine(heads.out_proj),
        inner=_affine(feed_forward.inner),
        outer=_affine(feed_forward.outer),
        mixer_norm=_norm(block.mixer_norm),
        feed_norm=_norm(block.feed_forward_norm),
    )
    if not all(map(_is_plain_float, _tensors(weights))) or not _shapes_fit(weights, heads):
        return None
    run = BlockStep(
        weights, batch_size=batch_size, num_heads=heads.num_heads, head_dim=heads.head_dim,
        value_dim=heads.value_dim, is_normalized=mixer.normalize, is_pre_norm=block.norm == "pre",
        is_gelu=feed_forward.activation == "gelu",
    )  # fmt: skip
    positions = mixer.rotary_positions

    def step(x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        rotation, past = positions.rotation(x_t.unsqueeze(1), state)
        cos, sin = (None, None) if rotation is None else rotation
        return run(x_t, past.kv, past.k_sum, cos, sin), positions.advance(past, state, 1)

    return step


def _is_known(block: Any) -> bool:
    """Return whether the block is made of the parts that the kernel computes, and of no others."""
    mixer, feed_forward = block.mixer, block.feed_forward
    own = [
        (mixer, LinearAttention), (feed_forward, FeedForward), (block.dropout, nn.Dropout),
        (block.mixer_norm, nn.LayerNorm), (block.feed_forward_norm, nn.LayerNorm),
    ]  # fmt: skip
    if not _are_plain(own) or {"step", "step_", "stepper"} & vars(mixer).keys():
        return False
    if not _are_plain([(mixer.heads, Heads)]) or mixer.heads.share_qk or not mixer.is_causal:
        return False
    linear = (mixer.heads.qkv_proj, mixer.heads.out_proj, feed_forward.inner, feed_forward.outer)
    return (
        _are_plain([*((x, nn.Linear) for x in linear), (feed_forward.dropout, nn.Dropout)])
        and not (block.training and (block.dropout.p or feed_forward.dropout.p))
        and not (block.training and block.drop_path.rate)
        and type(mixer.feature_map) is EluPlusOne
        and feed_forward.activation in ("relu", "gelu")
        and block.norm in ("pre", "post")
    )


def _shapes_fit(weights: BlockWeights, heads: Heads) -> bool:
    """Return whether every weight and bias has the shape that the others imply."""
    d, qk, v = heads.d_model, heads.num_heads * heads.head_dim, heads.num_heads * heads.value_dim
    hidden = weights.inner.weight.shape[0]
    wanted = {
        "qkv": (2 * qk + v, d), "out": (d, v), "inner": (hidden, d), "outer": (d, hidden),
    }  # fmt: skip
    affine = {name: getattr(weights, name) for name in wanted}
    return all(
        map_.weight.shape == wanted[name]
        and (map_.bias is None or map_.bias.shape == wanted[name][:1])
        for name, map_ in affine.items()
    ) and all(
        x is None or x.shape == (d,)
        for norm in (weights.mixer_norm, weights.feed_norm)
        for x in (norm.weight, norm.bias)
    )


def _are_plain(parts: list[tuple[Any, type[nn.Module]]]) -> bool:
    return all(type(part) is kind and is_plain(part) for part, kind in parts)


def _is_native(impl: Impl) -> bool:
    return impl in (Impl.AUTO, Impl.CPU) and library.library() is not None


def _affine(linear: nn.Linear) -> Affine:
    return Affine(linear.weight, linear.bias)


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps)


def _tensors(weights: BlockWeights) -> Iterator[Tensor]:
    for part in weights:
        yield from (x for x in part if isinstance(x, Tensor))


def _is_plain_float(x: Tensor) -> bool:
    return (
        type(x) in (nn.Parameter, Tensor)
        and x.layout is torch.strided
        and not x.is_mkldnn
        and not x.is_neg()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.is_contiguous()
    )
