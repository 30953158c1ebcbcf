"""Sums in float32 or wider, whatever comes in and whatever autocast would have; no eps."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import subquad
from helpers import FEATURE_MAPS, leaves
from subquad.ops.linear_attention import (
    linear_attention_bidirectional,
    linear_attention_sums,
    quotient,
)
from subquad.ops.linear_attention_step import linear_attention_step, linear_attention_step_
from subquad.ops.linear_state import linear_state

B, H, T, D, V = 3, 2, 12, 4, 5


def make_qkv(dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, H, T, n, generator=generator).to(dtype) for n in (D, D, V)]


def test_quotient_has_no_eps():
    numerator, denominator = leaves(torch.tensor([[2e-30], [3.0]]), torch.tensor([1e-30, 0.0]))
    y = quotient(numerator, denominator)
    assert y.tolist() == [[2.0], [0.0]]
    gradients = torch.autograd.grad(y[1].sum(), (numerator, denominator))
    assert all(x.eq(0).all() for x in gradients)


class ProductDtypes(TorchDispatchMode):
    """Note the dtypes that matrix products and sums are computed in."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(word in name for word in ("mm", "sum", "mul", "div", "exp")):
            self.seen |= {
                x.dtype
                for x in tree_leaves((args, kwargs))
                if isinstance(x, torch.Tensor) and x.is_floating_point()
            }
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_autocast_narrows_no_product_and_no_sum(name, is_causal):
    feature_map = FEATURE_MAPS[name](H, D)
    if name == "learned":
        feature_map = feature_map.float()
    inputs = leaves(*make_qkv(torch.float32))
    with ProductDtypes() as dtypes:
        with torch.autocast("cpu", torch.bfloat16):
            y = subquad.linear_attention(
                *inputs, is_causal=is_causal, feature_map=feature_map, normalize=name != "identity"
            )
        y.sum().backward()
    assert dtypes.seen == {torch.float32}


@pytest.mark.parametrize("kind", ["none", "token", "feature"])
def test_a_causal_backward_under_autocast_stays_wide(kind):
    """torch advises against it, but many loops have their backward inside the block."""
    inputs = leaves(*make_qkv(torch.float32))
    shape = {"none": None, "token": (B, H, T), "feature": (B, H, T, D)}[kind]
    g = None if shape is None else -torch.rand(shape)
    with ProductDtypes() as dtypes, torch.autocast("cpu", torch.bfloat16):
        subquad.linear_attention(*inputs, is_causal=True, log_decay=g).sum().backward()
    assert dtypes.seen == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_long_sum_of_ones_is_exact(dtype, autocast):
    """bf16 would stop counting at 256, fp16 at 2048."""
    length = 3000
    ones = torch.ones(1, 1, length, 2, dtype=dtype)
    state = linear_state(1, 1, 2, 2, like=ones)
    assert state.kv.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        numerator, denominator, after = linear_attention_sums(ones, ones, ones, state)
        assert denominator[0, 0].tolist() == [2 * t for t in range(1, length + 1)]
        assert torch.equal(numerator[..., 0], denominator)
        assert after.k_sum.eq(length).all()
        both_ways = linear_attention_bidirectional(ones, ones, ones.float(), normalize=False)
        assert both_ways.eq(2 * length).all()
        for t in range(length, length + 2):
            token = ones[:, :, 0]
            _, after = linear_attention_step(token, token, token, after)
            assert after.kv.eq(t + 1).all()
        linear_attention_step_(token, token, token, after)
        assert after.kv.eq(length + 3).all()


def test_half_precision_comes_back_in_the_dtype_of_v():
    for dtype in (torch.bfloat16, torch.float16):
        q, k, v = make_qkv(dtype)
        for is_causal in (False, True):
            y = subquad.linear_attention(q, k, v, is_causal=is_causal)
            assert y.dtype == dtype
            wide = subquad.linear_attention(q.double(), k.double(), v.double(), is_causal=is_causal)
            # One rounding at the end, not one a sum.
            assert (y.double() - wide).abs().max() <= torch.finfo(dtype).eps * wide.abs().max()
