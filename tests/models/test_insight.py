"""What a Vision Transformer looks at, against cases that can be worked out by hand."""

import math

import pytest
import torch

from subquad.layers.attention_rows import attention_rows
from subquad.layers.softmax_attention import SoftmaxAttention
from subquad.models import VisionTransformer, insight
from subquad.models.insight import layer_attention, look, pooling_weights
from subquad.models.insight_measures import (
    attention_distance,
    attention_rollout,
    class_share,
    head_similarity,
    joined_products,
    linear_cka,
    mean_pixel_distance,
    negative_share,
    output_products,
    output_similarity,
    patch_shares,
    pixel_distances,
    rollout_rows,
)

DOUBLE = torch.float64
MIXERS = [
    "softmax", "linear", "performer", "local", "strided", "linformer", "hybrid", "lsh-1", "lsh-4",
    "lambda",
]  # fmt: skip


def small(mixer="softmax", **changes):
    options = {
        "image_size": (8, 12), "patch_size": 4, "in_channels": 2, "num_classes": 3, "d_model": 8,
        "num_layers": 2, "num_heads": 2, "mixer": mixer, **changes,
    }  # fmt: skip
    return VisionTransformer(**options).to(DOUBLE).eval()


def pictures(count=1):
    return torch.randn(count, 2, 8, 12, dtype=DOUBLE)


def random_weights(*shape):
    return torch.rand(*shape, dtype=DOUBLE).softmax(-1)


def same(a, b, **tolerance):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), **tolerance)


def test_distances_are_those_of_centres_in_pixels():
    found = pixel_distances((2, 3), 4)
    same(found[0], [0, 4, 8, 4, math.hypot(4, 4), math.hypot(4, 8)])
    same(found, found.T)
    same(pixel_distances((2, 3), 4, rows=slice(1, 4)), found[1:4])
    for grid in ((2, 3), (1, 1), (5, 2)):
        assert mean_pixel_distance(grid, 3) == pytest.approx(float(pixel_distances(grid, 3).mean()))


def test_a_head_that_looks_everywhere_alike_has_the_mean_distance():
    # Two patches side by side, 16 pixels: half of the weight stays, half goes 16 pixels.
    same(attention_distance(torch.full((1, 1, 2, 2), 0.5), (1, 2), 16), [[8.0]])
    # 2 x 2: from each patch 0, 1, 1 and sqrt 2 sides.
    uniform = torch.full((1, 1, 4, 4), 0.25, dtype=DOUBLE)
    same(attention_distance(uniform, (2, 2), 16), [[16 * (2 + math.sqrt(2)) / 4]])


def test_a_head_that_looks_at_itself_looks_nowhere_and_one_at_its_neighbour_a_patch_far():
    eye = torch.eye(6, dtype=DOUBLE)
    neighbour = eye.view(2, 3, 6).flip(0).reshape(6, 6)  # the patch below or above
    weights = torch.stack([eye, neighbour])[None]
    same(attention_distance(weights, (2, 3), 5), [[0.0, 5.0]])


def test_the_class_token_is_dropped_and_the_rows_are_normalised_anew():
    weights = torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.125, 0.375], [0.0, 1.0, 0.0]], dtype=DOUBLE)
    # Of patch 0 three quarters go to patch 1, of patch 1 all goes to patch 0.
    same(attention_distance(weights[None, None], (1, 2), 8, num_class=1), [[8 * (0.75 + 1) / 2]])
    same(class_share(weights[None, None], num_class=1), [[0.25]])
    same(class_share(weights[None, None]), [[0.0]])


def test_a_patch_that_looks_at_the_class_token_alone_is_left_out_of_the_mean():
    only_class = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=DOUBLE)
    none = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0]], dtype=DOUBLE)
    found = attention_distance(torch.stack([only_class, none])[None], (1, 2), 8, num_class=1)
    assert found[0, 0] == 8
    assert found[0, 1].isnan()


