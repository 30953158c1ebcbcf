"""The networks without attention, against their definitions."""

import pytest
import torch
from torch import nn

from helpers import assert_near
from subquad.models.image_baselines import BasicResNet, MLPMixer, PixelMLP, RowLSTM

IMAGES = {"image_size": (6, 4), "in_channels": 2, "num_classes": 3}
KINDS = {
    "resnet": lambda: BasicResNet(in_channels=2, num_classes=3, width=4, blocks=2),
    "mlp": lambda: PixelMLP(**IMAGES, width=5),
    "mixer": lambda: MLPMixer(**IMAGES, patch_size=2, d_model=8, num_layers=2),
    "lstm": lambda: RowLSTM(**IMAGES, hidden_size=5, num_layers=2),
}


def built(name):
    torch.manual_seed(0)
    return KINDS[name]().double()


def pictures(count=5):
    return torch.randn(count, 2, 6, 4, dtype=torch.float64)


@pytest.mark.parametrize("name", KINDS)
def test_an_image_has_the_logits_that_it_has_alone_and_all_weights_learn(name):
    model, x = built(name), pictures()
    model(x).square().sum().backward()
    for weight, p in model.named_parameters():
        assert p.grad is not None, weight
        assert p.grad.abs().max() > 0 or "bias" in weight, weight
    model.eval()
    y = model(x)
    assert y.shape == (5, 3)
    assert_near(torch.cat([model(one[None]) for one in x]), y, 1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_config_builds_the_same_network_and_so_does_meta(name):
    model = built(name)
    again = type(model)(**model.config).double()
    again.load_state_dict(model.state_dict())
    x = pictures()
    assert_near(again.eval()(x), model.eval()(x), 1e-12)
    with torch.device("meta"):
        assert type(model)(**model.config)(torch.empty(2, 2, 6, 4)).shape == (2, 3)


def test_plain_layers_have_no_idea_of_order():
    model, x = built("mlp"), pictures()
    order = torch.randperm(2 * 6 * 4)
    moved = built("mlp")
    with torch.no_grad():
        moved.layers[0].weight.copy_(model.layers[0].weight[:, order])
    shuffled = x.flatten(1)[:, order].view_as(x)
    assert_near(moved(shuffled), model(x), 1e-12)


def test_the_mixer_mixes_places_by_one_weight_a_pair_and_channels_place_by_place():
    block, x = built("mixer").blocks[0], torch.randn(2, 6, 8, dtype=torch.float64)
    normed = block.token_norm(x)
    mixed = torch.empty_like(x)
    for channel in range(8):
        mixed[:, :, channel] = x[:, :, channel] + block.tokens(normed[:, :, channel])
    expected = torch.stack(
        [mixed[:, i] + block.channels(block.channel_norm(mixed[:, i])) for i in range(6)], dim=1
    )
    assert_near(block(x), expected, 1e-12)


def test_the_mixers_tokens_are_patches_row_by_row():
    model, x = built("mixer"), pictures(1)
    tokens = model.proj(x).flatten(2).transpose(1, 2)
    patch = x[0, :, 2:4, 2:4].reshape(-1)  # second row of patches, second column: the fourth
    assert_near(tokens[0, 3], model.proj.weight.flatten(1) @ patch + model.proj.bias, 1e-12)


def test_the_lstm_reads_rows_from_the_top():
    model, x = built("lstm"), pictures()
    cells = []
    for layer in range(2):
        cell = nn.LSTMCell(8 if layer == 0 else 5, 5).double()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(cell, name, getattr(model.lstm, f"{name}_l{layer}"))
        cells.append(cell)
    states = [None, None]
    for i in range(6):
        inputs = x[:, :, i].flatten(1)
        for layer, cell in enumerate(cells):
            states[layer] = cell(inputs, states[layer])
            inputs = states[layer][0]
    assert_near(model(x), model.head(states[1][0]), 1e-12)


def test_the_residual_network_halves_twice_and_takes_any_side():
    model = built("resnet").eval()
    x = torch.randn(1, 2, 9, 8, dtype=torch.float64)
    sides = []
    for layer in model.layers:
        x = layer(x)
        sides.append((x.shape[1], x.shape[2], x.shape[3]))
    assert sides == [(4, 9, 8)] * 3 + [(8, 5, 4)] * 2 + [(16, 3, 2)] * 2
    block = model.layers[1]
    with torch.no_grad():
        block.second.norm.weight.zero_()
        block.second.norm.bias.zero_()
    z = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    assert_near(block(z), z.relu(), 1e-12)  # what is left is the shortcut


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: PixelMLP(**IMAGES, width=0), ValueError, "width must be at least 1, got 0"),
        (lambda: PixelMLP(**{**IMAGES, "image_size": (6,)}), ValueError, "image_size must be a s"),
        (lambda: PixelMLP(**{**IMAGES, "image_size": 8.0}), TypeError, "an int or a sequence, got"),
        (
            lambda: PixelMLP(**{**IMAGES, "image_size": 0}),
            ValueError,
            "image_size must be at least",
        ),
        (lambda: MLPMixer(**IMAGES, patch_size=4), ValueError, "image_size must be divisible by 4"),
        (lambda: MLPMixer(**IMAGES, patch_size=2, token_ff=0), ValueError, "d_ff must be at least"),
        (lambda: RowLSTM(**IMAGES, num_layers=0), ValueError, "num_layers must be at least 1"),
        (lambda: BasicResNet(in_channels=1, num_classes=0), ValueError, "num_classes must be at"),
        (lambda: BasicResNet(in_channels=1, num_classes=2, width=2.0), TypeError, "width must be"),
    ],
)
def test_options_that_do_not_fit_are_refused(unhooked, build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("name", KINDS)
def test_other_images_are_refused(unhooked, name):
    model = KINDS[name]()
    shape = r"\(B, 2, H, W\)" if name == "resnet" else r"\(B, 2, 6, 4\)"
    for wrong in ((1, 3, 6, 4), (2, 6, 4), *([] if name == "resnet" else [(1, 2, 6, 5)])):
        with pytest.raises(ValueError, match=rf"x must have the shape {shape}, got"):
            model(torch.zeros(wrong))
