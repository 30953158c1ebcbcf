"""The names ``subquad_*`` in transformers' tables of attention functions and of mask functions.

A mask function must stand beside each attention function: for a name that its table of masks lacks
transformers passes no mask at all, and padding would be read as text.

Importing this module registers the names.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from subquad.pretrained.mixers import KeptSoftmax, SwappedAttention

MIXERS = ("performer", "linear", "softmax")
NAMES = {mixer: f"subquad_{mixer}" for mixer in MIXERS}
STATE_LAYER = "subquad_state_layer"  # marks keys that came through a StateCache

# What other attention functions do with the scores, and these have none of.
_UNKNOWN = ("position_bias", "softcap", "head_mask", "sliding_window", "s_aux", "output_attentions")


def key_mask_function(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> Tensor | None:
    """Return which keys are valid, (B, Tk) bool, or None if all are.

    Called by transformers, with more options than are of use here.

    Raises:
        ValueError: if the mask is more than causality and padding, or the cache has empty places.
    """
    if mask_function not in (causal_mask_function, bidirectional_mask_function):
        raise ValueError(
            "the mask must be causal or none, with padding alone, for the attention of subquad, "
            "got another (packed sequences, a window, blocks, or a mask function of your own)"
        )
    if mask_function is causal_mask_function and int(q_offset) + q_length != kv_offset + kv_length:
        raise ValueError(
            "the KV cache must grow with its tokens for the attention of subquad, got one with "
            f"{kv_offset + kv_length} places for {int(q_offset) + q_length} tokens (a static one?)"
        )
    if attention_mask is None:
        return None
    end = kv_offset + kv_length
    if attention_mask.shape[1] < end:
        raise ValueError(
            f"attention_mask must have a column for each of {end} tokens, "
            f"got {attention_mask.shape[1]}"
        )
    valid = attention_mask[:, kv_offset:end].bool()
    return None if bool(valid.all()) else valid


def _attention_function(name: str, mixer_name: str) -> Callable[..., tuple[Tensor, None]]:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Mix (B, H, T, K) into (B, T, H, V); no weights come with it."""
        mixer: Any = getattr(module, "subquad", None)
        if getattr(mixer, "mixer", None) not in (mixer_name, "softmax"):
            raise ValueError(
                f"a model must be prepared for {name} by subquad.pretrained.swap(model, "
                f"{mixer_name!r}), got a {type(module).__name__} that is not"
            )
        for word in _UNKNOWN:
            if options.get(word) is not None and options[word] is not False:
                raise ValueError(f"{word} must be left out with {name}, got {options[word]!r}")
        _check_mask(attention_mask, key, name)
        if is_causal is None:
            is_causal = attends_causally(module)
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        layer = getattr(key, STATE_LAYER, None)
        if layer is not None:
            y = layer.attend(mixer, query, key, value, scaling=scale, key_mask=attention_mask)
        else:
            y = mixer(
                query, key, value, scaling=scale, is_causal=is_causal, key_mask=attention_mask,
                dropout=dropout,
            )  # fmt: skip
        return y.transpose(1, 2).contiguous(), None

    return attend


def attends_causally(module: nn.Module) -> bool:
    """Return whether an attention module of transformers sees the past only.

    A decoder is made to see both sides by ``config.is_causal = False``.
    """
    of_config = getattr(getattr(module, "config", None), "is_causal", True)
    return bool(getattr(module, "is_causal", False)) and bool(of_config)


def _check_mask(mask: Tensor | None, key: Tensor, name: str) -> None:
    if mask is None:
        return
    if mask.dim() != 2 or mask.shape[0] != len(key):
        raise ValueError(
            f"attention_mask must be of shape (batch, tokens), padding alone, with {name}; "
            f"got {tuple(mask.shape)}"
        )


for _mixer, _name in NAMES.items():
    AttentionInterface.register(_name, _attention_function(_name, _mixer))
    AttentionMaskInterface.register(_name, key_mask_function)

__all__ = ["MIXERS", "NAMES", "KeptSoftmax", "SwappedAttention", "attends_causally"]
