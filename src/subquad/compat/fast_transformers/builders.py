"""The encoder builders: options set one by one or all at once, then ``get()``.

Every option is checked as it is set. An option that this package does not know, or that the
published library has and this one cannot honour, is an error.
"""

import abc
import difflib
import math
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from subquad.compat.fast_transformers.transformers import (
    RecurrentTransformerEncoder,
    TransformerEncoder,
)
from subquad.layers import LinearAttention, SoftmaxAttention
from subquad.layers.feed_forward import ACTIVATIONS
from subquad.models import TransformerDecoder
from subquad.models import TransformerEncoder as BidirectionalModel
from subquad.ops.checks import (
    check_choice,
    check_fraction,
    check_positive,
    check_positive_number,
)
from subquad.ops.feature_maps import FeatureMap, check_normalize, elu_plus_one

Builder = TypeVar("Builder", bound="EncoderBuilder")

ATTENTION_TYPES = ("full", "linear", "causal-linear")
# What theirs drops of the weights of "full" in training, if nothing else is said.
ATTENTION_DROPOUT = 0.1

OTHER_ATTENTION = f"it belongs to attention types other than {', '.join(ATTENTION_TYPES)}"
REFUSED: dict[str, str] = {
    "event_dispatcher": "there are no events; register a forward hook on a module instead",
    **dict.fromkeys(
        (
            "aft_parameterization", "bits", "chunk_size", "clusters", "hash_bias", "iterations",
            "length_limit", "local_context", "masked", "max_sequence_length", "rounds", "topk",
        ),
        OTHER_ATTENTION,
    ),
}  # fmt: skip


@dataclass(kw_only=True)
class EncoderBuilder(abc.ABC):
    """The options of both builders, with the published defaults.

    Args:
        n_layers: blocks.
        n_heads: heads of each; the model is ``n_heads * value_dimensions`` wide.
        query_dimensions: query and key width of a head.
        value_dimensions: value width of a head.
        feed_forward_dimensions: hidden width of the feed-forward networks.
        dropout: share dropped behind attention and in the feed-forward networks.
        activation: "relu" or "gelu".
        final_normalization: a LayerNorm behind the last block.
        attention_type: "full" (softmax), "linear" or "causal-linear".
        attention_dropout: share of the weights dropped by "full", None for 0.1. As in the published
            library, linear attention has no such dropout whatever is set here.
        softmax_temp: None or 1 / sqrt(query_dimensions), the only scale that "full" has.
        feature_map: for linear attention: None (elu + 1) or a map of ``subquad.ops.feature_maps``.

    Raises:
        AttributeError: if a name is set that is no option.
        TypeError: if a value is of the wrong type.
        ValueError: if a value does not fit, or the option cannot be honoured.
    """

    n_layers: int = 4
    n_heads: int = 4
    query_dimensions: int = 64
    value_dimensions: int = 64
    feed_forward_dimensions: int = 1024
    dropout: float = 0.1
    activation: str = "relu"
    final_normalization: bool = True
    attention_type: str = "full"
    attention_dropout: float | None = None
    softmax_temp: float | None = None
    feature_map: FeatureMap | None = None

    @classmethod
    def from_kwargs(cls: type[Builder], *, strict: bool = True, **options: Any) -> Builder:
        """Make a builder with these options; see ``from_dictionary``."""
        return cls.from_dictionary(options, strict=strict)

    @classmethod
    def from_dictionary(
        cls: type[Builder], dictionary: Mapping[str, Any], strict: bool = True
    ) -> Builder:
        """Make a builder with these options.

        Args:
            dictionary: values by name.
            strict: False passes over names that no version of the builder has; one that cannot be
                honoured here is an error all the same.

        Raises:
            TypeError: if a value is of the wrong type.
            ValueError: if a name is no option, or a value does not fit.
        """
        builder, known = cls(), [field.name for field in fields(cls)]
        for name, value in dictionary.items():
            if name in known or name in REFUSED:
                setattr(builder, name, value)
            elif strict:
                raise ValueError(_unknown(name, known))
        return builder

    @classmethod
    def from_namespace(cls: type[Builder], args: Namespace, strict: bool = False) -> Builder:
        """Make a builder of parsed arguments; names that are no option are passed over."""
        return cls.from_dictionary(vars(args), strict=strict)

    def __setattr__(self, name: str, value: Any) -> None:
        """Check and set one option."""
        if name in REFUSED:
            raise ValueError(f"{name} cannot be honoured: {REFUSED[name]}; got {value!r}")
        if name not in CHECKS:
            raise AttributeError(_unknown(name, list(CHECKS)))
        CHECKS[name](name, value)
        super().__setattr__(name, value)

    @abc.abstractmethod
    def get(self) -> nn.Module:
        """Build the model."""

    def _build(self, kind: Callable[..., Any]) -> Any:
        """Build one of this library's models from the options."""
        if self.attention_type == "full":
            scale = 1 / math.sqrt(self.query_dimensions)
            if self.softmax_temp is not None and not math.isclose(self.softmax_temp, scale):
                raise ValueError(
                    f"softmax_temp must be None or 1 / sqrt(query_dimensions) = {scale:.6g}, "
                    f"got {self.softmax_temp}"
                )
            dropout = self.attention_dropout
            dropout = ATTENTION_DROPOUT if dropout is None else dropout
            mixer: Any = partial(SoftmaxAttention, attention_dropout=dropout)
        else:
            feature_map = elu_plus_one if self.feature_map is None else self.feature_map
            mixer = partial(LinearAttention, feature_map=feature_map)
        return kind(
            self.n_heads * self.value_dimensions,
            num_layers=self.n_layers,
            num_heads=self.n_heads,
            head_dim=self.query_dimensions,
            value_dim=self.value_dimensions,
            d_ff=self.feed_forward_dimensions,
            mixer=mixer,
            norm="post",
            activation=self.activation,
            dropout=self.dropout,
            final_norm=self.final_normalization,
        )


