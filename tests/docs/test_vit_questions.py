"""What readers ask about Vision Transformers, answered on several sizes, gradients included."""

import pytest
import torch
from torch.nn import functional as F

from subquad.layers import SoftmaxAttention
from subquad.models import VisionTransformer

DOUBLE = torch.float64
OFFSETS = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small(**changes):
    sizes = {
        "image_size": (8, 12), "patch_size": 4, "num_classes": 5, "d_model": 16, "num_layers": 2,
        "num_heads": 4, **changes,
    }  # fmt: skip
    model = VisionTransformer(**sizes).to(DOUBLE).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def pictures():
    return torch.randn(2, 3, 8, 12, dtype=DOUBLE)


def shuffled(model, images, order, *, moves_positions):
    """Logits of images whose patches changed places, with or without their position vectors."""
    tokens = model.stem(images).flatten(2).mT[:, order]
    if moves_positions:
        first = int(model.class_token is not None)
        table = model.positions.table
        with torch.no_grad():
            table[:, first:] = table[:, first:][:, order]
    return model.head(model.pool(model.encode(tokens)))


def hard_attention(channels, kernel, sharpness):
    """Return a layer of nine heads, each of which sees the pixel at one offset.

    Tokens are the pixels' channels, row, column and row^2 + column^2. The logit of head h is
    -sharpness |p_j - p_i - offset_h|^2, less terms of i alone. Source: Cordonnier, Loukas & Jaggi
    2020, "On the Relationship between Self-Attention and Convolutional Layers", theorem 1.
    """
    width = channels + 3
    layer = SoftmaxAttention(width, 9, head_dim=3, value_dim=channels, is_causal=False).to(DOUBLE)
    own = torch.eye(width, dtype=DOUBLE)
    scale = sharpness * 3**0.5  # attention divides by the root of its width
    with torch.no_grad():
        q, k, v = layer.heads.qkv_proj.weight.split([27, 27, 9 * channels])
        q, k, v = (part.unflatten(0, (9, -1)) for part in (q, k, v))
        bias = layer.heads.qkv_proj.bias.zero_()[:27].view(9, 3)
        q[:] = 2 * scale * own[channels:]
        q[:, 2] = 0
        for head, (down, across) in enumerate(OFFSETS):
            bias[head] = scale * torch.tensor([2.0 * down, 2.0 * across, -1.0])
        k[:], v[:] = own[channels:], own[:channels]
        layer.heads.out_proj.weight.copy_(kernel.permute(0, 2, 3, 1).flatten(1))
        layer.heads.out_proj.bias.zero_()
    return layer


def with_places(image):
    rows, columns = torch.meshgrid(
        *(torch.arange(side, dtype=DOUBLE) for side in image.shape[2:]), indexing="ij"
    )
    places = torch.stack([rows, columns, rows.square() + columns.square()])
    tokens = torch.cat([image, places.expand(len(image), -1, -1, -1)], dim=1)
    return tokens.flatten(2).mT


@pytest.mark.parametrize(("height", "width", "channels"), [(5, 7, 3), (1, 4, 2), (6, 6, 1)])
def test_nine_heads_are_a_convolution_of_3_x_3(height, width, channels):
    kernel = torch.randn(channels + 3, channels, 3, 3, dtype=DOUBLE)
    image = torch.randn(2, channels, height, width, dtype=DOUBLE, requires_grad=True)
    layer = hard_attention(channels, kernel, 100)
    attended = layer(with_places(image))
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    convolved = F.conv2d(padded, kernel.requires_grad_()).flatten(2).mT
    torch.testing.assert_close(attended, convolved, rtol=1e-10, atol=1e-10)

    upstream = torch.randn_like(convolved)
    gradients = [torch.autograd.grad(y, image, upstream, retain_graph=True)[0] for y in
                 (attended, convolved)]  # fmt: skip
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    (of_layer,) = torch.autograd.grad(attended, layer.heads.out_proj.weight, upstream)
    (of_kernel,) = torch.autograd.grad(convolved, kernel, upstream)
    expected = of_kernel.permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(of_layer, expected, rtol=1e-10, atol=1e-10)


def test_attention_that_is_not_hard_is_no_convolution():
    kernel = torch.randn(6, 3, 3, 3, dtype=DOUBLE)
    image = torch.randn(1, 3, 5, 7, dtype=DOUBLE)
    convolved = F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernel).flatten(2).mT
    soft = hard_attention(3, kernel, 1)(with_places(image))
    assert not torch.allclose(soft, convolved, rtol=0.1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [2, 4])
def test_patch_embedding_is_a_strided_convolution_and_a_linear_layer(channels, patch):
    model = small(patch_size=patch, in_channels=channels, pooling="mean", positions="none")
    images = torch.randn(2, channels, 8, 12, dtype=DOUBLE)
    weight, bias = model.stem.proj.weight, model.stem.proj.bias
    cut = images.unfold(2, patch, patch).unfold(3, patch, patch)  # b, C, h, w, P, P
    patches = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    by_matrix = patches @ weight.flatten(1).T + bias
    by_convolution = F.conv2d(images, weight, bias, stride=patch).flatten(2).mT
    torch.testing.assert_close(model.embed(images), by_matrix)
    torch.testing.assert_close(by_convolution, by_matrix)


@pytest.mark.parametrize("pooling", ["class", "mean", "sequence"])
@pytest.mark.parametrize("mixer", ["softmax", "linear", "performer"])
def test_patches_that_change_places_with_their_positions_change_nothing(mixer, pooling):
    model, images = small(mixer=mixer, pooling=pooling), pictures()
    before, order = model(images), torch.randperm(6)
    order = order if (order != torch.arange(6)).any() else order.flip(0)
    stays = shuffled(model, images, order, moves_positions=False)
    assert not torch.allclose(stays, before, rtol=1e-4)
    moves = shuffled(model, images, order, moves_positions=True)
    torch.testing.assert_close(moves, before)


def test_the_class_token_is_the_same_for_all_images_until_it_has_looked():
    model, images = small(), pictures()
    tokens = model.embed(images)
    torch.testing.assert_close(tokens[0, 0], tokens[1, 0], rtol=0, atol=0)
    looked = model.blocks[0](tokens)
    assert not torch.allclose(looked[0, 0], looked[1, 0], rtol=1e-3)


def test_only_the_class_tokens_row_of_the_last_layer_is_read():
    model, images = small(), pictures()
    seen = model.blocks[1]
    expected = model(images)
    handle = seen.register_forward_hook(lambda block, given, out: torch.cat(
        [out[:, :1], torch.randn_like(out[:, 1:])], dim=1))  # fmt: skip
    torch.testing.assert_close(model(images), expected)
    handle.remove()
