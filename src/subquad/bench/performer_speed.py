"""How fast FAVOR+ is beside softmax, beside the machine, and beside elu + 1 with as many features.

Bidirectional: whole ``performer_attention`` against SDPA, and its share of the rate of matrix
products. Causal: the same against SDPA; against causal linear attention with elu + 1 on queries and
keys of M features; and the recurrence alone, on given features, with the decay that a running
maximum needs and without.
Source: Choromanski et al. 2021, section 4.1 (what is compared); the reckoning is ours.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad.bench.check import check_mechanism
from subquad.bench.machine import Probes, Rates
from subquad.bench.mechanisms import Mechanism
from subquad.bench.options import PerformerOptions
from subquad.bench.results import Report, Row, spread
from subquad.bench.timing import Progress, interleave, threads
from subquad.ops.linear_attention import linear_attention, linear_attention_chunked
from subquad.ops.linear_state import linear_state
from subquad.ops.performer_attention import performer_attention, performer_attention_quadratic
from subquad.ops.random_features import SoftmaxKernel

KIND = "performer"
PASSES = ("forward", "forward+backward")
GEMM = "gemm"
FASTER_THAN = {"performer": "softmax", "performer, causal": "softmax, causal"}
TIMES_OF = {
    "performer, causal": "elu + 1 of as many features",
    "recurrence with decay": "recurrence",
}

Call = Callable[[], object]


def new_report(options: PerformerOptions) -> Report:
    """Return an empty report for these options."""
    return Report(kind=KIND, options=asdict(options))


def measure_performer(
    options: PerformerOptions, report: Report, *, progress: Progress | None = None
) -> None:
    """Fill ``report``; after a KeyboardInterrupt it holds what was measured until then.

    Raises:
        RuntimeError: if the operator does not do here what its definition says.
    """
    _check(options)
    progress = progress or Progress()
    progress.plan(sum(options.lengths) * len(PASSES))
    probes = Probes("cpu", torch.float32)
    with threads(options.threads):
        for seq_len in options.lengths:
            for which in PASSES:
                samples: dict[str, list[float]] = {}
                runs = {**_runs(options, seq_len, which), GEMM: probes.runs()[GEMM]}
                try:
                    interleave(
                        runs, samples, device="cpu", repetitions=options.repetitions,
                        seconds=options.seconds,
                    )  # fmt: skip
                finally:
                    _record(options, report, samples, seq_len, which, probes)
                progress.advance(seq_len, f"{which}, T = {seq_len}")


def _check(options: PerformerOptions) -> None:
    generator = torch.Generator().manual_seed(0)
    features = SoftmaxKernel().draw(options.head_dim, options.num_features, generator=generator)

    def attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        return performer_attention(q, k, v, features=features, is_causal=is_causal)

    def definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        return performer_attention_quadratic(q, k, v, features=features, is_causal=is_causal)

    for is_causal in (False, True):
        reason, _ = check_mechanism(
            Mechanism(attend=attend, definition=definition),
            is_causal=is_causal,
            device="cpu",
            dtype=torch.float32,
            head_dim=options.head_dim,
        )
        if reason is not None:
            raise RuntimeError(f"performer_attention {reason}, and was not timed")


def _runs(options: PerformerOptions, seq_len: int, which: str) -> dict[str, Call]:
    generator = torch.Generator().manual_seed(0)
    wants_gradient = which != PASSES[0]

    def draw(width: int) -> Tensor:
        shape = (1, options.heads, seq_len, width)
        return torch.randn(shape, generator=generator).requires_grad_(wants_gradient)

    q, k, v = (draw(options.head_dim) for _ in range(3))
    wide_q, wide_k = (draw(options.num_features) for _ in range(2))
    phi_q, phi_k = (x.detach().exp().requires_grad_(wants_gradient) for x in (wide_q, wide_k))
    weight = draw(options.head_dim).detach()
    features = SoftmaxKernel().draw(options.head_dim, options.num_features, generator=generator)
    # As a running maximum decays: at first often, then seldom.
    highest = phi_k.detach().log().amax(-1).cummax(-1).values
    decay = F.pad(highest[:, :, :-1] - highest[:, :, 1:], (1, 0))
    past = linear_state(1, options.heads, options.num_features, options.head_dim, v.detach())

    def recurrence(log_decay: Tensor | None) -> Tensor:
        return linear_attention_chunked(phi_q, phi_k, v, past, log_decay=log_decay)[0]

    def timed(attend: Callable[[], Tensor]) -> Call:
        if not wants_gradient:
            return attend
        inputs = (q, k, v, wide_q, wide_k, phi_q, phi_k)
        return lambda: torch.autograd.grad(attend(), inputs, weight, allow_unused=True)

    sdpa: Any = F.scaled_dot_product_attention
    return {
        "softmax": timed(lambda: sdpa(q, k, v)),
        "performer": timed(lambda: performer_attention(q, k, v, features=features)),
        "softmax, causal": timed(lambda: sdpa(q, k, v, is_causal=True)),
        "performer, causal": timed(
            lambda: performer_attention(q, k, v, features=features, is_causal=True)
        ),
        "elu + 1 of as many features": timed(
            lambda: linear_attention(wide_q, wide_k, v, is_causal=True)
        ),
        "recurrence": timed(lambda: recurrence(None)),
        "recurrence with decay": timed(lambda: recurrence(decay)),
    }


def _record(
    options: PerformerOptions,
    report: Report,
    samples: dict[str, list[float]],
    seq_len: int,
    which: str,
    probes: Probes,
) -> None:
    times = {name: spread(taken) for name, taken in samples.items()}
    for name, seconds in times.items():
        if name == GEMM:
            continue
        row = Row(what={"what": name, "pass": which, "seq_len": seq_len}, seconds=seconds)
        if (base := times.get(FASTER_THAN.get(name, ""))) is not None:
            row.more["faster_than_softmax"] = base.median / seconds.median
        if (base := times.get(TIMES_OF.get(name, ""))) is not None:
            row.more["times_of"] = seconds.median / base.median
        if name == "performer" and which == PASSES[0] and GEMM in times:
            rate = probes.rates(times[GEMM].median, 1.0)
            row.more["roofline_share"] = least_seconds(options, seq_len, rate) / seconds.median
        report.rows.append(row)


def least_seconds(options: PerformerOptions, seq_len: int, rates: Rates) -> float:
    """Return what the products take: q and k onto directions, keys into sums, queries out."""
    products = 4 * 2 * options.head_dim * options.num_features
    return products * options.heads * seq_len / rates.gemm
