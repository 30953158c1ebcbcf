"""State of causal FAVOR+: the sums of linear attention, and the maximum that they are held below.

Axes: B batch, H heads, M features, V value size.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from subquad.ops.checks import check_same_device, check_shape, check_wide
from subquad.ops.generalized_features import GeneralizedFeatures
from subquad.ops.linear_state import LinearState, linear_state
from subquad.ops.performer_bidirectional import lowest
from subquad.ops.performer_options import Features


class PerformerState(NamedTuple):
    """The past, in float32 or wider; see ``ops/causal_features.py``.

    ``kv`` and ``k_sum`` are sums of exp(log phi(k) - ``log_max``) v^T and of the same without v.
    ``log_max`` is one number a head, or one a feature with ``max_per_feature``.
    """

    kv: Float[Tensor, "B H M V"]
    k_sum: Float[Tensor, "B H M"]
    log_max: Float[Tensor, "B H"] | Float[Tensor, "B H M"]

    @property
    def sums(self) -> LinearState:
        """The part that linear attention goes on from."""
        return LinearState(self.kv, self.k_sum)


State = PerformerState | LinearState

# Below one running maximum for all features a query may find only features that underflowed. What
# is left has no digits to speak of well before float32 ends at 1e-38.
TINY = 1e-30


def performer_state(
    batch_size: int,
    num_heads: int,
    head_dim: int,
    value_dim: int,
    features: Features,
    like: Tensor,
    *,
    max_per_feature: bool = False,
) -> State:
    """Return the empty past: a ``PerformerState``, or of generalised features a ``LinearState``.

    It is on the device of ``like`` and in its dtype, float32 or wider.

    Raises:
        ValueError: if ``features`` take heads of another width than ``head_dim``.
    """
    num_features = features.num_features(head_dim)
    kv, k_sum = linear_state(batch_size, num_heads, num_features, value_dim, like)
    if isinstance(features, GeneralizedFeatures):
        return LinearState(kv, k_sum)
    shape = (batch_size, num_heads, num_features) if max_per_feature else (batch_size, num_heads)
    return PerformerState(kv, k_sum, kv.new_full(shape, lowest(kv.dtype)))


def check_performer_state(
    state: State, num_features: int, k: Tensor, v: Tensor, *, max_per_feature: bool
) -> PerformerState:
    """Check the past against keys (B, H, T, K) and values (B, H, T, V), or one of each; return it.

    Raises:
        TypeError: if it is no ``PerformerState``, or narrower than float32, the keys or the values.
        ValueError: if a shape or a device does not fit.
    """
    if not isinstance(state, PerformerState):
        raise TypeError(f"state must be a PerformerState, got {type(state).__name__}")
    heads = tuple(k.shape[:2])
    shapes = {
        "kv": (*heads, num_features, v.shape[-1]),
        "k_sum": (*heads, num_features),
        "log_max": (*heads, num_features) if max_per_feature else heads,
    }
    for name, shape in shapes.items():
        x = getattr(state, name)
        check_shape(f"state.{name}", x, shape)
        check_same_device(f"state.{name}", x, k)
        check_wide(f"state.{name}", x, k, v)
    return state


def check_linear_past(state: State) -> LinearState:
    """Return the past of generalised features.

    Raises:
        TypeError: if it is no ``LinearState``.
    """
    if not isinstance(state, LinearState):
        raise TypeError(f"state must be a LinearState, got {type(state).__name__}")
    return state


def tiny_to_zero(
    numerator: Float[Tensor, "*N V"], denominator: Float[Tensor, "*N"]
) -> Float[Tensor, "*N V"]:
    """Divide; where the denominator is below ``TINY`` the result is 0 and carries no gradient."""
    tiny = is_tiny(denominator)
    return (numerator / denominator.masked_fill(tiny, 1).unsqueeze(-1)).masked_fill(
        tiny.unsqueeze(-1), 0
    )


def is_tiny(denominator: Tensor) -> Tensor:
    """Return where a denominator means nothing (NaN is no such place: it shall be seen)."""
    return denominator.abs() < TINY
