"""How far LSH attention is from the exact attention it stands for, against rounds of hashing.

Two kinds of queries, which are the keys' directions too. Clustered ones point near one of 16
directions, so that most of a token's weight lies on a few that hash alike: what the method is made
for. Normal ones point anywhere: nearly all tokens have some weight, and no hash can find them all.

The error is the norm of the difference of the outputs over the norm of the exact ones. Combined by
"logsumexp" it goes to 0 once every pair has met; by "mean" it need not, since each round divides by
the sum of its own few weights.
Source: Kitaev et al. 2020, "Reformer", section 2 (exact shared-QK attention, rounds of hashing).
"""

import statistics
from dataclasses import asdict
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad.bench.check import relative_error
from subquad.bench.lsh_options import QUERIES, LshOptions, Queries
from subquad.bench.results import Report, Row, spread
from subquad.bench.timing import Progress, seconds_of, threads
from subquad.ops.lsh_attention import COMBINES, Combine, lsh_attention
from subquad.ops.lsh_definition import shared_qk_attention_quadratic

KIND = "lsh-rounds"
CLUSTERS = 16
SPREAD = 0.5  # of a cluster: length of the noise beside the direction's 1
SHARPNESS = 5.0  # score of two queries of like direction


def new_report(options: LshOptions) -> Report:
    """Return an empty report for these options."""
    return Report(kind=KIND, options=asdict(options))


def measure_lsh_rounds(
    options: LshOptions, report: Report, *, progress: Progress | None = None
) -> None:
    """Fill ``report`` with a row for each kind of queries, way to combine and number of rounds.

    After a KeyboardInterrupt it holds what was measured until then. A row's time is that of a
    forward pass, its ``more`` the median and the extremes of the error over the draws.
    """
    progress = progress or Progress()
    progress.plan(len(QUERIES) * len(COMBINES) * options.draws * sum(options.rounds))
    with threads(options.threads), torch.no_grad():
        for queries in QUERIES:
            qk, v = draw_tokens(queries, options)
            exact = shared_qk_attention_quadratic(
                qk.double(), v.double(), is_causal=options.is_causal
            )
            for rounds in options.rounds:
                for combine in get_args(Combine):
                    _measure(options, report, progress, queries, (qk, v, exact), rounds, combine)


def draw_tokens(queries: Queries, options: LshOptions) -> tuple[Tensor, Tensor]:
    """Return queries and values (1, H, T, K) in float32, the same for the same options."""
    generator = torch.Generator().manual_seed(options.seed)
    shape = (1, options.heads, options.seq_len, options.head_dim)
    noise, v = (torch.randn(shape, generator=generator) for _ in range(2))
    directions = F.normalize(noise, dim=-1)
    if queries == "clustered":
        centres = F.normalize(torch.randn(CLUSTERS, options.head_dim, generator=generator), dim=-1)
        which = torch.randint(CLUSTERS, shape[:3], generator=generator)
        directions = F.normalize(centres[which] + SPREAD * directions, dim=-1)
    qk = SHARPNESS * options.head_dim**0.5 * directions  # the scores are divided by sqrt(K)
    return qk.to(options.device), v.to(options.device)


def _measure(
    options: LshOptions,
    report: Report,
    progress: Progress,
    queries: Queries,
    tokens: tuple[Tensor, Tensor, Tensor],
    rounds: int,
    combine: Combine,
) -> None:
    qk, v, exact = tokens
    errors, times = [], []
    for draw in range(options.draws):
        generator = torch.Generator().manual_seed(options.seed + 1 + draw)
        shape = (rounds, options.head_dim, options.num_buckets // 2)
        rotations = torch.randn(shape, generator=generator).to(options.device)

        def attend(rotations: Tensor = rotations) -> Tensor:
            return lsh_attention(
                qk, v, rotations, chunk_size=options.chunk_size, combine=combine,
                is_causal=options.is_causal,
            )  # fmt: skip

        errors.append(relative_error(attend(), exact))
        times.append(seconds_of(attend, options.device))
        progress.advance(rounds, f"{queries} queries, {combine}, {rounds} rounds")
    report.rows.append(
        Row(
            what={"queries": queries, "combine": combine, "rounds": rounds},
            seconds=spread(times),
            more={
                "error": statistics.median(errors), "error_low": min(errors),
                "error_high": max(errors),
            },
        )
    )  # fmt: skip
