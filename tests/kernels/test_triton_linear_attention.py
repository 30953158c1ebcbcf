"""The Triton kernels against a recurrence in float64, values and every gradient.

On the CPU: `TRITON_INTERPRET=1 pytest -m slow tests/kernels`, with triton installed.
"""

import os
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from helpers import TOLERANCE, assert_near
from subquad.kernels.triton import linear_attention as kernels
from subquad.kernels.triton.plan import blocks, fits_whole, plan
from subquad.ops.feature_maps import elu_plus_one
from subquad.ops.linear_attention import linear_attention_quadratic
from subquad.ops.linear_state import LinearState
from subquad.ops.rotary_linear_attention import rotary_linear_attention_quadratic
from subquad.ops.rotation import Rotation

pytest.importorskip("triton", reason="triton is not installed: pip install 'subquad[triton]'")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.slow,
    # The interpreter is numpy, which warns of the inf and NaN that these tests plant.
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cpu" and not INTERPRETED:
        pytest.skip("without a GPU the kernels run under TRITON_INTERPRET=1 only")
    if request.param == "cuda" and (INTERPRETED or not torch.cuda.is_available()):
        pytest.skip("no NVIDIA GPU here, or TRITON_INTERPRET=1 is set")
    return request.param


@dataclass(frozen=True, kw_only=True)
class Case:
    seq_len: int = 64
    K: int = 16
    V: int = 16
    is_elu: bool = True
    is_normalized: bool = True
    decay: bool = False
    mask: bool = False
    rotation: bool = False
    state: bool = False
    state_grad: bool = False
    dtype: torch.dtype = torch.float32
    v_dtype: torch.dtype | None = None
    heads: int = 2


EVERYTHING = Case(
    seq_len=130, K=24, V=40, decay=True, mask=True, rotation=True, state=True, state_grad=True
)
CASES = {
    "one token": Case(seq_len=1),
    "one token, everything": replace(EVERYTHING, seq_len=1),
    "five tokens": Case(seq_len=5, K=24, V=40, state=True),
    "two chunks": Case(seq_len=64, K=40, V=24),
    "several segments": Case(seq_len=130, K=64, V=80),
    "mapped": Case(seq_len=130, K=24, V=16, is_elu=False),
    "not normalised": Case(seq_len=130, is_normalized=False, state_grad=True, heads=1),
    "mapped, not normalised, decays": Case(
        seq_len=70, is_elu=False, is_normalized=False, decay=True, state=True, heads=1
    ),
    "decays": Case(seq_len=130, K=24, V=40, decay=True),
    "decays, gradient of the state": Case(seq_len=5, decay=True, state=True, state_grad=True),
    "mask": Case(seq_len=130, K=24, V=40, mask=True, state_grad=True),
    "mask, decays": Case(seq_len=70, mask=True, decay=True, state=True),
    "rotation": Case(seq_len=130, K=24, V=16, rotation=True),
    "rotation, not normalised": Case(seq_len=64, rotation=True, is_normalized=False, state=True),
    "everything": EVERYTHING,
    "one long head": replace(EVERYTHING, heads=1, K=16, V=16),
    "wide": Case(seq_len=40, K=80, V=80, state=True, state_grad=True, decay=True, heads=1),
    "wide keys": Case(seq_len=40, K=160, V=24, mask=True, rotation=True, heads=1),
    "bfloat16": Case(seq_len=130, K=40, V=24, dtype=torch.bfloat16, state=True),
    "bfloat16, everything": replace(EVERYTHING, dtype=torch.bfloat16),
    "float16": Case(seq_len=130, K=24, V=16, dtype=torch.float16),
    "float32 keys, bfloat16 values": Case(seq_len=5, v_dtype=torch.bfloat16),
}


@dataclass
class Inputs:
    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    key_mask: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    kv: Tensor | None
    k_sum: Tensor | None

    def all(self):
        return list(vars(self).values())


