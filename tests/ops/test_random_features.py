"""Random matrices and random features: known answers, bias, variance."""

import functools
import math

import jaxtyping
import pytest
import torch

from helpers import assert_near
from subquad.ops.random_features import (
    Estimator,
    RandomFeatures,
    SoftmaxKernel,
    default_num_features,
)
from subquad.ops.random_matrices import Rows, haar, hadamard_transform, random_matrix

float64 = torch.float64
estimators = pytest.mark.parametrize("estimator", Estimator, ids=str)

W = torch.tensor([[1, 0], [0, 1], [1, -1]], dtype=float64)
X, Y = torch.tensor([1, 0.5], dtype=float64), torch.tensor([-0.5, 1], dtype=float64)
KNOWN = {
    Estimator.POSITIVE: (
        [0.840040, 0.509510, 0.509510], [0.187438, 0.840040, 0.068955], 0.620597,
    ),
    Estimator.HYPERBOLIC: (
        [0.593998, 0.360278, 0.360278, 0.080389, 0.132539, 0.132539],
        [0.132539, 0.593998, 0.048758, 0.360278, 0.080389, 0.979337], 0.479716,
    ),
    Estimator.TRIGONOMETRIC: (
        [0.907638, 0.517124, 0.517124, 0.582788, 0.946589, 0.946589],
        [-0.517124, 0.907638, -1.07593, 0.946589, 0.582788, 0.076299], 0.619155,
    ),
}  # fmt: skip


@estimators
def test_known_answers(estimator):
    phi_x, phi_y, product = KNOWN[estimator]
    features = RandomFeatures(W, estimator)
    assert features.num_features(2) == len(phi_x)
    close = {"rtol": 0, "atol": 6e-7}
    torch.testing.assert_close(features(X), torch.tensor(phi_x, dtype=float64), **close)
    close_y = {"rtol": 0, "atol": 6e-6}  # one of its numbers is printed with five digits
    torch.testing.assert_close(features(Y), torch.tensor(phi_y, dtype=float64), **close_y)
    assert abs(float(features(X) @ features(Y)) - product) < 6e-7


def estimates(estimator, blocks, x, y):
    """Return one estimate of exp(x . y) for each block of directions (N, m, d)."""
    u, v = blocks @ x, blocks @ y
    if estimator is Estimator.POSITIVE:
        return (u + v - (x.square().sum() + y.square().sum()) / 2).exp().mean(1)
    if estimator is Estimator.HYPERBOLIC:
        return (u + v).cosh().mean(1) * (-(x.square().sum() + y.square().sum()) / 2).exp()
    return (u - v).cos().mean(1) * ((x.square().sum() + y.square().sum()) / 2).exp()


@estimators
def test_the_estimates_of_these_tests_are_products_of_features(estimator):
    w = random_matrix(5, 3, dtype=float64)
    x, y = torch.randn(2, 3, dtype=float64)
    features = RandomFeatures(w, estimator)
    assert_near(features(x) @ features(y), estimates(estimator, w[None], x, y)[0], 1e-12)


D, COUNT = 16, 5_000
SMALL_X, SMALL_Y = torch.full((D,), 0.15, dtype=float64), torch.full((D,), 0.12, dtype=float64)


def deviation(values, expected):
    """Return how many standard errors the mean of ``values`` is off."""
    return float((values.mean() - expected) / (values.std() / math.sqrt(len(values))))


@functools.cache
def blocks(rows, regularized=False, count=COUNT):
    generator = torch.Generator().manual_seed(1)
    drawn = random_matrix(
        count * D, D, rows=rows, regularized=regularized, generator=generator, dtype=float64
    )
    return drawn.view(count, D, D)


@pytest.mark.parametrize("rows", [Rows.IID, Rows.ORTHOGONAL], ids=str)
def test_every_estimator_is_unbiased(rows):
    drawn = blocks(rows)
    target = float((SMALL_X @ SMALL_Y).exp())
    for estimator in Estimator:
        values = estimates(estimator, drawn, SMALL_X, SMALL_Y)
        assert abs(deviation(values, target)) < 4, estimator


