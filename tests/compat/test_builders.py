"""Every way to set an option of the published builders, and all that they refuse."""

from argparse import Namespace

import pytest
import torch

from subquad.compat import fast_transformers as names
from subquad.compat.fast_transformers.builders import (
    REFUSED,
    RecurrentEncoderBuilder,
    TransformerEncoderBuilder,
)
from subquad.compat.fast_transformers.feature_maps import elu_feature_map
from subquad.layers import LearnedFeatureMap
from subquad.models import TransformerDecoder, TransformerEncoder
from subquad.ops import feature_maps

builders = pytest.mark.parametrize(
    "kind", [TransformerEncoderBuilder, RecurrentEncoderBuilder], ids=["batch", "recurrent"]
)
OPTIONS = {
    "n_layers": 3,
    "n_heads": 2,
    "query_dimensions": 5,
    "value_dimensions": 4,
    "feed_forward_dimensions": 10,
    "dropout": 0.25,
    "activation": "gelu",
    "attention_type": "causal-linear",
    "final_normalization": False,
}


def built_as_asked(model):
    stack = model.model.stack
    block = stack.blocks[0]
    heads = block.mixer.heads
    assert len(stack.blocks) == 3
    assert (heads.num_heads, heads.head_dim, heads.value_dim, heads.d_model) == (2, 5, 4, 8)
    assert block.feed_forward.inner.out_features == 10
    assert {module.p for module in stack.modules() if isinstance(module, torch.nn.Dropout)} == {
        0.25
    }
    assert block.feed_forward.activation == "gelu"
    assert block.mixer.is_causal
    assert not list(stack.final_norm.parameters())


@builders
def test_options_come_at_once_or_one_by_one(kind):
    one_by_one = kind()
    for name, value in OPTIONS.items():
        setattr(one_by_one, name, value)
        assert getattr(one_by_one, name) == value
    for builder in (
        one_by_one,
        kind.from_kwargs(**OPTIONS),
        kind.from_dictionary(OPTIONS),
        kind.from_namespace(Namespace(**OPTIONS, learning_rate=1e-3)),
        kind.from_dictionary({**OPTIONS, "epochs": 3}, strict=False),
        kind.from_kwargs(**OPTIONS, epochs=3, strict=False),
    ):
        assert builder == one_by_one
        built_as_asked(builder.get())


@builders
def test_the_defaults_are_the_published_ones(kind):
    stack = kind().get().model.stack
    heads = stack.blocks[0].mixer.heads
    assert (len(stack.blocks), heads.num_heads, heads.head_dim, heads.value_dim) == (4, 4, 64, 64)
    assert stack.blocks[0].feed_forward.inner.out_features == 1024
    assert stack.blocks[0].feed_forward.activation == "relu"
    assert stack.blocks[0].dropout.p == 0.1
    assert stack.blocks[0].norm == "post"
    assert isinstance(stack.final_norm, torch.nn.LayerNorm)


def test_one_builder_builds_several_models():
    builder = TransformerEncoderBuilder.from_kwargs(**{**OPTIONS, "attention_type": "full"})
    softmax = builder.get()
    builder.attention_type = "linear"
    linear = builder.get()
    builder.attention_type = "causal-linear"
    assert isinstance(softmax.model, TransformerEncoder)
    assert isinstance(softmax.twin, TransformerDecoder)
    assert linear.twin is None
    assert isinstance(builder.get().model, TransformerDecoder)
    assert isinstance(RecurrentEncoderBuilder().get().model, TransformerDecoder)
    assert "attention_type='causal-linear'" in repr(builder)


def test_all_public_names_are_there():
    assert all(hasattr(names, name) for name in names.__all__)