def make(case: Case, device="cpu"):
    torch.manual_seed(0)
    batch, heads, seq_len = 2, case.heads, case.seq_len
    shape = (batch, heads, seq_len)
    # Strides that are not dense: heads behind time, as a projection makes them.
    q, k = (torch.randn(batch, seq_len, heads, case.K).transpose(1, 2) for _ in "qk")
    v = torch.randn(batch, seq_len, heads, case.V).transpose(1, 2)
    if not case.is_elu and case.is_normalized:
        q, k = q.abs() + 0.1, k.abs() + 0.1
    log_decay = key_mask = cos = sin = kv = k_sum = None
    if case.decay:
        log_decay = -torch.rand(shape) * 0.3
        log_decay[0, 0, seq_len // 2] = -torch.inf
        log_decay[1, 0, seq_len // 3] = -1e4
    if case.mask:
        key_mask = torch.rand(batch, seq_len) > 0.3
        key_mask[0, 0] = False  # a query that sees no key, if there is no past
    if case.rotation:
        angle = torch.rand(batch, seq_len, case.K // 2) * 6
        cos, sin = angle.cos(), angle.sin()
    if case.state:
        kv = torch.randn(batch, heads, case.K, case.V)
        k_sum = torch.rand(batch, heads, case.K) * 3
    q, k, v = q.to(case.dtype), k.to(case.dtype), v.to(case.v_dtype or case.dtype)
    tensors = (q, k, v, log_decay, key_mask, cos, sin, kv, k_sum)
    return Inputs(*(None if x is None else x.to(device) for x in tensors))


def recurrence(inputs: Inputs, is_elu: bool, is_normalized: bool):
    """The definition token by token: out, denominator, kv, k_sum. Hidden tokens are skipped."""
    q, k, v, log_decay, key_mask, cos, sin, kv, k_sum = inputs.all()
    phi_q, phi_k = (elu_plus_one(q), elu_plus_one(k)) if is_elu else (q, k)
    turned_q, turned_k = phi_q, phi_k
    if cos is not None:
        turned_q, turned_k = Rotation(cos, sin)(phi_q), Rotation(cos, sin)(phi_k)
    if kv is None:
        kv, k_sum = q.new_zeros(*k.shape[:2], k.shape[3], v.shape[3]), q.new_zeros(k[:, :, 0].shape)
    outs, denominators = [], []
    for t in range(q.shape[2]):
        keep = torch.ones(len(q), 1, dtype=torch.bool)
        if key_mask is not None:
            keep = key_mask[:, t, None].cpu()
        decay = q.new_ones(q.shape[:2]) if log_decay is None else log_decay[:, :, t].exp()
        keys = turned_k[:, :, t].masked_fill(~keep[..., None], 0)
        values = v[:, :, t].masked_fill(~keep[..., None], 0)
        decay = decay.masked_fill(~keep, 1)
        kv = decay[..., None, None] * kv + keys[..., None] * values[..., None, :]
        k_sum = decay[..., None] * k_sum + phi_k[:, :, t].masked_fill(~keep[..., None], 0)
        outs.append((turned_q[:, :, t, None] @ kv).squeeze(2))
        denominators.append((phi_q[:, :, t] * k_sum).sum(-1))
    out, denominator = torch.stack(outs, 2), torch.stack(denominators, 2)
    if is_normalized:
        zero = (denominator == 0)[..., None]
        out = (out / denominator[..., None].masked_fill(zero, 1)).masked_fill(zero, 0)
    return out, denominator, kv, k_sum


def wide(inputs: Inputs):
    """The same in float64 on the CPU, asking for gradients."""
    tensors = [
        x if x is None or x.dtype == torch.bool else x.detach().cpu().double().requires_grad_()
        for x in inputs.all()
    ]
    return Inputs(*tensors)


def poisoned(inputs: Inputs):
    """The same with NaN in all that the mask hides."""
    if inputs.key_mask is None:
        return inputs
    hidden = ~inputs.key_mask[:, None, :, None]
    decay = inputs.log_decay
    return replace(
        inputs,
        k=inputs.k.masked_fill(hidden, torch.nan),
        v=inputs.v.masked_fill(hidden, torch.nan),
        log_decay=None if decay is None else decay.masked_fill(hidden[..., 0], torch.nan),
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_and_gradients_are_the_definitions(case, device):
    inputs = make(case, device)
    expected_inputs = wide(inputs)
    expected = recurrence(expected_inputs, case.is_elu, case.is_normalized)
    given = poisoned(inputs)
    actual = kernels.forward(*given.all(), case.is_elu, case.is_normalized)
    narrowest = torch.float32 if case.dtype == torch.float32 else case.dtype
    # Features, weights and state are each rounded to bfloat16 before they are multiplied.
    narrow = torch.bfloat16 in (case.dtype, inputs.v.dtype)
    out_tolerance = TOLERANCE[inputs.v.dtype] * (1.5 if narrow else 1)
    assert actual[0].dtype == inputs.v.dtype
    assert_near(actual[0].cpu(), expected[0], out_tolerance)
    if case.is_normalized:
        assert_near(actual[1].cpu(), expected[1], TOLERANCE[narrowest])
    assert_near([x.cpu() for x in actual[2:]], expected[2:], 1.5 * TOLERANCE[narrowest])

    grad_out = torch.randn_like(expected[0]).to(inputs.v.dtype)
    grads = [torch.randn_like(x).float() if case.state_grad else None for x in expected[2:]]
    outputs = [expected[0], *expected[2:]] if case.state_grad else [expected[0]]
    grad_outputs = [grad_out.double(), *(x.double() for x in grads if x is not None)]
    wanted = {
        name: x
        for name, x in vars(expected_inputs).items()
        if x is not None and name not in ("key_mask", "cos", "sin")
    }
    grads_expected = torch.autograd.grad(
        outputs, list(wanted.values()), grad_outputs, allow_unused=True, materialize_grads=True
    )
    moved = [None if x is None else x.to(device) for x in (grad_out, *grads)]
    results = kernels.backward(
        *moved, given.q, given.k, given.v, actual[0], actual[1],
        *given.all()[3:], case.is_elu, case.is_normalized,
    )  # fmt: skip
    by_name = dict(zip(("q", "k", "v", "log_decay", "kv", "k_sum"), results, strict=True))
    assert {name for name, x in by_name.items() if x is not None} == set(wanted)
    tolerance = 1.5 * TOLERANCE[torch.bfloat16 if narrow else case.dtype]
    for (name, x), grad in zip(wanted.items(), grads_expected, strict=True):
        result = by_name[name]
        assert result.dtype == getattr(inputs, name).dtype, name
        assert result.is_contiguous(), name
        # A decay's gradient is what is left of two sums; narrow ones leave more behind.
        room = 10 * tolerance if name == "log_decay" else tolerance
        # A lone key gets all the weight, whatever the query: its gradient is 0 but for rounding.
        error, norm = (result.cpu().double() - grad).norm().item(), grad.norm().item()
        assert error <= room * norm + 1e-6, f"{name}: off by {error:.2e}, norm {norm:.2e}"
        if inputs.key_mask is not None and name in ("k", "v", "log_decay"):
            hidden = ~inputs.key_mask[:, None].expand(x.shape[:3])
            assert (result[hidden] == 0).all(), name


def test_the_recurrence_is_the_definition_of_ops():
    """What the kernels are compared with, compared with the quadratic forms where they reach."""
    case = replace(EVERYTHING, seq_len=9)
    for rotation in (False, True):
        inputs = wide(make(replace(case, rotation=rotation, decay=not rotation)))
        q, k, v, log_decay, key_mask, cos, sin, kv, k_sum = inputs.all()
        phi_q, phi_k, state = elu_plus_one(q), elu_plus_one(k), LinearState(kv, k_sum)
        if rotation:
            expected = rotary_linear_attention_quadratic(
                phi_q, phi_k, v, Rotation(cos, sin), is_causal=True, key_mask=key_mask, state=state
            )
        else:
            expected = linear_attention_quadratic(
                phi_q, phi_k, v, is_causal=True, key_mask=key_mask, log_decay=log_decay, state=state
            )
        assert_near(recurrence(inputs, True, True)[0], expected, 1e-12)


def test_nan_in_a_hidden_query_reaches_nothing_else(device):
    case = replace(EVERYTHING, seq_len=40, K=16, V=16)
    inputs = make(case, device)
    hidden = ~inputs.key_mask[:, None, :, None]
    inputs.q = inputs.q.masked_fill(hidden, 0.0)
    broken = replace(inputs, q=inputs.q.masked_fill(hidden, torch.nan))
    grad = torch.randn_like(inputs.v).masked_fill(hidden, 0.0)
    results = []
    for x in (inputs, broken):
        forward = kernels.forward(*x.all(), True, True)
        backward = kernels.backward(
            grad, None, None, x.q, x.k, x.v, *forward[:2], *x.all()[3:], True, True
        )
        results.append([forward[0].masked_fill(hidden, 0), *forward[2:], *backward])
    for clean, other in zip(*results, strict=True):
        assert torch.equal(clean, other)


def test_a_huge_later_token_changes_nothing_before_it(device):
    inputs = make(replace(EVERYTHING, seq_len=70, K=16, V=16, mask=False), device)
    before = kernels.forward(*inputs.all(), True, True)[0]
    for x in (inputs.q, inputs.k, inputs.v):
        x[:, :, 50] = 1e30
    after = kernels.forward(*inputs.all(), True, True)[0]
    assert torch.equal(before[:, :, :50], after[:, :, :50])


def test_a_cut_sequence_goes_on_from_its_state(device):
    inputs = make(replace(EVERYTHING, seq_len=70, state=False), device)
    whole = kernels.forward(*inputs.all(), True, True)
    kv = k_sum = None
    outs = []
    for part in (slice(0, 33), slice(33, 70)):
        x = [t[:, :, part] for t in (inputs.q, inputs.k, inputs.v, inputs.log_decay)]
        y = [t[:, part] for t in (inputs.key_mask, inputs.cos, inputs.sin)]
        out, _, kv, k_sum = kernels.forward(*x, *y, kv, k_sum, True, True)
        outs.append(out)
    assert_near([torch.cat(outs, 2), kv, k_sum], [whole[0], *whole[2:]], 1e-6)


@pytest.mark.parametrize("is_elu", [True, False])
@pytest.mark.parametrize("rotation", [True, False])
@pytest.mark.parametrize(
    ("K", "V", "dtype"), [(16, 16, "float32"), (40, 24, "bfloat16"), (160, 80, "float32")]
)
def test_a_step_is_one_token_of_the_recurrence(K, V, dtype, rotation, is_elu, device):
    case = Case(seq_len=1, K=K, V=V, rotation=rotation, state=True, dtype=getattr(torch, dtype))
    inputs = make(case, device)
    if not is_elu:
        inputs.q, inputs.k = inputs.q.abs(), inputs.k.abs()
    expected = recurrence(wide(inputs), is_elu, True)
    kv, k_sum = inputs.kv, inputs.k_sum
    angles = [None if x is None else x[:, 0] for x in (inputs.cos, inputs.sin)]
    tokens = [x[:, :, 0] for x in (inputs.q, inputs.k, inputs.v)]
    out = kernels.step_(*tokens, kv, k_sum, *angles, is_elu, True)
    assert out.dtype == inputs.v.dtype
    assert_near(out.cpu(), expected[0][:, :, 0], TOLERANCE[case.dtype])
    assert_near([kv.cpu(), k_sum.cpu()], expected[2:], 1e-6)


def test_a_step_overwrites_a_state_of_any_strides_and_gives_0_for_an_empty_one(device):
    inputs = make(Case(seq_len=1, K=24, V=16, is_elu=False), device)
    q, k, v = (x[:, :, 0].abs() for x in (inputs.q, inputs.k, inputs.v))
    kv = torch.zeros(2, 2, 16, 24, device=device).mT
    k_sum = torch.zeros(24, 2, 2, device=device).permute(2, 1, 0)
    out = kernels.step_(q, torch.zeros_like(k), v, kv, k_sum, None, None, False, True)
    assert (out == 0).all()
    out = kernels.step_(q, k, v, kv, k_sum, None, None, False, True)
    assert_near(out, v, 1e-6)  # a single key gets all the weight
    assert_near(kv, k[..., None] * v[..., None, :], 1e-6)
    assert_near(k_sum, k, 1e-6)


def test_several_segments_and_blocks_are_among_the_cases():
    """The table would test little if every case ran as one segment and one block."""
    cuts = []
    for case in CASES.values():
        sizes = plan(2 * case.heads, case.seq_len, case.K, case.V, narrow=False, num_units=8)
        whole = fits_whole(case.K, case.V, narrow=False)
        cut = blocks(sizes, case.K, case.V, narrow=False, whole="features")
        cuts.append(
            (sizes.num_segments > 1, sizes.segment > sizes.chunk, whole, cut.values < case.V)
        )
    for column in zip(*cuts, strict=True):
        assert len(set(column)) == 2
