"""The lambda mixer, and the causal lambdas that it goes on from."""

import pytest
import torch

from helpers import assert_near, three_masked_rows
from subquad.layers import LambdaMixer
from subquad.layers.attention_rows import attention_rows
from subquad.models import PixelModel, TransformerDecoder
from subquad.ops.causal_lambda import (
    causal_lambda,
    causal_lambda_quadratic,
    causal_lambda_step,
    lambda_state,
)
from subquad.ops.state import state_size_bytes


def draw(seq_len, window, scale=1.0, batch=3):
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, 2, seq_len, 4), (batch, 1, seq_len, 4), (batch, 1, seq_len, 5), (4, window))
    q, k, v, table = (
        torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes
    )
    return q, (k * scale).detach().requires_grad_(), v, table


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("seq_len", "window"), [(2, 1), (5, 3), (37, 16), (40, 64), (70, 20)])
def test_the_parallel_form_is_the_definition(seq_len, window, masked):
    inputs = draw(seq_len, window)
    mask = three_masked_rows(seq_len) if masked else None
    expected = causal_lambda_quadratic(*inputs, key_mask=mask)
    state = lambda_state(3, 4, 5, inputs[2], window=window)
    y, _ = causal_lambda(*inputs, state, key_mask=mask)
    assert_near(y, expected, 1e-12)
    weight = torch.randn_like(y)
    found, wanted = (torch.autograd.grad(out, inputs, weight) for out in (y, expected))
    assert_near(found, wanted, 1e-11)


@pytest.mark.parametrize(
    ("scale", "tolerance"), [(1.0, 1e-6), (1e2, 1e-5), (1e4, 1e-3), (1e8, 1e-3)]
)
def test_keys_of_any_magnitude(scale, tolerance):
    inputs = draw(37, 5, scale)
    expected = causal_lambda_quadratic(*inputs)
    for dtype, wrong in ((torch.float64, 1e-8 * tolerance), (torch.float32, tolerance)):
        narrow = [x.detach().to(dtype).requires_grad_() for x in inputs]
        # What a key rounds to in float32 is not the definition's: the keys are rounded in both.
        exact = causal_lambda_quadratic(*(x.double() for x in narrow))
        y, _ = causal_lambda(*narrow, lambda_state(3, 4, 5, narrow[2], window=5))
        assert_near(y, exact, wrong)
        y.sum().backward()
        assert all(torch.isfinite(x.grad).all() for x in narrow)
    assert torch.isfinite(expected).all()


def test_steps_are_the_parallel_form_and_a_fork_goes_its_own_way():
    q, k, v, table = (x.detach() for x in draw(30, 7))
    expected, _ = causal_lambda(q, k, v, table, lambda_state(3, 4, 5, v, window=7))
    y, state = causal_lambda(
        q[:, :, :11], k[:, :, :11], v[:, :, :11], table, lambda_state(3, 4, 5, v, window=7)
    )
    assert_near(y, expected[:, :, :11], 1e-12)
    fork = state
    for t in range(11, 30):
        y, state = causal_lambda_step(q[:, :, t], k[:, :, t], v[:, :, t], table, state)
        assert_near(y, expected[:, :, t], 1e-12)
    again, _ = causal_lambda_step(q[:, :, 11], k[:, :, 11], v[:, :, 11], table, fork)
    assert_near(again, expected[:, :, 11], 1e-12)


def test_content_is_a_running_mean_of_values():
    k = torch.zeros(1, 1, 4, 1).double()
    v = torch.tensor([1.0, 3.0, 8.0, 0.0]).double().reshape(1, 1, 4, 1)
    q, table = torch.ones(1, 1, 4, 1).double(), torch.zeros(1, 2).double()
    y, state = causal_lambda(q, k, v, table, lambda_state(1, 1, 1, v, window=2))
    assert_near(y.flatten(), torch.tensor([1.0, 2.0, 4.0, 3.0]), 1e-12)
    assert_near(state.log_sum.exp().flatten(), torch.tensor([4.0]), 1e-12)
    table[0, 1] = 10  # the value before
    y, _ = causal_lambda(q, k, v, table, lambda_state(1, 1, 1, v, window=2))
    assert_near(y.flatten(), torch.tensor([1.0, 12.0, 34.0, 83.0]), 1e-12)


