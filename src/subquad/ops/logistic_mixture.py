"""Bytes as draws of a mixture of discretised logistics.

Parameters (..., 3M): M mixture logits, M means, M log-scales, of a distribution over the 256 bytes
mapped to [-1, 1] by b / 255 * 2 - 1. Each byte takes the mass within 1/255 of it; the first and
last byte take all the mass beyond. Where a component's mass is below 1e-5 its density at the byte
times the bin width stands for it. That is off by less than 1e-5 a byte, so the 256 probabilities
sum to 1 within 0.0026, however many components there are (within 2e-5 in all that was measured).
Source: Salimans et al. 2017 (PixelCNN++); Katharopoulos et al. 2020, section 4.2, as released.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.checks import check_divisible, check_positive_number, check_shape
from subquad.ops.feature_maps import widen

MIN_LOG_SCALE = -7.0
SMALLEST_EXACT_MASS = 1e-5


def logistic_mixture_log_prob(
    parameters: Float[Tensor, "*N P"], byte: Int[Tensor, "*N"]
) -> Float[Tensor, "*N"]:
    """Return the log-probability of each byte (0 to 255) in nats, in float32 or wider.

    Raises:
        ValueError: if a shape does not fit.
    """
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
    logits, means, raw_scales = widen(parameters).chunk(3, dim=-1)
    below = (logits / temperature).softmax(-1).cumsum(-1)
    component = (below < uniforms[..., :1] * below[..., -1:]).sum(-1, keepdim=True)
    mean = means.gather(-1, component).squeeze(-1)
    scale = F.elu(raw_scales.gather(-1, component).squeeze(-1)) + 1.0001
    noise = uniforms[..., 1].to(mean.dtype).clamp(1e-7, 1 - 1e-7).logit()
    value = mean + temperature * scale * noise
    return ((value + 1) * 127.5).round().clamp(0, 255).long()
