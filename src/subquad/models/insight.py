"""What a Vision Transformer looks at: attention by layer and head, and measures of it.

A mixer that is linear in the number of patches implies weights too; they are computed exactly, row
by row (``subquad.layers.attention_rows``). Linformer, lambda layers and rotary linear attention may
weigh a value negatively, and the weights of the first two need not sum to 1. Where a measure needs
shares it takes |w_ij| / sum_j |w_ij|: the weights themselves where they are a mean's, as softmax's.

Axes: B images, L layers, H heads, T tokens, V value width, h and w the grid of patches. Sources:
Dosovitskiy et al. 2021, section 4.5 and appendix; Abnar & Zuidema 2020 (rollout); Kornblith et al.
2019 (linear CKA).
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.layers.attention_rows import (
    AttentionRows,
    HasParts,
    ImpliesAttention,
    attention_rows,
)
from subquad.layers.softmax_attention import SoftmaxAttention
from subquad.models.vision_transformer import VisionTransformer

Grid = tuple[int, int]


class Insight(NamedTuple):
    """What ``look`` finds; distances in pixels of the images that the model was given."""

    distance: tuple[Float[Tensor, " H"], ...]  # a layer each, mean over images
    uniform_distance: float  # of a head that weighs all patches alike
    class_share: tuple[Float[Tensor, " H"], ...]  # what patches give to the class token
    negative_share: tuple[Float[Tensor, " H"], ...]
    rollout: Float[Tensor, "B h w"]
    weight_similarity: tuple[Float[Tensor, "H H"], ...]
    output_similarity: tuple[Float[Tensor, "H H"], ...]


def layer_attention(
    model: VisionTransformer, images: Float[Tensor, "B C H W"]
) -> Iterator[AttentionRows]:
    """Yield each layer's weights (B, H, T, T), in float32 or wider, and values (B, H, T, V).

    One layer at a time, since a layer's weights are B H T^2 numbers. Softmax's are computed as they
    are defined; those of other mixers as they are implied.

    Raises:
        TypeError: if a layer's mixer implies no weights (an LSTM).
        ValueError: if the model is in training mode, or the images do not fit it.
    """
    check_implies_attention(model)
    if model.training:
        raise ValueError("model must be in evaluation mode (model.eval()), got training mode")
    inputs = _mixer_inputs(model, images)
    return (_attention(block.mixer, x) for block, x in zip(model.blocks, inputs, strict=True))


def check_implies_attention(model: VisionTransformer) -> None:
    """Require that each layer's outputs are sums of its values.

    Raises:
        TypeError: if those of one are not, and which.
    """
    for layer, block in enumerate(model.blocks):
        if not isinstance(block.mixer, ImpliesAttention | HasParts):
            raise TypeError(
                "mixer must be one whose outputs are sums of values (with a method attend), "
                f"got {type(block.mixer).__name__} in layer {layer}"
            )


@torch.no_grad()
def look(model: VisionTransformer, images: Float[Tensor, "B C H W"]) -> Insight:
    """Return all measures of attention on these images, which are run one by one.

    Raises:
        TypeError: if a layer's mixer implies no weights.
        ValueError: if the model is in training mode, or the images do not fit it.
    """
    grid, num_class = _grid(model, images), int(model.class_token is not None)
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in model.blocks]
    outputs: list[list[Tensor]] = [[] for _ in model.blocks]
    maps = []
    for image in torch.split(images, 1):
        rollout: Tensor | None = None
        for layer, (weights, values) in enumerate(layer_attention(model, image)):
            distance = attention_distance(weights, grid, model.patch_size, num_class=num_class)
            to_class = class_share(weights, num_class=num_class)
            found[layer].append(
                (distance[0], to_class[0], negative_share(weights), head_similarity(weights))
            )
            outputs[layer].append(weights.to(values.dtype) @ values)
            rollout = rollout_step(weights, rollout)
        assert rollout is not None
        seen = torch.einsum("bt,bts->bs", pooling_weights(model, image).to(rollout.dtype), rollout)
        maps.append(patch_shares(seen[:, num_class:]).reshape(1, *grid))
    # A head that looks at no patch of an image has no distance there.
    means = [[torch.stack(each).nanmean(0) for each in zip(*one, strict=True)] for one in found]
    return Insight(
        distance=tuple(one[0] for one in means),
        uniform_distance=float(pixel_distances(grid, model.patch_size).mean()),
        class_share=tuple(one[1] for one in means),
        negative_share=tuple(one[2] for one in means),
        rollout=torch.cat(maps),
        weight_similarity=tuple(one[3] for one in means),
        output_similarity=tuple(output_similarity(torch.cat(each)) for each in outputs),
    )


def patch_shares(weights: Float[Tensor, "*rows T"]) -> Float[Tensor, "*rows T"]:
    """Return |w_j| / sum_j |w_j|; a row of zeros stays one."""
    sizes = weights.abs()
    total = sizes.sum(-1, keepdim=True)
    return sizes / total.masked_fill(total == 0, 1)


def pixel_distances(
    grid: Grid, patch_size: int, *, device: torch.device | None = None
) -> Float[Tensor, "N N"]:
    """Return the distances between the centres of all patches, in pixels, in raster order."""
    rows = torch.arange(grid[0], device=device, dtype=torch.float64)
    columns = torch.arange(grid[1], device=device, dtype=torch.float64)
    places = torch.cartesian_prod(rows, columns).reshape(-1, 2)
    return patch_size * torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def attention_distance(
    weights: Float[Tensor, "B H T T"], grid: Grid, patch_size: int, *, num_class: int = 0
) -> Float[Tensor, "B H"]:
    """Return how far each head looks: mean_i sum_j A_ij D_ij, in pixels.

    D are the distances between patches' centres; A are the shares between patches alone. The class
    token has no place, so its row and its column are dropped and the rows normalised anew, on which
    the paper says nothing. A patch that looks at no other patch counts for no distance in the mean
    of the others; a head of such patches alone gives NaN.

    Args:
        weights: of one layer.
        grid: patches down and across.
        patch_size: pixels of a patch's side.
        num_class: tokens before the patches, 0 or 1.

    Raises:
        ValueError: if the tokens are not those of the grid.
    """
    _check_tokens(weights, grid, num_class)
    shares = patch_shares(weights[:, :, num_class:, num_class:])
    distances = pixel_distances(grid, patch_size, device=weights.device).to(shares.dtype)
    by_query = (shares * distances).sum(-1)
    looks = shares.sum(-1) > 0
    return by_query.sum(-1) / looks.sum(-1)


def class_share(weights: Float[Tensor, "B H T T"], *, num_class: int = 0) -> Float[Tensor, "B H"]:
    """Return the class token's mean share in what patches look at; 0 where there is none."""
    return patch_shares(weights)[:, :, num_class:, :num_class].sum(-1).mean(-1)


