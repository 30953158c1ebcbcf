"""How far random features are from softmax attention on given queries and keys.

Three things are held against each other, for each kind of features and number M of them, over many
draws of the directions:

    kernel     phi(q_i) . phi(k_j) / sum_j exp(c q_i . k_j): unbiased (regularised kinds and, a
               little, Hadamard's excepted), and what the paper's theorems are about
    weights    the same divided by its own sum over j, as attention does
    output     weights @ v

each beside the softmax matrix P (or P v). Of each the error's mean square is split in the square of
the bias and the variance, and all are shares of the squared norm of what is approximated. Lemma 2
says what the kernel's is for IID directions:

    sum_ij P_ij^2 r_ij / sum_ij P_ij^2,    r = MSE / SM^2 of one pair: ops/estimator_theory.py

Axes: B, H batch and heads, T tokens, K width, M features, N draws.
Source: Choromanski et al. 2021, "Rethinking Attention with Performers", equation 8, section 4.2.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from subquad.bench.approximation_head import (
    Head,
    iid_share,
    kernel_estimate,
    normalized,
    softmax_heads,
    theorem_2_share,
)
from subquad.bench.approximation_inputs import checked_tokens
from subquad.bench.approximation_options import ApproximationOptions
from subquad.bench.timing import Progress, threads
from subquad.environment import environment
from subquad.files import atomic_write_json
from subquad.ops.random_features import Estimator, SoftmaxKernel
from subquad.ops.random_matrices import Rows

Json = dict[str, Any]
FORMAT = "subquad-approximation"


class Kind(NamedTuple):
    """One kind of features: an estimator and how its directions are drawn."""

    estimator: str
    directions: str

    @property
    def name(self) -> str:
        """Both words, as tables have them."""
        return f"{self.directions} {self.estimator}"

    @property
    def kernel(self) -> SoftmaxKernel:
        """What draws such features."""
        regularized = self.directions == "regularized"
        rows = Rows.ORTHOGONAL if regularized else Rows(self.directions)
        estimator = Estimator(self.estimator)
        return SoftmaxKernel(estimator=estimator, rows=rows, regularized=regularized)

    def num_directions(self, num_features: int) -> int:
        """Return m for M features."""
        return num_features if self.estimator == "positive" else num_features // 2


@dataclass(kw_only=True)
class Approximation:
    """What was found, filled while it is measured, so that Ctrl-C leaves what there is."""

    options: Json
    inputs: Json = field(default_factory=dict)
    rows: list[Json] = field(default_factory=list)
    left_out: list[Json] = field(default_factory=list)
    interrupted: bool = False

    def as_json(self) -> Json:
        """Return everything, with the environment's stamp, ready for JSON."""
        return {"format": FORMAT, **asdict(self), "environment": environment()}

    def write(self, path: Path) -> None:
        """Write the result file, atomically.

        Raises:
            OSError: if it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, self.as_json())


def approximation_report(
    q: Tensor,
    k: Tensor,
    v: Tensor | None = None,
    *,
    options: ApproximationOptions | None = None,
    into: Approximation | None = None,
    source: str = "tensors",
    progress: Progress | None = None,
) -> Approximation:
    """Hold random features against softmax on these queries and keys.

    Args:
        q: (T, K), (H, T, K) or (B, H, T, K), not yet scaled.
        k: as q.
        v: values, with their own width; without them there is nothing to say of the output.
        options: kinds, numbers of features, draws.
        into: what to fill, for a caller that wants what there is after a KeyboardInterrupt.
        source: where q and k come from, in words.
        progress: told of each draw.

    Raises:
        TypeError: if a tensor does not hold floating-point numbers.
        ValueError: if shapes do not fit or a number is not finite.
    """
    options = options or ApproximationOptions()
    tokens = checked_tokens(q, k, v)
    if options.is_causal and tokens.q.shape[2] != tokens.k.shape[2]:
        raise ValueError(
            "causal attention needs as many queries as keys, got "
            f"{tokens.q.shape[2]} and {tokens.k.shape[2]}"
        )
    found = into if into is not None else Approximation(options=asdict(options))
    progress = progress or Progress()
    with threads(options.threads), torch.no_grad():
        heads = list(softmax_heads(*tokens, options))
        found.inputs = _facts(tokens.q, tokens.k, tokens.v, heads, source)
        kinds = list(_kinds(options, tokens.q.shape[3], found))
        shares = {name: iid_share(heads, Estimator(name)) for name in options.estimators}
        progress.plan(len(kinds) * options.draws * sum(options.num_features))
        for num_features in options.num_features:
            for kind in kinds:
                row = _measure(kind, num_features, heads, options)
                row["kernel"] |= _theory(kind, num_features, heads, shares[kind.estimator])
                found.rows.append(row)
                progress.advance(options.draws * num_features, f"{kind.name}, {num_features}")
    return found


class _Sums:
    """Squared norms over heads: of the bias, the variance, each draw's error, and the target."""

    def __init__(self, draws: int) -> None:
        self.draws = draws
        self.bias = self.variance = self.norm = 0.0
        self.errors = torch.zeros(draws, dtype=torch.float64)

    def add(self, found: Tensor, exact: Tensor) -> None:
        """Count N draws (N, ...) of one head."""
        variance = float(found.var(0).sum())
        # The mean of N draws is off by chance too: by the variance over N.
        self.bias += float((found.mean(0) - exact).square().sum()) - variance / self.draws
        self.variance += variance
        self.errors += (found - exact).flatten(1).square().sum(1)
        self.norm += float(exact.square().sum())

    def summary(self) -> Json:
        """Return shares of the norm: bias and variance squared, errors of the draws as roots."""
        errors = (self.errors / self.norm).sqrt().tolist()
        return {
            "bias_squared": _finite(self.bias / self.norm),
            "variance": _finite(self.variance / self.norm),
            "error": _finite(statistics.median(errors)),
            "error_low": _finite(min(errors)),
            "error_high": _finite(max(errors)),
        }