class TransformerEncoderBuilder(EncoderBuilder):
    """Build an encoder that takes whole sequences, (N, L, E); options as ``EncoderBuilder``."""

    def get(self) -> TransformerEncoder:
        """Build the model: fresh weights, in training mode."""
        if self.attention_type == "causal-linear":
            return TransformerEncoder("causal-linear", self._build(TransformerDecoder))
        twin = None
        if self.attention_type == "full":
            with torch.device("meta"):  # its weights will be those of the other
                twin = self._build(TransformerDecoder)
        return TransformerEncoder(self.attention_type, self._build(BidirectionalModel), twin)


class RecurrentEncoderBuilder(EncoderBuilder):
    """Build its recurrent twin, one token a call, (N, E); options as ``EncoderBuilder``."""

    def get(self) -> RecurrentTransformerEncoder:
        """Build the model: fresh weights, in training mode."""
        return RecurrentTransformerEncoder(self._build(TransformerDecoder))


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__} {value!r}")


def _check_dropout(name: str, value: Any) -> None:
    _check_number(name, value)
    check_fraction(name, value)


def _check_attention_dropout(name: str, value: Any) -> None:
    if value is not None:
        _check_dropout(name, value)


def _check_softmax_temp(name: str, value: Any) -> None:
    if value is not None:
        _check_number(name, value)
        check_positive_number(name, value)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")


def _check_feature_map(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, nn.Module) or not isinstance(value, FeatureMap):
        raise TypeError(
            f"{name} must be None or a map of subquad.ops.feature_maps, with nothing to learn, "
            f"got {value!r}"
        )
    check_normalize(value, True)


CHECKS: dict[str, Callable[[str, Any], None]] = {
    "n_layers": check_positive,
    "n_heads": check_positive,
    "query_dimensions": check_positive,
    "value_dimensions": check_positive,
    "feed_forward_dimensions": check_positive,
    "dropout": _check_dropout,
    "activation": lambda name, value: check_choice(name, value, tuple(ACTIVATIONS)),
    "final_normalization": _check_bool,
    "attention_type": lambda name, value: check_choice(name, value, ATTENTION_TYPES),
    "attention_dropout": _check_attention_dropout,
    "softmax_temp": _check_softmax_temp,
    "feature_map": _check_feature_map,
}


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f", which are {', '.join(known)}"
    return f"{name} must be an option of the builder{hint}"
