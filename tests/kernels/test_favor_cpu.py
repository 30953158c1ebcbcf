"""FAVOR+ in C++ against the definition in float64, and its features against formulas."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import assert_near, leaves
from subquad.kernels.cpu import favor, library
from subquad.kernels.dispatch import Impl
from subquad.ops import performer_causal
from subquad.ops.performer_attention import performer_attention, performer_attention_quadratic
from subquad.ops.performer_causal import performer_attention_chunked
from subquad.ops.performer_state import performer_state
from subquad.ops.random_features import Estimator, RandomFeatures, SoftmaxKernel

pytestmark = pytest.mark.skipif(library.library() is None, reason=str(library.why_not()))

LOWEST = torch.finfo(torch.float32).min / 4
#   Tq, Tk, K, V, features: one query, a few, 48 at once exactly, more; widths of no vector
SIZES = [(1, 2, 16, 16, 16), (5, 9, 3, 7, 5), (48, 96, 64, 64, 256), (130, 50, 20, 33, 100)]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features_of(K, M, estimator=Estimator.POSITIVE):
    generator = torch.Generator().manual_seed(1)
    return SoftmaxKernel(estimator=estimator).draw(K, M, generator=generator)


def float64_features(features):
    return RandomFeatures(features.projection.double(), features.estimator)


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def threads(request, monkeypatch):
    """With more threads than heads time is cut; small calls would else stay on one thread."""
    monkeypatch.setattr(library, "threads_for", lambda work: request.param)
    return request.param


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("estimator", [Estimator.POSITIVE, Estimator.HYPERBOLIC])
def test_all_keys_give_the_definition_and_its_gradients(sizes, masks, estimator, instruction_set):
    Tq, Tk, K, V, M = sizes
    q, k, v = draw(2, 3, Tq, K), draw(2, 3, Tk, K, seed=1), draw(2, 3, Tk, V, seed=2)
    features, mask = features_of(K, M, estimator), None
    if masks:
        mask = torch.rand(2, Tk, generator=torch.Generator().manual_seed(3)) > 0.4
        mask[1] = False
        k[~mask[:, None].expand(2, 3, Tk)] = torch.nan
        v[~mask[:, None].expand(2, 3, Tk)] = torch.inf
    weight = draw(2, 3, Tq, V, seed=4)

    def run(attend, dtype, **options):
        inputs = leaves(*(x.to(dtype) for x in (q, k, v)))
        y = attend(*inputs, key_mask=mask, **options)
        return [y, *torch.autograd.grad((y * weight.to(dtype)).sum(), inputs)]

    found = run(performer_attention, torch.float32, features=features, impl=Impl.CPU)
    wanted = run(performer_attention_quadratic, torch.float64, features=float64_features(features))
    for a, b in zip(found, wanted, strict=True):
        assert_near(a.double(), b, 1e-5)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("is_causal", [False, True])
def test_few_heads_share_out_time(heads, is_causal, threads):
    features = features_of(16, 48)
    tensors = [draw(1, heads, 700, 16, seed=s) for s in range(3)]
    inputs, wide = leaves(*tensors), leaves(*(x.double() for x in tensors))
    options = {"features": features, "is_causal": is_causal, "impl": Impl.CPU}
    y = performer_attention(*inputs, **options)
    wanted = performer_attention_quadratic(
        *wide, features=float64_features(features), is_causal=is_causal
    )
    assert_near(performer_attention(*tensors, **options).double(), wanted, 1e-5)
    assert_near(y.double(), wanted, 1e-5)
    weight = draw(1, 1, 700, 1, seed=7).expand_as(y)  # all of a row lie in one place
    found = torch.autograd.grad((y * weight).sum(), inputs)
    expected = torch.autograd.grad((wanted * weight).sum(), wide)
    assert_near([x.double() for x in found], expected, 1e-5)
    (found,) = torch.autograd.grad(performer_attention(*inputs, **options).sum(), inputs[2])
    assert_near(found.sum(), torch.tensor(float(y.numel())), 1e-5)


@pytest.mark.parametrize(("T", "K", "M"), [(1, 3, 5), (60, 3, 1), (48, 64, 256), (700, 20, 50)])
@pytest.mark.parametrize("hides", [False, True])
def test_causal_features_are_below_a_running_maximum(T, K, M, hides, instruction_set, threads):
    k, w, start = draw(1, 1, T, K), 0.5 * draw(M, K, seed=1), torch.full((1, 1), LOWEST)
    hidden = None
    if hides:
        hidden = torch.rand(1, 1, T, generator=torch.Generator().manual_seed(3)) > 0.5
        k[hidden] = torch.nan
    phi, log_max = favor.map_keys(k, w, 0.5, start, hidden)
    logs = k.double() @ w.double().T - 0.5 * k.double().square().sum(-1, keepdim=True)
    if hidden is not None:
        logs[hidden] = -torch.inf
    highest = torch.maximum(logs.amax(-1).cummax(-1).values, start.double().unsqueeze(-1))
    assert_near(log_max.double(), highest, 1e-5)
    assert_near(phi.double(), (logs - highest.unsqueeze(-1)).exp(), 1e-5)
    assert bool((phi <= 1).all())
    assert_near(
        favor.map_queries(k.nan_to_num(), w).double(),
        (k.nan_to_num().double() @ w.double().T).softmax(-1), 1e-5,
    )  # fmt: skip


def test_features_go_on_from_where_the_maximum_stood():
    k, w = draw(2, 3, 70, 8), draw(40, 8, seed=1)
    empty = torch.full((2, 3), LOWEST)
    phi, log_max = favor.map_keys(k, w, 0.5, empty, None)
    _, first = favor.map_keys(k[:, :, :33], w, 0.5, empty, None)
    later, rest = favor.map_keys(k[:, :, 33:], w, 0.5, first[:, :, -1], None)
    assert torch.equal(torch.cat([first, rest], 2), log_max)
    assert torch.equal(later, phi[:, :, 33:])


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_a_key_that_is_not_finite_gives_nan_where_it_is_seen(is_causal, trains, threads):
    for bad in (torch.nan, torch.inf):
        q, k, v = (draw(1, 1, 600, 8, seed=s) for s in range(3))
        k[:, :, 300, 2] = bad
        q.requires_grad_(trains)
        y = performer_attention(
            q, k, v, features=features_of(8, 40), is_causal=is_causal, impl=Impl.CPU
        )
        assert bool(y[:, :, 300:].isnan().all())
        assert bool(y[:, :, :300].isnan().any()) != is_causal


def test_a_key_whose_features_are_all_at_minus_infinity_gives_nan():
    k = torch.zeros(1, 1, 3, 2)
    k[0, 0, 1] = torch.inf
    phi, _ = favor.map_keys(k, -torch.ones(1, 2), 0.5, torch.full((1, 1), LOWEST), None)
    assert bool(phi[0, 0, 1].isnan())
    assert float(phi[0, 0, 0]) == 1


@pytest.mark.parametrize("trains", [False, True])
def test_the_past_stays_as_it_is_under_a_huge_future_token(trains, threads):
    q, k, v = (draw(1, 1, 600, 8, seed=s) for s in range(3))
    features = features_of(8, 40)
    options = {"features": features, "is_causal": True, "impl": Impl.CPU}
    before = performer_attention(q.clone().requires_grad_(trains), k, v, **options)
    for x in (q, k, v):
        x[:, :, 500] = 1e30
    after = performer_attention(q.clone().requires_grad_(trains), k, v, **options)
    assert torch.equal(before[:, :, :500], after[:, :, :500])


def test_the_largest_key_may_stand_in_the_first_stretch(threads):
    q, k, v = (draw(1, 1, 700, 16, seed=s) for s in range(3))
    k[:, :, 100:] *= 0.1
    features = features_of(16, 40)
    _, past = performer_attention_chunked(
        q, k, v, performer_state(1, 1, 16, 16, features, q), features=features, impl=Impl.CPU
    )
    logs = features.log_features(k.double() / 2)  # of 16 ** -0.25 k
    start = torch.full((1, 1), LOWEST)
    w = features.projection / 2
    _, log_max = favor.map_keys(k, w, 0.125, start, None)
    assert_near(log_max[:, :, -1], past.log_max, 1e-6)
    assert_near(log_max.double(), (logs + math.log(40) / 2).amax(-1).cummax(-1).values, 1e-5)
    for trains in (False, True):
        y = performer_attention(
            q.clone().requires_grad_(trains), k, v, features=features, is_causal=True, impl=Impl.CPU
        )
        wanted = performer_attention_quadratic(
            q.double(), k.double(), v.double(), features=float64_features(features), is_causal=True
        )
        assert_near(y.double(), wanted, 1e-5)


@pytest.mark.parametrize("masks", [False, True])
def test_one_call_and_features_apart_agree_from_a_state_on(masks, threads, instruction_set):
    q, k, v = (draw(1, 1, 700, 16, seed=s) for s in range(3))
    features, mask = features_of(16, 40), None
    if masks:
        mask = torch.rand(1, 700, generator=torch.Generator().manual_seed(3)) > 0.4
    past = performer_state(1, 1, 16, 16, features, q)
    _, past = performer_attention_chunked(q, 0.3 * k, v, past, features=features)
    options = {"features": features, "key_mask": mask, "impl": Impl.CPU}
    found = performer_attention_chunked(q, k, v, past, **options)
    wanted = performer_attention_chunked(q.clone().requires_grad_(), k, v, past, **options)
    assert_near(found[0], wanted[0], 1e-5)
    assert torch.equal(found[1].log_max, wanted[1].log_max)
    assert_near(found[1].sums, wanted[1].sums, 1e-5)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_a_scale_that_is_0_in_float32_hides_keys_all_the_same(is_causal, trains):
    q, k, v = (draw(1, 2, 9, 8, seed=s) for s in range(3))
    mask = torch.arange(9)[None] != 2
    y = performer_attention(
        q.requires_grad_(trains), k, v, features=features_of(8, 12), is_causal=is_causal,
        key_mask=mask, scale=1e-46, impl=Impl.CPU,
    )  # fmt: skip
    keep = mask[0].float()
    counts = keep.cumsum(0) if is_causal else keep.sum().expand(9)
    shown = v * keep[:, None]
    sums = shown.cumsum(2) if is_causal else shown.sum(2, keepdim=True)
    assert_near(y, (sums / counts[:, None]).expand_as(v), 1e-5)


def test_a_state_that_is_not_all_float32_takes_the_torch_form():
    q, k, v = (draw(1, 2, 20, 8, seed=s) for s in range(3))
    features = features_of(8, 12)
    _, past = performer_attention_chunked(
        q, k, v, performer_state(1, 2, 8, 8, features, q), features=features
    )
    wide = past._replace(k_sum=past.k_sum.double(), log_max=past.log_max.double())
    wanted = performer_attention_chunked(q, k, v, past, features=features)[0]
    assert_near(performer_attention_chunked(q, k, v, wide, features=features)[0], wanted, 1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("is_causal", [False, True])
def test_forward_mode_differentiation_is_refused(is_causal):
    q, k, v = (draw(1, 2, 9, 8, seed=s) for s in range(3))
    features = features_of(8, 12)

    def attend(q):
        return performer_attention(q, k, v, features=features, is_causal=is_causal, impl=Impl.CPU)

    # Which of the two torch raises depends on the form and on torch's version.
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(attend, (q,), (torch.ones_like(q),))


@pytest.mark.parametrize("factor", [30.0, 1e4])
def test_any_magnitude_is_near_the_definition(factor, instruction_set):
    q, k, v = factor * draw(1, 2, 60, 32), factor * draw(1, 2, 60, 32, seed=1), draw(1, 2, 60, 8)
    features = features_of(32, 64)
    y = performer_attention(q, k, v, features=features, impl=Impl.CPU)
    wanted = performer_attention_quadratic(
        q.double(), k.double(), v.double(), features=float64_features(features)
    )
    # At 1e4 float32 holds |k|^2 / 2 to some units only; there the torch form is the measure.
    if factor > 100:
        wanted = performer_attention(q, k, v, features=features, impl=Impl.TORCH).double()
    assert_near(y.double(), wanted, 1e-3)


def test_layouts_in_memory_and_bfloat16():
    features = features_of(16, 40)
    base = draw(2, 50, 3, 3 * 16)
    q, k, v = (x.transpose(1, 2) for x in base.split(16, dim=-1))
    turned = [x.mT.contiguous().mT for x in (q, k, v)]
    repeated = k[:1].expand(2, -1, -1, -1)
    for is_causal in (False, True):
        options = {"features": features, "is_causal": is_causal}
        wanted = performer_attention(q, k, v, impl=Impl.TORCH, **options)
        assert_near(performer_attention(q, k, v, impl=Impl.CPU, **options), wanted, 1e-5)
        assert_near(performer_attention(*turned, impl=Impl.CPU, **options), wanted, 1e-5)
        assert_near(
            performer_attention(q, repeated, v, impl=Impl.CPU, **options),
            performer_attention(q, repeated, v, impl=Impl.TORCH, **options), 1e-5,
        )  # fmt: skip
        halves = [x.bfloat16() for x in (q, k, v)]
        y = performer_attention(*halves, impl=Impl.CPU, **options)
        trained = performer_attention(*leaves(*halves), impl=Impl.CPU, **options)
        assert_near(trained.float(), y.float(), 5e-3)
        inputs, wide = leaves(*halves), leaves(*(x.float() for x in halves))
        grads = torch.autograd.grad(performer_attention(*inputs, **options).sum(), inputs)
        assert all(x.dtype == torch.bfloat16 for x in grads)
        wanted = torch.autograd.grad(performer_attention(*wide, **options).sum(), wide)
        largest = max(float(x.norm()) for x in wanted)
        for a, b in zip(grads, wanted, strict=True):
            assert (a.float() - b).norm() <= 1e-2 * largest
        wanted = performer_attention(*(x.float() for x in halves), impl=Impl.TORCH, **options)
        assert y.dtype == torch.bfloat16
        assert_near(y.float(), wanted, 5e-3)


class Operators(TorchDispatchMode):
    """The names of our operators that ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "subquad":
            self.names.add(func._opname)
        return func(*args, **(kwargs or {}))