@pytest.mark.parametrize("is_causal", [True, False])
def test_holes_are_as_if_taken_out(is_causal):
    torch.manual_seed(0)
    mixer = LambdaMixer(8, 2, is_causal=is_causal, window=3).double()
    x = torch.randn(1, 9, 8).double()
    mask = torch.tensor([[True, False, True, True, False, False, True, True, False]])
    assert_near(mixer(x, key_mask=mask)[mask], mixer(x[mask][None])[0], 1e-12)


def test_the_state_is_of_constant_size():
    mixer = LambdaMixer(8, 2, is_causal=True, window=3, head_dim=5)
    _, state = mixer.prefill(torch.randn(2, 40, 8), mixer.init_state(2))
    assert state_size_bytes(state) == state_size_bytes(mixer.init_state(2))
    assert state.content.shape == (2, 1, 5, 4)


@pytest.mark.parametrize("positions", ["none", "sinusoidal", "learned"])
def test_it_stands_in_a_decoder_and_a_pixel_model(positions):
    torch.manual_seed(0)
    model = TransformerDecoder(
        16, num_layers=2, num_heads=2, d_ff=16, mixer="lambda", positions=positions, max_len=20
    ).double().eval()  # fmt: skip
    x = torch.randn(2, 12, 16).double()
    y, state = model.prefill(x[:, :7], model.init_state(2))
    parts = [y]
    with torch.no_grad():
        for t in range(7, 12):
            y, state = (model.step if t % 2 else model.step_)(x[:, t], state)
            parts.append(y.unsqueeze(1))
    assert_near(torch.cat(parts, 1), model(x), 1e-10)
    pixels = PixelModel(9, num_layers=1, num_heads=2, d_model=16, d_ff=16, mixer="lambda").eval()
    assert pixels.generate(2).shape == (2, 9)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rotary": True}, ValueError, "rotary must be False for LambdaMixer, got True"),
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"head_dim": 0}, ValueError, "head_dim must be at least 1, got 0"),
        ({"value_dim": 0}, ValueError, "value_dim must be at least 1, got 0"),
        (
            {"num_heads": 3},
            ValueError,
            r"num_heads must divide d_model \(8\) unless value_dim is given, got 3",
        ),
        ({"window": 2.0}, TypeError, "window must be an int"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, message, unhooked):
    with pytest.raises(error, match=message):
        LambdaMixer(**{"d_model": 8, "num_heads": 2, "is_causal": True, **options})


def test_inputs_that_do_not_fit_are_refused(unhooked):
    mixer = LambdaMixer(8, 2, is_causal=True)
    for wrong in (torch.zeros(2, 3, 7), torch.zeros(2, 8)):
        with pytest.raises(ValueError, match="x must have shape"):
            mixer(wrong)
    with pytest.raises(ValueError, match=r"x_t must have shape \(B, 8\)"):
        mixer.step(torch.zeros(2, 7), mixer.init_state(2))
    with pytest.raises(ValueError, match="state"):
        mixer.prefill(torch.zeros(2, 3, 8), mixer.init_state(3))
    with pytest.raises(ValueError, match="key_mask"):
        mixer(torch.zeros(2, 3, 8), key_mask=torch.ones(2, 4, dtype=torch.bool))
    for name in ("init_state", "prefill", "step", "step_"):
        other = LambdaMixer(8, 2, is_causal=False)
        arguments = (2,) if name == "init_state" else (torch.zeros(2, 3, 8), None)
        with pytest.raises(ValueError, match="is_causal=True"):
            getattr(other, name)(*arguments)


@pytest.mark.parametrize("size", [0.0, 1e4, 1e7])
def test_the_content_stays_a_mean_where_keys_are_alike(size):
    k, ones = torch.full((1, 1, 3000, 1), size), torch.ones(1, 1, 3000, 1)
    table, state = torch.zeros(1, 2), lambda_state(1, 1, 1, ones, window=2)
    y, _ = causal_lambda(ones, k, ones, table, state)
    assert (y - 1).abs().max() < 1e-4
    for t in range(3000):
        y, state = causal_lambda_step(
            ones[:, :, t], k[:, :, t], ones[:, :, t], table, state, in_place=True
        )
    assert (y - 1).abs().max() < 1e-3


