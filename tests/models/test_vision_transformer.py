"""Vision Transformers: what each part does, with any mixer, packed, resampled, saved."""

from functools import partial

import pytest
import torch
from torch import nn

from helpers import assert_near
from subquad.layers import MIXERS
from subquad.layers.block import Block
from subquad.models import VisionTransformer, load_model, save_model
from subquad.models.vit_positions import PLACES, POSITIONS
from subquad.models.vit_resample import METHODS, resample_grid
from vit_cases import GRID, PATCH, POOLINGS, SIDES, images, small


def test_it_is_the_papers_four_equations():
    model, x = small(), images(2, 3, *SIDES)
    patches = x.reshape(2, 3, 2, PATCH, 3, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(2, 6, -1)
    tokens = patches @ model.stem.proj.weight.flatten(1).mT + model.stem.proj.bias
    z = torch.cat([model.class_token.expand(2, -1, -1), tokens], dim=1) + model.positions.table
    assert_near(model.embed(x), z, 1e-12)
    for block in model.blocks:
        z = block.mixer(block.mixer_norm(z)) + z
        hidden = block.feed_forward.inner(block.feed_forward_norm(z))
        z = block.feed_forward.outer(nn.functional.gelu(hidden)) + z
    z = model.norm(z)
    assert_near(model.forward_features(x), z, 1e-12)
    assert_near(model(x), model.head(z[:, 0]), 1e-12)


def test_what_the_head_sees():
    tokens = images(2, 7, 16)
    assert torch.equal(small().pool(tokens), tokens[:, 0])
    assert_near(small(pooling="mean").pool(tokens), tokens.mean(1), 1e-12)
    model = small(pooling="sequence")
    weights = (tokens @ model.scores.weight[0] + model.scores.bias).softmax(1)
    assert_near(model.pool(tokens), (weights[:, :, None] * tokens).sum(1), 1e-12)
    for pooling in POOLINGS:
        model = small(pooling=pooling, pre_logits=True)
        tokens = model.forward_features(images(2, 3, *SIDES))
        assert tokens.shape == (2, 6 + (pooling == "class"), 16)
        assert (model.class_token is not None) == (pooling == "class")
        expected = model.head(torch.tanh(model.pre_logits(model.pool(tokens))))
        assert_near(model(images(2, 3, *SIDES)), expected, 1e-12)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_tokens_lie_in_memory_as_layers_want_them(pooling):
    model = small(pooling=pooling, positions="none")
    assert model.embed(images(2, 3, *SIDES)).is_contiguous()


@pytest.mark.parametrize("mixer", ["softmax", "linear"])
def test_swapping_two_patches_with_their_positions_changes_nothing(mixer):
    model, x = small(mixer=mixer), images(2, 3, *SIDES)
    expected = model(x)
    swapped = x.clone()
    swapped[:, :, :4, :4], swapped[:, :, 4:, 8:] = x[:, :, 4:, 8:], x[:, :, :4, :4]
    assert (model(swapped) - expected).norm() > 1e-3 * expected.norm()
    with torch.no_grad():
        model.positions.table[:, [1, 6]] = model.positions.table[:, [6, 1]].clone()
    assert_near(model(swapped), expected, 1e-12)


def test_it_starts_undecided():
    model = VisionTransformer(image_size=8, patch_size=4, d_model=16, num_layers=1, num_heads=2)
    assert torch.equal(model(torch.randn(2, 3, 8, 8)).softmax(1), torch.full((2, 1000), 1e-3))
    assert not model.class_token.any()
    assert model.positions.table.std().item() == pytest.approx(0.02, rel=0.3)
    feed_forward = model.blocks[0].feed_forward
    assert feed_forward.inner.weight.abs().max() <= (6 / (16 + 64)) ** 0.5
    assert 0 < feed_forward.outer.bias.abs().max() < 1e-5
    assert not model.stem.proj.bias.any()
    assert model.stem.proj.weight.std().item() == pytest.approx(48**-0.5, rel=0.1)
    assert model.stem.proj.weight.abs().max() <= 2 / 0.8796 * 48**-0.5


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("mixer", [name for name in MIXERS if name != "lambda"])  # see below
def test_any_mixer_packed_as_one_by_one(mixer, pooling):
    sizes = [(8, 12), (4, 4), (8, 8), (12, 4), (4, 8)]  # none above the 7 tokens of linformer
    model = small(mixer=mixer, pooling=pooling)
    batch = [images(3, *size, seed=i) for i, size in enumerate(sizes)]
    alone = torch.cat([model(x.unsqueeze(0)) for x in batch])
    packed = model.forward_packed(batch)
    assert_near(packed, alone, 1e-10)
    assert len(packed.unique(dim=0)) == 5
    batch[1] = 1e3 * batch[1]
    others = [0, 2, 3, 4]
    assert_near(model.forward_packed(batch)[others], packed[others], 1e-10)


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name != "lambda"])  # see below
def test_packed_is_padded(mixer):
    model = small(mixer=mixer)
    batch = [images(3, 8, 12), images(3, 4, 8, seed=2)]
    tokens = [model.embed(x.unsqueeze(0))[0] for x in batch]
    x = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=torch.nan)
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    for block in model.blocks:
        x = block(x.masked_fill(~mask[..., None], 0), key_mask=mask)
    padded = model.head(model.norm(x)[:, 0])
    assert_near(model.forward_packed(batch), padded, 1e-10)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [n for n in POSITIONS if n != "relative"])
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_positions_in_their_places(name, place, pooling):
    model, x = small(positions=name, position_place=place, pooling=pooling), images(2, 3, *SIDES)
    z = model._tokens(x)
    for i, block in enumerate(model.blocks):
        table = model.positions[i] if place == "layers" else model.positions
        if name != "none" and (i == 0 or place != "stem"):
            z = z + table(GRID, "zoom")
        z = block(z)
    assert_near(model.forward_features(x), model.norm(z), 1e-12)
    other = images(3, 12, 16)
    assert_near(model.forward_packed([other, x[0]])[:1], model(other[None]), 1e-10)
    assert len(list(model.positions.parameters())) == {
        "none": 0, "learned": 1, "learned-2d": 2 + (pooling == "class"), "coordinates": 1,
    }[name] * (2 if place == "layers" else 1)  # fmt: skip


