"""The Triton kernels against a recurrence in float64, values and every gradient.

On the CPU: `TRITON_INTERPRET=1 pytest -m slow tests/kernels`, with triton installed.
"""

from dataclasses import replace

import pytest
import torch

from cases.triton_attention import (
    DEVICES,
    EVERYTHING,
    Case,
    definition,
    make,
    poisoned,
    recurrence,
    usable,
    wide,
)
from helpers import TOLERANCE, assert_near
from subquad.kernels.triton import linear_attention as kernels
from subquad.kernels.triton.plan import blocks, fits_whole, plan, plan_packed
from subquad.ops.feature_maps import elu_plus_one
from subquad.ops.linear_attention import linear_attention_quadratic
from subquad.ops.linear_state import LinearState
from subquad.ops.rotary_linear_attention import rotary_linear_attention_quadratic
from subquad.ops.rotation import Rotation

pytest.importorskip("triton", reason="triton is not installed: pip install 'subquad[triton]'")
pytestmark = [
    pytest.mark.slow,
    # The interpreter is numpy, which warns of the inf and NaN that these tests plant.
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


@pytest.fixture(params=DEVICES)
def device(request):
    return usable(request.param)


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
    "float16, decays": Case(
        seq_len=70, K=24, dtype=torch.float16, decay=True, state=True, state_grad=True, heads=1
    ),
    "float32 keys, bfloat16 values": Case(seq_len=5, v_dtype=torch.bfloat16),
    "odd sizes": Case(seq_len=33, K=17, V=35, decay=True, state=True, state_grad=True),
    "widest": Case(seq_len=19, K=256, V=256, mask=True, state=True, heads=1),
    "wide values": Case(seq_len=17, K=20, V=200, decay=True, is_normalized=False, heads=1),
    "bfloat16, wide": Case(
        seq_len=40, K=136, V=72, dtype=torch.bfloat16, decay=True, state=True, heads=1
    ),
    "packed, cut": Case(lengths=(5, 0, 70, 1, 17), V=24),
    "packed, whole": Case(lengths=(9, 9, 0, 9, 8, 9), state=True, state_grad=True),
    "packed, everything": replace(EVERYTHING, lengths=(0, 33, 1, 97, 0)),
    "packed, not normalised": Case(
        lengths=(3, 40), is_elu=False, is_normalized=False, decay=True, state_grad=True, heads=1
    ),
    "packed, one": Case(lengths=(40,), K=40, mask=True, state=True, heads=1),
    "packed, bfloat16": Case(
        lengths=(16, 0, 33), K=24, dtype=torch.bfloat16, decay=True, state=True, state_grad=True
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_and_gradients_are_the_definitions(case, device):
    inputs = make(case, device)
    expected_inputs = wide(inputs)
    expected = definition(expected_inputs, case)
    given = poisoned(inputs)
    options = {"cu_seqlens": case.borders}
    actual = kernels.forward(*given.all(), case.is_elu, case.is_normalized, **options)
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
        *given.all()[3:], case.is_elu, case.is_normalized, **options,
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
    ("K", "V", "dtype", "decay"),
    [(16, 16, "float32", True), (40, 24, "bfloat16", True), (160, 80, "float32", False)],
)
def test_a_step_is_one_token_of_the_recurrence(K, V, dtype, decay, rotation, is_elu, device):
    case = Case(
        seq_len=1, K=K, V=V, rotation=rotation, decay=decay, state=True, dtype=getattr(torch, dtype)
    )
    inputs = make(case, device)
    if not is_elu:
        inputs.q, inputs.k = inputs.q.abs(), inputs.k.abs()
    expected = recurrence(wide(inputs), is_elu, True)
    kv, k_sum = inputs.kv, inputs.k_sum
    angles = [None if x is None else x[:, 0] for x in (inputs.cos, inputs.sin)]
    tokens = [x[:, :, 0] for x in (inputs.q, inputs.k, inputs.v)]
    log_decay = None if inputs.log_decay is None else inputs.log_decay[:, :, 0]
    out = kernels.step_(*tokens, kv, k_sum, *angles, is_elu, True, log_decay=log_decay)
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


def test_packed_sequences_see_nothing_of_each_other(device):
    case = replace(EVERYTHING, lengths=(5, 0, 41, 20), K=16, V=16)
    inputs, borders = make(case, device), case.borders
    grad_out = torch.randn_like(inputs.v)
    grads = [torch.randn_like(x) for x in (inputs.kv, inputs.k_sum)]
    results = []
    for value in (None, torch.nan):
        if value is not None:  # the third sequence and its past
            for x in (inputs.q, inputs.k, inputs.v, grad_out):
                x[:, :, 5:46] = value
            for x in (inputs.kv, inputs.k_sum, *grads):
                x[2] = value
        forward = kernels.forward(*inputs.all(), True, True, cu_seqlens=borders)
        backward = kernels.backward(
            grad_out, *grads, inputs.q, inputs.k, inputs.v, *forward[:2],
            *inputs.all()[3:], True, True, cu_seqlens=borders,
        )  # fmt: skip
        others = torch.cat((torch.arange(5), torch.arange(46, 66))).to(device)
        results.append(
            [x[:, :, others] for x in (*forward[:2], *backward[:4])]
            + [x[[0, 1, 3]] for x in (*forward[2:], *backward[4:])]
        )
    for clean, other in zip(*results, strict=True):
        assert torch.equal(clean, other)


def test_several_segments_and_blocks_are_among_the_cases():
    """The table would test little if every case ran as one segment and one block."""
    cuts, is_cut = [], []
    for case in CASES.values():
        width = {"narrow": False, "num_units": 8}
        if case.lengths is None:
            sizes = plan(2 * case.heads, case.seq_len, case.K, case.V, **width)
        else:
            sizes = plan_packed(case.lengths, case.heads, case.K, case.V, **width)
            is_cut.append(sizes.num_segments > 1)
        whole = fits_whole(case.K, case.V, narrow=False)
        cut = blocks(sizes, case.K, case.V, narrow=False, whole="features")
        cuts.append(
            (sizes.num_segments > 1, sizes.segment > sizes.chunk, whole, cut.values < case.V)
        )
    for column in (*zip(*cuts, strict=True), is_cut):
        assert len(set(column)) == 2
