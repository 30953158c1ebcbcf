"""Linear attention one token at a time: the recurrence of ``ops/linear_attention.py``.

Axes: B batch, H heads, K features, V value size.
Source: Katharopoulos et al. 2020, "Transformers are RNNs", equations 16 to 20.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.ops.checks import check_same_device, check_shape, check_step_decay
from subquad.ops.feature_maps import no_autocast
from subquad.ops.linear_attention import finish
from subquad.ops.linear_state import LinearState, check_linear_state


def linear_attention_step(
    phi_q: Float[Tensor, "B H K"],
    phi_k: Float[Tensor, "B H K"],
    v: Float[Tensor, "B H V"],
    state: LinearState,
    *,
    log_decay: Float[Tensor, "B H"] | Float[Tensor, "B H K"] | None = None,
    normalize: bool = True,
) -> tuple[Float[Tensor, "B H V"], LinearState]:
    """Take one more token (equations 18 to 20): update the state, then read it.

    Args:
        phi_q: mapped query (B, H, K).
        phi_k: mapped key (B, H, K).
        v: value (B, H, V).
        state: the past; it stays as it is.
        log_decay: (B, H) or (B, H, K), at most 0.
        normalize: divide by the sum of the weights.

    Returns:
        The output (B, H, V) in the dtype of v, and the state after the token.

    Raises:
        TypeError: if ``state`` is narrower than float32 or than the other tensors.
        ValueError: if a shape, a device or a decay does not fit.
    """
    _check_token(phi_q, phi_k, v, state)
    check_step_decay(log_decay, phi_k.shape)
    with no_autocast(v):
        wide = [x.to(state.kv.dtype) for x in (phi_q, phi_k, v)]
        kv, k_sum = state
        if log_decay is not None:
            decay = log_decay.to(kv.dtype).exp().reshape(*k_sum.shape[:2], -1)
            kv, k_sum = kv * decay.unsqueeze(-1), k_sum * decay
        state = LinearState(kv + wide[1].unsqueeze(-1) * wide[2].unsqueeze(-2), k_sum + wide[1])
        return read_state(wide[0], state, normalize, v.dtype), state


def linear_attention_step_(
    phi_q: Float[Tensor, "B H K"],
    phi_k: Float[Tensor, "B H K"],
    v: Float[Tensor, "B H V"],
    state: LinearState,
    *,
    normalize: bool = True,
) -> tuple[Float[Tensor, "B H V"], LinearState]:
    """Take one more token as ``linear_attention_step`` does, overwriting ``state``; no gradient."""
    _check_token(phi_q, phi_k, v, state)
    with no_autocast(v):
        wide = [x.to(state.kv.dtype) for x in (phi_q, phi_k, v)]
        state.kv.addcmul_(wide[1].unsqueeze(-1), wide[2].unsqueeze(-2))
        state.k_sum.add_(wide[1])
        return read_state(wide[0], state, normalize, v.dtype), state


def read_state(
    phi_q: Float[Tensor, "B H K"], state: LinearState, normalize: bool, dtype: torch.dtype
) -> Float[Tensor, "B H V"]:
    """Read the state with one query (equation 20)."""
    numerator = torch.matmul(phi_q.unsqueeze(-2), state.kv).squeeze(-2)
    denominator = (phi_q * state.k_sum).sum(-1)
    return finish(numerator, denominator, normalize, dtype)


def _check_token(phi_q: Tensor, phi_k: Tensor, v: Tensor, state: LinearState) -> None:
    check_shape("phi_q", phi_q, phi_k.shape)
    check_same_device("phi_q", phi_q, phi_k)
    check_linear_state(state, phi_k, v)
