"""``torch.compile`` takes linear attention whole, without a graph break."""

import pytest
import torch
from torch import nn

import subquad
from helpers import assert_near
from subquad.layers import LinearAttention

pytestmark = [
    pytest.mark.compile,
    # Dynamo itself makes an instance of an autograd.Function while it traces one.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


class Small(nn.Module):
    """Linear attention as one would write it by hand, with a decay that is learned."""

    def __init__(self, is_causal):
        super().__init__()
        self.is_causal = is_causal
        self.proj = nn.Linear(8, 24)
        self.decay = nn.Linear(8, 2)

    def forward(self, x, key_mask=None):
        q, k, v = self.proj(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        log_decay = -self.decay(x).mT.exp() if self.is_causal else None
        return subquad.linear_attention(
            q, k, v, is_causal=self.is_causal, key_mask=key_mask, log_decay=log_decay
        )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("build", ["by hand", "layer"])
def test_one_graph_gives_the_same_values_and_gradients(build, is_causal, masked):
    torch.compiler.reset()
    layer = LinearAttention(8, 2, is_causal=is_causal)
    module = layer if build == "layer" else Small(is_causal)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 70, 8)
    key_mask = torch.rand(2, 70) < 0.8 if masked else None
    results = []
    for run in (module, compiled):
        y = run(x, key_mask=key_mask)
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(y.square().sum(), parameters, materialize_grads=True)
        results.append([y, *gradients])
    assert_near(results[1], results[0], 1e-5)