def operators_of(
    is_causal, impl, dtype=torch.float32, estimator=Estimator.POSITIVE, *, trains=False
):
    q = draw(1, 2, 20, 8).to(dtype).requires_grad_(trains)
    with Operators() as ran:
        y = performer_attention(
            q, q, q, features=features_of(8, 12, estimator), is_causal=is_causal, impl=impl
        )
        if trains:
            y.sum().backward()
    return ran.names


def test_which_kernel_runs():
    assert operators_of(False, Impl.AUTO) == {"favor_attention_cpu"}
    assert operators_of(False, Impl.AUTO, trains=True) == {
        "favor_attention_cpu", "favor_attention_cpu_backward",
    }  # fmt: skip
    assert operators_of(False, Impl.TORCH, trains=True) == set()
    assert operators_of(False, Impl.AUTO, torch.float64) == set()
    assert operators_of(False, Impl.AUTO, estimator=Estimator.TRIGONOMETRIC) == set()
    for impl in (Impl.CPU, Impl.AUTO):
        assert operators_of(True, impl) == {"favor_attention_causal_cpu"}
        assert operators_of(True, impl, trains=True) == {
            "favor_queries_cpu", "favor_keys_cpu", "linear_attention_cpu",
            "linear_attention_cpu_backward",
        }  # fmt: skip
    assert operators_of(True, Impl.TORCH) == set()


