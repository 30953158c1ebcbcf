"""Bytes as draws of a mixture of discretised logistics.

Parameters (..., 3M): M mixture logits, M means, M log-scales, of a distribution over the 256 bytes
mapped to [-1, 1] by b / 255 * 2 - 1. Each byte takes the mass within 1/255 of it; the first and
last byte take all the mass beyond. Where a component's mass is below 1e-5 its density at the byte
times the bin width stands for it. That is off by less than 1e-5 a byte, so the 256 probabilities
sum to 1 within 0.0026, however many components there are (within 2e-5 in all that was measured).
Source: Salimans et al. 2017 (PixelCNN++); Katharopoulos et al. 2020, section 4.2, as released.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.checks import check_divisible, check_positive_number, check_shape
from subquad.ops.feature_maps import widen
from subquad.ops.once_differentiable import once_differentiable

MIN_LOG_SCALE = -7.0
SMALLEST_EXACT_MASS = 1e-5
# Beyond it exp and sigmoid are 0 or 1 to float64's last digit; exp of less gives numbers so small
# that a CPU handles each of them in slow motion.
FAR = 80.0


def logistic_mixture_log_prob(
    parameters: Float[Tensor, "*N P"], byte: Int[Tensor, "*N"]
) -> Float[Tensor, "*N"]:
    """Return the log-probability of each byte (0 to 255) in nats, in float32 or wider.

    The gradient is in closed form; there is no second one. Where a mean or a log-scale is infinite
    or NaN, the result is not finite. A compiler gets the definition, which it fuses by itself.

    Raises:
        ValueError: if a shape does not fit.
    """
    if torch.compiler.is_compiling():
        return logistic_mixture_log_prob_definition(parameters, byte)
    check_divisible("the last size of parameters", parameters.shape[-1], 3)
    check_shape("byte", byte, parameters.shape[:-1])
    args = widen(parameters), byte, torch.is_grad_enabled()
    log_prob: Tensor = _LogProb.apply(*args)  # type: ignore[no-untyped-call]
    return log_prob


def logistic_mixture_log_prob_definition(
    parameters: Float[Tensor, "*N P"], byte: Int[Tensor, "*N"]
) -> Float[Tensor, "*N"]:
    """Compute the same as it is written down, for tests and for compilers."""
    check_divisible("the last size of parameters", parameters.shape[-1], 3)
    check_shape("byte", byte, parameters.shape[:-1])
    logits, means, raw_scales = widen(parameters).chunk(3, dim=-1)
    log_scales = raw_scales.clamp(min=MIN_LOG_SCALE)
    inverse = (-log_scales).exp()
    value = byte.unsqueeze(-1).to(means.dtype) / 255 * 2 - 1
    centre = inverse * (value - means)
    half = inverse / 255
    upper, lower = centre + half, centre - half
    mass = upper.sigmoid() - lower.sigmoid()
    density = centre - log_scales - 2 * F.softplus(centre) - math.log(127.5)
    inside = torch.where(mass > SMALLEST_EXACT_MASS, mass.clamp(min=1e-12).log(), density)
    black, white = (byte == 0).unsqueeze(-1), (byte == 255).unsqueeze(-1)
    log_mass = torch.where(black, F.logsigmoid(upper), inside)
    log_mass = torch.where(white, -F.softplus(lower), log_mass)
    return (log_mass + logits.log_softmax(-1)).logsumexp(-1)


class _Bins(NamedTuple):
    """What value and gradient share; c and h are centre and half width over the scale."""

    inverse: Float[Tensor, "M N"]  # 1 / scale
    centre: Float[Tensor, "M N"]  # c, of the byte's bin, from the mean
    half: Float[Tensor, "M N"]  # h
    upper: Float[Tensor, "M N"]  # the logistic's distribution function at the bin's upper end
    lower: Float[Tensor, "M N"]  # and at its lower end
    exact: Float[Tensor, "M N"]  # 1 where the mass counts, 0 where the density stands for it
    edge: Float[Tensor, " N"]  # 1 for the first and last byte
    log_mass: Float[Tensor, "M N"]


class _LogProb(torch.autograd.Function):
    """The log-probability, with its gradient computed along with it in one go.

    Components come first here, (M, N), and rows last, so that each pass runs along memory. Choices
    are made by ``_pick``, not ``torch.where``, which on a CPU is far slower than arithmetic.
    """

    @staticmethod
    def forward(
        ctx: Any, parameters: Float[Tensor, "*N P"], byte: Int[Tensor, "*N"], with_gradient: bool
    ) -> Float[Tensor, "*N"]:
        rows = parameters.reshape(-1, parameters.shape[-1]).t().contiguous()
        logits, means, raw_scales = rows.chunk(3)
        bins = _bins(means, raw_scales, byte.reshape(-1))
        posterior, likelihood = _softmax(bins.log_mass + logits)
        prior, evidence = _softmax(logits)
        if with_gradient:
            gradient = _gradient(bins, raw_scales, posterior, prior)
            ctx.save_for_backward(gradient)
            ctx.shape = parameters.shape
        return likelihood.sub_(evidence).view(byte.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "*N"]) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad.reshape(-1)).t().reshape(ctx.shape), None, None


def _bins(
    means: Float[Tensor, "M N"], raw_scales: Float[Tensor, "M N"], byte: Int[Tensor, " N"]
) -> _Bins:
    """Compute each component's log-mass in each byte's bin."""
    black, white = ((byte == value).to(means.dtype) for value in (0, 255))
    edge, side = black + white, 1 - 2 * black
    log_scales = raw_scales.clamp(min=MIN_LOG_SCALE)
    inverse = log_scales.neg().exp_()
    centre = (byte.to(means.dtype).div_(255).mul_(2).sub_(1) - means).mul_(inverse)
    half = inverse / 255
    # The first bin's lower end and the last one's upper end lie beyond all.
    upper = (centre + half).add_(white * 1e30).clamp_(-FAR, FAR).sigmoid_()
    lower = (centre - half).sub_(black * 1e30).clamp_(-FAR, FAR).sigmoid_()
    mass = upper - lower
    exact = (mass - SMALLEST_EXACT_MASS).sign_().relu_()
    # An edge's mass is sigmoid(-z) with z = -c - h or c - h; softplus(z) gives its logarithm, and
    # with z = c the logarithm of the density in the middle.
    z = (centre * side).sub_(half * edge)
    softplus = z.abs().neg_().clamp_(min=-FAR).exp_().add_(1).log_().add_(z.relu())
    density = (z - log_scales).sub_(softplus, alpha=2).sub_(math.log(127.5))
    log_mass = _pick(exact, mass.clamp_(min=1e-12).log_(), density)
    log_mass = _pick(edge, softplus.neg_(), log_mass)
    return _Bins(inverse, centre, half, upper, lower, exact, edge, log_mass)


def _gradient(
    bins: _Bins,
    raw_scales: Float[Tensor, "M N"],
    posterior: Float[Tensor, "M N"],
    prior: Float[Tensor, "M N"],
) -> Float[Tensor, "P N"]:
    """Return the gradient to logits, means and raw scales, one below the other.

    With F the logistic's distribution function, the mass F(c + h) - F(c - h) equals
    sinh(h) / (cosh(c) + cosh(h)), so its logarithm has the derivatives
    1 - F(c + h) - F(c - h) by c and coth(h) - mass by h. An edge is a bin with one end at infinity:
    there coth(h) is 1. The density's are -tanh(c / 2) by c, and 1 / h by h (the width of the bin).
    """
    exact = torch.maximum(bins.exact, bins.edge)
    mass = bins.upper - bins.lower
    by_centre = _pick(exact, (1 - bins.upper).sub_(bins.lower), (bins.centre / -2).tanh_())
    # h coth(h), without 0 / 0 where the scale is beyond all measure.
    half = bins.half.clamp(min=1e-30)
    half_coth = _pick(bins.edge, half, half / half.tanh())
    by_half = _pick(exact, half_coth.sub_(mass.mul_(half)), torch.ones_like(half))
    # c and h are both in proportion to exp(-log-scale); below the smallest scale nothing moves.
    by_scale = by_half.addcmul_(by_centre, bins.centre).mul_(posterior).neg_()
    by_scale.mul_((raw_scales - MIN_LOG_SCALE).sign_().add_(1).clamp_(max=1))
    by_mean = by_centre.mul_(bins.inverse).mul_(posterior).neg_()
    return torch.cat([posterior - prior, by_mean, by_scale])


def _softmax(x: Float[Tensor, "M N"]) -> tuple[Float[Tensor, "M N"], Float[Tensor, " N"]]:
    """Return softmax and logsumexp over the first axis."""
    top = x.amax(0)
    weights = (x - top).clamp_(min=-FAR).exp_()
    total = weights.sum(0)
    return weights.div_(total), total.log_().add_(top)


def _pick(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return ``one`` where ``mask`` is 1 and ``other`` where it is 0; both must be finite."""
    return torch.lerp(other, one, mask.expand_as(one))


