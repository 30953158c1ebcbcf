"""The measurements of performer-approximation, its tables and its figures."""

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from subquad.bench.approximation import Kind
from subquad.bench.approximation_inputs import random_tokens
from subquad.bench.approximation_options import ESTIMATORS, RandomInput
from subquad.experiments.performer_approximation import PerformerApproximationOptions
from subquad.experiments.performer_theory import (
    LARGEST,
    check_equation_8,
    check_theorem_1,
    check_theorem_2,
)
from subquad.experiments.rows import write_figure
from subquad.experiments.spec import Json, Say
from subquad.layers import PerformerAttention
from subquad.layers.registry import MixerFactory
from subquad.models import TransformerEncoder
from subquad.ops.performer_attention import performer_attention
from subquad.ops.softmax_attention import softmax_attention
from subquad.plots.performer import depth_figure, output_error_figure

KINDS = [Kind(e, d) for d in ("iid", "orthogonal") for e in ESTIMATORS]
DEPTH_WIDTH, DEPTH_HEADS, DEPTH_FEATURES = 128, 8, (32, 128, 512)
WITHIN = 3.0  # standard errors
ROUNDING = 1e-12  # what is below this in a table is 0 but for rounding


def run_approximation(options: PerformerApproximationOptions, folder: Path, say: Say) -> Json:
    """Measure everything; return tables, figures and the numbers behind them.

    Raises:
        OSError: if the folder cannot be written.
    """
    with torch.no_grad():
        say(f"Figure 4: {options.repetitions} repetitions at L = {options.seq_len:,}")
        errors = [row for r in range(options.repetitions) for row in output_errors(options, r)]
        say("equation 8, Theorems 1 and 2")
        theory = {
            "equation_8": list(check_equation_8(options.draws, options.seed)),
            "theorem_1": list(check_theorem_1(options.draws, options.seed)),
            "theorem_2": list(check_theorem_2(options.draws, options.seed)),
        }
        say(f"Figure 14: {options.num_layers} layers")
        depth = [row for d in range(options.depth_draws) for row in depth_errors(options, d)]
    figure_4, figure_14 = summaries(errors), depth_summaries(depth)
    files = {
        "figures/figure-4.png": "Figure 4: error of the attention's output against features",
        "figures/figure-14.png": "Figure 14: error of a Performer copy, layer by layer",
    }
    for file, figure in zip(
        files, (output_error_figure(figure_4), depth_figure(figure_14)), strict=True
    ):
        write_figure(folder, file, figure)
    return {
        "device": "cpu",
        "figure_4": figure_4,
        **theory,
        "figure_14": figure_14,
        "tables": [
            _figure_4_table(figure_4, options), _equation_8_table(theory["equation_8"]),
            _theorem_1_table(theory["theorem_1"]), _theorem_2_table(theory["theorem_2"]),
            _figure_14_table(figure_14, options),
        ],
        "figures": files,
        "notes": ["All in float64. A deviation is in standard errors of what was measured."],
    }  # fmt: skip


def estimate_approximation(options: PerformerApproximationOptions) -> Json:
    """Time one repetition of Figure 4 and take it times their number; the rest is about as long."""
    start = time.perf_counter()
    with torch.no_grad():
        list(output_errors(options, 0))
    return {"minutes": 2 * options.repetitions * (time.perf_counter() - start) / 60}


def output_errors(options: PerformerApproximationOptions, repetition: int) -> Iterator[Json]:
    """Yield the mean squared error of the output for each kind and number, for one input."""
    seed = options.seed + repetition
    size = RandomInput(
        seq_len=options.seq_len, heads=1, head_dim=options.head_dim, norm=options.norm, seed=seed
    )
    q, k, v = random_tokens(size)
    assert v is not None
    exact = softmax_attention(q, k, v)
    for count in options.counts:
        for kind in KINDS:
            features = kind.kernel.draw(
                options.head_dim, kind.num_directions(count),
                generator=torch.Generator().manual_seed(seed), dtype=torch.float64,
            )  # fmt: skip
            y = performer_attention(q, k, v, features=features)
            error = float((y - exact).square().mean())
            yield {"kind": kind.name, **kind._asdict(), "num_features": count, "mse": error}


def depth_errors(options: PerformerApproximationOptions, draw: int) -> Iterator[Json]:
    """Yield, layer by layer, how far a Performer copy of a random Transformer is from it."""
    torch.manual_seed(options.seed + draw)
    exact = _encoder(options, "softmax")
    x = torch.randn(1, options.depth_seq_len, DEPTH_WIDTH, dtype=torch.float64)
    expected = block_outputs(exact, x)
    for count in DEPTH_FEATURES:

        def performer(
            d_model: int, num_heads: int, *, is_causal: bool, count: int = count
        ) -> PerformerAttention:
            return PerformerAttention(d_model, num_heads, is_causal=is_causal, num_features=count)

        copy = _encoder(options, performer)
        missing, unexpected = copy.load_state_dict(exact.state_dict(), strict=False)
        assert not unexpected, unexpected
        assert all(".features." in name for name in missing), missing
        for layer, (found, y) in enumerate(zip(block_outputs(copy, x), expected, strict=True)):
            error = float((found - y).norm() / y.norm())
            yield {"num_features": count, "layer": layer + 1, "error": error}