def test_negative_weights_count_by_their_size():
    weights = torch.tensor([[0.5, -0.5], [1.5, -0.5]], dtype=DOUBLE)
    same(patch_shares(weights), [[0.5, 0.5], [0.75, 0.25]])
    same(patch_shares(torch.zeros(2)), [0.0, 0.0])
    same(attention_distance(weights[None, None], (1, 2), 8), [[8 * (0.5 + 0.75) / 2]])
    both = torch.stack([weights, weights.abs()])[None]
    same(negative_share(both), [1 / 3, 0.0])


def test_weights_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"shape \(B, H, 7, 7\) for a grid of 2 x 3 and num_c"):
        attention_distance(torch.ones(1, 1, 6, 6), (2, 3), 4, num_class=1)


def test_rollout_of_tokens_that_see_themselves_is_the_identity():
    eye = torch.eye(5, dtype=DOUBLE).expand(2, 3, 5, 5)
    same(attention_rollout([eye, eye, eye]), eye[:, 0])


def test_rollout_by_hand():
    first = torch.tensor([[1.0, 0], [1, 0]], dtype=DOUBLE)  # A' = [[1, 0], [1/2, 1/2]]
    second = torch.tensor([[0.0, 1], [0, 1]], dtype=DOUBLE)  # A' = [[1/2, 1/2], [0, 1]]
    found = attention_rollout([first[None, None], second[None, None]])
    same(found[0], [[0.75, 0.25], [0.5, 0.5]])
    two_heads = torch.stack([first, second])[None]
    same(attention_rollout([two_heads])[0], [[0.75, 0.25], [0.25, 0.75]])
    with pytest.raises(ValueError, match="layers must hold the weights of at least one layer, got"):
        attention_rollout([])


@pytest.mark.parametrize("signed", [False, True])
def test_rows_of_a_rollout_sum_to_1(signed):
    layers = [random_weights(2, 3, 7, 7) - 0.1 * signed for _ in range(4)]
    rollout = attention_rollout(layers)
    assert (rollout >= 0).all()
    same(rollout.sum(-1), torch.ones(2, 7))
    same(rollout_rows(layers[0][:, :, 2:5], slice(2, 5)), attention_rollout(layers[:1])[:, 2:5])


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name not in ("lambda", "linformer")])
def test_rows_of_what_a_mixer_implies_sum_to_1_and_so_do_those_of_its_rollout(mixer):
    # Of a mean's weights the rollout is (mean_h A + I) / 2 as it stands: nothing is normalised.
    layers = [weights for weights, _ in layer_attention(small(mixer), pictures(2))]
    expected = torch.eye(7, dtype=DOUBLE)
    for weights in layers:
        same(weights.sum(-1), torch.ones(2, 2, 7))
        expected = (weights.mean(1) + torch.eye(7)) / 2 @ expected
    same(attention_rollout(layers), expected)


def test_heads_that_are_alike_have_similarity_1_and_those_that_share_no_token_0():
    left = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [1, 0, 0]], dtype=DOUBLE)
    right = torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 0, 1]], dtype=DOUBLE)
    found = head_similarity(torch.stack([left, left, right])[None])
    same(found, [[1, 1, 0], [1, 1, 0], [0, 0, 1.0]])


def test_similarity_of_heads_is_the_mean_cosine_of_their_rows():
    weights = random_weights(2, 3, 4, 4)
    cosine = torch.nn.functional.cosine_similarity(weights[:, 0], weights[:, 2], dim=-1)
    same(head_similarity(weights)[0, 2], cosine.mean())
    weights[0, 2, 1] = 0  # a query that looks at nothing is like no other
    same(head_similarity(weights)[0, 2], (cosine.sum() - cosine[0, 1]) / 8)


