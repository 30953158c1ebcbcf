"""Linear attention with rotary positions: rotated in the numerator, as they are in the denominator.

    y_i = sum_j (R_i phi(q_i)) . (R_j phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)

over all valid j, or over j <= i (causal). Rotated features may be negative; the denominator is made
of those that are not rotated, so it stays non-negative. The state is a ``LinearState`` whose ``kv``
is rotated and whose ``k_sum`` is not.

Axes: B batch, H heads, T time, K features, V value size.
Source: Su et al. 2021, "RoFormer", section 3.3, equation 19.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.kernels.dispatch import Impl
from subquad.ops.checks import (
    check_cu_seqlens,
    check_divisible,
    check_key_mask,
    check_positive,
    check_qkv,
    check_shape,
)
from subquad.ops.feature_maps import no_autocast
from subquad.ops.linear_attention import (
    finish,
    linear_attention_bidirectional,
    linear_attention_sums,
)
from subquad.ops.linear_state import LinearState, check_linear_state, empty_past
from subquad.ops.native_linear_attention import (
    Request,
    native_operator,
    run_native,
    takes_packed,
)
from subquad.ops.packing import run_packed
from subquad.ops.rotation import Rotation

Features = Float[Tensor, "B H T K"]
Values = Float[Tensor, "B H T V"]
KeyMask = Bool[Tensor, "B T"]


def rotary_linear_attention(
    phi_q: Features,
    phi_k: Features,
    v: Values,
    rotation: Rotation,
    *,
    is_causal: bool = False,
    key_mask: KeyMask | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    normalize: bool = True,
    impl: Impl = Impl.AUTO,
) -> Values:
    """Attend in O(T), from an empty past.

    Args:
        phi_q: mapped queries (B, H, T, K).
        phi_k: mapped keys (B, H, T, K).
        v: values (B, H, T, V).
        rotation: of the tokens' positions (B, T).
        is_causal: query i sees keys j <= i only.
        key_mask: (B, T) bool, True = keep.
        cu_seqlens: borders 0, ..., T of sequences packed into a batch of 1.
        normalize: divide by the sum of the weights.
        impl: where it is computed; see ``Impl``.

    Returns:
        (B, H, T, V) in the dtype of v.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device or mask does not fit, or ``impl`` cannot do this.
    """
    _check(phi_q, phi_k, v, rotation, key_mask)
    check_cu_seqlens(cu_seqlens, key_mask, phi_k.shape[0], phi_k.shape[2])
    request = Request(phi_q, phi_k, v, rotation=rotation, is_causal=is_causal)
    operator = native_operator(request, impl)
    if cu_seqlens is not None and not takes_packed(operator):

        def attend(q: Tensor, k: Tensor, v: Tensor, *turn_and_mask: Tensor) -> Tensor:
            cos, sin, mask = turn_and_mask
            return rotary_linear_attention(
                q, k, v, Rotation(cos.squeeze(1), sin.squeeze(1)),
                is_causal=is_causal, key_mask=mask, normalize=normalize, impl=impl,
            )  # fmt: skip

        turn = (x.unsqueeze(1) for x in rotation)  # packing cuts tensors with an axis of heads
        return run_packed(attend, cu_seqlens, phi_q, phi_k, v, *turn)
    if operator is not None:
        return run_native(
            operator, phi_q, phi_k, v, rotation=rotation, key_mask=key_mask, cu_seqlens=cu_seqlens,
            maps_by_elu=False, normalize=normalize, is_causal=is_causal,
        )[0]  # fmt: skip
    form = _causal if is_causal else _bidirectional
    with no_autocast(v):
        return form(
            phi_q, phi_k, rotation(phi_q), rotation(phi_k), v,
            key_mask=key_mask, normalize=normalize,
        )  # fmt: skip


def rotary_linear_attention_quadratic(
    phi_q: Features,
    phi_k: Features,
    v: Values,
    rotation: Rotation,
    *,
    is_causal: bool = False,
    key_mask: KeyMask | None = None,
    normalize: bool = True,
    state: LinearState | None = None,
) -> Values:
    """Compute the definition in O(T^2 K); every other form is tested against it."""
    rotated_q, rotated_k = rotation(phi_q), rotation(phi_k)
    if key_mask is not None:
        hidden = ~key_mask[:, None, :, None]
        phi_k, rotated_k = phi_k.masked_fill(hidden, 0), rotated_k.masked_fill(hidden, 0)
        v = v.masked_fill(hidden, 0)
    rotated, plain = rotated_q @ rotated_k.mT, phi_q @ phi_k.mT
    if is_causal:
        rotated, plain = rotated.tril(), plain.tril()
    numerator, denominator = rotated @ v.to(rotated.dtype), plain.sum(-1)
    if state is not None:
        numerator = numerator + rotated_q @ state.kv
        denominator = denominator + (phi_q * state.k_sum.unsqueeze(2)).sum(-1)
    return finish(numerator, denominator, normalize, v.dtype)


def rotary_linear_attention_chunked(
    phi_q: Features,
    phi_k: Features,
    v: Values,
    rotation: Rotation,
    state: LinearState,
    *,
    key_mask: KeyMask | None = None,
    normalize: bool = True,
    chunk_size: int | None = None,
    impl: Impl = Impl.AUTO,
) -> tuple[Values, LinearState]:
    """Go on causally from ``state`` over any T >= 1; arguments as ``linear_attention_chunked``.

    Raises:
        TypeError: if ``state`` is narrower than float32 or than the other tensors.
        ValueError: if ``chunk_size`` is below 1 or a shape does not fit.
    """
    _check(phi_q, phi_k, v, rotation, key_mask)
    check_linear_state(state, phi_k, v)
    if chunk_size is not None:
        check_positive("chunk_size", chunk_size)
    operator = native_operator(
        Request(phi_q, phi_k, v, state, rotation=rotation, chunk_size=chunk_size), impl
    )
    if operator is not None:
        return run_native(
            operator, phi_q, phi_k, v, state, rotation=rotation, key_mask=key_mask,
            maps_by_elu=False, normalize=normalize,
        )  # fmt: skip
    with no_autocast(v):
        return _go_on(
            phi_q, phi_k, rotation(phi_q), rotation(phi_k), v, state,
            key_mask=key_mask, normalize=normalize, chunk_size=chunk_size,
        )  # fmt: skip


def rotary_linear_attention_step(
    phi_q: Float[Tensor, "B H K"],
    phi_k: Float[Tensor, "B H K"],
    v: Float[Tensor, "B H V"],
    rotation: Rotation,
    state: LinearState,
    *,
    normalize: bool = True,
) -> tuple[Float[Tensor, "B H V"], LinearState]:
    """Take one more token, ``rotation`` being of its position (B, 1)."""
    _check_step(phi_q, phi_k, v, rotation, state)
    with no_autocast(v):
        q, k, value, rotated_k = _widened(phi_q, phi_k, v, rotation, state)
        kv = state.kv + rotated_k.unsqueeze(-1) * value.unsqueeze(-2)
        after = LinearState(kv, state.k_sum + k)
        return _read(q, rotation, after, normalize, v), after


def rotary_linear_attention_step_(
    phi_q: Float[Tensor, "B H K"],
    phi_k: Float[Tensor, "B H K"],
    v: Float[Tensor, "B H V"],
    rotation: Rotation,
    state: LinearState,
    *,
    normalize: bool = True,
) -> tuple[Float[Tensor, "B H V"], LinearState]:
    """Take one more token, overwriting ``state``; no gradient."""
    _check_step(phi_q, phi_k, v, rotation, state)
    with no_autocast(v):
        q, k, value, rotated_k = _widened(phi_q, phi_k, v, rotation, state)
        state.kv.addcmul_(rotated_k.unsqueeze(-1), value.unsqueeze(-2))
        state.k_sum.add_(k)
        return _read(q, rotation, state, normalize, v), state


def _causal(
    phi_q: Tensor, phi_k: Tensor, rotated_q: Tensor, rotated_k: Tensor, v: Tensor,
    *, key_mask: Tensor | None, normalize: bool,
) -> Tensor:  # fmt: skip
    return _go_on(
        phi_q, phi_k, rotated_q, rotated_k, v, empty_past(phi_k, v),
        key_mask=key_mask, normalize=normalize, chunk_size=None,
    )[0]  # fmt: skip


def _go_on(
    phi_q: Tensor, phi_k: Tensor, rotated_q: Tensor, rotated_k: Tensor, v: Tensor,
    state: LinearState, *, key_mask: Tensor | None, normalize: bool, chunk_size: int | None,
) -> tuple[Tensor, LinearState]:  # fmt: skip
    numerator, _, rotated = linear_attention_sums(
        rotated_q, rotated_k, v, state, key_mask=key_mask, chunk_size=chunk_size
    )
    # The denominator's keys are not rotated, so their sums are made apart: a plain running sum.
    dtype = state.k_sum.dtype
    k_sums = state.k_sum.unsqueeze(2) + _valid(phi_k, key_mask).to(dtype).cumsum(2)
    y = finish(numerator, (phi_q.to(dtype) * k_sums).sum(-1), normalize, v.dtype)
    return y, LinearState(rotated.kv, k_sums[:, :, -1])


def _bidirectional(
    phi_q: Tensor, phi_k: Tensor, rotated_q: Tensor, rotated_k: Tensor, v: Tensor,
    *, key_mask: Tensor | None, normalize: bool,
) -> Tensor:  # fmt: skip
    dtype = empty_past(phi_k, v).kv.dtype
    # v is widened, so that the numerator is not rounded to v's dtype before it is divided.
    numerator = linear_attention_bidirectional(
        rotated_q, rotated_k, v.to(dtype), key_mask=key_mask, normalize=False, impl=Impl.TORCH
    )
    k_sum = _valid(phi_k, key_mask).to(dtype).sum(2, keepdim=True)
    return finish(numerator, (phi_q.to(dtype) * k_sum).sum(-1), normalize, v.dtype)


def _valid(phi_k: Tensor, key_mask: Tensor | None) -> Tensor:
    return phi_k if key_mask is None else phi_k.masked_fill(~key_mask[:, None, :, None], 0)


def _widened(
    phi_q: Tensor, phi_k: Tensor, v: Tensor, rotation: Rotation, state: LinearState
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return query, key, value and rotated key of one token in the state's dtype."""
    q, k, value = (x.to(state.kv.dtype) for x in (phi_q, phi_k, v))
    return q, k, value, rotation(k.unsqueeze(2)).squeeze(2)