def test_the_bias_of_qr_without_the_sign_fix_would_be_seen():
    """LAPACK's Q of a Gaussian matrix is not Haar: 16% off here, by the same measure as above."""
    gaussian = torch.randn(COUNT, D, D, generator=torch.Generator().manual_seed(1), dtype=float64)
    lengths = gaussian.flip(0).norm(dim=2, keepdim=True)
    target = float((SMALL_X @ SMALL_Y).exp())
    values = {
        name: estimates(Estimator.POSITIVE, q * lengths, SMALL_X, SMALL_Y)
        for name, q in (("raw", torch.linalg.qr(gaussian)[0].mT), ("fixed", haar(gaussian)))
    }
    assert abs(deviation(values["fixed"], target)) < 4
    assert deviation(values["raw"], target) < -20
    assert float(values["raw"].mean()) == pytest.approx(1.122, abs=0.015)
    assert haar(gaussian).diagonal(dim1=1, dim2=2).mean().abs() < 0.01


def test_the_variances_of_lemma_2_and_the_gain_of_theorem_2():
    x, y = SMALL_X, SMALL_Y
    kernel = (x @ y).exp()
    plus, minus = (x + y).square().sum(), (x - y).square().sum()
    theory = {
        Estimator.POSITIVE: plus.exp() * kernel**2 * (1 - (-plus).exp()) / D,
        Estimator.TRIGONOMETRIC: plus.exp() / kernel**2 * (1 - (-minus).exp()) ** 2 / (2 * D),
    }
    theory[Estimator.HYPERBOLIC] = (1 - (-plus).exp()) / 2 * theory[Estimator.POSITIVE]
    mse = {}
    for rows in (Rows.IID, Rows.ORTHOGONAL):
        drawn = blocks(rows)
        for estimator in Estimator:
            error = (estimates(estimator, drawn, x, y) - kernel).square()
            mse[rows, estimator] = error.mean()
            if rows is Rows.IID:
                spread = 5 * error.std() / math.sqrt(COUNT)
                assert abs(error.mean() - theory[estimator]) < spread, estimator
    size = (-(x.square().sum() + y.square().sum()) / 2).exp()
    bound = theory[Estimator.POSITIVE] - 2 * (D - 1) / (D * (D + 2)) * (kernel - size) ** 2
    assert mse[Rows.ORTHOGONAL, Estimator.POSITIVE] < bound < theory[Estimator.POSITIVE]
    assert mse[Rows.ORTHOGONAL, Estimator.HYPERBOLIC] < mse[Rows.IID, Estimator.HYPERBOLIC] / 2


def test_regularized_directions_estimate_their_own_kernel():
    """Theorem 1's exact ratio at |x + y|^2 / 2 = 2: 0.837 for d = 16."""
    z = torch.zeros(D, dtype=float64)
    z[3] = 1.0
    values = estimates(Estimator.POSITIVE, blocks(Rows.ORTHOGONAL, regularized=True), z, z)
    ratio, term = 0.0, 1.0
    for k in range(60):
        ratio += term
        term *= 2.0 / (k + 1) * D / (D + 2 * k)
    ratio *= math.exp(-2.0)
    assert ratio == pytest.approx(0.837, abs=5e-4)
    assert abs(deviation(values / math.e, ratio)) < 4


def test_the_hadamard_estimator_is_near():
    values = estimates(Estimator.HYPERBOLIC, blocks(Rows.HADAMARD, count=1000), SMALL_X, SMALL_Y)
    assert float(values.mean()) == pytest.approx(float((SMALL_X @ SMALL_Y).exp()), rel=0.02)


@pytest.mark.parametrize("rows", [Rows.ORTHOGONAL, Rows.HADAMARD], ids=str)
@pytest.mark.parametrize("regularized", [False, True])
@pytest.mark.parametrize("count", [1, 5, 8, 19])
def test_rows_of_a_block_are_orthogonal_and_their_lengths_as_asked(rows, regularized, count):
    torch.manual_seed(0)
    w = random_matrix(count, 8, rows=rows, regularized=regularized, dtype=float64)
    assert w.shape == (count, 8)
    lengths = w.norm(dim=1)
    for start in range(0, count, 8):
        block = w[start : start + 8]
        gram = block @ block.T
        assert_near(gram, lengths[start : start + 8].square().diag(), 1e-12)
    if regularized:
        assert_near(lengths, torch.full((count,), math.sqrt(8), dtype=float64), 1e-12)
    elif count > 1:
        assert lengths.std() > 0.1