@builders
@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("n_layers", 0, ValueError, "n_layers must be at least 1, got 0"),
        ("n_heads", 2.0, TypeError, r"n_heads must be an int, got float 2\.0"),
        ("query_dimensions", -1, ValueError, "query_dimensions must be at least 1, got -1"),
        ("value_dimensions", None, TypeError, "value_dimensions must be an int, got NoneType"),
        ("feed_forward_dimensions", 0, ValueError, "feed_forward_dimensions must be at least 1"),
        ("dropout", 1.0, ValueError, r"dropout must be at least 0 and below 1, got 1\.0"),
        ("dropout", "0.1", TypeError, r"dropout must be a number, got str '0\.1'"),
        ("attention_dropout", "a", TypeError, "attention_dropout must be a number, got str 'a'"),
        ("softmax_temp", True, TypeError, "softmax_temp must be a number, got bool True"),
        (
            "activation",
            "swish",
            ValueError,
            "activation must be one of relu, gelu, gelu-tanh; got 'swish'",
        ),
        ("final_normalization", 1, TypeError, "final_normalization must be a bool, got int 1"),
        (
            "attention_type",
            "reformer",
            ValueError,
            "attention_type must be one of full, linear, causal-linear; got 'reformer'",
        ),
        ("attention_type", "conditional-full:linear", ValueError, "attention_type must be one of"),
        ("attention_dropout", -0.1, ValueError, "attention_dropout must be at least 0 and below 1"),
        (
            "softmax_temp",
            0.0,
            ValueError,
            r"softmax_temp must be a finite number above 0, got 0\.0",
        ),
        ("feature_map", torch.relu, TypeError, "feature_map must be None or a map of subquad.ops"),
        ("feature_map", LearnedFeatureMap(2, 4, 6), TypeError, "with nothing to learn"),
        ("feature_map", feature_maps.identity, ValueError, "kernel can be negative"),
        ("event_dispatcher", "", ValueError, "event_dispatcher cannot be honoured: .* hook .* ''"),
        ("bits", 32, ValueError, "bits cannot be honoured: it belongs to .* causal-linear; got 32"),
    ],
)
def test_what_does_not_fit_is_refused_however_it_is_set(
    kind, name, value, error, message, unhooked
):
    for set_it in (
        lambda: setattr(kind(), name, value),
        lambda: kind.from_kwargs(**{name: value}),
        lambda: kind.from_dictionary({name: value}, strict=False),
        lambda: kind.from_namespace(Namespace(**{name: value})),
    ):
        with pytest.raises(error, match=message):
            set_it()


@pytest.mark.parametrize("name", REFUSED)
def test_each_option_of_other_attention_types_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} cannot be honoured: "):
        TransformerEncoderBuilder.from_kwargs(**{name: 1})


@builders
def test_a_name_that_is_no_option_is_refused_with_the_nearest(kind):
    message = "n_layer must be an option of the builder; did you mean n_layers?"
    with pytest.raises(ValueError, match=message):
        kind.from_kwargs(n_layer=3)
    with pytest.raises(AttributeError, match=message):
        kind().n_layer = 3
    with pytest.raises(
        ValueError, match="xyz must be an option of the builder, which are n_layers"
    ):
        kind.from_dictionary({"xyz": 1})


@builders
def test_the_scale_of_softmax_can_be_named_but_not_changed(kind):
    builder = kind.from_kwargs(query_dimensions=4, softmax_temp=0.5)
    builder.get()
    builder.softmax_temp = 1.0
    message = r"softmax_temp must be None or 1 / sqrt\(query_dimensions\) = 0\.5, got 1\.0"
    with pytest.raises(ValueError, match=message):
        builder.get()
    builder.attention_type = "linear"  # has no such scale, there as here
    builder.get()


@builders
def test_a_feature_map_reaches_the_layers(kind):
    for given, expected in (
        (None, feature_maps.elu_plus_one),
        (elu_feature_map, feature_maps.elu_plus_one),
        (feature_maps.squared_relu, feature_maps.squared_relu),
    ):
        model = kind.from_kwargs(attention_type="linear", feature_map=given).get()
        assert {block.mixer.feature_map for block in model.model.stack.blocks} == {expected}
