"""The lambda layer: each token gets a linear map of its context, and applies it to its queries.

    content    lambda_c = sum_m softmax_m(k_m) v_m^T          one for all tokens, (K, V)
    position   lambda_n = sum_m E[n, m] v_m^T                 one for each token
    y_n^h      = (lambda_c + lambda_n)^T q_n^h                for each of the token's H queries

Keys are normalised over the context, each of their K channels by itself; queries and embeddings are
not. There is one set of keys and values for all queries, not one a head. With an intra-depth U
keys, values and embeddings have U slices, over which both lambdas are sums.

Axes: B batch, H queries of a token, U intra-depth, N tokens, M tokens of the context, K rows of a
lambda, V its columns. Source: Bello 2021, "LambdaNetworks: modeling long-range interactions without
attention", section 3.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subquad.ops.checks import check_key_mask
from subquad.ops.feature_maps import no_autocast
from subquad.ops.lambda_fft import Grid
from subquad.ops.lambda_position import Form, position_interactions


def lambda_layer(
    q: Float[Tensor, "B H N K"],
    k: Float[Tensor, "B U N K"],
    v: Float[Tensor, "B U N V"],
    table: Tensor | None,
    *,
    grid: Grid,
    key_mask: Bool[Tensor, "B N"] | None = None,
    form: Form = "auto",
) -> Float[Tensor, "B H N V"]:
    """Apply content and position lambdas of a context that is the tokens themselves.

    Args:
        q: queries (B, H, N, K).
        k: keys (B, U, N, K), normalised here.
        v: values (B, U, N, V).
        table: embeddings by offset (K, U, *R), see ``position_interactions``; None leaves position
            out.
        grid: the axes of the tokens, whose product is N.
        key_mask: (B, N) bool, True = keep. What stands in hidden tokens changes no output and no
            gradient, and the output there is 0.
        form: of the position lambdas.

    Returns:
        (B, H, N, V).

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device, mask or the form does not fit.
    """
    check_context(k, v)
    _check_queries(q, k, grid)
    check_key_mask(key_mask, k, len(k), k.shape[2])
    if key_mask is not None:
        hidden = ~key_mask[:, None, :, None]
        q, k, v = (x.masked_fill(hidden, 0) for x in (q, k, v))
    y = apply_content(q, content_lambda(k, v, key_mask=key_mask)).to(v.dtype)
    if table is not None:
        y = y + position_interactions(q, v, table, grid=grid, form=form)
    return y if key_mask is None else y.masked_fill(hidden, 0)


def content_lambda(
    k: Float[Tensor, "B U M K"],
    v: Float[Tensor, "B U M V"],
    *,
    key_mask: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B K V"]:
    """Summarise a context in one linear map: a mean of its values for each channel of the keys.

    It may be kept and applied to any queries. 0 where the context has no valid token. In float32 or
    wider.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device or mask does not fit.
    """
    check_context(k, v)
    check_key_mask(key_mask, k, len(k), k.shape[2])
    dtype = torch.promote_types(torch.promote_types(k.dtype, v.dtype), torch.float32)
    with no_autocast(k):
        k, v = k.to(dtype), v.to(dtype)
        if key_mask is not None:
            v = v.masked_fill(~key_mask[:, None, :, None], 0)
        return torch.einsum("bumk,bumv->bkv", normalised_keys(k, key_mask), v)


def normalised_keys(
    k: Float[Tensor, "B U M K"], key_mask: Bool[Tensor, "B M"] | None = None
) -> Float[Tensor, "B U M K"]:
    """Return the softmax over the context of each channel of the keys; 0 for hidden tokens.

    Values and gradients are finite where all tokens are hidden, too.
    """
    if key_mask is None:
        return k.softmax(2)
    hidden = ~key_mask[:, None, :, None]
    return k.masked_fill(hidden, torch.finfo(k.dtype).min).softmax(2).masked_fill(hidden, 0)


def apply_content(
    q: Float[Tensor, "B H N K"], content: Float[Tensor, "B K V"]
) -> Float[Tensor, "B H N V"]:
    """Apply one lambda an example to the queries, in its dtype.

    Raises:
        ValueError: if the queries are of another number of examples, or of another width.
    """
    if q.dim() != 4 or (len(q), q.shape[3]) != content.shape[:2]:
        raise ValueError(
            f"q must have the shape (B, H, N, K) with the B, K = {tuple(content.shape[:2])} of the "
            f"lambdas, got {tuple(q.shape)}"
        )
    with no_autocast(q):
        return q.to(content.dtype) @ content.unsqueeze(1)


def check_context(k: Tensor, v: Tensor) -> None:
    """Require keys and values of one context.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape or device does not fit.
    """
    for name, x in (("k", k), ("v", v)):
        if not x.is_floating_point():
            raise TypeError(f"{name} must be of floating point, got {x.dtype}")
    if k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            "k and v must have the shapes (B, U, M, K) and (B, U, M, V), "
            f"got {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if v.device != k.device:
        raise ValueError(f"v must be on the device of k, {k.device}, got {v.device}")


def _check_queries(q: Tensor, k: Tensor, grid: Grid) -> None:
    """Require the queries of the keys' own tokens, which lie on the grid; else they would spread.

    Raises:
        TypeError: if the dtype of q does not fit.
        ValueError: if a shape or device does not fit.
    """
    if not q.is_floating_point():
        raise TypeError(f"q must be of floating point, got {q.dtype}")
    tokens = (len(k), math.prod(grid))
    own = (len(q), *q.shape[2:]) if q.dim() == 4 else ()
    if own != (*tokens, k.shape[3]) or k.shape[2] != tokens[1]:
        raise ValueError(
            "q and k must have the shapes (B, H, N, K) and (B, U, N, K) with the N = "
            f"{tokens[1]} tokens of the grid, got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if q.device != k.device:
        raise ValueError(f"q must be on the device of k, {k.device}, got {q.device}")
