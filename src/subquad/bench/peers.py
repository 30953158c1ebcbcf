"""The same attention by other packages, where they can be imported: ``subquad bench peers``.

Each output is held against what the package says it computes, in float64, before any time is
printed; a package that is absent, fails or is off its definition is one line with the reason.
"""

import contextlib
import io
import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad.bench.attention import measure_attention, new_report
from subquad.bench.mechanisms import SOFTMAX, Mechanism, linear_definition, mechanisms, select
from subquad.bench.options import AttentionOptions
from subquad.bench.results import Report
from subquad.bench.timing import Progress
from subquad.ops.feature_maps import elu_plus_one
from subquad.ops.linear_attention import linear_attention_quadratic

Build = Callable[[int, bool], Mechanism]

BLOCK = 64  # of the packages that work in blocks; lengths must be multiples of twice as many
PEER_LENGTHS = tuple(2**n for n in range(9, 15))
ABSENT = "is not installed"
OURS = (SOFTMAX, "linear", "lsh-1")  # what the peers' operators are beside


def measure_peers(
    options: AttentionOptions, report: Report, *, progress: Progress | None = None
) -> None:
    """Fill ``report`` with our operators and the peers', all timed in turn.

    Raises:
        ValueError: if a mechanism is unknown.
    """
    ours = mechanisms()
    table = ours if options.mechanisms else {name: ours[name] for name in select(OURS, ours)}
    for name, (package, build) in PEERS.items():
        if options.mechanisms and name not in options.mechanisms:
            continue
        try:
            if find_spec(package) is None:
                raise ModuleNotFoundError(ABSENT, name=package)
            table[name] = build(options.head_dim, options.is_causal)
        except ModuleNotFoundError as error:
            absent = error.name == package
            report.leave_out(ABSENT if absent else f"needs {error.name}", mechanism=name)
        except Exception as error:  # a foreign package may raise anything when imported
            report.leave_out(f"cannot be used: {_one_line(error)}", mechanism=name)
    measure_attention(options, report, progress=progress, table=table)


def peer_report(options: AttentionOptions) -> Report:
    """Return an empty report for these options."""
    return new_report(options, kind="peers")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _performer(head_dim: int, is_causal: bool) -> Mechanism:
    """Return performer_pytorch's FAVOR+; it claims sums over its positive random features."""
    from performer_pytorch import FastAttention  # type: ignore[import-not-found,unused-ignore]

    with contextlib.redirect_stdout(io.StringIO()):  # it prints which kernel it did not find
        module: Any = FastAttention(head_dim, causal=is_causal).eval()

    def attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        y: Tensor = module.to(q.device)(q, k, v)
        return y

    def features(x: Tensor, axes: tuple[int, ...]) -> Tensor:
        scaled = x * head_dim**-0.25
        logits = scaled @ module.projection_matrix.to(x).mT
        norm = (scaled**2).sum(-1, keepdim=True) / 2
        # The package's stabiliser and its eps, which belong to its features.
        highest = logits.amax(axes, keepdim=True).detach()
        return torch.exp(logits - norm - highest) + 1e-4

    def definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        return linear_attention_quadratic(
            features(q, (-1,)), features(k, (-1, -2)), v, is_causal=is_causal
        )

    # The causal form adds an eps to its denominators, a few per cent of those of the first tokens.
    return Mechanism(attend=attend, definition=definition, tolerance=0.1 if is_causal else 1e-3)


def _linear_transformer(head_dim: int, is_causal: bool) -> Mechanism:
    """Return linear_attention_transformer's: queries and keys go through a softmax each.

    Its causal form (default block) lets a query see the blocks before its own, not its own.
    """
    from linear_attention_transformer import (  # type: ignore[import-not-found,unused-ignore]
        linear_attention_transformer as package,
    )

    def attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        y: Tensor = (
            package.causal_linear_attn(q, k, v, bucket_size=BLOCK)
            if is_causal
            else package.linear_attn(q, k, v)
        )
        return y

    def definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        phi_q = q.softmax(-1)
        if not is_causal:
            whole: Tensor = phi_q * head_dim**-0.5 @ k.softmax(-2).mT @ v
            return whole
        block = torch.arange(q.shape[2], device=q.device) // BLOCK
        weights = (phi_q @ k.exp().mT) * (block[:, None] > block[None, :])
        y: Tensor = weights @ v / weights.sum(-1, keepdim=True).clamp(min=1e-30)
        return y

    return Mechanism(attend=attend, definition=definition, check_len=4 * BLOCK, tolerance=1e-3)


def _reformer(head_dim: int, is_causal: bool) -> Mechanism:
    """Return reformer_pytorch's LSH attention, one round of hashing: queries serve as keys.

    With two buckets every token sees all, so there it must equal full attention with shared q, k.
    """
    from reformer_pytorch import LSHAttention  # type: ignore[import-not-found,unused-ignore]

    def attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        size = min(BLOCK, q.shape[2] // 2)  # two buckets at the length of the check
        module = LSHAttention(bucket_size=size, n_hashes=1, causal=is_causal).eval()
        y: Tensor = module(q.flatten(0, 1), v.flatten(0, 1))[0]
        return y.view_as(v)

    def definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        scores = q @ F.normalize(q, dim=-1).mT / math.sqrt(head_dim)
        own = torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
        scores = scores.masked_fill(own, -5e4)  # itself only if there is no other
        if is_causal:
            scores = scores.masked_fill(~torch.ones_like(own).tril(), -torch.inf)
        return scores.softmax(-1) @ v

    return Mechanism(attend=attend, definition=definition, check_len=2 * BLOCK, tolerance=1e-3)


def _fast_transformers(head_dim: int, is_causal: bool) -> Mechanism:
    """Return the linear transformer authors' causal kernel, normalised as their layer does."""
    from fast_transformers.causal_product import (  # type: ignore[import-not-found,unused-ignore]
        causal_dot_product,
    )

    def attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        phi_q, phi_k = F.elu(q) + 1, F.elu(k) + 1
        denominator = (phi_q * phi_k.cumsum(2)).sum(-1, keepdim=True) + 1e-6
        numerator: Tensor = causal_dot_product(
            phi_q.contiguous(), phi_k.contiguous(), v.contiguous()
        )
        y: Tensor = numerator / denominator
        return y

    return Mechanism(
        attend=attend, definition=linear_definition, directions=("causal",), tolerance=1e-3
    )


def _fla(head_dim: int, is_causal: bool) -> Mechanism:
    """Return flash-linear-attention's chunked kernel; its layout is (B, T, H, K)."""
    from fla.ops.linear_attn import (  # type: ignore[import-not-found,unused-ignore]
        chunk_linear_attn,
    )

    def attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        phi_q, phi_k, values = (
            x.transpose(1, 2).contiguous() for x in (elu_plus_one(q), elu_plus_one(k), v)
        )
        y: Tensor = chunk_linear_attn(phi_q, phi_k, values, scale=1.0, normalize=True)[0]
        return y.transpose(1, 2)

    return Mechanism(
        attend=attend, definition=linear_definition, directions=("causal",), device="cuda",
        check_len=2 * BLOCK, tolerance=2e-2,
    )  # fmt: skip


# Name of the row, package to import, and what makes its operator.
PEERS: dict[str, tuple[str, Build]] = {
    "performer-pytorch": ("performer_pytorch", _performer),
    "linear-attention-transformer": ("linear_attention_transformer", _linear_transformer),
    "reformer-pytorch": ("reformer_pytorch", _reformer),
    "fast-transformers": ("fast_transformers", _fast_transformers),
    "flash-linear-attention": ("fla", _fla),
}
