"""One lambda layer, forward and backward, in every form: ours, and as the published packages do it.

Global contexts against the side of the image; local ones beside the convolution in three
dimensions that lambda-networks, timm and d-li14 take. Every form's output and its gradient of the
input are held against the layer's definition in float64 before it is timed; lambda-networks itself
joins where it can be imported, with the same weights.
Source: Bello 2021, section 4.2 (what is compared); the sizes are ours.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.bench.check import relative_error
from subquad.bench.lambda_options import LambdaOptions
from subquad.bench.memory import measured_apart, peak_bytes
from subquad.bench.results import Report, Row, spread
from subquad.bench.timing import Progress, interleave, threads
from subquad.layers.lambda_layer import LambdaLayer, Lambdas

KIND = "lambda"
PACKAGE, CONV3D = "lambda-networks", "conv3d"
OURS = ("auto", "fft", "rows", "einsum")
GLOBAL, LOCAL, GROWTH = "global", "local", "growth"
CHECK_SIDE = 6
TOLERANCE = 1e-4
HELD_TWICE = ("einsum", PACKAGE)  # which keep embeddings and lambdas for the backward pass

Context = Literal["global", "local", "growth"]


class Cell(NamedTuple):
    """One setting: all that run in it are timed in turn."""

    context: str
    side: int
    window: int | None
    batch: int
    forms: tuple[str, ...]

    def what(self, form: str) -> dict[str, str | int]:
        """Return how a row of this cell is named."""
        named: dict[str, str | int] = {
            "context": self.context, "side": self.side, "batch": self.batch, "form": form
        }  # fmt: skip
        return named if self.window is None else {**named, "window": self.window}


def new_report(options: LambdaOptions) -> Report:
    """Return an empty report for these options."""
    return Report(kind=KIND, options=asdict(options))


def measure_lambda(
    options: LambdaOptions, report: Report, *, progress: Progress | None = None
) -> None:
    """Fill ``report``; after a KeyboardInterrupt it holds what was measured until then.

    Raises:
        RuntimeError: if a form does not compute here what the definition says.
    """
    progress = progress or Progress()
    cells = list(_cells(options, report))
    progress.plan(len(cells))
    with threads(options.threads):
        for window in (None, *options.windows):
            check_forms(options, window)
        for cell in cells:
            samples: dict[str, list[float]] = {}
            runs = {form: step(options, cell, form) for form in cell.forms}
            try:
                interleave(
                    runs, samples, device="cpu", repetitions=options.repetitions,
                    seconds=options.seconds,
                    on_failure=partial(_failed, report, cell),
                )  # fmt: skip
            finally:
                _record(options, report, cell, samples)
            progress.advance(1, f"{cell.context}, {cell.side} x {cell.side}")
    report.summary.extend(_growth(report))


def check_forms(options: LambdaOptions, window: int | None) -> None:
    """Hold every form against the definition in float64, on a small image.

    Raises:
        RuntimeError: if one is off.
    """
    cell = Cell(LOCAL if window else GLOBAL, CHECK_SIDE, window, 2, ())
    expected = _outcome(build(options, cell, "quadratic").double(), options, cell)
    for form in _forms(window):
        errors = [
            relative_error(found, wanted)
            for found, wanted in zip(
                _outcome(build(options, cell, form), options, cell), expected, strict=True
            )
        ]
        if not max(errors) <= TOLERANCE:
            raise RuntimeError(
                f"the form {form} is {max(errors):.1e} off its definition, and was not timed"
            )


def build(options: LambdaOptions, cell: Cell, form: str) -> nn.Module:
    """Return the layer in a form, all with the same weights; in evaluation mode."""
    torch.manual_seed(0)
    local = cell.window is not None
    kind = _Conv3dLayer if form == CONV3D else LambdaLayer
    layer = kind(
        options.channels,
        num_heads=options.heads,
        head_dim=options.head_dim,
        window=cell.window,
        grid=None if local else (cell.side, cell.side),
        form="auto" if form in (CONV3D, PACKAGE) else form,  # type: ignore[arg-type]
    ).eval()
    return _package(options, cell, layer) if form == PACKAGE else layer


def step(options: LambdaOptions, cell: Cell, form: str) -> Callable[[], object]:
    """Return a forward and backward pass of the layer, down to its input and weights."""
    layer = build(options, cell, form)
    x = _image(options, cell)

    def run() -> object:
        y = layer(x)
        return torch.autograd.grad(y.sum(), [x, *layer.parameters()])

    return run


def memory_in_this_process(job: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Measure the peak of one form in one cell; see ``child``."""
    given = job["options"]
    lists = {name: tuple(given[name]) for name in ("sides", "windows")}
    options, form = LambdaOptions(**{**given, **lists}), job["form"]
    cell = Cell(*job["cell"])
    with threads(options.threads):
        step(options, cell._replace(side=CHECK_SIDE, batch=1), form)()
        tell({"peak_bytes": peak_bytes(step(options, cell, form), "cpu")})


