"""Cases for the Triton kernels, and the recurrence that they are compared with."""

import os
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from subquad.ops.feature_maps import elu_plus_one
from subquad.ops.rotation import Rotation

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def usable(device):
    """Return ``device``, or skip the test where the kernels do not run on it."""
    if device == "cpu" and not INTERPRETED:
        pytest.skip("without a GPU the kernels run under TRITON_INTERPRET=1 only")
    if device == "cuda" and (INTERPRETED or not torch.cuda.is_available()):
        pytest.skip("no NVIDIA GPU here, or TRITON_INTERPRET=1 is set")
    return device


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call. With ``lengths`` the sequences are packed, and ``seq_len`` does not count."""

    seq_len: int = 64
    lengths: tuple[int, ...] | None = None
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

    @property
    def borders(self):
        return None if self.lengths is None else torch.tensor([0, *self.lengths]).cumsum(0)


EVERYTHING = Case(
    seq_len=130, K=24, V=40, decay=True, mask=True, rotation=True, state=True, state_grad=True
)


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
    num_sequences = batch
    if case.lengths is not None:
        batch, num_sequences, seq_len = 1, len(case.lengths), sum(case.lengths)
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
        log_decay[-1, 0, seq_len // 3] = -1e4
    if case.mask:
        key_mask = torch.rand(batch, seq_len) > 0.3
        key_mask[0, 0] = False  # a query that sees no key, if there is no past
    if case.rotation:
        angle = torch.rand(batch, seq_len, case.K // 2) * 6
        cos, sin = angle.cos(), angle.sin()
    if case.state:
        kv = torch.randn(num_sequences, heads, case.K, case.V)
        k_sum = torch.rand(num_sequences, heads, case.K) * 3
    q, k, v = q.to(case.dtype), k.to(case.dtype), v.to(case.v_dtype or case.dtype)
    tensors = (q, k, v, log_decay, key_mask, cos, sin, kv, k_sum)
    return Inputs(*(None if x is None else x.to(device) for x in tensors))


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


def definition(inputs: Inputs, case: Case):
    """Out, denominator, kv, k_sum: of the batch, or of each packed sequence by itself."""
    if case.lengths is None:
        return recurrence(inputs, case.is_elu, case.is_normalized)
    results = []
    for index, (a, b) in enumerate(pairwise(case.borders.tolist())):
        part = _sequence(inputs, index, slice(a, b))
        results.append(recurrence(part, case.is_elu, case.is_normalized))
    outs, denominators, kvs, k_sums = zip(*results, strict=True)
    return torch.cat(outs, 2), torch.cat(denominators, 2), torch.cat(kvs), torch.cat(k_sums)


def _sequence(inputs: Inputs, index: int, time: slice):
    heads = {x: getattr(inputs, x) for x in ("q", "k", "v", "log_decay")}
    shared = {x: getattr(inputs, x) for x in ("key_mask", "cos", "sin")}
    states = {x: getattr(inputs, x) for x in ("kv", "k_sum")}
    return Inputs(
        **{name: None if x is None else x[:, :, time] for name, x in heads.items()},
        **{name: None if x is None else x[:, time] for name, x in shared.items()},
        **{name: None if x is None else x[index : index + 1] for name, x in states.items()},
    )


def recurrence(inputs: Inputs, is_elu: bool, is_normalized: bool):
    """The definition token by token. Hidden tokens are skipped; there may be none at all."""
    q, k, v, log_decay, key_mask, cos, sin, kv, k_sum = inputs.all()
    phi_q, phi_k = (elu_plus_one(q), elu_plus_one(k)) if is_elu else (q, k)
    turned_q, turned_k = phi_q, phi_k
    if cos is not None:
        turned_q, turned_k = Rotation(cos, sin)(phi_q), Rotation(cos, sin)(phi_k)
    if kv is None:
        kv = q.new_zeros(*k.shape[:2], k.shape[3], v.shape[3])
        k_sum = q.new_zeros(*k.shape[:2], k.shape[3])
    outs, denominators = [v[:, :, :0]], [q[:, :, :0, 0]]
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
        outs.append(turned_q[:, :, t, None] @ kv)
        denominators.append((phi_q[:, :, t] * k_sum).sum(-1, keepdim=True))
    out, denominator = torch.cat(outs, 2), torch.cat(denominators, 2)
    if is_normalized:
        zero = (denominator == 0)[..., None]
        out = (out / denominator[..., None].masked_fill(zero, 1)).masked_fill(zero, 0)
    return out, denominator, kv, k_sum