def negative_share(weights: Float[Tensor, "B H T T"]) -> Float[Tensor, " H"]:
    """Return how much of each head's weights is negative, as a share of the sum of their sizes."""
    total = weights.abs().sum((0, 2, 3))
    return weights.clamp(max=0).abs().sum((0, 2, 3)) / total.masked_fill(total == 0, 1)


def rollout_step(
    weights: Float[Tensor, "B H T T"], before: Float[Tensor, "B T T"] | None = None
) -> Float[Tensor, "B T T"]:
    """Return the rollout behind one more layer: A' R, with A' = (mean_h A_h + I) / 2.

    The half for I stands for the residual connection. Rows of A' are normalised, so rows of the
    rollout sum to 1.
    """
    eye = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    mixed = patch_shares(patch_shares(weights).mean(1) + eye)
    return mixed if before is None else mixed @ before


def attention_rollout(layers: Iterable[Float[Tensor, "B H T T"]]) -> Float[Tensor, "B T T"]:
    """Return A'_L ... A'_1: row i says what share each token of the first layer has in token i.

    Raises:
        ValueError: if there is no layer.
    """
    rollout: Tensor | None = None
    for weights in layers:
        rollout = rollout_step(weights, rollout)
    if rollout is None:
        raise ValueError("layers must hold the weights of at least one layer, got none")
    return rollout


