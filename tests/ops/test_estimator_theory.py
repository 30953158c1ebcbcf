"""The formulas, in the paper's own words, at points where both can be computed; then by drawing."""

import jaxtyping
import pytest
import torch

from subquad.ops.estimator_theory import orthogonal_gain, regularized_ratio, relative_variance
from subquad.ops.random_features import Estimator
from subquad.ops.random_matrices import Rows, random_matrix

float64 = torch.float64
M, K = 3, 16


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 4, generator=generator, dtype=float64) * 0.5


def test_the_quotients_are_the_papers_equation_8(pair):
    x, y = pair
    sm = (x * y).sum(-1).exp()
    plus, minus = (x + y).square().sum(-1), (x - y).square().sum(-1)
    trig = plus.exp() / sm**2 * (1 - (-minus).exp()) ** 2 / (2 * M)
    positive = plus.exp() * sm**2 * (1 - (-plus).exp()) / M
    expected = {
        Estimator.TRIGONOMETRIC: trig,
        Estimator.POSITIVE: positive,
        Estimator.HYPERBOLIC: (1 - (-plus).exp()) / 2 * positive,
    }
    for estimator, mse in expected.items():
        found = relative_variance(x, y, estimator=estimator, num_directions=M)
        torch.testing.assert_close(found * sm**2, mse, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("degrees", "trig", "positive", "hyperbolic"),
    [(0, 0, 396, 194), (45, 0.726, 120.9, 58.5), (90, 2.762, 6.389, 2.762),
     (135, 3.455, 0.1936, 0.0429), (180, 3.560, 0, 0)],
)  # fmt: skip
def test_mean_squared_errors_of_unit_vectors_at_one_direction(degrees, trig, positive, hyperbolic):
    angle = torch.deg2rad(torch.tensor(float(degrees), dtype=float64))
    x, y = torch.tensor([1.0, 0.0], dtype=float64), torch.stack([angle.cos(), angle.sin()])
    for estimator, value in (
        (Estimator.TRIGONOMETRIC, trig),
        (Estimator.POSITIVE, positive),
        (Estimator.HYPERBOLIC, hyperbolic),
    ):
        mse = relative_variance(x, y, estimator=estimator, num_directions=1) * (x @ y).exp() ** 2
        assert float(mse) == pytest.approx(value, rel=3e-3, abs=1e-9)


def test_small_distances_keep_their_digits():
    x = torch.full((1,), 1e-5, dtype=float64)
    found = relative_variance(x, x, estimator=Estimator.HYPERBOLIC, num_directions=1)
    assert float(found) == pytest.approx((4e-10) ** 2 / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("width", "w", "ratio"),
    [(16, 0.5, 0.987), (16, 2, 0.837), (16, 4, 0.547), (16, 8, 0.152),
     (64, 0.5, 0.996), (64, 2, 0.945), (64, 4, 0.810), (64, 8, 0.471)],
)  # fmt: skip
def test_the_regularised_kernel_beside_softmax(width, w, ratio):
    x = torch.zeros(width, dtype=float64)
    x[0] = (2 * w) ** 0.5
    assert float(regularized_ratio(x, torch.zeros_like(x))) == pytest.approx(ratio, abs=1e-3)


def test_the_regularised_kernel_is_what_regularised_directions_estimate():
    x = torch.full((K,), 0.5, dtype=float64)
    generator = torch.Generator().manual_seed(0)
    w = random_matrix(
        20_000, K, rows=Rows.IID, regularized=True, generator=generator, dtype=float64
    )
    values = (w @ x - x.square().sum() / 2).exp()  # y = 0, SM = 1
    error = float(values.std()) / len(values) ** 0.5
    assert abs(float(values.mean() - regularized_ratio(x, 0 * x))) < 4 * error
    assert float(regularized_ratio(x, 0 * x)) < 1 - 5 * error


@pytest.mark.parametrize("w", [0.0, 1e-9, 300.0])
def test_the_ratio_at_both_ends(w):
    x = torch.zeros(4, dtype=float64)
    x[1] = (2 * w) ** 0.5
    ratio = float(regularized_ratio(x, torch.zeros_like(x)))
    assert 0 <= ratio <= 1 + 1e-12
    assert w > 1 or ratio == pytest.approx(1, abs=1e-8)


def test_orthogonal_directions_gain_what_the_theorem_says_in_the_papers_words(pair):
    x, y = pair
    sm = (x * y).sum(-1).exp()
    rest = sm - (-(x.square().sum(-1) + y.square().sum(-1)) / 2).exp()
    expected = 2 * (M - 1) / (M * (4 + 2)) * rest**2
    found = orthogonal_gain(x, y, num_directions=M) * sm**2
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


def test_numbers_that_do_not_fit_are_refused(pair, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x, y = pair
    with pytest.raises(ValueError, match="num_directions must be at most K = 4, got 5"):
        orthogonal_gain(x, y, num_directions=5)
    with pytest.raises(ValueError, match="num_directions must be at least 1, got 0"):
        relative_variance(x, y, estimator=Estimator.POSITIVE, num_directions=0)