class _Conv3dLayer(LambdaLayer):
    """The layer with a local context as the published packages compute it: all lambdas at once."""

    def _interact(self, q: Tensor, lambdas: Lambdas) -> Tensor:
        assert self.table is not None
        height, width = lambdas.grid
        values = lambdas.values.transpose(2, 3).reshape(len(q), self.intra_depth, -1, height, width)
        half = self.table.shape[2] // 2
        position = F.conv3d(values, self.table.unsqueeze(2), padding=(0, half, half)).flatten(3)
        content = torch.einsum("bhnk,bkv->bhnv", q, lambdas.content)
        return content + torch.einsum("bhnk,bkvn->bhnv", q, position)


def _failed(report: Report, cell: Cell, form: str, error: Exception) -> None:
    report.leave_out(f"cannot run: {' '.join(str(error).split())[:200]}", **cell.what(form))


def _cells(options: LambdaOptions, report: Report) -> Iterator[Cell]:
    for window in options.windows:
        yield Cell(LOCAL, options.local_side, window, options.batch, _forms(window))
    for context, batch in ((GLOBAL, options.batch), (GROWTH, options.batch_of_growth)):
        for side in options.sides:
            if context == GLOBAL and side > 64:
                continue  # growth says the rest
            cell = Cell(context, side, None, batch, _forms(None))
            kept = []
            for form in cell.forms:
                reason = _too_much(options, cell, form)
                if reason:
                    report.leave_out(reason, **cell.what(form))
                else:
                    kept.append(form)
            yield cell._replace(forms=tuple(kept))


def _too_much(options: LambdaOptions, cell: Cell, form: str) -> str | None:
    tokens = cell.side**2
    if form in HELD_TWICE:
        lambdas = cell.batch * tokens * options.head_dim * options.channels // options.heads
        needed = 4 * 2 * (tokens**2 * options.head_dim + lambdas) / 1e9
        if needed > options.limit:
            return f"needs about {needed:.0f} GB, more than the limit of {options.limit:g}"
    if form in ("rows", *HELD_TWICE):
        # Forward and backward, at a rate of products that is generous for a CPU.
        products = (
            3 * cell.batch * tokens**2 * (options.head_dim * options.heads + options.channels)
        )
        expected = 2 * products / 1e11
        if expected > options.longest:
            return f"expected to take {expected:.0f} s, more than {options.longest:g}"
    return None


def _forms(window: int | None) -> tuple[str, ...]:
    if window is not None:
        return ("auto", "fft", "rows", CONV3D)
    return (*OURS, PACKAGE) if find_spec("lambda_networks") else OURS


def _package(options: LambdaOptions, cell: Cell, layer: LambdaLayer) -> nn.Module:
    package: Any = import_module("lambda_networks")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own: it is not ours to mend
        published: nn.Module = package.LambdaLayer(
            dim=options.channels, dim_out=options.channels, n=cell.side, dim_k=options.head_dim,
            heads=options.heads, dim_u=1,
        )  # fmt: skip
    with torch.no_grad():
        parts = torch.split(layer.qkv.weight, list(layer.widths))
        for name, weight in zip(("to_q", "to_k", "to_v"), parts, strict=True):
            getattr(published, name).weight.copy_(weight[..., None, None])
        assert layer.table is not None
        rel_pos_emb: Any = published.rel_pos_emb
        rel_pos_emb.copy_(layer.table.permute(2, 3, 0, 1))
    return published.eval()


def _image(options: LambdaOptions, cell: Cell) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (cell.batch, options.channels, cell.side, cell.side)
    return torch.randn(shape, generator=generator).requires_grad_()


def _outcome(layer: nn.Module, options: LambdaOptions, cell: Cell) -> list[Tensor]:
    x = _image(options, cell).detach().to(next(layer.parameters()).dtype).requires_grad_()
    y = layer(x)
    weight = torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape).sin()
    return [y.detach(), *torch.autograd.grad(y, x, weight)]


def _record(
    options: LambdaOptions, report: Report, cell: Cell, samples: dict[str, list[float]]
) -> None:
    times = {form: spread(taken) for form, taken in samples.items()}
    published = times.get(CONV3D if cell.window else PACKAGE)
    products = [times[form].median for form in ("rows", "einsum") if form in times]
    for form, seconds in times.items():
        row = Row(what=cell.what(form), seconds=seconds)
        if published is not None:
            row.more["faster_than_published"] = published.median / seconds.median
        if products and not cell.window:
            row.more["faster_than_products"] = min(products) / seconds.median
        if options.has_memory and cell.context != GROWTH:
            job = {"kind": KIND, "options": asdict(options), "cell": list(cell), "form": form}
            for found in measured_apart(job):
                row.more["peak_bytes"] = found["peak_bytes"]
        report.rows.append(row)


def _growth(report: Report) -> list[dict[str, Any]]:
    """Return each form's log-log slope of time against tokens, over all sides that it has."""
    found = []
    for form in OURS:
        points = [
            (2 * math.log(int(row.what["side"])), math.log(row.seconds.median))
            for row in report.rows
            if row.what["context"] == GROWTH and row.what["form"] == form
        ]
        if len(points) > 1:
            x, y = (torch.tensor(axis).double() for axis in zip(*points, strict=True))
            slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
            found.append({"form": form, "slope": slope, "points": len(points)})
    return found
