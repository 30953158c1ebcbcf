"""The transformer for scikit-learn: its conventions, the kernels it stands for, its refusals."""

import pickle
import subprocess
import sys

import jaxtyping
import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from subquad.kernel_features import RandomKernelFeatures

ESTIMATORS = ("positive", "hyperbolic", "trigonometric")


@pytest.fixture
def samples():
    return np.random.default_rng(0).normal(size=(7, 4))


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@parametrize_with_checks(
    [
        RandomKernelFeatures(num_features=3),
        RandomKernelFeatures(
            kernel="softmax", estimator="hyperbolic", gamma=1e-4, directions="iid"
        ),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def exact(kernel, x, gamma):
    return rbf_kernel(x, gamma=gamma) if kernel == "gaussian" else np.exp(gamma * x @ x.T)


@pytest.mark.parametrize("directions", ["iid", "orthogonal"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["gaussian", "softmax"])
def test_the_mean_over_draws_is_the_kernel(samples, kernel, estimator, directions):
    gamma, draws = 0.2, 300
    products = []
    for seed in range(draws):
        features = RandomKernelFeatures(
            kernel=kernel, estimator=estimator, directions=directions, gamma=gamma,
            num_features=16, random_state=seed,
        ).fit_transform(samples / 2)  # fmt: skip
        products.append(features @ features.T)
    expected = exact(kernel, samples / 2, gamma)
    error = np.std(products, axis=0) / np.sqrt(draws) + 1e-12
    assert np.abs((np.mean(products, axis=0) - expected) / error).max() < 4.5
    assert error.max() < 0.07 * expected.max()  # so the line above could fail


def test_trigonometric_features_of_the_gaussian_kernel_err_as_the_document_says(samples):
    """Any distance: |x - y| from 0 to 300 here."""
    far = samples * np.array([1e-2, 1, 10, 50])[None]
    features = [
        RandomKernelFeatures(num_features=8, directions="iid", random_state=seed)
        .fit_transform(far)
        for seed in range(400)
    ]  # fmt: skip
    errors = np.array([f @ f.T - rbf_kernel(far) for f in features])
    assert np.sqrt((errors**2).mean(0)).max() < 1.15 / np.sqrt(2 * 8)


def test_a_regularised_kernel_is_below(samples):
    made = [
        RandomKernelFeatures(
            kernel="softmax", estimator="positive", regularized=True, gamma=0.5, random_state=seed,
            num_features=32,
        ).fit_transform(samples)
        for seed in range(50)
    ]  # fmt: skip
    assert (np.mean([(f**2).sum(1) for f in made], 0) < np.exp(0.5 * (samples**2).sum(1))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["gaussian", "softmax"])
def test_dtypes_stay_and_the_directions_of_a_seed_are_the_same(samples, kernel, estimator, dtype):
    maker = RandomKernelFeatures(kernel=kernel, estimator=estimator, random_state=1)
    wide, made = maker.fit_transform(samples), maker.fit_transform(samples.astype(dtype))
    assert made.dtype == dtype
    assert made.shape == (7, len(maker.get_feature_names_out()))
    np.testing.assert_allclose(made, wide, rtol=2e-4, atol=1e-5)


def test_in_a_pipeline_with_names_pickled_and_cloned(samples):
    pipe = make_pipeline(RandomKernelFeatures(num_features=3, random_state=0), Ridge())
    pipe.fit(samples, samples[:, 0])
    names = pipe[:-1].get_feature_names_out()
    assert list(names[:2]) == ["randomkernelfeatures0", "randomkernelfeatures1"]
    assert len(names) == 6
    again = pickle.loads(pickle.dumps(pipe))
    np.testing.assert_array_equal(again.predict(samples), pipe.predict(samples))
    fresh = clone(pipe).fit(samples, samples[:, 0])
    np.testing.assert_array_equal(fresh.predict(samples), pipe.predict(samples))
    assert list(clone(pipe[0]).get_params()) == list(pipe[0].get_params())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "rbf"}, "kernel must be one of softmax, gaussian, got 'rbf'"),
        ({"estimator": "cosine"}, "estimator must be one of positive, hyperbolic, trigonometric"),
        ({"directions": "haar"}, "directions must be one of iid, orthogonal, hadamard, got 'haar'"),
        ({"gamma": 0.0}, "gamma must be None or a finite number above 0, got 0.0"),
        ({"gamma": float("nan")}, "gamma must be None or a finite number above 0, got nan"),
        ({"num_features": 0}, "num_features must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(samples, options, message):
    with pytest.raises(ValueError, match=message):
        RandomKernelFeatures(**options).fit(samples)


def test_hadamard_wants_a_power_of_two(samples):
    RandomKernelFeatures(directions="hadamard").fit(samples)
    with pytest.raises(ValueError, match=r"width must be a power of 2 for Rows.HADAMARD, got 3"):
        RandomKernelFeatures(directions="hadamard").fit(samples[:, :3])


def test_features_that_overflow_are_refused(samples):
    maker = RandomKernelFeatures(kernel="softmax", gamma=1.0).fit(samples)
    with pytest.raises(ValueError, match="X must be small enough for the features of the softmax"):
        maker.transform(100 * samples)


def test_without_scikit_learn_one_sentence_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None; import subquad.kernel_features"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "pip install 'subquad[sklearn]'" in child.stderr.splitlines()[-1]
