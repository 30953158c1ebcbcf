"""Mixers that are broken on purpose, each in one way."""

import torch
from torch import nn

from subquad.layers import LinearAttention
from subquad.ops.linear_attention import linear_attention

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
