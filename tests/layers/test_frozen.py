import pytest
import torch
from torch import nn

from helpers import assert_near
from subquad.layers.feed_forward import FeedForward
from subquad.layers.frozen import frozen

rows = pytest.mark.parametrize("rows", [1, 5])


@rows
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(6, 4),
        lambda: nn.Linear(6, 4, bias=False),
        lambda: nn.LayerNorm(6, eps=0.1),
        lambda: nn.Dropout(0.5).eval(),
        lambda: nn.Dropout(0.0),
        lambda: nn.Identity(),
        lambda: FeedForward(6, 9, dropout=0.5).eval(),
        lambda: FeedForward(6, 9, activation="gelu").eval(),
    ],
)
def test_a_frozen_module_computes_the_same(build, rows, dtype):
    module = build().to(dtype)
    for p in module.parameters():
        nn.init.normal_(p)
    x = torch.randn(rows, 6, dtype=dtype)
    before = x.clone()
    with torch.inference_mode():
        take = module.frozen(rows) if isinstance(module, FeedForward) else frozen(module, rows)
        assert_near(take(x), module(x), 1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert torch.equal(x, before)


def test_plain_layers_are_replaced_and_others_are_not():
    for module in (nn.Linear(2, 2), nn.LayerNorm(2), nn.Dropout(0.5).eval()):
        assert frozen(module, 3) is not module
    for module in (nn.Dropout(0.5), nn.Identity(), nn.RMSNorm(2), nn.Bilinear(2, 2, 2)):
        assert frozen(module, 3) is module


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_module_with_a_hook_keeps_it(register):
    calls = []
    linear = nn.Linear(2, 2)
    getattr(linear, register)(lambda *args: calls.append(args))
    frozen(linear, 3)(torch.randn(3, 2))
    assert len(calls) == 1


def test_a_module_with_a_forward_of_its_own_or_a_parametrization_keeps_it():
    linear = nn.Linear(2, 2)
    linear.forward = lambda x: x + 1
    assert torch.equal(frozen(linear, 1)(torch.ones(1, 2)), torch.full((1, 2), 2.0))
    reshaped = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert frozen(reshaped, 1) is reshaped


def test_a_hook_sees_the_hidden_layer_before_the_activation():
    network, seen = FeedForward(4, 6).eval(), []
    network.inner.register_forward_hook(lambda module, args, hidden: seen.append(hidden))
    x = torch.randn(3, 4)
    with torch.inference_mode():
        network.frozen(3)(x)
        assert torch.equal(seen[0], nn.functional.linear(x, *network.inner.parameters()))


@rows
def test_autocast_still_narrows_products(rows):
    linear, x = nn.Linear(6, 4), torch.randn(rows, 6)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert frozen(linear, rows)(x).dtype == torch.bfloat16
