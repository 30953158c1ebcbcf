"""The mixture of discretised logistics against a plain float64 computation, byte by byte."""

import math

import pytest
import torch

from helpers import as_users_have_it, assert_near
from subquad.ops.logistic_mixture import (
    logistic_mixture_log_prob,
    logistic_mixture_log_prob_definition,
    logistic_mixture_sample,
)

BYTES = torch.arange(256)


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def log_prob_by_hand(parameters, byte):
    """Section 4.5 of the released code as read, one component after the other."""
    count = len(parameters) // 3
    logits, means, raw = parameters[:count], parameters[count : 2 * count], parameters[2 * count :]
    y = byte / 255 * 2 - 1
    log_norm = math.log(sum(math.exp(x - max(logits)) for x in logits)) + max(logits)
    terms = []
    for logit, mean, log_scale in zip(logits, means, raw, strict=True):
        log_scale = max(log_scale, -7)
        inverse = math.exp(-log_scale)
        plus, minus = inverse * (y - mean + 1 / 255), inverse * (y - mean - 1 / 255)
        mass = sigmoid(plus) - sigmoid(minus)
        if y < -0.999:
            log_mass = log_sigmoid(plus)
        elif y > 0.999:
            log_mass = log_sigmoid(-minus)
        elif mass > 1e-5:
            log_mass = math.log(mass)
        else:
            centre = inverse * (y - mean)
            log_density = log_sigmoid(centre) + log_sigmoid(-centre) - log_scale
            log_mass = log_density - math.log(127.5)
        terms.append(log_mass + logit - log_norm)
    return max(terms) + math.log(sum(math.exp(t - max(terms)) for t in terms))


def draw_parameters(rows, count, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, count, generator=generator, dtype=dtype)
    means = 1.2 * (2 * torch.rand(rows, count, generator=generator, dtype=dtype) - 1)
    raw = 14 * torch.rand(rows, count, generator=generator, dtype=dtype) - 9
    return torch.cat([logits, means, raw], dim=-1)


def all_probabilities(parameters):
    rows = parameters[:, None].expand(-1, 256, -1)
    return logistic_mixture_log_prob(rows, BYTES.expand(len(rows), 256)).exp()


@pytest.mark.parametrize("count", [1, 10])
def test_the_log_probability_is_the_released_one(count):
    parameters = draw_parameters(6, count)
    rows = parameters[:, None].expand(-1, 256, -1)
    actual = logistic_mixture_log_prob(rows, BYTES.expand(6, 256))
    expected = [[log_prob_by_hand(row, byte) for byte in range(256)] for row in parameters.tolist()]
    assert_near(actual, torch.tensor(expected, dtype=torch.float64), 1e-9)
    narrow = logistic_mixture_log_prob(rows.float(), BYTES.expand(6, 256))
    assert narrow.dtype == torch.float32
    assert_near(narrow, actual, 1e-4)