def test_a_state_keeps_nothing_else_in_memory():
    mixer = LambdaMixer(8, 2, is_causal=True, window=3, head_dim=5)
    _, state = mixer.prefill(torch.randn(2, 400, 8), mixer.init_state(2))
    for x in state:
        assert x.untyped_storage().nbytes() == x.numel() * x.element_size()


def test_values_are_one_for_all_queries_or_one_for_each(unhooked):
    q, k, v, table = (x.detach() for x in draw(5, 3))
    with pytest.raises(ValueError, match="v must have shape"):
        causal_lambda(q, k, v.repeat(1, 3, 1, 1), table, lambda_state(3, 4, 5, v, window=3))


GRID = (3, 5)


def on_grid(**options):
    torch.manual_seed(0)
    return LambdaMixer(
        8, 2, is_causal=False, head_dim=4, grid=GRID, **options
    ).double()  # fmt: skip


@pytest.mark.parametrize("window", [2, 64])
def test_a_grid_behind_a_class_token_is_the_definition(window):
    mixer = on_grid(window=window)
    x = torch.randn(2, 1 + 15, 8, dtype=torch.float64, requires_grad=True)
    q, k, v = mixer._split(x)
    rows = []
    for n in range(16):
        weight = k[:, 0].softmax(1)  # (B, T, K)
        lambdas = torch.einsum("bmk,bmv->bkv", weight, v[:, 0])
        for m in range(1, 16) if n else ():
            down, across = (m - 1) // 5 - (n - 1) // 5, (m - 1) % 5 - (n - 1) % 5
            middle = [size // 2 for size in mixer.table.shape[1:]]
            if abs(down) <= middle[0] and abs(across) <= middle[1]:
                r = mixer.table[:, middle[0] + down, middle[1] + across]
                lambdas = lambdas + r[:, None] * v[:, 0, m, None, :]
        rows.append(torch.einsum("bhk,bkv->bhv", q[:, :, n], lambdas))
    expected, y = mixer.merge(torch.stack(rows, 2)), mixer(x)
    assert_near(y, expected, 1e-12)
    inputs, grad = [x, *mixer.parameters()], torch.randn_like(y)
    found, wanted = (torch.autograd.grad(out, inputs, grad) for out in (y, expected))
    assert_near(found, wanted, 1e-11)


def test_what_hides_on_a_grid_changes_nothing():
    mixer = on_grid()
    x = torch.randn(2, 16, 8, dtype=torch.float64)
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[0, 3], mask[1, 7:] = False, False
    expected = mixer(x.masked_fill(~mask[..., None], 0), key_mask=mask)
    y = mixer(x.masked_fill(~mask[..., None], torch.nan), key_mask=mask)
    assert_near(y, expected, 0)
    seen = mixer(x)
    assert (seen[0, 4] - y[0, 4]).abs().max() > 1e-3


def test_a_grid_s_rows_of_attention_are_what_the_values_are_weighed_by():
    mixer = on_grid()
    x = torch.randn(1, 17, 8, dtype=torch.float64)
    rows = attention_rows(mixer, x, range(17))
    assert_near(mixer.merge(rows.weights @ rows.values), mixer(x), 1e-12)


def test_a_grid_that_does_not_fit(unhooked):
    with pytest.raises(ValueError, match=r"grid must be None for a causal LambdaMixer, got \(3, 5"):
        LambdaMixer(8, 2, is_causal=True, grid=GRID)
    with pytest.raises(ValueError, match=r"grid must have 1 to 3 axes, got \(\)"):
        LambdaMixer(8, 2, is_causal=False, grid=())
    with pytest.raises(ValueError, match=r"grid\[1\] must be at least 1, got 0"):
        LambdaMixer(8, 2, is_causal=False, grid=(3, 0))
    mixer = on_grid()
    with pytest.raises(ValueError, match=r"at least the 15 tokens of the grid \(3, 5\), got 14"):
        mixer(torch.zeros(1, 14, 8, dtype=torch.float64))
    borders = torch.tensor([0, 15])
    with pytest.raises(ValueError, match="cu_seqlens must be None for a LambdaMixer with a grid"):
        mixer(torch.zeros(1, 15, 8, dtype=torch.float64), cu_seqlens=borders)
