"""Each map against its formula, at the edges of its dtype too."""

import pytest
import torch
from torch.nn import functional as F

from helpers import FEATURE_MAPS, as_users_have_it, assert_near
from subquad.layers.learned_feature_map import LearnedFeatureMap
from subquad.ops import feature_maps

H, D = 2, 5
FORMULAS = {
    "elu_plus_one": lambda x: F.elu(x) + 1,
    "relu": lambda x: x.clamp(min=0),
    "squared_relu": lambda x: x.clamp(min=0) ** 2,
    "exp": torch.exp,
    "identity": lambda x: x,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_map_is_its_formula(name):
    x = torch.randn(3, H, 4, D, dtype=torch.float64)
    assert_near(FEATURE_MAPS[name](H, D)(x), FORMULAS[name](x), 1e-14)


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_a_map_says_how_many_features_it_makes_and_of_which_sign(name):
    feature_map = FEATURE_MAPS[name](H, D)
    q, k = torch.randn(2, 3, H, 4, D, dtype=torch.float64)
    phi_q, phi_k = feature_map(q), feature_map(k)
    assert phi_q.shape == (3, H, 4, feature_map.num_features(D))
    assert feature_map.nonnegative == bool((phi_q @ phi_k.mT >= 0).all())
    assert feature_map.nonnegative == (name != "identity")


@pytest.mark.parametrize("name", FEATURE_MAPS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_map_computes_in_float32_or_wider(name, dtype):
    x = torch.randn(3, H, 4, D).to(dtype)
    feature_map = FEATURE_MAPS[name](H, D)
    phi = feature_map(x)
    assert phi.dtype == torch.promote_types(dtype, torch.float32)
    assert_near(phi, feature_map(x.double()), 1e-6)


def test_elu_plus_one_does_not_round_to_0():
    """In bf16 elu(-6) is -1, and 1 is added to it."""
    x = torch.arange(-100.0, 0.0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        phi = feature_maps.elu_plus_one(x.to(dtype))
        torch.testing.assert_close(phi, x.exp(), rtol=1e-5, atol=0)
    assert feature_maps.elu_plus_one(torch.tensor([-1e30])) == 0


def test_elu_plus_one_has_the_gradient_of_its_formula_everywhere():
    x = torch.tensor([-200.0, -1.0, 0.0, 1.0, 1e30], requires_grad=True)
    feature_maps.elu_plus_one(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]).where(
        x != -1, torch.tensor(-1.0).exp()
    ))  # fmt: skip


def test_the_polynomial_kernel_is_exact():
    q, k = torch.randn(2, 50, D, dtype=torch.float64)
    phi_q, phi_k = feature_maps.degree_2_polynomial(q), feature_maps.degree_2_polynomial(k)
    assert phi_q.shape[-1] == D * (D + 1) // 2
    assert_near((phi_q * phi_k).sum(-1), (q * k).sum(-1) ** 2, 1e-14)


def test_the_learned_map_is_a_softmax_over_both_signs():
    feature_map = LearnedFeatureMap(H, D, num_features=6)
    x = torch.randn(3, H, 4, D)
    projected = torch.stack([x[:, h] @ feature_map.weight[h] for h in range(H)], dim=1)
    expected = torch.cat([projected, -projected], dim=-1).exp()
    assert_near(feature_map(x), expected / expected.sum(-1, keepdim=True), 1e-6)
    feature_map(x)[..., 0].sum().backward()
    assert feature_map.weight.grad.norm() > 0


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, D, 6), "num_heads must be at least 1, got 0"),
        ((H, 0, 6), "head_dim must be at least 1, got 0"),
        ((H, D, 0), "num_features must be at least 1, got 0"),
        ((H, D, 5), "num_features must be divisible by 2, got 5"),
    ],
)
def test_a_learned_map_of_a_size_that_does_not_fit_is_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        LearnedFeatureMap(*numbers)


def test_a_learned_map_of_another_width_is_refused():
    with pytest.raises(ValueError, match="head_dim must be 5 for this map, got 4"):
        LearnedFeatureMap(H, D, 6).num_features(4)


def test_only_a_kernel_that_cannot_be_negative_is_normalised():
    check = as_users_have_it(feature_maps.check_normalize)
    check(feature_maps.identity, False)
    check(feature_maps.relu, True)
    with pytest.raises(
        ValueError, match=r"normalize must be False .* normalize=True with Identity"
    ):
        check(feature_maps.identity, True)