@torch.no_grad()
def pooling_weights(
    model: VisionTransformer, images: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B T"]:
    """Return how the head weighs the last layer's tokens: the class token, or a mean of all."""
    if model.scores is not None:
        scores: Tensor = model.scores(model.forward_features(images)).squeeze(2)
        return scores.softmax(1)
    height, width = _grid(model, images)
    if model.class_token is None:
        return images.new_full((len(images), height * width), 1 / (height * width))
    weights = images.new_zeros((len(images), 1 + height * width))
    weights[:, 0] = 1
    return weights


def head_similarity(weights: Float[Tensor, "B H T T"]) -> Float[Tensor, "H H"]:
    """Return how alike heads look: the cosine of two heads' weights of a query, mean over queries.

    1: the same tokens in the same proportions. Weights that are not negative never give less than
    0, and two heads that both look everywhere are alike in this sense.
    """
    by_query = weights.transpose(1, 2)  # no normalised copy of all weights is made
    products = by_query @ by_query.mT
    lengths = products.diagonal(dim1=2, dim2=3).sqrt()
    both = lengths.unsqueeze(3) * lengths.unsqueeze(2)
    return (products / both.masked_fill(both == 0, 1)).mean((0, 1))


def output_similarity(outputs: Float[Tensor, "B H T V"]) -> Float[Tensor, "H H"]:
    """Return how alike what heads put out is, by linear CKA over all tokens of all images.

    |Y_g^T Y_h|^2 / (|Y_g^T Y_g| |Y_h^T Y_h|) with Frobenius norms, of outputs less their mean:
    1 where one is the other turned and scaled. Few tokens beside V make it too high. A head that
    puts out one vector has 0 with all.
    """
    wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    y = wide.transpose(0, 1).flatten(1, 2)
    y = y - y.mean(1, keepdim=True)
    shared = torch.einsum("gnv,hnu->ghvu", y, y).square().sum((2, 3))
    own = shared.diagonal().sqrt()
    product = own[:, None] * own
    return shared / product.masked_fill(product == 0, 1)


def _mixer_inputs(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Run the model and return what each layer's mixer was given."""
    seen: list[Tensor] = []

    def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handles = [block.mixer.register_forward_pre_hook(keep) for block in model.blocks]  # type: ignore[union-attr]  # modules
    try:
        with torch.no_grad():
            model.forward_features(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _attention(mixer: Any, x: Float[Tensor, "B T D"]) -> AttentionRows:
    if type(mixer) is SoftmaxAttention and not mixer.is_causal and mixer.relative is None:
        weights, values = _softmax(mixer, x)
    else:
        weights, values = attention_rows(mixer, x, range(x.shape[1]))
    return AttentionRows(weights.to(torch.promote_types(weights.dtype, torch.float32)), values)


@torch.no_grad()
def _softmax(mixer: SoftmaxAttention, x: Float[Tensor, "B T D"]) -> AttentionRows:
    q, k, v, _ = mixer.rotary_positions.project(mixer.heads, x, None)
    return AttentionRows((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1), v)


def _grid(model: VisionTransformer, images: Tensor) -> Grid:
    return images.shape[-2] // model.patch_size, images.shape[-1] // model.patch_size


def _check_tokens(weights: Tensor, grid: Grid, num_class: int) -> None:
    expected = grid[0] * grid[1] + num_class
    if weights.dim() != 4 or weights.shape[2:] != (expected, expected):
        raise ValueError(
            f"weights must have the shape (B, H, {expected}, {expected}) for a grid of "
            f"{grid[0]} x {grid[1]} and num_class={num_class}, got {tuple(weights.shape)}"
        )