def _read(q: Tensor, rotation: Rotation, state: LinearState, normalize: bool, v: Tensor) -> Tensor:
    numerator = torch.matmul(rotation(q.unsqueeze(2)), state.kv).squeeze(2)
    return finish(numerator, (q * state.k_sum).sum(-1), normalize, v.dtype)


def _check(
    phi_q: Tensor, phi_k: Tensor, v: Tensor, rotation: Rotation, key_mask: Tensor | None
) -> None:
    check_qkv(phi_q, phi_k, v, is_causal=True)
    check_key_mask(key_mask, phi_k, phi_k.shape[0], phi_k.shape[2])
    check_rotation(rotation, phi_k.shape[0], phi_k.shape[2], phi_k.shape[3])


def _check_step(
    phi_q: Tensor, phi_k: Tensor, v: Tensor, rotation: Rotation, state: LinearState
) -> None:
    check_shape("phi_q", phi_q, phi_k.shape)
    check_rotation(rotation, len(phi_k), 1, phi_k.shape[-1])
    check_linear_state(state, phi_k, v)


def check_rotation(rotation: Rotation, batch_size: int, seq_len: int, num_features: int) -> None:
    """Require cosines and sines of (batch_size, seq_len) positions for ``num_features`` features.

    Raises:
        ValueError: if a shape does not fit or ``num_features`` is odd.
    """
    check_divisible("phi_k's number of features", num_features, 2)
    for name, x in (("rotation.cos", rotation.cos), ("rotation.sin", rotation.sin)):
        check_shape(name, x, (batch_size, seq_len, num_features // 2))