def test_cka_is_1_for_what_is_turned_scaled_and_shifted_and_0_for_a_constant():
    first = torch.randn(2, 9, 4, dtype=DOUBLE)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=DOUBLE))
    other = torch.randn(2, 9, 4, dtype=DOUBLE)
    constant = torch.ones(2, 9, 4, dtype=DOUBLE)
    found = output_similarity(torch.stack([first, 3 * first @ turn - 7, other, constant], dim=1))
    same(found[0, :2], [1.0, 1.0])
    same(found[3, :3], [0.0, 0.0, 0.0])
    x, y = (z.flatten(0, 1) - z.flatten(0, 1).mean(0) for z in (first, other))
    expected = (x @ x.T * (y @ y.T)).sum() / ((x @ x.T).norm() * (y @ y.T).norm())  # by kernels
    same(found[0, 2], expected)


def test_cka_of_one_vector_is_0_though_it_was_rounded_and_of_small_outputs_is_not():
    first = torch.randn(1, 9, 4)
    rounded = 0.1 * torch.ones(1, 9, 4) * (1 + 1e-7 * torch.randn(1, 9, 1))
    found = output_similarity(torch.stack([1e3 * first, rounded, 1e-6 * first], dim=1))
    same(found, [[1, 0, 1], [0, 0, 0], [1, 0, 1.0]], rtol=1e-5, atol=1e-5)


def test_cka_of_images_one_by_one_is_that_of_all():
    outputs = torch.randn(5, 3, 6, 4, dtype=DOUBLE) + torch.arange(5.0).view(5, 1, 1, 1)
    found = None
    for part in torch.split(outputs, [2, 1, 2]):
        found = joined_products(found, output_products(part))
    assert found.tokens == 30
    for one, other in zip(found[1:], output_products(outputs)[1:], strict=True):
        same(one, other)
    same(linear_cka(found), output_similarity(outputs))


@pytest.mark.parametrize("mixer", MIXERS)
def test_weights_are_those_that_the_model_runs_on(mixer):
    model = small(mixer)
    image = pictures(2)
    tokens, blocks = model.embed(image), 0
    for block, (weights, values) in zip(model.blocks, layer_attention(model, image), strict=True):
        assert weights.shape == (2, 2, 7, 7)
        mixed = block.mixer(block.mixer_norm(tokens))
        merge = block.mixer.parts[0].heads.merge if mixer == "hybrid" else None
        if merge is None:
            merge = getattr(block.mixer, "merge", None) or block.mixer.heads.merge
            same(merge(weights @ values), mixed)
        tokens, blocks = block(tokens), blocks + 1
    assert blocks == 2
    assert not any(block.mixer._forward_pre_hooks for block in model.blocks)


def test_softmax_by_definition_is_what_the_derivative_says():
    model = small(positions="relative")
    image = pictures(2)
    with_relative = [weights for weights, _ in layer_attention(model, image)]
    mixer = model.blocks[0].mixer
    x = torch.randn(2, 7, 8, dtype=DOUBLE)
    rotary = SoftmaxAttention(8, 2, is_causal=False, rotary=True).to(DOUBLE)
    for one in (rotary, SoftmaxAttention(8, 2, is_causal=False).to(DOUBLE)):
        rows = insight._softmax_rows(one, x)
        same(rows(slice(None)).weights, attention_rows(one, x, range(7)).weights)
        same(rows(slice(2, 4)).weights, attention_rows(one, x, range(2, 4)).weights)
    # The offsets' vectors count: without them the weights are others.
    with torch.no_grad():
        mixer.relative.table.mul_(50)
    assert not torch.allclose(next(layer_attention(model, image)).weights, with_relative[0])


@pytest.mark.parametrize("pooling", ["class", "mean", "sequence"])
def test_pooling_weights_are_those_of_the_model(pooling):
    model, image = small(pooling=pooling), pictures(3)
    tokens = model.forward_features(image)
    weights = pooling_weights(model, image)
    same(torch.einsum("bt,btd->bd", weights, tokens), model.pool(tokens))


