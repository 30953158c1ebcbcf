"""The table of mixers: a new mechanism is one line here.

``MIXERS[name](d_model, num_heads, is_causal=...)`` builds a mixer; models take a name of this table
or any factory of the same form.
"""

from collections.abc import Callable
from typing import Any

from subquad.layers.linear_attention import LinearAttention
from subquad.layers.softmax_attention import SoftmaxAttention

MixerFactory = Callable[..., Any]

MIXERS: dict[str, MixerFactory] = {
    "softmax": SoftmaxAttention,
    "linear": LinearAttention,
}


def mixer_factory(mixer: str | MixerFactory) -> MixerFactory:
    """Return the factory of that name, or the factory given.

    Raises:
        ValueError: if no mixer has that name.
    """
    if callable(mixer):
        return mixer
    if mixer not in MIXERS:
        raise ValueError(f"mixer must be one of {', '.join(MIXERS)} or a factory; got {mixer!r}")
    return MIXERS[mixer]
