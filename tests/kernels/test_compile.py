"""torch.compile keeps the kernel as one call; torch.export takes the torch form."""

from functools import partial

import pytest
import torch

from helpers import assert_near
from subquad.kernels.cpu import library
from subquad.layers import LinearAttention
from subquad.layers.performer import PerformerAttention
from subquad.models import TransformerDecoder

pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(library.library() is None, reason=str(library.why_not())),
    # Said by torch of its own doing, where it traces an autograd function.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

PERFORMER = partial(PerformerAttention, redraw_every=None)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_a_model_compiles_whole_and_keeps_the_kernel(positions):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = TransformerDecoder(16, num_layers=2, num_heads=2, positions=positions)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 70, 16, requires_grad=True)
    weight = torch.randn(2, 70, 16)
    y, want = compiled(x), model(x)
    assert_near(y, want, 1e-6)
    wanted = [x, *model.parameters()]
    got = torch.autograd.grad((y * weight).sum(), wanted)
    assert_near(got, torch.autograd.grad((want * weight).sum(), wanted), 1e-5)


@pytest.mark.parametrize(
    ("build", "is_causal", "kernel"),
    [
        (LinearAttention, True, "linear_attention_cpu"),
        (LinearAttention, False, "linear_attention_cpu"),
        (PERFORMER, True, "favor_attention_causal_cpu"),
        (PERFORMER, False, "favor_attention_cpu"),
    ],
)
@torch.no_grad()
def test_the_graph_holds_the_kernel(build, is_causal, kernel):
    torch._dynamo.reset()
    layer = build(16, 2, is_causal=is_causal)
    graphs = []

    def look(graph, inputs):
        graphs.append(str(graph.graph))
        return graph.forward

    torch.compile(layer, fullgraph=True, backend=look)(torch.randn(2, 9, 16))
    assert len(graphs) == 1
    assert f"subquad.{kernel}" in graphs[0]


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_performer_compiles_whole_with_its_gradients(is_causal):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = PERFORMER(16, 2, is_causal=is_causal)
    x, weight = torch.randn(2, 70, 16, requires_grad=True), torch.randn(2, 70, 16)
    y, want = torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x)
    assert_near(y, want, 1e-6)
    (got,) = torch.autograd.grad((y * weight).sum(), x)
    assert_near(got, torch.autograd.grad((want * weight).sum(), x)[0], 1e-5)


@pytest.mark.parametrize("build", [LinearAttention, PERFORMER])
@pytest.mark.parametrize("is_causal", [True, False])
def test_export_takes_the_torch_form(build, is_causal):
    layer = build(16, 2, is_causal=is_causal).eval()
    x = torch.randn(2, 9, 16)
    program = torch.export.export(layer, (x,))
    assert "subquad" not in str(program.graph)
    assert_near(program.module()(x), layer(x), 1e-6)
