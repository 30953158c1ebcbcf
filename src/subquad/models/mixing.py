"""Which mixer each layer of a stack gets: one for all, one each, or a share of softmax heads."""

import inspect
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from subquad.layers.hybrid import HybridAttention
from subquad.layers.registry import MIXERS, MixerFactory, mixer_factory
from subquad.ops.checks import check_positive

MixerChoice = str | MixerFactory | Sequence[str | MixerFactory]


def layer_factories(
    mixer: MixerChoice,
    num_layers: int,
    num_heads: int,
    *,
    softmax_share: float | None = None,
    softmax_window: int | None = None,
) -> list[MixerFactory]:
    """Return a factory for each layer.

    Args:
        mixer: a name in ``MIXERS`` or a factory, for all layers; or a sequence of these, one each.
        num_layers: layers L.
        num_heads: heads H of each.
        softmax_share: share of all L H heads that are softmax, spread evenly over the layers; the
            others are linear, so ``mixer`` must be "linear".
        softmax_window: what these softmax heads see on one side; None for all tokens.

    Raises:
        TypeError: if ``softmax_window`` is not an int.
        ValueError: if a name is unknown, or numbers do not fit each other.
    """
    if softmax_share is None:
        if softmax_window is not None:
            raise ValueError(
                f"softmax_window needs a softmax_share, got softmax_window={softmax_window} alone"
            )
        if isinstance(mixer, str) or callable(mixer):
            return [mixer_factory(mixer)] * num_layers
        if len(mixer) != num_layers:
            raise ValueError(
                f"mixer must be one, or one for each of {num_layers} layers, got {len(mixer)}"
            )
        return [mixer_factory(each) for each in mixer]
    if mixer != "linear":
        raise ValueError(f'mixer must be "linear" with a softmax_share, got {mixer!r}')
    if softmax_window is not None:
        check_positive("softmax_window", softmax_window)
    counts = softmax_heads(softmax_share, num_layers, num_heads)
    return [_with_softmax(count, num_heads, softmax_window) for count in counts]


def softmax_heads(share: float, num_layers: int, num_heads: int) -> list[int]:
    """Return how many heads of each layer are softmax.

    Raises:
        ValueError: if ``share`` is not from 0 to 1, or gives no whole number of heads.
    """
    heads = num_layers * num_heads
    if not 0 <= share <= 1:
        raise ValueError(f"softmax_share must be from 0 to 1, got {share}")
    wanted = round(share * heads)
    if abs(share * heads - wanted) > 1e-6:
        raise ValueError(
            f"softmax_share must give a whole number of the {heads} heads of all layers, "
            f"got {share}, which is {share * heads:g} of them"
        )
    borders = [wanted * layer // num_layers for layer in range(num_layers + 1)]
    return [after - before for before, after in pairwise(borders)]


def _with_softmax(count: int, num_heads: int, window: int | None) -> MixerFactory:
    if count == 0:
        return MIXERS["linear"]
    if count < num_heads:
        return partial(HybridAttention, softmax_heads=count, window=window)
    return MIXERS["softmax"] if window is None else partial(MIXERS["local"], window=window)


def takes(factory: MixerFactory, option: str) -> bool:
    """Return whether a factory has an option of that name."""
    return option in inspect.signature(factory).parameters


def is_asked_for(factory: MixerFactory, option: str) -> bool:
    """Return whether a factory has an option of that name and, a ``partial``, does not say it."""
    return takes(factory, option) and option not in _said(factory)


def _said(factory: MixerFactory) -> dict[str, Any]:
    return factory.keywords if isinstance(factory, partial) else {}


def mixer_options(
    factory: MixerFactory,
    *,
    head_dim: int | None,
    value_dim: int | None,
    rotary: bool,
    max_len: int | None,
) -> dict[str, Any]:
    """Return what a stack hands to one layer's factory beside the sizes that all take.

    Raises:
        ValueError: if a ``partial`` says a ``max_len`` below the model's.
    """
    own = _said(factory).get("max_len")
    if max_len is not None and own is not None and own < max_len:
        raise ValueError(f"mixer must take the model's {max_len} tokens, got max_len={own}")
    given: dict[str, Any] = {"head_dim": head_dim, "value_dim": value_dim}
    options = {name: value for name, value in given.items() if value is not None}
    if rotary:
        options["rotary"] = True
    if max_len is not None and is_asked_for(factory, "max_len"):
        options["max_len"] = max_len
    return options