def test_half_precision_is_widened():
    parameters = draw_parameters(4, 3).bfloat16()
    byte = torch.tensor([0, 3, 200, 255])
    actual = logistic_mixture_log_prob(parameters, byte)
    assert actual.dtype == torch.float32
    assert_near(actual, logistic_mixture_log_prob(parameters.double(), byte), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_256_probabilities_sum_to_1(dtype):
    """Within 256 * 1e-5 by the docstring's argument, within 2e-5 by what it measured."""
    means = torch.linspace(-1.5, 1.5, 61, dtype=dtype)
    for log_scale in torch.arange(-9, 8, 0.5):
        single = torch.stack([0 * means, means, log_scale.to(dtype).expand(61)], dim=-1)
        assert (all_probabilities(single).sum(1) - 1).abs().max() < 2e-5
    mixtures = draw_parameters(300, 10, dtype)
    assert (all_probabilities(mixtures).sum(1) - 1).abs().max() < 2e-5


def test_gradients_are_right_and_finite_everywhere():
    parameters = draw_parameters(5, 2).requires_grad_()
    byte = torch.tensor([0, 255, 1, 127, 254])
    assert torch.autograd.gradcheck(lambda p: logistic_mixture_log_prob(p, byte), parameters)
    extreme = torch.tensor([-1e4, -50.0, -7.0, 0.0, 30.0, 1e4])
    grid = torch.cartesian_prod(torch.tensor([0.0]), extreme, extreme).requires_grad_()
    for value in (0, 1, 128, 254, 255):
        log_prob = logistic_mixture_log_prob(grid, torch.full((len(grid),), value))
        assert log_prob.isfinite().all()
        assert torch.autograd.grad(log_prob.sum(), grid)[0].isfinite().all()


def value_and_gradient(function, parameters, byte, weight):
    parameters = parameters.detach().requires_grad_()
    value = function(parameters, byte)
    return value, torch.autograd.grad((value * weight).sum(), parameters)[0]


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
def test_value_and_gradient_are_the_definitions(count, spread):
    """All bytes, so both edges; masses from 1 to nothing; scales at and below the smallest."""
    parameters = spread * torch.randn(3, 256, 3 * count, dtype=torch.float64)
    parameters[0, ::3, -1] = -7.0
    parameters[1, :, -1] = -6.999
    byte = BYTES.expand(3, 256)
    weight = torch.randn(3, 256, dtype=torch.float64)
    expected = value_and_gradient(logistic_mixture_log_prob_definition, parameters, byte, weight)
    actual = value_and_gradient(logistic_mixture_log_prob, parameters, byte, weight)
    for found, known in zip(actual, expected, strict=True):
        # The definition loses digits itself: softplus is a line from 20 on, and exp(-20) is 2e-9.
        assert ((found - known).abs() <= 1e-7 * (1 + known.abs())).all()
    narrow = value_and_gradient(logistic_mixture_log_prob, parameters.float(), byte, weight.float())
    assert_near(narrow[0], expected[0], 1e-4)
    assert_near(narrow[1], expected[1], 1e-3)
    with torch.no_grad():
        assert torch.equal(logistic_mixture_log_prob(parameters, byte), actual[0])


def test_the_gradient_may_be_asked_for_twice_and_reaches_half_precision():
    parameters = draw_parameters(4, 3).bfloat16().requires_grad_()
    log_prob = logistic_mixture_log_prob(parameters, torch.tensor([0, 3, 200, 255]))
    first, second = (
        torch.autograd.grad(log_prob.sum(), parameters, retain_graph=True)[0] for _ in range(2)
    )
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, second)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [2, 4])
def test_what_is_not_finite_shows_in_its_row_and_in_no_other(bad, place):
    """A log-scale of -inf is below the smallest, which is well defined."""
    parameters, byte = draw_parameters(8, 2), torch.tensor([0, 0, 9, 9, 100, 200, 255, 255])
    expected = logistic_mixture_log_prob(parameters, byte)
    parameters[::2, place] = bad
    value, gradient = value_and_gradient(logistic_mixture_log_prob, parameters, byte, 1.0)
    fine = torch.full((8,), place == 4 and bad == -math.inf)
    fine[1::2] = True
    assert torch.equal(value.isfinite(), fine)
    assert torch.equal(gradient.isfinite().all(1), fine)
    assert torch.equal(value[1::2], expected[1::2])


def test_a_component_switched_off_counts_for_nothing():
    both = draw_parameters(4, 2)
    both[:, 0] = -math.inf
    byte = torch.tensor([0, 3, 200, 255])
    value, gradient = value_and_gradient(logistic_mixture_log_prob, both, byte, 1.0)
    assert_near(value, logistic_mixture_log_prob(both[:, 1::2].contiguous(), byte), 1e-12)
    assert gradient.isfinite().all()


def sampler_probabilities(parameters, temperature=1.0):
    """Return what rounding to the nearest byte gives: a difference of the logistic's CDF.

    The released sampler's scale is elu(raw) + 1.0001, not the likelihood's exp(raw).
    """
    logits, means, raw = parameters.chunk(3)
    scale = temperature * (torch.where(raw > 0, raw + 1, raw.exp()) + 1e-4)
    edges = (torch.arange(1, 256, dtype=torch.float64) - 0.5) / 127.5 - 1
    cdf = torch.sigmoid((edges[:, None] - means) / scale)
    cdf = torch.cat([torch.zeros(1, len(means)), cdf, torch.ones(1, len(means))])
    return (cdf.diff(dim=0) * (logits / temperature).softmax(0)).sum(1)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_samples_follow_their_distribution(temperature):
    draws = 200_000
    parameters = torch.tensor([0.5, 0, 0.5, -0.9, 0.1, 0.3, -2, -3.5, 0.5], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(draws, 2, generator=generator)
    bytes_ = logistic_mixture_sample(parameters.expand(draws, -1), uniforms, temperature)
    assert bytes_.dtype == torch.long
    expected = sampler_probabilities(parameters, temperature) * draws
    counts = torch.bincount(bytes_, minlength=256)
    often = expected > 20
    chi_square = ((counts - expected) ** 2 / expected)[often].sum()
    freedom = int(often.sum())
    assert freedom > 100
    # Chi-square of n degrees has mean n and standard deviation sqrt(2 n); 4 of these are allowed.
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)
    assert abs(counts[~often].sum() - expected[~often].sum()) < 4 * math.sqrt(draws) / 10


