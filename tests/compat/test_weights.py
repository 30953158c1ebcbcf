"""State dicts in the published layout, and weights shared by a batch model and its twin."""

import copy
import io

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from subquad.compat.fast_transformers.builders import (
    RecurrentEncoderBuilder,
    TransformerEncoderBuilder,
)
from subquad.compat.fast_transformers.masking import TriangularCausalMask
from subquad.compat.fast_transformers.utils import make_mirror

SIZES = {
    "n_layers": 2,
    "n_heads": 3,
    "query_dimensions": 5,
    "value_dimensions": 4,
    "feed_forward_dimensions": 10,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
TYPES = ("full", "linear", "causal-linear")
KINDS = {"batch": TransformerEncoderBuilder, "recurrent": RecurrentEncoderBuilder}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
attention_types = pytest.mark.parametrize("attention_type", TYPES)

LAYER = {
    "attention.query_projection": (15, 12),
    "attention.key_projection": (15, 12),
    "attention.value_projection": (12, 12),
    "attention.out_projection": (12, 12),
    "linear1": (10, 12),
    "linear2": (12, 10),
    "norm1": (12,),
    "norm2": (12,),
}
SHAPES = {f"layers.{n}.{name}": shape for n in range(2) for name, shape in LAYER.items()}
SHAPES |= {"norm": (12,)}
SHAPES = {
    f"{name}.{part}": shape[: None if part == "weight" else 1]
    for name, shape in SHAPES.items()
    for part in ("weight", "bias")
}


def build(kind, attention_type="full", **options):
    return kind.from_kwargs(attention_type=attention_type, **{**SIZES, **options}).get()


def draw():
    return {key: torch.randn(shape) for key, shape in SHAPES.items()}


@kinds
@attention_types
def test_the_layout_is_the_published_one_and_comes_back_to_the_bit(kind, attention_type):
    model, weights = build(kind, attention_type), draw()
    assert {key: tuple(x.shape) for key, x in model.state_dict().items()} == SHAPES
    model.load_state_dict(weights)
    saved = model.state_dict()
    assert all(torch.equal(saved[key], x) for key, x in weights.items())
    assert not any(x.requires_grad for x in saved.values())
    through_file = load(save(saved))
    assert all(torch.equal(through_file[key], x) for key, x in weights.items())


@kinds
def test_without_the_final_norm_there_is_no_norm_among_the_keys(kind):
    model = build(kind, final_normalization=False)
    assert set(model.state_dict()) == {key for key in SHAPES if not key.startswith("norm.")}
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"norm.weight", "norm.bias"'):
        model.load_state_dict(draw())


@kinds
@attention_types
def test_one_error_lists_every_fault_and_loads_nothing_else_amiss(kind, attention_type):
    model, weights = build(kind, attention_type), draw()
    del weights["layers.1.attention.key_projection.weight"], weights["norm.bias"]
    weights["layers.0.attention.inner_attention.feature_map.omega"] = torch.ones(3)
    weights["model.stack.final_norm.weight"] = torch.ones(12)  # our own name is none of theirs
    weights["layers.0.linear1.weight"] = torch.ones(3, 3)
    weights["layers.1.attention.value_projection.bias"] = torch.ones(15)
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(weights)
    said = str(caught.value)
    for part in (
        'Missing key(s) in state_dict: "layers.1.attention.key_projection.weight", "norm.bias"',
        'Unexpected key(s) in state_dict: "layers.0.attention.inner_attention.feature_map.omega", '
        '"model.stack.final_norm.weight"',
        "layers.0.linear1.weight must have shape (10, 12), got (3, 3)",
        "layers.1.attention.value_projection.bias must have shape (12,), got (15,)",
    ):
        assert part in said
    assert said.count("\n") == 4


@kinds
def test_what_is_missing_keeps_its_value_where_strict_is_off(kind):
    model, weights = build(kind), draw()
    before = {key: x.clone() for key, x in model.state_dict().items()}
    del weights["layers.1.attention.key_projection.weight"], weights["norm.bias"]
    left, over = model.load_state_dict({**weights, "head.weight": torch.ones(2)}, strict=False)
    assert left == ["layers.1.attention.key_projection.weight", "norm.bias"]
    assert over == ["head.weight"]
    after = model.state_dict()
    assert all(torch.equal(after[key], (weights | before)[key]) for key in left)
    assert all(torch.equal(after[key], x) for key, x in weights.items())


class Classifier(nn.Module):
    """A user's model, as they hold a built transformer."""

    def __init__(self, kind, attention_type):
        super().__init__()
        self.embed = nn.Embedding(7, 12)
        self.transformer = build(kind, attention_type)
        self.head = nn.Linear(12, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids, mask=None):
        return self.head(self.transformer(self.embed(ids), mask))

    def step(self, ids, state=None):
        y, state = self.transformer(self.embed(ids), state)
        return self.head(y), state


@kinds
@attention_types
def test_it_works_as_a_part_of_a_larger_model(kind, attention_type):
    model, other = Classifier(kind, attention_type), Classifier(kind, attention_type)
    saved = model.state_dict()
    inside = {f"transformer.{key}" for key in SHAPES}
    assert set(saved) == inside | {"embed.weight", "head.weight"}
    other.load_state_dict(saved)
    assert all(torch.equal(other.state_dict()[key], x) for key, x in saved.items())
    del saved["transformer.norm.bias"]
    with pytest.raises(RuntimeError, match=r'Missing key.*: "transformer.norm.bias"\. $'):
        other.load_state_dict(saved)


@kinds
@attention_types
def test_copies_files_and_the_meta_device(kind, attention_type):
    model = build(kind, attention_type)
    weights = model.state_dict()
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    buffer.seek(0)
    with torch.device("meta"):
        bare = build(kind, attention_type)
    bare.load_state_dict(torch.load(buffer, weights_only=True), assign=True)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters()).zero_()
    for other in (bare, copied.double()):
        found = other.state_dict()
        assert list(found) == list(weights)
        copied.load_state_dict(found)


