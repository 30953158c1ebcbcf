"""Few-shot evaluation in closed form: known answers, both forms, seeded subsets."""

import numpy as np
import pytest
import torch

from helpers import assert_near
from subquad.tasks.few_shot import few_of_each, few_shot_accuracy, least_squares


def drawn(count, features, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, dtype=torch.float64, generator=generator)
    return x, torch.randn(count, classes, dtype=torch.float64, generator=generator)


def test_one_feature_by_hand():
    # Features 1, 3, 5 to values 0, 2, 1. Centred: -2, 0, 2 and -1, 1, 0; variance 8 / 3.
    # w = sum xy / (sum x^2 + l2 * 8 / 3 * 3) = 2 / (8 + 4) with l2 = 1/2; b = 1 - 3 w.
    x, y = torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([[0.0], [2.0], [1.0]])
    found = least_squares(x, y, l2=0.5)
    assert found.weight.dtype == torch.float64
    assert_near(found.weight, torch.tensor([[1 / 6]], dtype=torch.float64), 1e-14)
    assert_near(found.bias, torch.tensor([0.5], dtype=torch.float64), 1e-14)
    assert_near(found(torch.tensor([[9.0]])), torch.tensor([[2.0]], dtype=torch.float64), 1e-14)


@pytest.mark.parametrize(("count", "features"), [(7, 3), (3, 7), (5, 5), (2, 1)])
def test_both_forms_are_where_the_gradient_is_zero(count, features):
    x, y = drawn(count, features)
    scale = x.var(0, correction=0).mean()
    found = least_squares(x, y, l2=0.03)
    weight, bias = (t.clone().requires_grad_() for t in found)
    cost = (x @ weight + bias - y).square().sum(1).mean() + 0.03 * scale * weight.square().sum()
    for gradient in torch.autograd.grad(cost, (weight, bias)):
        assert gradient.abs().max() < 1e-12


def test_the_forms_agree_on_features_that_are_given_twice():
    # Twice the features leave the same predictions: 4 features take the D x D form, 8 the other.
    x, y = drawn(6, 4)
    other = torch.randn(5, 4, dtype=torch.float64)
    once = least_squares(x, y, l2=0.2)(other)
    # Two weights of half the size cost half as much, so twice the regulariser is its equal.
    twice = least_squares(torch.cat([x, x], 1), y, l2=0.4)(torch.cat([other, other], 1))
    assert_near(twice, once, 1e-12)


def test_an_exact_map_is_found_as_the_regulariser_goes_to_0():
    x, _ = drawn(40, 5)
    weight, bias = torch.randn(5, 2, dtype=torch.float64), torch.tensor([3.0, -2.0]).double()
    found = least_squares(x, x @ weight + bias, l2=1e-13)
    assert_near(found.weight, weight, 1e-10)
    assert_near(found.bias, bias, 1e-10)


def test_predictions_hang_neither_on_scale_nor_on_shift():
    x, y = drawn(9, 4)
    test = torch.randn(5, 4, dtype=torch.float64)
    expected = least_squares(x, y)(test)
    assert_near(least_squares(1000 * x + 7, y)(1000 * test + 7), expected, 1e-10)
    assert_near(least_squares(x, y + 5)(test), expected + 5, 1e-10)


def test_accuracy_by_hand():
    # One feature, classes on the axis at 0, 1, 2: the middle one never has the largest value,
    # because a line through -1, 1, -1 is level. Ends: right.
    x = torch.tensor([[0.0], [1.0], [2.0]])
    labels = torch.tensor([0, 1, 2])
    test = torch.tensor([[-1.0], [0.4], [3.0], [1.7]])
    right = few_shot_accuracy(x, labels, test, torch.tensor([0, 0, 2, 0]), num_classes=3, l2=1e-3)
    assert right == 0.75


def test_classes_far_apart_are_told_from_five_of_each():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    x = torch.randn(200, 32, generator=generator).half() + 6 * torch.eye(4, 32)[labels].half()
    chosen = few_of_each(labels.numpy().astype(np.uint8), 5, seed=0)
    assert few_shot_accuracy(x[chosen], labels[chosen], x, labels, num_classes=4) > 0.95
    mixed = labels[chosen].roll(1)
    assert few_shot_accuracy(x[chosen], mixed, x, labels, num_classes=4) < 0.3


def test_some_of_each_class_seeded_and_nested():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3, dtype=np.uint8), 10))
    five = few_of_each(labels, 5, seed=1)
    assert list(np.bincount(labels[five])) == [5, 5, 5]
    assert len(set(five.tolist())) == 15
    assert list(five) == sorted(five)
    np.testing.assert_array_equal(five, few_of_each(labels, 5, seed=1))
    assert not np.array_equal(five, few_of_each(labels, 5, seed=2))
    assert set(few_of_each(labels, 2, seed=1)) < set(five)
    assert list(few_of_each(labels, 10, seed=0)) == list(range(30))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: least_squares(x, y, l2=0.0), "l2 must be a finite number above 0, got 0"),
        (lambda x, y: least_squares(x, y, l2=float("nan")), "l2 must be a finite .* got nan"),
        (lambda x, y: least_squares(x / 0, y), "x must be finite, got nan or inf"),
        (lambda x, y: least_squares(x, y / 0), "y must be finite, got nan or inf"),
        (
            lambda x, y: least_squares(torch.full_like(x, 0.1), y),
            "x must differ between examples, got 4 with the same features",
        ),
        (lambda x, y: least_squares(x[:0], y[:0]), "x and y must have one row .* got 0 and 0"),
        (lambda x, y: least_squares(x, y[:3]), "x and y must have one row .* got 4 and 3"),
        (
            lambda x, y: few_shot_accuracy(x, LABELS[:0], x, LABELS, num_classes=4),
            "^labels must hold at least one, got none",
        ),
        (
            lambda x, y: few_shot_accuracy(x, LABELS, x, LABELS, num_classes=3),
            "^labels must lie from 0 to 2, got 3",
        ),
        (
            lambda x, y: few_shot_accuracy(x, LABELS, x, LABELS - 1, num_classes=4),
            "test_labels must lie from 0 to 3, got -1",
        ),
        (lambda *_: few_of_each(BYTES, 0, seed=0), "count must be at least 1, got 0"),
        (lambda *_: few_of_each(BYTES, 1, seed=-1), "seed must be at least 0, got -1"),
        (
            lambda *_: few_of_each(BYTES, 2, seed=0),
            "count must be at most the examples of each class, got 2, and 1 of class 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(unhooked, call, message):
    with pytest.raises(ValueError, match=message):
        call(*drawn(4, 3))


def test_labels_that_are_no_whole_numbers_are_refused(unhooked):
    x, _ = drawn(4, 3)
    for labels in (LABELS.float(), LABELS > 1):
        with pytest.raises(TypeError, match=rf"test_labels must be whole .*, got {labels.dtype}"):
            few_shot_accuracy(x, LABELS, x, labels, num_classes=4)


LABELS = torch.arange(4)
BYTES = np.arange(4, dtype=np.uint8)
