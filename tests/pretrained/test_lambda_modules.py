"""Random weights of the published packages' own modules, in our layers and back."""

import sys
import warnings
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

from helpers import assert_near
from subquad.layers import LambdaLayer
from subquad.models import LambdaResNet
from subquad.pretrained.lambda_weights import lambda_weights, load_lambda_weights

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}

pytestmark = pytest.mark.slow


def shaken(module, seed, dtype):
    """Give every weight and running statistic of a module a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, x in module.state_dict().items():
        if x.is_floating_point():
            noise = torch.randn(x.shape, generator=generator)
            x.copy_(1 + 0.3 * noise.tanh() if name.endswith("running_var") else 0.4 * noise)
        else:
            x.fill_(seed)
    return module.to(dtype).eval()


def same_outputs_and_gradients(ours, theirs, x, tolerance):
    found = []
    for module in (ours, theirs):
        given = x.clone().requires_grad_()
        y = module(given)
        weight = torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape).sin()
        found.append([y.detach(), *torch.autograd.grad(y, given, weight)])
    assert_near(*found, tolerance)


def there_and_back(ours, theirs, layout, x, tolerance):
    """Load theirs into ours, then ours, of other weights, into theirs; both times they agree."""
    dtype = x.dtype
    load_lambda_weights(ours.to(dtype), theirs.state_dict(), layout)
    same_outputs_and_gradients(ours.eval(), theirs, x, tolerance)
    for name, weight in lambda_weights(ours, layout).items():
        assert torch.equal(weight, theirs.state_dict()[name])
    shaken(ours, 3, dtype)
    theirs.load_state_dict(lambda_weights(ours, layout), strict=True)
    same_outputs_and_gradients(ours, theirs, x, tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("published", "options"),
    [
        ({"n": 6}, {"grid": (6, 6)}),
        ({"r": 5}, {"window": 5, "bias": True}),
        ({"n": 6, "dim_u": 3}, {"grid": (6, 6), "intra_depth": 3}),
        ({"r": 3, "dim_u": 4}, {"window": 3, "bias": True, "intra_depth": 4}),
        ({"r": 7, "heads": 2, "dim_k": 5}, {"window": 7, "bias": True, "num_heads": 2,
                                           "head_dim": 5}),
    ],
)  # fmt: skip
def test_lucidrains_module(published, options, dtype):
    package = pytest.importorskip("lambda_networks")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.meshgrid's, which is not ours to mend
        theirs = package.LambdaLayer(dim=12, dim_out=16, **{"dim_k": 4, "heads": 4, **published})
    ours = LambdaLayer(12, 16, **{"head_dim": 4, "num_heads": 4, **options})
    x = torch.randn(3, 12, 6, 6, dtype=dtype)
    there_and_back(ours, shaken(theirs, 1, dtype), "lambda-networks", x, TOLERANCES[dtype])


@pytest.mark.parametrize("form", ["einsum", "convolution", "rows", "fft"])
def test_every_form_takes_lucidrains_weights(form):
    package = pytest.importorskip("lambda_networks")
    theirs = shaken(package.LambdaLayer(dim=8, dim_k=4, r=5, heads=2), 1, torch.float64)
    ours = LambdaLayer(8, head_dim=4, num_heads=2, window=5, bias=True, form=form)
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    there_and_back(ours, theirs, "lambda-networks", x, 1e-9)


@pytest.mark.parametrize(
    ("name", "side"),
    [("lambda_resnet26t", 160), ("lambda_resnet50ts", 128), ("lambda_resnet26rpt_256", 256)],
)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_timms_networks(name, side, dtype):
    timm = timm_or_skip()
    torch.manual_seed(0)
    theirs = timm.create_model(name, pretrained=False)
    for module in theirs.modules():  # as trained ones would be: all branches, all statistics
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.7, 1.3)
    theirs = theirs.to(dtype).eval()
    ours = LambdaResNet.preset(name).to(dtype).eval()
    load_lambda_weights(ours, theirs.state_dict(), "timm")
    x = torch.randn(2, 3, side, side, dtype=dtype)
    with torch.inference_mode():
        assert_near(ours(x), theirs(x), TOLERANCES[dtype])
    back = timm.create_model(name, pretrained=False).to(dtype).eval()
    back.load_state_dict(lambda_weights(ours, "timm"), strict=True)
    with torch.inference_mode():
        assert torch.equal(back(x), theirs(x))


OPERATORS = []  # torch forgets operators whose library is collected


def timm_or_skip():
    """Import timm; a torchvision built for CUDA gets the two operators that it asks for."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        try:
            return import_module("timm")
        except RuntimeError:
            library = torch.library.Library("torchvision", "FRAGMENT")
            for op in ("nms", "qnms"):
                library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            OPERATORS.append(library)
            for name in [n for n in sys.modules if n.split(".")[0] in ("timm", "torchvision")]:
                del sys.modules[name]
            return import_module("timm")