def test_the_sampler_is_near_the_likelihood_for_scales_as_trained():
    """Below raw = 0 its scale is exp(raw) + 1e-4: a little wider, the more so the smaller it is."""
    for raw, allowed in ((-5.0, 0.02), (-3.0, 0.002), (-1.0, 0.0005)):
        parameters = torch.tensor([0.0, 0.1, raw], dtype=torch.float64)
        likelihood = all_probabilities(parameters[None])[0]
        distance = (likelihood - sampler_probabilities(parameters)).abs().sum() / 2
        assert distance < allowed


def test_the_first_uniform_picks_the_component_and_the_second_the_value():
    logits = torch.tensor([0.2, 0.3, 0.5]).log()
    parameters = torch.cat([logits, torch.tensor([-1.0, 0.0, 1.0]), torch.full((3,), -40.0)])
    firsts = torch.tensor([0.0, 0.19, 0.21, 0.49, 0.51, 0.9999999])
    uniforms = torch.stack([firsts, torch.full((6,), 0.5)], dim=-1)
    drawn = logistic_mixture_sample(parameters.expand(6, -1), uniforms)
    assert drawn.tolist() == [0, 0, 128, 128, 255, 255]
    seconds = torch.tensor([0.0, 0.3, 0.5, 0.7, 1 - 2**-24])
    uniforms = torch.stack([torch.full((5,), 0.4), seconds], dim=-1)
    wide = parameters.clone()
    wide[6:] = -2.0
    drawn = logistic_mixture_sample(wide.expand(5, -1), uniforms).tolist()
    assert drawn == sorted(drawn)
    assert drawn[0] == 0
    assert drawn[-1] == 255


@pytest.mark.parametrize(
    ("raw", "scale"), [(2.0, 3.0001), (0.0, 1.0001), (-1.0, 0.367979), (-9.0, 2.2341e-4)]
)
def test_the_scale_is_the_released_samplers(raw, scale):
    """elu(raw) + 1.0001, found by where a draw steps from one byte to the next."""
    quantile = torch.tensor([0.3, 0.9999], dtype=torch.float64)[int(raw < -5)]
    for side in (-0.02, 0.02):
        edge = 128.5 + side
        mean = edge / 127.5 - 1 - scale * float(quantile.logit())
        parameters = torch.tensor([[0.0, mean, raw]], dtype=torch.float64)
        drawn = logistic_mixture_sample(parameters, torch.stack([quantile, quantile])[None])
        assert int(drawn) == round(edge)


def test_a_broken_model_still_draws_bytes():
    for place in (0, 2, 4):
        parameters = draw_parameters(3, 2)
        parameters[1, place] = math.nan
        drawn = logistic_mixture_sample(parameters, torch.full((3, 2), 0.7))
        assert ((drawn >= 0) & (drawn <= 255))[::2].all()
        assert drawn.shape == (3,)


def test_a_low_temperature_takes_the_likeliest_component_at_its_mean():
    parameters = torch.tensor([0.0, 0.1, -0.5, 0.5, 0.0, 0.0]).expand(1000, -1)
    uniforms = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0))
    drawn = logistic_mixture_sample(parameters, uniforms, temperature=1e-4)
    assert drawn.eq(round(1.5 * 127.5)).all()


def test_what_does_not_fit_is_refused():
    parameters, byte, uniforms = torch.zeros(4, 6), torch.zeros(4).long(), torch.zeros(4, 2)
    log_prob = as_users_have_it(logistic_mixture_log_prob)
    sample = as_users_have_it(logistic_mixture_sample)
    message = "the last size of parameters must be divisible by 3, got 5"
    with pytest.raises(ValueError, match=message):
        log_prob(parameters[:, :5], byte)
    with pytest.raises(ValueError, match=message):
        sample(parameters[:, :5], uniforms)
    with pytest.raises(ValueError, match=r"byte must have shape \(4,\), got \(3,\)"):
        log_prob(parameters, byte[:3])
    with pytest.raises(ValueError, match=r"uniforms must have shape \(4, 2\), got \(4, 1\)"):
        sample(parameters, uniforms[:, :1])
    for temperature in (0.0, -1.0, math.nan, math.inf):
        message = f"temperature must be a finite number above 0, got {temperature}"
        with pytest.raises(ValueError, match=message):
            sample(parameters, uniforms, temperature)
