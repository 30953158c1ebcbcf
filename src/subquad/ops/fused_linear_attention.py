"""Linear attention from queries and keys that are not mapped yet, as layers have them.

Where a native form takes the call and the map is elu + 1, the kernel maps on the way and the
features never reach memory; else the map comes first and one of the forms on features follows.

Axes: B batch, H heads, T time, D head width, V value size.
Source: Katharopoulos et al. 2020, "Transformers are RNNs", equations 7 to 12 and 16 to 20.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from subquad.kernels.dispatch import Impl
from subquad.ops.checks import check_key_mask, check_qkv, check_same_device, check_shape
from subquad.ops.feature_maps import EluPlusOne, FeatureMap, no_autocast
from subquad.ops.linear_attention import linear_attention_bidirectional, linear_attention_chunked
from subquad.ops.linear_attention_step import linear_attention_step, linear_attention_step_
from subquad.ops.linear_state import LinearState, check_linear_state
from subquad.ops.native_linear_attention import Request, native_operator, native_step, run_native
from subquad.ops.rotary_linear_attention import (
    check_rotation,
    rotary_linear_attention,
    rotary_linear_attention_chunked,
    rotary_linear_attention_step,
    rotary_linear_attention_step_,
)
from subquad.ops.rotation import Rotation


def attend_all(
    q: Float[Tensor, "B H Tq D"],
    k: Float[Tensor, "B H Tk D"],
    v: Float[Tensor, "B H Tk V"],
    *,
    feature_map: FeatureMap,
    rotation: Rotation | None = None,
    key_mask: Bool[Tensor, "B Tk"] | None = None,
    normalize: bool = True,
    impl: Impl = Impl.AUTO,
) -> Float[Tensor, "B H Tq V"]:
    """Attend to all keys; with a ``rotation`` Tq = Tk. Errors as ``linear_attention``."""
    check_qkv(q, k, v, is_causal=rotation is not None)
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])
    if rotation is not None:
        check_rotation(rotation, k.shape[0], k.shape[2], feature_map.num_features(k.shape[3]))
    operator = None
    if type(feature_map) is EluPlusOne:
        request = Request(q, k, v, rotation=rotation, is_causal=False, feature_map=feature_map)
        operator = native_operator(request, impl)
    if operator is not None:
        return run_native(
            operator, q, k, v, rotation=rotation, key_mask=key_mask, maps_by_elu=True,
            normalize=normalize, is_causal=False,
        )[0]  # fmt: skip
    with no_autocast(v):
        phi_q, phi_k = feature_map(q), feature_map(k)
    if rotation is None:
        return linear_attention_bidirectional(
            phi_q, phi_k, v, key_mask=key_mask, normalize=normalize, impl=impl
        )
    return rotary_linear_attention(
        phi_q, phi_k, v, rotation, key_mask=key_mask, normalize=normalize, impl=impl
    )


def attend_past(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H T D"],
    v: Float[Tensor, "B H T V"],
    state: LinearState,
    *,
    feature_map: FeatureMap,
    rotation: Rotation | None = None,
    key_mask: Bool[Tensor, "B T"] | None = None,
    normalize: bool = True,
    impl: Impl = Impl.AUTO,
) -> tuple[Float[Tensor, "B H T V"], LinearState]:
    """Attend causally, going on from ``state``. Errors as ``linear_attention_chunked``."""
    check_qkv(q, k, v, is_causal=True)
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])
    if type(feature_map) is EluPlusOne:
        check_linear_state(state, k, v)
        if rotation is not None:
            check_rotation(rotation, k.shape[0], k.shape[2], k.shape[3])
        request = Request(q, k, v, state, rotation=rotation, feature_map=feature_map)
        operator = native_operator(request, impl)
        if operator is not None:
            return run_native(
                operator, q, k, v, state, rotation=rotation, key_mask=key_mask, maps_by_elu=True,
                normalize=normalize,
            )  # fmt: skip
    with no_autocast(v):
        phi_q, phi_k = feature_map(q), feature_map(k)
    if rotation is None:
        return linear_attention_chunked(
            phi_q, phi_k, v, state, key_mask=key_mask, normalize=normalize, impl=impl
        )
    return rotary_linear_attention_chunked(
        phi_q, phi_k, v, rotation, state, key_mask=key_mask, normalize=normalize, impl=impl
    )


def take_token_(
    q: Float[Tensor, "B H D"],
    k: Float[Tensor, "B H D"],
    v: Float[Tensor, "B H V"],
    state: LinearState,
    *,
    feature_map: FeatureMap,
    rotation: Rotation | None = None,
    normalize: bool = True,
    impl: Impl = Impl.AUTO,
) -> tuple[Float[Tensor, "B H V"], LinearState]:
    """Take one more token, overwriting ``state``; no gradient. ``rotation`` is of (B, 1) positions.

    Errors as ``linear_attention_step``.
    """
    take = token_taker(feature_map=feature_map, normalize=normalize, impl=impl)
    return take(q, k, v, state, rotation)


def take_token(
    q: Float[Tensor, "B H D"],
    k: Float[Tensor, "B H D"],
    v: Float[Tensor, "B H V"],
    state: LinearState,
    *,
    feature_map: FeatureMap,
    rotation: Rotation | None = None,
    normalize: bool = True,
    impl: Impl = Impl.AUTO,
) -> tuple[Float[Tensor, "B H V"], LinearState]:
    """Take one more token as ``take_token_`` does, leaving ``state`` as it is."""
    if _checked_step(q, k, v, state, feature_map, rotation, impl) is not None:
        after = LinearState(state.kv.clone(), state.k_sum.clone())
        return take_token_(
            q, k, v, after, feature_map=feature_map, rotation=rotation, normalize=normalize,
            impl=impl,
        )  # fmt: skip
    phi_q, phi_k = _mapped(q, feature_map), _mapped(k, feature_map)
    if rotation is None:
        return linear_attention_step(phi_q, phi_k, v, state, normalize=normalize)
    return rotary_linear_attention_step(phi_q, phi_k, v, rotation, state, normalize=normalize)


def token_taker(
    *, feature_map: FeatureMap, normalize: bool = True, impl: Impl = Impl.AUTO
) -> Callable[[Tensor, Tensor, Tensor, LinearState, Rotation | None], tuple[Tensor, LinearState]]:
    """Return ``take_token_`` for a loop: the form is chosen, and all is checked, at its first call.

    Shapes, dtypes and devices must stay what they were then, and the state the one returned.
    """
    operator: Any = None
    is_checked = False

    def take(
        q: Tensor, k: Tensor, v: Tensor, state: LinearState, rotation: Rotation | None
    ) -> tuple[Tensor, LinearState]:
        nonlocal operator, is_checked
        if not is_checked:
            operator = _checked_step(q, k, v, state, feature_map, rotation, impl)
            is_checked = True
        if operator is None:
            return _take_mapped(q, k, v, state, feature_map, rotation, normalize)
        cos, sin = (None, None) if rotation is None else (x.squeeze(1) for x in rotation)
        return operator(q, k, v, None, cos, sin, *state, True, normalize), state

    return take


def _checked_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: LinearState,
    feature_map: FeatureMap,
    rotation: Rotation | None,
    impl: Impl,
) -> Any:
    """Return the native operator for such a token, or None for the torch form."""
    check_shape("q", q, k.shape)
    check_same_device("q", q, k)
    check_shape("v", v, (*k.shape[:2], v.shape[-1]))
    if type(feature_map) is EluPlusOne:  # else the torch form checks what is mapped
        check_linear_state(state, k, v)
        if rotation is not None:
            check_rotation(rotation, len(k), 1, k.shape[-1])
    request = Request(q, k, v, state, rotation=rotation, feature_map=feature_map)
    return native_step(request, impl)


def _take_mapped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: LinearState,
    feature_map: FeatureMap,
    rotation: Rotation | None,
    normalize: bool,
) -> tuple[Tensor, LinearState]:
    phi_q, phi_k = _mapped(q, feature_map), _mapped(k, feature_map)
    if rotation is None:
        return linear_attention_step_(phi_q, phi_k, v, state, normalize=normalize)
    return rotary_linear_attention_step_(phi_q, phi_k, v, rotation, state, normalize=normalize)


def _mapped(x: Float[Tensor, "B H D"], feature_map: FeatureMap) -> Float[Tensor, "B H K"]:
    with no_autocast(x):  # a map may have weights by head, so it is given (B, H, 1, D)
        return feature_map(x.unsqueeze(2)).squeeze(2)