def block_outputs(model: TransformerEncoder, x: Tensor) -> list[Tensor]:
    """Return what each block of the encoder gives."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        found.append(output)

    handles = [block.register_forward_hook(keep) for block in model.stack.blocks]
    model(x)
    for handle in handles:
        handle.remove()
    return found


def summaries(rows: Sequence[Json]) -> list[Json]:
    """Return mean, extremes and median of the squared errors of each kind and number."""
    keys = dict.fromkeys((row["kind"], row["num_features"]) for row in rows)
    found = []
    for kind, count in keys:
        own = [row for row in rows if (row["kind"], row["num_features"]) == (kind, count)]
        values = [row["mse"] for row in own]
        found.append(
            {name: own[0][name] for name in ("kind", "estimator", "directions", "num_features")}
            | {"mean": statistics.fmean(values), "median": statistics.median(values)}
            | {"low": min(values), "high": max(values), "repetitions": len(values)}
        )
    return found


def depth_summaries(rows: Sequence[Json]) -> list[Json]:
    """Return median and extremes over the copies, by number of features and layer."""
    keys = dict.fromkeys((row["num_features"], row["layer"]) for row in rows)
    found = []
    for count, layer in keys:
        values = [r["error"] for r in rows if (r["num_features"], r["layer"]) == (count, layer)]
        found.append(
            {"num_features": count, "layer": layer, "error": statistics.median(values),
             "low": min(values), "high": max(values)}
        )  # fmt: skip
    return found


def _encoder(
    options: PerformerApproximationOptions, mixer: str | MixerFactory
) -> TransformerEncoder:
    model = TransformerEncoder(
        DEPTH_WIDTH, num_layers=options.num_layers, num_heads=DEPTH_HEADS, mixer=mixer
    )
    return model.double().eval()


def _figure_4_table(rows: Sequence[Json], options: PerformerApproximationOptions) -> Json:
    counts = list(dict.fromkeys(row["num_features"] for row in rows))
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        medians = [row["median"] for row in rows if row["kind"] == kind]
        lines.append([kind, *(f"{value:.2e}" for value in medians)])
    return {
        "title": "Figure 4: median squared error of the output",
        "head": ["features", *(f"{count:,}" for count in counts)],
        "lines": lines,
        "note": f"L = {options.seq_len:,}, d = {options.head_dim}, queries and keys of length "
        f"{options.norm:g}, {options.repetitions} inputs. Median, since the sums that "
        "trigonometric features divide by may be close to 0.",
    }


def _equation_8_table(rows: Sequence[Json]) -> Json:
    close = sum(abs(row["deviation"]) <= WITHIN for row in rows)
    return {
        "title": "Equation 8: squared error at one iid direction, over SM squared",
        "head": ["estimator", "length", "angle", *MEASURED],
        "lines": [
            [row["estimator"], f"{row['length']:g}", f"{row['angle']}", *_measured(row)]
            for row in rows
        ],
        "note": f"{close} of {len(rows)} within {WITHIN:g} standard errors. Vectors of that length "
        "after the scale, that many degrees apart. Positive and hyperbolic features only where "
        f"|x + y|^2 is at most {LARGEST:.2g}.",
    }


def _theorem_1_table(rows: Sequence[Json]) -> Json:
    return {
        "title": "Theorem 1: the regularised kernel over that of softmax",
        "head": ["d", "|x + y|^2 / 2", *MEASURED],
        "lines": [[f"{row['width']}", f"{row['w']:g}", *_measured(row)] for row in rows],
        "note": "Formula: the exact series. The theorem's own lower bound, 1 - 2 d^(-1/3) and a "
        "rest that vanishes with d, is for bounded kernels: "
        + ", ".join(
            f"{b:.2f} at d = {d}" for d, b in {r["width"]: r["bound"] for r in rows}.items()
        )
        + ".",
    }


def _theorem_2_table(rows: Sequence[Json]) -> Json:
    broken = sum(row["deviation"] > WITHIN for row in rows)
    return {
        "title": "Theorem 2: squared error of orthogonal positive features over SM squared, d = 16",
        "head": ["m", "angle", "iid", *MEASURED[:2], "bound", "deviation"],
        "lines": [
            [f"{row['num_directions']}", f"{row['angle']}", f"{row['iid']:.4g}", *_measured(row)]
            for row in rows
        ],
        "note": f"The bound is exceeded by more than {WITHIN:g} standard errors in {broken} of "
        f"{len(rows)} rows; below it is where the theorem allows to be. Vectors of length 0.5.",
    }


def _figure_14_table(rows: Sequence[Json], options: PerformerApproximationOptions) -> Json:
    counts = list(dict.fromkeys(row["num_features"] for row in rows))
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    found = {(row["layer"], row["num_features"]): row["error"] for row in rows}
    return {
        "title": "Figure 14: error of a Performer copy behind each layer",
        "head": ["layer", *(f"{count:,} features" for count in counts)],
        "lines": [[f"{n}", *(f"{found[n, count]:.3f}" for count in counts)] for n in layers],
        "note": f"Share of the norm, median of {options.depth_draws} random Transformers of width "
        f"{DEPTH_WIDTH} with {DEPTH_HEADS} heads, {options.depth_seq_len} tokens; orthogonal "
        "positive features.",
    }


MEASURED = ["measured", "standard error", "formula", "deviation"]


def _measured(row: Json) -> list[str]:
    measured, error, theory = (
        0.0 if abs(row[key]) < ROUNDING else row[key]
        for key in ("measured", "standard_error", "theory")
    )
    return [f"{measured:.4g}", f"{error:.1e}", f"{theory:.4g}", f"{row['deviation']:+.1f}"]
