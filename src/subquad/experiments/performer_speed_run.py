"""The measurements of performer-speed: whole encoders in turn, length by length."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subquad.bench.passes import Key, check_device, time_passes
from subquad.bench.tables import seconds
from subquad.bench.timing import threads
from subquad.experiments.performer_speed import PerformerSpeedOptions
from subquad.experiments.rows import write_figure
from subquad.experiments.spec import Json, Say
from subquad.experiments.tables_report import numbers
from subquad.layers import MIXERS, PerformerAttention
from subquad.layers.heads import Heads
from subquad.layers.registry import MixerFactory
from subquad.models import TransformerEncoder
from subquad.plots.performer import speed_figure

FORWARD, BOTH = "forward", "forward and backward"
SOFTMAX, PERFORMER, VALUES = KINDS = ("softmax", "performer", "values only")


class ValuesOnly(nn.Module):
    """Attention that gives each token its own value: what no attention can be faster than."""

    def __init__(self, d_model: int, num_heads: int, *, is_causal: bool) -> None:
        super().__init__()
        self.heads = Heads(d_model, num_heads)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        *,
        key_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Project, take the values, and project back."""
        _, _, v = self.heads.split(self.heads.check(x, key_mask, cu_seqlens))
        return self.heads.merge(v)


def run_speed(options: PerformerSpeedOptions, folder: Path, say: Say) -> Json:
    """Measure every length; return tables, the figure and the numbers behind them.

    Raises:
        ValueError: if the device is not there.
        OSError: if the folder cannot be written.
    """
    check_device(options.device)
    rows: list[Json] = []
    left_out: list[Json] = []
    with threads(options.threads):
        torch.manual_seed(options.seed)
        models = {name: _encoder(options, mixer) for name, mixer in kinds(options).items()}
        for length in numbers("lengths", options.lengths, least=1):
            chosen = {}
            for name, model in models.items():
                expected = expected_seconds(rows, name, length)
                if expected <= options.limit:
                    chosen[name] = model
                else:
                    reason = f"expected to take {expected:.0f} s, more than the limit"
                    left_out.append({"kind": name, "seq_len": length, "reason": reason})
            say(f"L = {length:,}: {', '.join(chosen) or 'nothing within the limit'}")
            measure_length(options, chosen, length, rows, left_out)
    file = "figures/figure-3.png"
    write_figure(folder, file, speed_figure(rows))
    return {
        "device": options.device,
        "rows_of_figure_3": rows,
        "left_out": left_out,
        "overtakes": {which: overtaking(rows, which) for which in (FORWARD, BOTH)},
        "tables": [_table(rows, which) for which in (FORWARD, BOTH)],
        "figures": {file: "Figure 3: time of a whole encoder"},
        "notes": _notes(options, rows, left_out),
    }


def estimate_speed(options: PerformerSpeedOptions) -> Json:
    """Return the most that it could take: at each length the budget and one round more."""
    lengths = numbers("lengths", options.lengths, least=1)
    return {"minutes": len(lengths) * (options.seconds + 2 * options.limit) / 60}


def kinds(options: PerformerSpeedOptions) -> dict[str, MixerFactory]:
    """Return what stands in the place of attention, by name."""
    performer: MixerFactory = partial(
        PerformerAttention, num_features=options.num_features, redraw_every=None
    )
    return {SOFTMAX: MIXERS["softmax"], PERFORMER: performer, VALUES: ValuesOnly}


def measure_length(
    options: PerformerSpeedOptions,
    models: dict[str, TransformerEncoder],
    length: int,
    rows: list[Json],
    left_out: list[Json],
) -> None:
    """Time both passes of all models in turn on one sequence, and add a row for each."""
    x = torch.randn(1, length, options.d_model, device=options.device)
    runs: dict[Key, Callable[[], object]] = {}
    for name, model in models.items():
        runs[name, FORWARD] = partial(_forward, model, x)
        runs[name, BOTH] = partial(_forward_backward, model, x)
    found, reasons = time_passes(
        runs, device=options.device, repetitions=options.repetitions, seconds=options.seconds
    )
    for (kind, which), reason in reasons.items():
        left_out.append({"kind": kind, "pass": which, "seq_len": length, "reason": reason})
    for (kind, which), took in found.items():
        rows.append({"kind": kind, "pass": which, "seq_len": length, **asdict(took)})


def expected_seconds(rows: Sequence[Json], kind: str, length: int) -> float:
    """Return how long a call may take, from the longest length measured: by the square or so."""
    known = [row for row in rows if row["kind"] == kind]
    if not known:
        return 0.0
    last = max(known, key=lambda row: (row["seq_len"], row["median"]))
    growth = length / last["seq_len"]
    return float(last["median"] * growth ** (2 if kind == SOFTMAX else 1))


def overtaking(rows: Sequence[Json], which: str) -> int | None:
    """Return the first length from which the performer is faster wherever both were measured."""
    by_length = _medians(rows, which)
    first = None
    for length, found in by_length.items():
        if SOFTMAX not in found or PERFORMER not in found:
            continue
        faster = found[PERFORMER] < found[SOFTMAX]
        first = (first or length) if faster else None
    return first


def _encoder(options: PerformerSpeedOptions, mixer: MixerFactory) -> TransformerEncoder:
    model = TransformerEncoder(
        options.d_model,
        num_layers=options.num_layers,
        num_heads=options.num_heads,
        d_ff=options.d_ff,
        mixer=mixer,
    )
    return model.to(options.device)


def _forward(model: TransformerEncoder, x: Tensor) -> None:
    with torch.inference_mode():
        model(x)


def _forward_backward(model: TransformerEncoder, x: Tensor) -> None:
    model.zero_grad()
    model(x).square().mean().backward()


def _medians(rows: Sequence[Json], which: str) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["pass"] == which:
            found.setdefault(row["seq_len"], {})[row["kind"]] = row["median"]
    return dict(sorted(found.items()))


def _table(rows: Sequence[Json], which: str) -> Json:
    lines = []
    for length, found in _medians(rows, which).items():
        times = [seconds(found[name]) if name in found else "" for name in KINDS]
        lines.append(
            [
                f"{length:,}",
                *times,
                _over(found, SOFTMAX, PERFORMER),
                _over(found, PERFORMER, VALUES),
            ]
        )
    return {
        "title": f"Figure 3: {which}, median",
        "head": ["L", *KINDS, "softmax / performer", "performer / values only"],
        "lines": lines,
    }


def _over(found: dict[str, float], first: str, second: str) -> str:
    both = first in found and second in found
    return f"{found[first] / found[second]:.2f}" if both else ""


def _notes(
    options: PerformerSpeedOptions, rows: Sequence[Json], left_out: Sequence[Json]
) -> list[str]:
    said = []
    for which in (FORWARD, BOTH):
        first = overtaking(rows, which)
        where = f"from L = {first:,} on" if first else "at no length that was measured"
        said.append(f"Of those measured, the performer is the faster one {where} ({which}).")
    size = (
        f"{options.num_layers} layers of width {options.d_model}, {options.num_heads} heads, d_ff "
        f"{options.d_ff}, one sequence, float32, {options.num_features} directions."
    )
    gone = [f"Left out: {x['kind']} at {x['seq_len']:,}: {x['reason']}." for x in left_out]
    return [size, " ".join(said), *gone]
