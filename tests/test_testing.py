"""``check_mixer`` must catch mixers that are broken on purpose, each by the check meant for it."""

import pytest
import torch
from torch import nn

from subquad.layers import LinearAttention
from subquad.ops.linear_attention import linear_attention
from subquad.testing import MixerFault, check_mixer

D_MODEL = 6


class Wrapped(nn.Module):
    """A right mixer; each fault below breaks one method of it."""

    def __init__(self, *, is_causal: bool = True) -> None:
        super().__init__()
        self.inner = LinearAttention(D_MODEL, 2, is_causal=is_causal)

    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        return self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)

    def init_state(self, batch_size):
        return self.inner.init_state(batch_size)

    def prefill(self, x, state, *, key_mask=None):
        return self.inner.prefill(x, state, key_mask=key_mask)

    def step(self, x_t, state):
        return self.inner.step(x_t, state)

    def step_(self, x_t, state):
        return self.inner.step_(x_t, state)


class FutureLeaks(Wrapped):
    """A little of the next token's input comes in."""

    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        return y + 1e-9 * nn.functional.pad(x, (0, 0, 0, 1))[:, 1:]


class PaddedKeysInTheDenominator(Wrapped):
    """Padded values are cleared, but phi(0) = 1 of the padded keys is still counted."""

    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        if key_mask is None:
            return self.inner(x, cu_seqlens=cu_seqlens)
        if cu_seqlens is not None:
            raise ValueError("both")
        heads = self.inner.heads
        q, k, v = heads.split(x.masked_fill(~key_mask.unsqueeze(-1), 0))
        hidden = ~key_mask[:, None, :, None]
        k, v = k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)
        return heads.merge(linear_attention(q, k, v, is_causal=self.inner.is_causal))


class StateLostAtASplit(Wrapped):
    def prefill(self, x, state, *, key_mask=None):
        return self.inner.prefill(x, self.inner.init_state(len(x)), key_mask=key_mask)


class RandomInEvaluation(Wrapped):
    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        return y + 1e-12 * torch.rand_like(y)


class RoundedToAChunk(Wrapped):
    """The last T mod 8 tokens are left out."""

    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        whole = x.shape[1] // 8 * 8
        y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        return nn.functional.pad(y[:, :whole], (0, 0, 0, x.shape[1] - whole))


class CutToAChunk(Wrapped):
    """The same, and the output is shorter."""

    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        return self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)[:, : x.shape[1] // 8 * 8]


class BatchIsMixed(Wrapped):
    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        return y + 1e-6 * y.mean(0, keepdim=True)


class WrongGradient(Wrapped):
    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        return y + 0.1 * (y - y.detach())


class InfiniteGradient(Wrapped):
    """The square root of 0 has an infinite slope."""

    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        return y + (y - y.detach()).abs().sqrt()


class NaNReachesGradients(Wrapped):
    """Outputs are right, but 0 * NaN comes back through the projection."""

    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        if key_mask is None or cu_seqlens is not None:
            return self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        heads = self.inner.heads
        q, k, v = heads.split(x)
        hidden = ~key_mask[:, None, :, None]
        q = q.masked_fill(hidden, 0)
        y = linear_attention(q, k, v, is_causal=self.inner.is_causal, key_mask=key_mask)
        return heads.merge(y)


class DividesByTheRow(Wrapped):
    """A row with no valid token is divided by its 0 tokens."""

    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        count = 1 if key_mask is None else key_mask.sum(1)[:, None, None]
        return y * count / count


class EmptyRowPoisonsGradients(Wrapped):
    """The same, and the NaN is wiped off the output, too late for the gradient."""

    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        count = 1 if key_mask is None else key_mask.sum(1)[:, None, None]
        y = y * count / count
        return y.masked_fill(y.isnan(), 0)


class PaddingGetsAGradient(Wrapped):
    """And only where something huge stands in it."""

    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        if key_mask is None:
            return y
        hidden = x.nan_to_num(0).masked_fill(key_mask.unsqueeze(-1), 0)
        huge = hidden.abs() > 1e20
        return y + ((hidden - hidden.detach()) * huge).sum(1, keepdim=True)


class PackedSequencesMeet(Wrapped):
    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        return y if cu_seqlens is None else y + 1e-25 * x.mean(1, keepdim=True)


class TakesBothMasks(Wrapped):
    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        return self.inner(x, cu_seqlens=cu_seqlens) if key_mask is None else self.inner(
            x, key_mask=key_mask
        )  # fmt: skip


class StepForgetsTheBias(Wrapped):
    """Hidden by biases of 0, with which most layers start."""

    def step(self, x_t, state):
        y, state = self.inner.step(x_t, state)
        return y - self.inner.heads.out_proj.bias, state


class StateIsDetached(Wrapped):
    def prefill(self, x, state, *, key_mask=None):
        y, state = self.inner.prefill(x, state, key_mask=key_mask)
        return y, type(state)(*(part.detach() for part in state))


class StepOverwrites(Wrapped):
    def step(self, x_t, state):
        y, new = self.inner.step(x_t, state)
        with torch.no_grad():
            state.k_sum.mul_(1 + 1e-12)
        return y, new


class StepInPlaceDrifts(Wrapped):
    def step_(self, x_t, state):
        y, state = self.inner.step_(x_t, state)
        return y * (1 + 1e-9), state


class PrefillForgetsTheMask(Wrapped):
    def prefill(self, x, state, *, key_mask=None):
        return self.inner.prefill(x.nan_to_num(0), state)


class HiddenRandomTable(Wrapped):
    """Not in the state dict, so a loaded mixer is another one."""

    def __init__(self, *, is_causal: bool = True) -> None:
        super().__init__(is_causal=is_causal)
        self.register_buffer("table", torch.rand(D_MODEL), persistent=False)

    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        return self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens) * self.table

    def prefill(self, x, state, *, key_mask=None):
        y, state = self.inner.prefill(x, state, key_mask=key_mask)
        return y * self.table, state

    def step(self, x_t, state):
        y, state = self.inner.step(x_t, state)
        return y * self.table, state

    def step_(self, x_t, state):
        y, state = self.inner.step_(x_t, state)
        return y * self.table, state


