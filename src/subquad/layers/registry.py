"""The table of mixers: a new mechanism is one line here.

``MIXERS[name](d_model, num_heads, is_causal=...)`` builds a mixer; models take a name of this table
or any factory of the same form.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from subquad.layers.hybrid import HybridAttention
from subquad.layers.lambda_mixer import LambdaMixer
from subquad.layers.linear_attention import LinearAttention
from subquad.layers.linformer import LinformerAttention
from subquad.layers.local_attention import LocalAttention
from subquad.layers.lsh_attention import LSHAttention
from subquad.layers.lstm import LSTMMixer
from subquad.layers.performer import PerformerAttention
from subquad.layers.softmax_attention import SoftmaxAttention
from subquad.layers.strided_attention import StridedAttention

MixerFactory = Callable[..., Any]

MIXERS: dict[str, MixerFactory] = {
    "softmax": SoftmaxAttention,
    "linear": LinearAttention,
    "performer": PerformerAttention,
    "local": LocalAttention,
    "strided": StridedAttention,
    "linformer": LinformerAttention,
    "hybrid": HybridAttention,
    "lsh-1": partial(LSHAttention, num_hashes=1),
    "lsh-4": partial(LSHAttention, num_hashes=4),
    "lsh-8": partial(LSHAttention, num_hashes=8),
    "lambda": LambdaMixer,
    "lstm": LSTMMixer,
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