@pytest.mark.parametrize("attention_type", ["full", "causal-linear"])
def test_a_mirror_follows_the_training_of_the_other(attention_type):
    batch = Classifier(TransformerEncoderBuilder, attention_type)
    twin = Classifier(RecurrentEncoderBuilder, attention_type)
    make_mirror(batch, twin)
    ids, mask = torch.randint(7, (2, 6)), TriangularCausalMask(6)
    optimizer = torch.optim.SGD(batch.parameters(), lr=0.1)
    for _ in range(2):
        expected, state = batch(ids, mask), None
        for t in range(6):
            y, state = twin.step(ids[:, t], state)
            assert torch.allclose(y, expected[:, t], rtol=1e-4, atol=1e-5)
        optimizer.zero_grad()
        expected.square().mean().backward()
        optimizer.step()
    shared = {id(p) for p in batch.parameters()}
    assert {id(p) for p in twin.parameters()} == shared
    assert twin.head.weight is twin.embed.weight


def test_a_mirror_the_other_way_round_reaches_both_directions_of_full_attention():
    twin, batch = build(RecurrentEncoderBuilder), build(TransformerEncoderBuilder)
    make_mirror(twin, batch)
    weights = twin.state_dict()
    plain = build(TransformerEncoderBuilder)
    plain.load_state_dict(weights)
    x = torch.randn(2, 6, 12)
    for mask in (None, TriangularCausalMask(6)):
        assert torch.equal(batch(x, mask), plain(x, mask))


def test_a_mirror_needs_the_same_parameters():
    batch, narrow = build(TransformerEncoderBuilder), build(RecurrentEncoderBuilder, n_layers=1)
    before = dict(narrow.named_parameters())
    with pytest.raises(ValueError, match=r"but dst_module lacks model\.stack\.blocks\.1\."):
        make_mirror(batch, narrow)
    with pytest.raises(ValueError, match=r"but src_module lacks model\.stack\.blocks\.1\."):
        make_mirror(narrow, batch)
    wide = build(RecurrentEncoderBuilder, feed_forward_dimensions=11)
    with pytest.raises(
        ValueError, match=r"inner\.weight has shape \(11, 12\) in place of \(10, 12"
    ):
        make_mirror(batch, wide)
    assert all(p is before[name] for name, p in narrow.named_parameters())