class WidensTheDtype(Wrapped):
    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        return self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens).double()


class Raises(Wrapped):
    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        if x.shape[1] == 1:
            raise IndexError("no second token")
        return self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (FutureLeaks, "future_unseen"),
        (PaddedKeysInTheDenominator, "key_mask"),
        (StateLostAtASplit, "splits"),
        (RandomInEvaluation, "deterministic"),
        (RoundedToAChunk, "each_token_counts"),
        (CutToAChunk, "shapes"),
        (BatchIsMixed, "rows_apart"),
        (WrongGradient, "numerical_gradients"),
        (InfiniteGradient, "finite_gradients"),
        (NaNReachesGradients, "key_mask"),
        (PaddingGetsAGradient, "key_mask"),
        (DividesByTheRow, "empty_row"),
        (EmptyRowPoisonsGradients, "empty_row"),
        (PackedSequencesMeet, "packed_apart"),
        (TakesBothMasks, "refusals"),
        (StepForgetsTheBias, "splits"),
        (StateIsDetached, "carried_gradients"),
        (StepOverwrites, "state_is_a_value"),
        (StepInPlaceDrifts, "in_place_step"),
        (PrefillForgetsTheMask, "masked_prefill"),
        (HiddenRandomTable, "state_dict"),
        (Raises, "shapes"),
    ],
)
def test_a_broken_causal_mixer_is_caught_by_the_check_meant_for_it(broken, check):
    with pytest.raises(MixerFault, match=f"^{check}: ") as caught:
        check_mixer(broken, d_model=D_MODEL, is_causal=True)
    assert caught.value.check == check
    assert isinstance(caught.value, AssertionError)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (PaddedKeysInTheDenominator, "key_mask"),
        (RandomInEvaluation, "deterministic"),
        (RoundedToAChunk, "each_token_counts"),
        (NaNReachesGradients, "key_mask"),
        (DividesByTheRow, "empty_row"),
    ],
)
def test_a_broken_bidirectional_mixer_is_caught(broken, check):
    with pytest.raises(MixerFault) as caught:
        check_mixer(lambda: broken(is_causal=False), d_model=D_MODEL, is_causal=False)
    assert caught.value.check == check


def test_a_bidirectional_mixer_does_not_pass_as_causal():
    class Liar(Wrapped):
        def forward(self, x, *, key_mask=None, cu_seqlens=None):
            self.inner.is_causal = False
            y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
            self.inner.is_causal = True
            return y

    with pytest.raises(MixerFault, match=r"^future_unseen: token 1 set to") as caught:
        check_mixer(Liar, d_model=D_MODEL, is_causal=True)
    assert "changes outputs before it in forward" in str(caught.value)


def test_a_wrong_dtype_is_caught():
    with pytest.raises(MixerFault, match=r"^shapes: the output is torch.float64 \(2, 1, 6\)"):
        check_mixer(WidensTheDtype, d_model=D_MODEL, is_causal=True, dtype=torch.float32)


def test_what_a_mixer_raises_is_named_with_its_check():
    with pytest.raises(MixerFault, match=r"^shapes: it raised IndexError: no second token"):
        check_mixer(Raises, d_model=D_MODEL, is_causal=True)


def test_a_right_mixer_passes_and_the_report_says_what_was_checked():
    report = check_mixer(Wrapped, d_model=D_MODEL, is_causal=True)
    assert {result.name for result in report.results} >= {"shapes", "future_unseen", "key_mask"}
    deviations = {result.name: result.deviation for result in report.results}
    assert deviations["future_unseen"] == 0
    assert deviations["shapes"] is None
    assert 0 < deviations["splits"] < report.tolerance == 1e-10
    text = str(report).splitlines()
    assert text[0].startswith(
        f"Wrapped, causal, torch.float64: {len(report.results)} checks passed"
    )
    assert len(text) == 1 + len(report.results)


def test_checking_leaves_the_global_random_state_alone_and_is_reproducible():
    def build():
        return Wrapped(is_causal=False)

    before = torch.get_rng_state()
    first = check_mixer(build, d_model=D_MODEL, is_causal=False, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert check_mixer(build, d_model=D_MODEL, is_causal=False, seed=3) == first


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"d_model": 0}, ValueError, "d_model must be at least 1, got 0"),
        ({"d_model": 1.5}, TypeError, "d_model must be an int, got float 1.5"),
        ({"dtype": torch.int64}, ValueError, "dtype must be one of torch.float64"),
    ],
)
def test_bad_arguments(options, error, message, monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error, match=message):
        check_mixer(Wrapped, **{"d_model": D_MODEL, "is_causal": True, **options})
