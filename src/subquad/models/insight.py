"""What a Vision Transformer looks at: attention by layer and head, and measures of it.

A mixer that is linear in the number of patches implies weights too; they are computed exactly, row
by row (``subquad.layers.attention_rows``). Linformer, lambda layers and rotary linear attention may
weigh a value negatively, and the weights of the first two need not sum to 1. The measures are in
``subquad.models.insight_measures``, and can be had from here too.

Axes: B images, L layers, H heads, T tokens, R rows (queries), V value width, h and w the grid of
patches. Source: Dosovitskiy et al. 2021, section 4.5 and appendix.
"""

from collections.abc import Callable, Iterator
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
from subquad.models.insight_measures import (
    Grid,
    Products,
    joined_products,
    linear_cka,
    mean_pixel_distance,
    output_products,
    patch_shares,
    pixel_distances,
    query_class_shares,
    query_cosines,
    query_distances,
    rollout_rows,
    signed_sizes,
)
from subquad.models.insight_measures import attention_distance as attention_distance
from subquad.models.insight_measures import attention_rollout as attention_rollout
from subquad.models.insight_measures import class_share as class_share
from subquad.models.insight_measures import head_similarity as head_similarity
from subquad.models.insight_measures import negative_share as negative_share
from subquad.models.insight_measures import output_similarity as output_similarity
from subquad.models.insight_measures import rollout_step as rollout_step
from subquad.models.vision_transformer import VisionTransformer

WEIGHTS_AT_ONCE = 2**23  # of one layer, that ``look`` holds: some times 32 MB

Rows = Callable[[slice], AttentionRows]


class Insight(NamedTuple):
    """What ``look`` finds; distances in pixels of the images that the model was given."""

    distance: tuple[Float[Tensor, " H"], ...]  # a layer each, mean over images
    uniform_distance: float  # of a head that weighs all patches alike
    class_share: tuple[Float[Tensor, " H"], ...]  # what patches give to the class token
    negative_share: tuple[Float[Tensor, " H"], ...]
    rollout: Float[Tensor, "B h w"]
    weight_similarity: tuple[Float[Tensor, "H H"], ...]
    output_similarity: tuple[Float[Tensor, "H H"], ...]


class _Seen(NamedTuple):
    """What one image shows in one layer."""

    distance: Float[Tensor, " H"]
    class_share: Float[Tensor, " H"]
    negative_share: Float[Tensor, " H"]
    weight_similarity: Float[Tensor, "H H"]


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
    return (_rows(mixer, x)(slice(None)) for mixer, x in _layers(model, images))


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
    """Return all measures of attention on these images.

    The images are run one by one, and of a layer's weights a bounded number is made at once: memory
    grows with the patches, and with their square only where the mixer's own does.

    Raises:
        TypeError: if a layer's mixer implies no weights.
        ValueError: if the model is in training mode, or the images do not fit it.
    """
    grid = _grid(model, images)
    seen: list[list[_Seen]] = [[] for _ in model.blocks]
    products: list[Products | None] = [None for _ in model.blocks]
    maps = []
    for image in torch.split(images, 1):
        layers = _layers(model, image)
        share = pooling_weights(model, image)
        # From the last layer to the first, so that the rollout is one row and no matrix.
        for layer in reversed(range(len(layers))):
            one, outputs, share = _look_at_layer(_rows(*layers[layer]), share, grid, model)
            seen[layer].append(one)
            products[layer] = joined_products(products[layer], output_products(outputs))
        maps.append(patch_shares(share[:, -grid[0] * grid[1] :]).reshape(1, *grid))
    # A head that looks at no patch of an image has no distance there.
    means = [_Seen(*(torch.stack(each).nanmean(0) for each in zip(*one, strict=True)))
             for one in seen]  # fmt: skip
    return Insight(
        distance=tuple(one.distance for one in means),
        uniform_distance=mean_pixel_distance(grid, model.patch_size),
        class_share=tuple(one.class_share for one in means),
        negative_share=tuple(one.negative_share for one in means),
        rollout=torch.cat(maps),
        weight_similarity=tuple(one.weight_similarity for one in means),
        output_similarity=tuple(linear_cka(each) for each in products if each is not None),
    )


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