def test_relative_positions_are_in_the_mixers():
    model, x = small(positions="relative"), images(2, 3, *SIDES)
    assert model.config["position_place"] == "layers"
    assert model.blocks[1].mixer.relative.table.shape == (2, 13, 8)
    one, other = model.forward_packed([x[0], x[1]])
    assert_near(torch.stack([one, other]), model(x), 1e-10)
    # Without them it would be a bag of patches, but for the class token's place.
    assert (model(x.flip(3)) - model(x)).norm() > 1e-3
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    for size in ((8, 8), (12, 8)):
        with pytest.raises(ValueError, match=r"x must have the sides of image_size \(8 x 12\)"):
            model(images(1, 3, *size))
    with pytest.raises(ValueError, match=r"image_size must have the sides of .* got 16 x 16"):
        model.resample(16)


@pytest.mark.parametrize("resampling", METHODS)
def test_another_size_takes_resampled_positions(resampling):
    model, x = small(resampling=resampling), images(2, 3, 12, 20)
    rows = model.embed(x) - model._tokens(x)
    grid = model.positions.table[:, 1:].reshape(1, *GRID, 16)
    assert_near(rows[:1, 1:], resample_grid(grid, (3, 5), resampling).flatten(1, 2), 1e-12)
    assert_near(rows[:1, :1], model.positions.table[:, :1], 1e-12)