@pytest.mark.parametrize(
    ("dtype", "reason"), [(torch.float64, "computes in float32"), (torch.half, "not take q and k")]
)
def test_what_it_does_not_take_is_refused(dtype, reason):
    with pytest.raises(ValueError, match=f"got Impl.CPU: .*{reason}"):
        operators_of(False, Impl.CPU, dtype)


@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize("masks", [False, True])
def test_stretches_are_the_whole(per_feature, masks, monkeypatch):
    q, k, v = (draw(2, 3, 100, 8, seed=s) for s in range(3))
    features, mask = features_of(8, 20), None
    if masks:
        mask = torch.rand(2, 100, generator=torch.Generator().manual_seed(3)) > 0.4

    def run(stretch, impl):
        monkeypatch.setattr(performer_causal, "STRETCH", stretch)
        past = performer_state(2, 3, 8, 8, features, q, max_per_feature=per_feature)
        y, past = performer_attention_chunked(
            q, k, v, past, features=features, key_mask=mask, max_per_feature=per_feature, impl=impl
        )
        return [y, *past]

    for impl, stretch in itertools.product((Impl.AUTO, Impl.TORCH), (1, 17, 32)):
        for part, whole in zip(run(stretch, impl), run(100, impl), strict=True):
            assert_near(part, whole, 1e-5)