def _look_at_layer(
    rows: Rows, share: Float[Tensor, "1 T"], grid: Grid, model: VisionTransformer
) -> tuple[_Seen, Float[Tensor, "1 H T V"], Float[Tensor, "1 T"]]:
    """Measure one image's layer; return with it the outputs, and ``share`` one layer before."""
    tokens, num_heads = share.shape[1], model.config["num_heads"]
    num_class = tokens - grid[0] * grid[1]
    step = max(1, WEIGHTS_AT_ONCE // (num_heads * tokens))
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, tokens, step):
        chosen = slice(start, min(start + step, tokens))
        weights, values = rows(chosen)
        before = share[:, chosen].to(weights.dtype) @ rollout_rows(weights, chosen)[0]
        parts.append((
            before, *_by_query(weights, chosen, grid, model.patch_size, num_class),
            *signed_sizes(weights), query_cosines(weights).sum((0, 1)),
            weights.to(values.dtype) @ values,
        ))  # fmt: skip
    *sums, outputs = zip(*parts, strict=True)
    before, distance, looks, to_class, negative, sizes, cosines = (
        torch.stack(each).sum(0) for each in sums
    )
    one = _Seen(
        distance=distance / looks,
        class_share=to_class / (tokens - num_class),
        negative_share=negative / sizes.masked_fill(sizes == 0, 1),
        weight_similarity=cosines / tokens,
    )
    return one, torch.cat(outputs, dim=2), before


def _by_query(
    weights: Float[Tensor, "1 H R T"], rows: slice, grid: Grid, patch_size: int, num_class: int
) -> tuple[Tensor, ...]:
    """Return sums over these rows' patches: distances, how many look at one, class shares."""
    weights = weights[:, :, max(0, num_class - rows.start) :]
    patches = slice(max(0, rows.start - num_class), rows.stop - num_class)
    distances = pixel_distances(grid, patch_size, rows=patches, device=weights.device)
    found = (
        *query_distances(weights, distances),
        query_class_shares(weights, num_class=num_class),
    )
    return tuple(each[0].sum(-1) for each in found)


def _layers(model: VisionTransformer, images: Tensor) -> list[tuple[Any, Tensor]]:
    """Return each layer's mixer, and what it is given on these images.

    Raises:
        TypeError: if a layer's mixer implies no weights.
        ValueError: if the model is in training mode, or the images do not fit it.
    """
    check_implies_attention(model)
    if model.training:
        raise ValueError("model must be in evaluation mode (model.eval()), got training mode")
    seen: list[Tensor] = []

    def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    mixers: list[Any] = [block.mixer for block in model.blocks]
    handles = [mixer.register_forward_pre_hook(keep) for mixer in mixers]
    try:
        with torch.no_grad():
            model.forward_features(images)
    finally:
        for handle in handles:
            handle.remove()
    return list(zip(mixers, seen, strict=True))


def _rows(mixer: Any, x: Float[Tensor, "B T D"]) -> Rows:
    """Return what makes rows of a mixer's weights, in float32 or wider, and all its values."""
    if type(mixer) is SoftmaxAttention and not mixer.is_causal and mixer.relative is None:
        return _softmax_rows(mixer, x)

    def implied(rows: slice) -> AttentionRows:
        weights, values = attention_rows(mixer, x, range(x.shape[1])[rows])
        return AttentionRows(weights.to(_wide(weights)), values)

    return implied


def _softmax_rows(mixer: SoftmaxAttention, x: Float[Tensor, "B T D"]) -> Rows:
    with torch.no_grad():
        q, k, v, _ = mixer.rotary_positions.project(mixer.heads, x, None)
    q, k = q.to(_wide(q)) * q.shape[-1] ** -0.5, k.to(_wide(k))

    def defined(rows: slice) -> AttentionRows:
        return AttentionRows((q[:, :, rows] @ k.mT).softmax(-1), v)

    return defined


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _grid(model: VisionTransformer, images: Tensor) -> Grid:
    return images.shape[-2] // model.patch_size, images.shape[-1] // model.patch_size