def logistic_mixture_sample(
    parameters: Float[Tensor, "*N P"], uniforms: Float[Tensor, "*N 2"], temperature: float = 1.0
) -> Int[Tensor, "*N"]:
    """Draw one byte for each row, turning two uniforms in [0, 1) into a component and a value.

    The scale is elu(raw) + 1.0001 as in the released sampler: exp(raw) + 1e-4 below 0.
    ``temperature`` divides the mixture logits and multiplies the scales.

    Raises:
        ValueError: if ``temperature`` is not a finite number above 0, or a shape does not fit.
    """
    check_divisible("the last size of parameters", parameters.shape[-1], 3)
    check_shape("uniforms", uniforms, (*parameters.shape[:-1], 2))
    check_positive_number("temperature", temperature)
    by_kind = widen(parameters).reshape(*parameters.shape[:-1], 3, -1)
    logits = by_kind.select(-2, 0)
    below = (logits if temperature == 1 else logits / temperature).softmax(-1).cumsum(-1)
    chosen = torch.searchsorted(below, uniforms[..., :1].to(below.dtype) * below[..., -1:])
    chosen.clamp_(max=below.shape[-1] - 1)  # NaN is found nowhere
    mean, raw_scale = _component(by_kind, chosen)
    noise = uniforms[..., 1].to(mean.dtype).logit(eps=1e-7)
    value = torch.addcmul(mean, F.elu(raw_scale).add_(1.0001), noise, value=temperature)
    return value.add_(1).mul_(127.5).round_().clamp_(0, 255).long()


def _component(
    by_kind: Float[Tensor, "*N 3 M"], chosen: Int[Tensor, "*N 1"]
) -> tuple[Float[Tensor, "*N"], Float[Tensor, "*N"]]:
    """Return mean and raw scale of each row's chosen component."""
    places = chosen.unsqueeze(-2).expand(*by_kind.shape[:-2], 2, 1)
    mean, raw_scale = by_kind.narrow(-2, 1, 2).gather(-1, places).squeeze(-1).unbind(-1)
    return mean, raw_scale