def test_lengths_are_those_of_gaussian_vectors():
    for rows in (Rows.ORTHOGONAL, Rows.HADAMARD):
        w = random_matrix(20_000, 8, rows=rows, generator=torch.Generator().manual_seed(0))
        assert float(w.square().sum(1).mean()) == pytest.approx(8, rel=0.02)
        assert float(w.square().sum(1).var()) == pytest.approx(16, rel=0.06)
    iid = random_matrix(20_000, 8, rows=Rows.IID, generator=torch.Generator().manual_seed(0))
    assert float(iid.square().mean()) == pytest.approx(1, rel=0.02)
    regular = random_matrix(9, 8, rows=Rows.IID, regularized=True)
    assert_near(regular.norm(dim=1), torch.full((9,), math.sqrt(8)), 1e-6)


def test_the_hadamard_transform_is_orthogonal_and_its_own_inverse():
    x = torch.randn(3, 16, dtype=float64)
    assert_near(hadamard_transform(hadamard_transform(x)), x, 1e-12)
    matrix = hadamard_transform(torch.eye(16, dtype=float64))
    assert_near(matrix @ matrix, torch.eye(16, dtype=float64), 1e-12)
    assert_near(matrix.abs(), torch.full((16, 16), 0.25, dtype=float64), 1e-12)


def test_a_seed_is_one_matrix_and_the_global_generator_is_the_default():
    for rows in Rows:
        first, again = (
            random_matrix(9, 8, rows=rows, generator=torch.Generator().manual_seed(3))
            for _ in range(2)
        )
        assert torch.equal(first, again)
        torch.manual_seed(5)
        drawn = random_matrix(9, 8, rows=rows)
        torch.manual_seed(5)
        assert torch.equal(SoftmaxKernel(rows=rows).draw(8, 9).projection, drawn)
        assert not torch.equal(random_matrix(9, 8, rows=rows), drawn)


def test_the_default_number_is_d_ln_d_and_at_least_d():
    assert [default_num_features(d) for d in (1, 2, 16, 64)] == [1, 2, 44, 266]
    assert SoftmaxKernel().draw(16).projection.shape == (44, 16)
    hyperbolic = SoftmaxKernel(estimator=Estimator.HYPERBOLIC).draw(16, 20)
    assert hyperbolic.num_features(16) == 40


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_are_float32_or_wider_also_under_autocast(dtype):
    features, x = SoftmaxKernel().draw(4), torch.randn(3, 4).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        phi = features(x)
    assert phi.dtype == torch.float32
    assert torch.equal(phi, features(x.float()))
    assert features(x.double()).dtype == float64


def test_log_features_do_not_overflow_where_features_do():
    features, x = SoftmaxKernel().draw(4), 1e4 * torch.randn(3, 4)
    assert features.log_features(x).isfinite().all()
    assert (features(x) == 0).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: random_matrix(0, 4), ValueError, "num_rows must be at least 1, got 0"),
        (lambda: random_matrix(3, 0), ValueError, "width must be at least 1, got 0"),
        (
            lambda: random_matrix(3, 6, rows=Rows.HADAMARD), ValueError,
            "width must be a power of 2 for Rows.HADAMARD, got 6",
        ),
        (lambda: random_matrix(3, 4, rows="iid"), TypeError, "rows must be one of .*'iid'"),
        (
            lambda: random_matrix(3, 4, dtype=torch.float16), TypeError,
            "dtype must be torch.float32 or torch.float64, got torch.float16",
        ),
        (
            lambda: SoftmaxKernel(estimator="positive"), TypeError,
            "estimator must be one of Estimator.POSITIVE, .* got 'positive'",
        ),
        (lambda: SoftmaxKernel().draw(4, 0), ValueError, "num_features must be at least 1, got 0"),
        (
            lambda: SoftmaxKernel().draw(4).num_features(5), ValueError,
            r"projection must have shape \(m, K\) = \(m, 5\), got \(5, 4\)",
        ),
        (
            lambda: RandomFeatures(W, Estimator.TRIGONOMETRIC).log_features(X), ValueError,
            "estimator must be one of positive features, got Estimator.TRIGONOMETRIC",
        ),
    ],
)  # fmt: skip
def test_errors(call, error, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error, match=message):
        call()
