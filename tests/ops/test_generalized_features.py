"""Generalised attention: kernel functions, with and without projection and normaliser."""

import jaxtyping
import pytest
import torch

from helpers import assert_near
from subquad import performer_attention
from subquad.ops.generalized_features import (
    KERNEL_FUNCTIONS,
    GeneralizedFeatures,
    GeneralizedKernel,
    KernelFunction,
)
from subquad.ops.random_matrices import Rows

float64 = torch.float64
FUNCTIONS = {
    "relu": lambda u: u.clamp(min=0),
    "requ": lambda u: u.clamp(min=0) ** 2,
    "exp": torch.exp,
    "abs": torch.abs,
    "sigmoid": lambda u: 1 / (1 + (-u).exp()),
    "elu_plus_one": lambda u: torch.nn.functional.elu(u) + 1,
    "gelu": lambda u: u * (1 + torch.erf(u / 2**0.5)) / 2,
    "tanh": torch.tanh,
    "cos": torch.cos,
    "sin": torch.sin,
    "identity": lambda u: u,
}


def make_qkv(count=7, width=4):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 3, count, n, generator=generator, dtype=float64) for n in (width, width, 5)
    ]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("name", KERNEL_FUNCTIONS)
def test_each_function_is_the_definition(name, projected, is_causal):
    assert set(FUNCTIONS) == set(KERNEL_FUNCTIONS)
    function = KERNEL_FUNCTIONS[name]
    torch.manual_seed(0)
    features = GeneralizedKernel(function=function, projected=projected).draw(4, dtype=float64)
    q, k, v = make_qkv()
    w = features.projection if projected else torch.eye(4, dtype=float64)
    assert w.shape == ((5, 4) if projected else (4, 4))
    phi_q, phi_k = (FUNCTIONS[name](x @ w.T) + 1e-3 for x in (q, k))
    weights = phi_q @ phi_k.mT
    weights = weights.tril() if is_causal else weights
    options = {"is_causal": is_causal, "features": features}
    assert_near(performer_attention(q, k, v, normalize=False, **options), weights @ v, 1e-10)
    assert function.nonnegative == bool((FUNCTIONS[name](torch.linspace(-9, 9, 99)) >= 0).all())
    if function.nonnegative:
        expected = weights @ v / weights.sum(-1, keepdim=True)
        assert_near(performer_attention(q, k, v, **options), expected, 1e-10)
    else:
        with pytest.raises(ValueError, match="normalize must be False for a feature map"):
            performer_attention(q, k, v, **options)


def test_masks_packing_and_eps():
    features = GeneralizedFeatures(None, eps=0.0)
    q, k, v = make_qkv()
    mask = torch.tensor([[True] * 4 + [False] * 3, [False] * 7])
    hidden = ~mask[:, None, :, None]
    k, v = k.masked_fill(hidden, torch.nan), v.masked_fill(hidden, torch.nan)
    y = performer_attention(q, k, v, features=features, key_mask=mask)
    first = performer_attention(q[:1], k[:1, :, :4], v[:1, :, :4], features=features)
    assert_near(y[:1], first, 1e-12)
    assert (y[1] == 0).all()
    q, k, v = make_qkv()
    packed = performer_attention(
        q[:1], k[:1], v[:1], features=features, cu_seqlens=torch.tensor([0, 3, 7]), is_causal=True
    )
    alone = performer_attention(
        *(x[:1, :, 3:] for x in (q, k, v)), features=features, is_causal=True
    )
    assert_near(packed[:, :, 3:], alone, 1e-12)


def test_a_function_of_ones_own():
    square = KernelFunction("square", torch.square, nonnegative=True)
    features = GeneralizedKernel(function=square, projected=False, eps=0.0).draw(4)
    q, k, v = make_qkv()
    weights = q.square() @ k.square().mT
    expected = weights @ v / weights.sum(-1, keepdim=True)
    assert_near(performer_attention(q, k, v, features=features), expected, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_mapped_in_float32(dtype):
    features = GeneralizedKernel().draw(4)
    x = torch.randn(9, 4).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(x), features(x.float()))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: GeneralizedKernel(eps=-1.0), ValueError,
            r"eps must be a finite number of at least 0, got -1\.0",
        ),
        (
            lambda: GeneralizedFeatures(eps=float("nan")), ValueError,
            "eps must be a finite number of at least 0, got nan",
        ),
        (
            lambda: GeneralizedKernel(projected=False).draw(4, 8), ValueError,
            "num_features must be None for features that are not projected, got 8",
        ),
        (
            lambda: GeneralizedKernel(rows=Rows.HADAMARD).draw(6), ValueError,
            "width must be a power of 2 for Rows.HADAMARD, got 6",
        ),
        (lambda: GeneralizedKernel(rows="iid"), TypeError, "rows must be one of Rows.IID"),
        (
            lambda: performer_attention(*make_qkv(), features=GeneralizedKernel().draw(3)),
            ValueError, r"projection must have shape \(m, K\) = \(m, 4\), got \(3, 3\)",
        ),
        (
            lambda: performer_attention(*make_qkv(), features=GeneralizedFeatures(), scale=1.0),
            ValueError, r"scale must be None for GeneralizedFeatures, got 1\.0",
        ),
        (
            lambda: performer_attention(
                *make_qkv(), features=GeneralizedFeatures(), is_causal=True, max_per_feature=True
            ),
            ValueError, "max_per_feature must be False for GeneralizedFeatures, got True",
        ),
    ],
)  # fmt: skip
def test_errors(call, error, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error, match=message):
        call()