@pytest.mark.parametrize("method", [None, "bilinear"])
@pytest.mark.parametrize("place", PLACES)
def test_resampled_positions_are_kept(method, place):
    model, x = small(position_place=place, resampling="bicubic"), images(2, 3, 12, 20)
    expected = model(x)
    model.resample((12, 20), method)
    assert model.grid == (3, 5)
    assert model.config["image_size"] == [12, 20]
    found = model(x)
    if method is None:
        assert_near(found, expected, 1e-12)
    else:
        assert (found - expected).norm() > 1e-6
    assert sum(p.numel() for p in model.positions.parameters()) % (16 * 16) == 0
    found.sum().backward()
    assert all(p.grad is not None for p in model.positions.parameters())


def test_a_new_head_is_zero_and_alone():
    model, x = small(pre_logits=True), images(2, 3, *SIDES)
    model.reset_head(7)
    assert torch.equal(model(x), torch.zeros(2, 7, dtype=torch.float64))
    assert model.pre_logits is None
    assert not any(name.startswith("pre_logits") for name in model.state_dict())
    assert (model.config["num_classes"], model.config["pre_logits"]) == (7, False)


@pytest.mark.parametrize("stem", ["conv", "r-ti"])
def test_stems_with_convolutions(stem):
    model = small(stem=stem, image_size=(16, 24), patch_size=8, pooling="sequence")
    x = images(2, 3, 16, 24)
    assert model.grid == GRID
    assert_near(model.forward_packed([x[0], x[1]]), model(x), 1e-10)
    assert model(images(1, 3, 40, 8)).shape == (1, 5)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_options_reach_the_layers():
    mixers = ("linear", "softmax", "local")
    model = VisionTransformer(
        image_size=8, patch_size=4, d_model=16, num_layers=3, num_heads=2, d_ff=20, dropout=0.2,
        drop_path=0.3, norm_eps=1e-3, activation="gelu-tanh", mixer=mixers,
    )  # fmt: skip
    assert [type(block.mixer) for block in model.blocks] == [MIXERS[name] for name in mixers]
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.15, 0.3])
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.2}
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-3}
    assert all(isinstance(b, Block) and b.norm == "pre" for b in model.blocks)
    assert model.blocks[0].feed_forward.activation == "gelu-tanh"
    attention = small(attention_dropout=0.4).blocks[0].mixer
    assert attention.attention_dropout == 0.4


def test_gelu_by_tanh_is_near_the_exact_one():
    exact, rough = small(), small(activation="gelu-tanh")
    rough.load_state_dict(exact.state_dict())
    x = images(2, 3, *SIDES)
    assert 1e-8 < (exact(x) - rough(x)).norm() < 1e-2 * exact(x).norm()
    inner = images(3, 16)
    feed_forward = rough.blocks[0].feed_forward
    hidden = feed_forward.inner(inner)
    hidden = 0.5 * hidden * (1 + ((2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)).tanh())
    assert_near(feed_forward(inner), feed_forward.outer(hidden), 1e-12)


@pytest.mark.parametrize("mixer", ["softmax", "linear", "lambda"])
def test_checkpointing_changes_no_gradient(mixer):
    found = []
    for repeats in (False, True, "mixers"):
        model = small(mixer=mixer, dropout=0.2, drop_path=0.2, checkpointing=repeats).train()
        torch.manual_seed(3)
        model(images(2, 3, *SIDES)).square().sum().backward()
        packed = [images(3, *SIDES)] if mixer == "lambda" else [images(3, 4, 8), images(3, 8, 8)]
        model.forward_packed(packed).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for repeated in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], repeated, strict=True))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_half_precision(pooling):
    model, x = small(pooling=pooling), images(2, 3, *SIDES)
    expected = model(x)
    y = model.float()(x.float())
    assert_near(y, expected, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(model(x.float()), expected, 3e-2)
    half = model.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert_near(half, expected, 6e-2)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 6e-2), (torch.float16, 8e-3)])
@pytest.mark.parametrize("mixer", MIXERS)
def test_half_precision_with_any_mixer(mixer, dtype, error):
    model, x = small(mixer=mixer), images(2, 3, *SIDES)
    expected = model(x)
    y = model.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert_near(y, expected, error)
    packed = model.forward_packed(list(x.to(dtype)))
    assert packed.dtype == dtype
    assert_near(packed, expected, error)