def check_all_measures(model, image, first):
    found = look(model, image)
    layers, values = zip(*layer_attention(model, image), strict=True)
    rollout = attention_rollout(layers)
    rows = torch.einsum("bt,bts->bs", pooling_weights(model, image), rollout)[:, first:]
    same(found.rollout, (rows / rows.sum(1, keepdim=True)).view(3, 2, 3))
    same(found.rollout.sum((1, 2)), [1.0, 1, 1])
    for layer, weights in enumerate(layers):
        distance = attention_distance(weights, (2, 3), 4, num_class=first).mean(0)
        same(found.distance[layer], distance)
        same(found.class_share[layer], class_share(weights, num_class=first).mean(0))
        shares = torch.stack([negative_share(one[None]) for one in weights])
        same(found.negative_share[layer], shares.mean(0))
        same(found.weight_similarity[layer], head_similarity(weights))
        same(found.output_similarity[layer], output_similarity(weights @ values[layer]))
        same(found.output_similarity[layer].diagonal(), [1.0, 1.0])
    assert found.uniform_distance == pytest.approx(float(pixel_distances((2, 3), 4).mean()))
    return found


@pytest.mark.parametrize("pooling", ["class", "mean", "sequence"])
@pytest.mark.parametrize("mixer", ["softmax", "lambda"])
def test_all_measures_of_a_model(mixer, pooling):
    found = check_all_measures(small(mixer, pooling=pooling), pictures(3), pooling == "class")
    for share in found.negative_share:
        assert bool((share > 0).all()) == (mixer == "lambda")


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("mixer", ["softmax", "linear", "lambda"])
def test_a_bounded_number_of_weights_is_made_at_once(mixer, rows, pooling, monkeypatch):
    model, image = small(mixer, pooling=pooling), pictures(3)
    made = []
    real = insight.rollout_rows

    def seen(weights, chosen):
        made.append(weights.shape[2])
        return real(weights, chosen)

    monkeypatch.setattr(insight, "rollout_rows", seen)
    tokens = 6 + (pooling == "class")
    monkeypatch.setattr(insight, "WEIGHTS_AT_ONCE", rows * 2 * tokens)
    check_all_measures(model, image, pooling == "class")
    assert max(made) == rows
    assert sum(made) == 3 * 2 * tokens  # of each image and layer each row once


def test_a_mean_over_images_leaves_out_those_without_a_distance(monkeypatch):
    model, image = small(), pictures(2)
    expected = look(model, image[1:]).distance
    real, calls = insight.query_distances, []

    def first_image_looks_nowhere(weights, distances):
        found, looks = real(weights, distances)
        calls.append(len(calls))
        return (found, looks) if calls[-1] >= 2 else (0 * found, looks & False)

    monkeypatch.setattr(insight, "query_distances", first_image_looks_nowhere)
    for layer, distance in enumerate(look(model, image).distance):
        same(distance, expected[layer])
    assert len(calls) == 4  # two layers of two images


def test_an_image_of_another_size_has_its_own_grid():
    found = look(small(), torch.randn(1, 2, 16, 8, dtype=DOUBLE))
    assert found.rollout.shape == (1, 4, 2)
    same(found.rollout.sum((1, 2)), [1.0])


def test_half_precision_is_measured_in_float32():
    model, image = small().to(torch.bfloat16), pictures().to(torch.bfloat16)
    weights, values = next(layer_attention(model, image))
    assert (weights.dtype, values.dtype) == (torch.float32, torch.bfloat16)
    same(weights.sum(-1), torch.ones(1, 2, 7), atol=1e-6, rtol=0)  # not rounded to bfloat16
    same(look(model, image).rollout.sum((1, 2)), [1.0])


def test_what_implies_no_weights_is_refused_and_so_is_training():
    message = "mixer must be one whose outputs are sums of values .*, got LSTMMixer in layer 1"
    with pytest.raises(TypeError, match=message):
        look(small(["softmax", "lstm"]), pictures())
    with pytest.raises(ValueError, match=r"evaluation mode \(model.eval\(\)\), got training mode"):
        layer_attention(small().train(), pictures())