def _measure(
    kind: Kind, num_features: int, heads: Sequence[Head], options: ApproximationOptions
) -> Json:
    directions, width = kind.num_directions(num_features), heads[0].x.shape[1]
    drawn = [
        kind.kernel.draw(
            width, directions, generator=torch.Generator().manual_seed(options.seed + draw),
            dtype=torch.float64,
        )
        for draw in range(options.draws)
    ]  # fmt: skip
    sums = {name: _Sums(options.draws) for name in ("kernel", "weights", "output")}
    for head in heads:
        kernel = torch.stack([kernel_estimate(head, features) for features in drawn])
        weights = normalized(kernel)
        sums["kernel"].add(kernel, head.p)
        sums["weights"].add(weights, head.p)
        if head.v is not None:
            sums["output"].add(weights @ head.v, head.p @ head.v)
    row: Json = {"kind": kind.name, **kind._asdict(), "num_features": num_features}
    row |= {"num_directions": directions}
    return row | {name: s.summary() for name, s in sums.items() if s.norm}


def _theory(kind: Kind, num_features: int, heads: Sequence[Head], iid: float) -> Json:
    directions = kind.num_directions(num_features)
    found = {"iid_variance": _finite(iid / directions)}
    if kind == Kind("positive", "orthogonal") and directions <= heads[0].x.shape[1]:
        found["theorem_2"] = _finite(theorem_2_share(heads, directions))
    return found


def _kinds(options: ApproximationOptions, width: int, found: Approximation) -> Iterator[Kind]:
    for directions in options.directions:
        if directions == "hadamard" and width & (width - 1):
            reason = f"needs a width that is a power of 2, not {width}"
            found.left_out.append({"directions": directions, "reason": reason})
            continue
        for estimator in options.estimators:
            yield Kind(estimator, directions)


def _facts(q: Tensor, k: Tensor, v: Tensor | None, heads: Sequence[Head], source: str) -> Json:
    """Return shapes, and the squared lengths on which all errors depend, after the scale."""
    x = torch.stack([head.x for head in heads]).square().sum(-1)
    y = torch.stack([head.y for head in heads]).square().sum(-1)
    return {
        "source": source,
        "q": list(q.shape),
        "k": list(k.shape),
        "v": None if v is None else list(v.shape),
        "queries": int(x.shape[1]),
        "mean_squared_query": _finite(float(x.mean())),
        "mean_squared_key": _finite(float(y.mean())),
        "largest_squared_length": _finite(float(torch.maximum(x.amax(), y.amax()))),
    }


def _finite(value: float) -> float | None:
    """Return the value, or None where float64 could not hold it: JSON has no infinity."""
    return value if math.isfinite(value) else None
