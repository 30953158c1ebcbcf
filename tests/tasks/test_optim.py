import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from subquad.tasks.config import TrainConfig
from subquad.tasks.optim import RAdam, build_optimizer, learning_rate, rectify

LR, BETAS, EPS, DECAY = 1e-2, (0.9, 0.999), 1e-8, 0.1


def config(**options):
    return TrainConfig(**{"max_steps": 100, "batch_size": 1, "lr": 1.0, **options})


def radam_in_numpy(weights, gradients):
    """Follow the fact sheet's formulas, one tensor, one step after another."""
    w, m, v = weights.copy(), np.zeros_like(weights), np.zeros_like(weights)
    beta1, beta2 = BETAS
    for t, g in enumerate(gradients, start=1):
        g = g * min(1.0, 1.0 / (np.sqrt((g**2).sum()) + 1e-6))
        v = beta2 * v + (1 - beta2) * g * g
        m = beta1 * m + (1 - beta1) * g
        w = w - DECAY * LR * w
        n_max = 2 / (1 - beta2) - 1
        n = n_max - 2 * t * beta2**t / (1 - beta2**t)
        if n >= 5:
            step = LR * np.sqrt(
                (1 - beta2**t) * (n - 4) / (n_max - 4) * (n - 2) / n * n_max / (n_max - 2)
            )
            w = w - step / (1 - beta1**t) * m / (np.sqrt(v) + EPS)
        else:
            w = w - LR / (1 - beta1**t) * m
    return w


def test_radam_equals_the_formulas_step_by_step():
    rng = np.random.default_rng(0)
    shapes, steps = [(3, 4), (5,), ()], 12
    start = [rng.normal(size=s) for s in shapes]
    # Small and large gradients: the clip must work on some tensors and leave others alone.
    gradients = [rng.normal(size=(steps, *s)) * (10.0 ** rng.integers(-2, 2)) for s in shapes]
    params = [nn.Parameter(torch.tensor(w)) for w in start]
    optimizer = RAdam(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    for t in range(steps):
        for p, g in zip(params, gradients, strict=True):
            p.grad = torch.tensor(g[t])
        optimizer.step()
        for p, w, g in zip(params, start, gradients, strict=True):
            expected = torch.as_tensor(radam_in_numpy(w, g[: t + 1]))
            assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)


def test_radam_rectifies_from_the_sixth_step_on():
    assert [rectify(t, 0.999) is None for t in range(1, 8)] == [True] * 5 + [False] * 2


def test_radam_counts_the_steps_of_each_parameter():
    late, early = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = RAdam([late, early], lr=LR)
    for step in range(10):
        early.grad = torch.full((2,), 0.1, dtype=torch.float64)
        late.grad = early.grad.clone() if step >= 4 else None
        optimizer.step()
        if step == 3:
            assert late.tolist() == [1.0, 1.0]
        if step == 5:
            at_five = early.detach().clone()
    assert_close(late.detach(), at_five)


def test_adamw_decays_matrices_only():
    model = nn.Linear(2, 2)
    nn.init.ones_(model.bias)
    optimizer = build_optimizer(model, config(optimizer="adamw", lr=0.1, weight_decay=0.5))
    before = model.weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert_close(model.weight.detach(), before * 0.95)
    assert model.bias.tolist() == [1.0, 1.0]


def test_radam_decays_everything_as_released():
    model = nn.Linear(2, 2)
    nn.init.ones_(model.bias)
    optimizer = build_optimizer(model, config(optimizer="radam", lr=0.1, weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert_close(model.bias.detach(), torch.full((2,), 0.95))


def sgd_by_hand(weight, gradients, *, decay, momentum=0.8, lr=0.1):
    moment = torch.zeros_like(weight)
    for gradient in gradients:
        moment = momentum * moment + gradient + decay * weight
        weight = weight - lr * moment
    return weight


def test_sgd_is_the_formula_and_decays_matrices_only():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    settings = config(optimizer="sgd", lr=0.1, momentum=0.8, weight_decay=0.5)
    optimizer = build_optimizer(model, settings)
    gradients = torch.randn(3, 2, 3, dtype=torch.float64)
    for gradient in gradients:
        model.weight.grad, model.bias.grad = gradient.clone(), gradient[:, 0].clone()
        optimizer.step()
    assert_close(model.weight.detach(), sgd_by_hand(weight, gradients, decay=0.5))
    assert_close(model.bias.detach(), sgd_by_hand(bias, gradients[..., 0], decay=0))


def test_adam_takes_the_decay_as_a_penalty_of_the_loss():
    def after(optimizer, gradient, decay):
        model = nn.Linear(2, 2, bias=False)
        nn.init.ones_(model.weight)
        found = build_optimizer(model, config(optimizer=optimizer, lr=0.1, weight_decay=decay))
        model.weight.grad = torch.full((2, 2), gradient)
        found.step()
        return model.weight.detach()

    # A first step of Adam is lr times the gradient's sign, whatever its size.
    assert_close(after("adam", 0.0, 0.5), torch.full((2, 2), 0.9))
    assert_close(after("adam", 2.0, 0.0), after("adamw", 2.0, 0.0))
    assert_close(after("adamw", 0.0, 0.5), torch.full((2, 2), 0.95))


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match=r"^model must have at least one parameter that learns"):
        build_optimizer(nn.ReLU(), config())


def rates(**options):
    return [learning_rate(config(**options), t, 100) for t in range(100)]


def test_constant_schedule_with_warm_up():
    assert rates(warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert set(rates(warmup_steps=4)[4:]) == {1.0}


def test_cosine_schedule_falls_to_its_lowest_at_the_last_step():
    found = rates(schedule="cosine", warmup_steps=10, min_lr_ratio=0.2)
    assert found[9] == found[10] == 1.0
    assert found[-1] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(found[10:]))
    assert found[10 + 89 // 2] == pytest.approx(0.6, abs=0.02)


def test_linear_schedule_falls_evenly():
    found = rates(schedule="linear", warmup_steps=10, min_lr_ratio=0.1)
    assert found[9] == found[10] == 1.0
    assert found[-1] == pytest.approx(0.1)
    falls = [a - b for a, b in itertools.pairwise(found[10:])]
    assert falls == pytest.approx([0.9 / 89] * 89)
    assert rates(schedule="linear", min_lr_ratio=0.0)[-1] == 0.0


def test_step_schedule_falls_once():
    found = rates(schedule="step", drop_at=0.3, min_lr_ratio=0.1)
    assert set(found[:30]) == {1.0}
    assert set(found[30:]) == {0.1}
    paper = config(schedule="step", max_steps=10_000)
    assert learning_rate(paper, 2_999, 10_000) == 1.0
    assert math.isclose(learning_rate(paper, 3_000, 10_000), 0.1)
