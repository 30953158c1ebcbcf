"""Results as tables: a title, a header and rows of strings, for whoever prints them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from subquad.bench.results import Difference, Report, Row

RATIOS = (
    "× softmax, × torch: how many times faster than softmax and than the best chunk size of the "
    "torch form. Roofline: share of what this machine could do. Memory: the peak, a sample, beyond "
    "q, k and v."
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table; ``note`` goes below it."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def tables(report: Report) -> list[Table]:
    """Return the tables of a report, the one of what was left out last."""
    makers: dict[str, Callable[[Report], list[Table]]] = {
        "attention": _attention,
        "peers": _attention,
        "decode": _decode,
        "train": _train,
        "lsh-rounds": _lsh_rounds,
        "performer": _performer,
        "lambda": _lambda,
        "vit": _vit,
    }
    found = makers[report.kind](report)
    if report.left_out:
        rows = [
            (", ".join(str(v) for k, v in x.items() if k != "reason"), str(x["reason"]))
            for x in report.left_out
        ]
        found.append(Table(title="left out", header=("what", "reason"), rows=rows))
    return [table for table in found if table.rows]


def compared(differences: list[Difference]) -> Table:
    """Return two results side by side; a tie is marked."""
    rows = [
        (
            ", ".join(str(value) for value in d.what.values()),
            seconds(d.first.median),
            seconds(d.second.median),
            f"{d.ratio:.2f}",
            "within the spread" if d.within_spread else "faster" if d.ratio < 1 else "slower",
        )
        for d in differences
    ]
    return Table(
        title="B beside A",
        header=("what", "A", "B", "B / A", "B is"),
        rows=rows,
        note="Within the spread: the interquartile ranges touch.",
    )


def seconds(value: float) -> str:
    """Write a time with three digits and its unit."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def size(value: float) -> str:
    """Write a number of bytes with three digits and its unit."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def _attention(report: Report) -> list[Table]:
    found = []
    has_memory = any("peak_bytes" in row.more for row in report.rows)
    for which in dict.fromkeys(row.what["pass"] for row in report.rows):
        rows = [row for row in report.rows if row.what["pass"] == which]
        header = ["T", "mechanism", "median", "IQR", "× softmax", "× torch", "roofline"]
        lines = []
        for row in rows:
            line = [
                f"{row.what['seq_len']:,}",
                str(row.what["mechanism"]),
                seconds(row.seconds.median),
                f"{row.seconds.relative:.0%}",
                _times(row, "faster_than_softmax"),
                _times(row, "faster_than_torch_form"),
                _share(row, "roofline_share"),
            ]
            if has_memory:
                peak = row.more.get("peak_bytes_per_sample")
                line.append("" if peak is None else size(peak))
            lines.append(tuple(line))
        if has_memory:
            header.append("memory")
        found.append(
            Table(title=f"attention, {which}", header=tuple(header), rows=lines, note=RATIOS)
        )
    found.append(_slopes(report))
    return found


def _slopes(report: Report) -> Table:
    rows = []
    for line in report.summary:
        crossing = line["overtakes_softmax"]
        if crossing is None:
            where = ""
        elif crossing["from"] is None:
            where = "nowhere measured"
        else:
            where = f"{'at or below ' if crossing['is_first'] else ''}T = {crossing['from']:,}"
        exponent, spread = line["slope"], line["per_token_range"]
        error = report.machine.get("error", {}).get(line["mechanism"])
        rows.append(
            (
                str(line["mechanism"]),
                str(line["pass"]),
                "" if exponent is None else f"{exponent:.2f}",
                where,
                "" if spread is None else f"{spread:.0%}",
                "" if error is None else f"{error:.0e}",
            )
        )
    rates = report.machine.get("rates", [])
    note = "Slope: of log time against log T at the four longest lengths. "
    note += "Range: the slowest token over the fastest from T = 1,024 on, less 1. "
    note += "Off: largest relative error of output and gradients, the definition in float64. "
    if rates:
        gemm = sorted(x["gemm_gflops"] for x in rates)[len(rates) // 2]
        copy = sorted(x["copy_gb_per_s"] for x in rates)[len(rates) // 2]
        note += f"This machine, in the same run: {gemm:.0f} GFLOP/s, copies {copy:.1f} GB/s."
    header = ("mechanism", "pass", "slope", "overtakes softmax", "range a token", "off")
    return Table(title="growth", header=header, rows=rows, note=note)


def _decode(report: Report) -> list[Table]:
    steps = [
        (
            str(row.what["model"]),
            f"{row.what['batch']:,}",
            str(row.what["mixer"]),
            f"{row.what['position']:,}",
            seconds(row.seconds.median),
            f"{row.seconds.relative:.0%}",
            size(row.more["state_bytes_per_image"]) if "state_bytes_per_image" in row.more else "",
        )
        for row in report.rows
        if row.what["part"] == "step" and "position" in row.what
    ]
    images = [
        (x["model"], f"{x['batch']:,}", x["mixer"], f"{x['images_per_second']:.3g}",
         seconds(x["seconds"]), x["how"])
        for x in report.summary
        if "images_per_second" in x
    ]  # fmt: skip
    shares = [
        (x["model"], f"{x['batch']:,}", f"{x['step_over_products']:.2f}",
         *(f"{x[key]:.0%}" for key in ("products_share", "state_update_share", "other_share")))
        for x in report.summary
        if "step_over_products" in x
    ]  # fmt: skip
    return [
        Table(
            title="one step of generation, against position",
            header=("model", "batch", "mixer", "position", "step", "IQR", "state an image"),
            rows=steps,
        ),
        Table(
            title="generation",
            header=("model", "batch", "mixer", "images/s", "seconds a batch", "how"),
            rows=images,
        ),
        Table(
            title="what a step of the linear model is made of",
            header=("model", "batch", "step / products", "products", "state update", "other"),
            rows=shares,
            note="Products and state update are timed alone, in turn with the whole step.",
        ),
    ]


def _train(report: Report) -> list[Table]:
    rows = []
    for row in report.rows:
        rate, peak = row.more.get("images_per_second"), row.more.get("peak_bytes_per_sample")
        rows.append(
            (
                str(row.what["mixer"]),
                str(row.what["part"]),
                seconds(row.seconds.median),
                f"{row.seconds.relative:.0%}",
                "" if rate is None else f"{rate:.3g}",
                _times(row, "faster_than_softmax"),
                "" if peak is None else size(peak),
            )
        )
    return [
        Table(
            title="training step",
            header=("mixer", "part", "median", "IQR", "images/s", "× softmax",
                    "memory"),
            rows=rows,
            note="Memory: the peak, an image, beyond weights and images, in a first step.",
        )
    ]  # fmt: skip


def _lsh_rounds(report: Report) -> list[Table]:
    lines = [
        (
            str(row.what["queries"]),
            str(row.what["combine"]),
            str(row.what["rounds"]),
            f"{row.more['error']:.3f}",
            f"{row.more['error_low']:.3f} to {row.more['error_high']:.3f}",
            seconds(row.seconds.median),
        )
        for row in report.rows
    ]
    return [
        Table(
            title="LSH attention beside exact attention with shared queries and keys",
            header=("queries", "combined by", "rounds", "error", "over the draws", "forward"),
            rows=lines,
            note="Error: norm of the difference of the outputs over the norm of the exact ones.",
        )
    ]


def _performer(report: Report) -> list[Table]:
    lines = [
        (
            str(row.what["pass"]),
            str(row.what["seq_len"]),
            str(row.what["what"]),
            seconds(row.seconds.median),
            _times(row, "faster_than_softmax"),
            _times(row, "times_of"),
            _share(row, "roofline_share"),
        )
        for row in report.rows
    ]
    header = ("pass", "T", "what", "time", "faster than softmax", "times of", "of the roofline")
    note = (
        "Times of: causal FAVOR+ over elu + 1 of as many features, and the recurrence with decay "
        "over the one without."
    )
    return [Table(title="FAVOR+", header=header, rows=lines, note=note)]


def _lambda(report: Report) -> list[Table]:
    lines = [
        (
            str(row.what["context"]),
            f"{row.what['side']} x {row.what['side']}",
            str(row.what.get("window", "all")),
            str(row.what["batch"]),
            str(row.what["form"]),
            seconds(row.seconds.median),
            _times(row, "faster_than_published"),
            _times(row, "faster_than_products"),
            size(row.more["peak_bytes"]) if "peak_bytes" in row.more else "",
        )
        for row in report.rows
    ]
    header = (
        "context", "image", "window", "batch", "form", "time", "× published", "× products",
        "memory",
    )  # fmt: skip
    note = (
        "Forward and backward of one layer. × published: how many times faster than the published "
        "form, a convolution in three dimensions or lambda-networks; × products: than the faster "
        "of our forms by matrix products. Memory: the peak beyond input and weights."
    )
    growth = [(str(x["form"]), f"{x['slope']:.2f}", str(x["points"])) for x in report.summary]
    return [
        Table(title="lambda layer", header=header, rows=lines, note=note),
        Table(title="growth", header=("form", "slope", "sides"), rows=growth,
              note="Slope: of log time against log tokens."),
    ]  # fmt: skip


def _vit(report: Report) -> list[Table]:
    lines = [
        (
            str(row.what["what"]),
            f"{row.what['tokens']:,}",
            str(row.what["pass"]),
            str(row.what["mixer"]),
            seconds(row.seconds.median),
            f"{row.seconds.relative:.0%}",
            f"{row.more['images_per_second']:.3g}",
            _times(row, "faster_than_softmax"),
            size(row.more["peak_bytes"]) if "peak_bytes" in row.more else "",
        )
        for row in report.rows
    ]
    header = (
        "model", "tokens", "pass", "mixer", "median", "IQR", "images/s", "× softmax", "memory",
    )  # fmt: skip
    note = (
        "× softmax: how many times faster than scaled_dot_product_attention. Again: the mixer "
        "keeps its input alone for the backward pass, and runs again there. Memory: the peak of a "
        "forward and backward pass beyond weights and input, gradients included."
    )
    return [Table(title="Vision Transformers", header=header, rows=lines, note=note)]


def _times(row: Row, key: str) -> str:
    value = row.more.get(key)
    return "" if value is None else f"{value:.2f}"


def _share(row: Row, key: str) -> str:
    value = row.more.get(key)
    return "" if value is None else f"{value:.0%}"