@pytest.mark.parametrize("mixer", MIXERS)
def test_it_builds_without_memory_and_is_saved_and_loaded(mixer, tmp_path):
    options = {"mixer": mixer, "pooling": "sequence", "positions": "learned-2d"}
    with torch.device("meta"):
        assert all(p.is_meta for p in small(**options).parameters())
    model, x = small(**options).float(), images(2, 3, *SIDES).float()
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, VisionTransformer)
    assert again.config == model.config
    assert torch.equal(again(x), model(x))


def test_a_changed_model_is_saved_as_it_is(tmp_path):
    model = small(positions="coordinates", mixer=["softmax", "linear"], pre_logits=True).float()
    model.reset_head(3)
    model.resample((16, 8))
    save_model(model, tmp_path)
    again, x = load_model(tmp_path), images(2, 3, 16, 8).float()
    assert again.grid == (4, 2)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_lambda_layers_see_the_patches_on_their_grid(pooling, unhooked):
    model = small(mixer="lambda", pooling=pooling, positions="none")
    assert all(block.mixer.grid == model.grid for block in model.blocks)
    x = images(2, 3, *SIDES)
    turned = torch.cat([x[..., 4:], x[..., :4]], -1)  # no patch changes, but its place does
    assert (model(x) - model(turned)).norm() > 1e-6 * model(x).norm()
    assert_near(model.forward_packed(list(x)), model(x), 1e-12)  # as one by one: all of one size
    assert_near(torch.cat([model(one[None]) for one in x]), model(x), 1e-12)
    larger = images(1, 3, SIDES[0], 2 * SIDES[1])
    message = rf"image_size \({SIDES[0]} x {SIDES[1]}\) with lambda layers, got {SIDES[0]} x"
    for call in (model, model.forward_features, lambda y: model.forward_packed([y[0]])):
        with pytest.raises(ValueError, match=message):
            call(larger)
    with pytest.raises(ValueError, match=message):
        model.resample(larger.shape[2:])


def test_a_line_of_tokens_is_a_lambda_layers_on_request():
    model = small(mixer=partial(MIXERS["lambda"], grid=None))
    assert all(block.mixer.grid is None for block in model.blocks)
    wide, x = images(3, SIDES[0], 2 * SIDES[1]), images(3, *SIDES, seed=2)
    alone = torch.cat([model(one[None]) for one in (wide, x)])
    assert_near(model.forward_packed([wide, x]), alone, 1e-10)


def test_linformer_takes_fewer_patches_and_keeps_its_image_size(unhooked, tmp_path):
    model = small(mixer=["softmax", "linformer"]).float()
    fewer = images(1, 3, 4, 8).float()
    before = model(fewer)
    message = r"must have at most the patches of image_size \(8 x 12\) with Linf.* got 8 x 16"
    for call in (model, lambda x: model.forward_packed([x[0]])):
        with pytest.raises(ValueError, match=message):
            call(images(1, 3, 8, 16).float())
    for size in ((4, 8), (8, 16)):
        with pytest.raises(ValueError, match=r"image_size must have the sides of .* with Linf"):
            model.resample(size)
    save_model(model, tmp_path)
    assert torch.equal(load_model(tmp_path)(fewer), before)


@pytest.mark.parametrize("stem", ["patch", "conv", "r-ti"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_how_images_lie_in_memory_changes_nothing(stem, pooling):
    model = small(stem=stem, image_size=(16, 24), patch_size=8, pooling=pooling)
    x = images(2, 3, 16, 24)
    expected = model(x)
    wide = images(2, 3, 16, 48)
    wide[..., ::2] = x
    for same in (x.contiguous(memory_format=torch.channels_last), wide[..., ::2]):
        assert not same.is_contiguous()
        assert_near(model(same), expected, 1e-12)
        assert model.embed(same).is_contiguous()
        assert_near(model.forward_packed(list(same)), expected, 1e-10)
