"""Vision Transformers of large images with any mixer in place of attention: time and memory.

Whole models on images that grow, and one block alone on more tokens than that; forward, and forward
and backward, all mixers in turn. "softmax" is ``scaled_dot_product_attention``, and ratios are to
it. "again" behind a name: it keeps its input alone for the backward pass, and runs again there
(``checkpointing="mixers"``). Source of the sizes: Dosovitskiy et al. 2021, Table 1, and Touvron et
al. 2021 (Ti and S).
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from subquad.bench.check import relative_error
from subquad.bench.memory import measured_peak, peak_bytes
from subquad.bench.results import Report, Row, spread
from subquad.bench.timing import Progress, interleave, threads
from subquad.bench.vit_options import ViTOptions
from subquad.layers.block import Block
from subquad.layers.registry import MIXERS
from subquad.models.vision_transformer import VisionTransformer

KIND = "vit"
FORWARD, BOTH = PASSES = ("forward", "forward and backward")
BLOCK = "one block"
SOFTMAX = "softmax"
AGAIN = ", again"
CHECK_PATCHES = 4  # along a side
TOLERANCE = 1e-3


class Cell(NamedTuple):
    """What is timed together: a whole model on images of a side, or a block on tokens."""

    what: str
    size: int
    tokens: int

    def named(self, mixer: str, which: str) -> dict[str, str | int]:
        """Return what tells a row from all others."""
        return {"what": self.what, "size": self.size, "tokens": self.tokens, "mixer": mixer,
                "pass": which}  # fmt: skip


def new_report(options: ViTOptions) -> Report:
    """Return an empty report for these options.

    Raises:
        ValueError: if a mixer or the preset is unknown, or patches do not fit the images.
    """
    for mixer in options.mixers:
        if mixer not in MIXERS:
            raise ValueError(f"mixers must be among {', '.join(MIXERS)}, got {mixer!r}")
    with torch.device("meta"):
        for side in options.image_sizes:
            VisionTransformer.preset(options.preset, image_size=side)
        VisionTransformer.preset(options.preset)
    return Report(kind=KIND, options=asdict(options))


def measure_vit(options: ViTOptions, report: Report, *, progress: Progress | None = None) -> None:
    """Fill ``report``; after a KeyboardInterrupt it holds what was measured until then.

    Raises:
        RuntimeError: if a mixer's model does not give in float32 what it gives in float64.
    """
    progress = progress or Progress()
    cells = list(_cells(options))
    progress.plan(len(cells) * len(_runs(options)))
    with threads(options.threads):
        for mixer in options.mixers:
            check_mixer(options, mixer)
        for cell in cells:
            runs = [run for run in _runs(options) if _affordable(options, report, cell, *run)]
            progress.drop(len(_runs(options)) - len(runs))
            measure_cell(options, report, cell, runs)
            progress.advance(len(runs), f"{cell.what}, {cell.tokens:,} tokens")


def measure_cell(
    options: ViTOptions, report: Report, cell: Cell, chosen: list[tuple[str, str]]
) -> None:
    """Time the chosen mixers and passes in turn, and add a row for each."""
    mixers = dict.fromkeys(mixer for mixer, _ in chosen)
    models = {mixer: build(options, cell, mixer) for mixer in mixers}
    x = images(options, cell)
    runs: dict[str, Callable[[], object]] = {
        f"{mixer}|{which}": partial(step, models[mixer], x, which, options.dtype)
        for mixer, which in chosen
    }

    def failed(name: str, error: Exception) -> None:
        mixer, which = name.split("|")
        reason = f"cannot run: {' '.join(str(error).split())[:200]}"
        report.leave_out(reason, **cell.named(mixer, which))

    samples: dict[str, list[float]] = {}
    try:
        interleave(
            runs, samples, device=options.device, repetitions=options.repetitions,
            seconds=options.seconds, on_failure=failed,
        )  # fmt: skip
    finally:
        _record(options, report, cell, samples)


def build(options: ViTOptions, cell: Cell, mixer: str) -> nn.Module:
    """Return the model, or the block, with new weights that the seed 0 fixes."""
    torch.manual_seed(0)
    again, mixer = mixer.endswith(AGAIN), mixer.removesuffix(AGAIN)
    if cell.what != BLOCK:
        model: nn.Module = VisionTransformer.preset(
            options.preset, image_size=cell.size, mixer=mixer,
            checkpointing="mixers" if again else False,
        )  # fmt: skip
        return model.to(options.device)
    sizes = _sizes(options)
    width, heads = sizes["d_model"], sizes["num_heads"]
    inner = MIXERS[mixer](width, heads, is_causal=False, **_limits(mixer, cell.tokens))
    block = Block(inner, width, 4 * width, norm="pre", activation="gelu", repeat_mixer=again)
    return block.to(options.device)


def images(options: ViTOptions, cell: Cell) -> Tensor:
    """Return noise: images (B, 3, H, W), or tokens (B, T, D) for a block, with a gradient."""
    generator = torch.Generator().manual_seed(1)
    shape = (options.batch, 3, cell.size, cell.size)
    if cell.what == BLOCK:
        tokens = (options.batch, cell.tokens, _sizes(options)["d_model"])
        return torch.randn(tokens, generator=generator).to(options.device).requires_grad_()
    return torch.randn(shape, generator=generator).to(options.device)


def step(model: nn.Module, x: Tensor, which: str, dtype: str) -> object:
    """Make one pass; gradients go to the weights, and to tokens, and are not kept."""
    narrow = torch.autocast(x.device.type, getattr(torch, dtype), enabled=dtype != "float32")
    if which == FORWARD:
        with torch.inference_mode(), narrow:
            return model.eval()(x)
    with narrow:
        y = model.train()(x)
    wanted = [*model.parameters(), *([x] if x.requires_grad else [])]
    return torch.autograd.grad(y.float().square().mean(), wanted, allow_unused=True)


def check_mixer(options: ViTOptions, mixer: str) -> None:
    """Hold a small image's logits in float32 against those in float64.

    Raises:
        RuntimeError: if they are off, or not finite.
    """
    side = CHECK_PATCHES * _sizes(options)["patch_size"]
    cell = Cell(options.preset, side, CHECK_PATCHES**2)
    model, x = build(options, cell, mixer).cpu().eval(), images(options, cell).cpu()
    nn.init.normal_(model.head.weight)  # type: ignore[arg-type, union-attr]  # it may begin at 0
    with torch.no_grad():
        found, wanted = model(x), model.double()(x.double())
    error = relative_error(found, wanted)
    if not error <= TOLERANCE:
        raise RuntimeError(f"the mixer {mixer} is {error:.1e} off in float32, and was not timed")


def memory_in_this_process(job: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Measure the peak of one mixer's forward and backward pass; see ``child``."""
    given = job["options"]
    lists = {name: tuple(given[name]) for name in ("image_sizes", "block_tokens", "mixers")}
    options, cell = ViTOptions(**{**given, **lists}), Cell(*job["cell"])
    with threads(options.threads):
        warm = _small(options, cell)
        step(build(options, warm, job["mixer"]), images(options, warm), BOTH, options.dtype)
        model, x = build(options, cell, job["mixer"]), images(options, cell)
        run = partial(step, model, x, BOTH, options.dtype)
        tell({"peak_bytes": peak_bytes(run, options.device)})


def _cells(options: ViTOptions) -> Iterator[Cell]:
    patch = _sizes(options)["patch_size"]
    for side in options.image_sizes:
        yield Cell(options.preset, side, (side // patch) ** 2)
    for tokens in options.block_tokens:
        yield Cell(BLOCK, tokens, tokens)


def _runs(options: ViTOptions) -> list[tuple[str, str]]:
    """Return the mixers and passes that are timed; without gradients nothing runs again."""
    runs = [(mixer, which) for mixer in options.mixers for which in PASSES]
    return runs + [(mixer + AGAIN, BOTH) for mixer in options.mixers if options.repeats]


def _small(options: ViTOptions, cell: Cell) -> Cell:
    if cell.what == BLOCK:
        return Cell(BLOCK, CHECK_PATCHES**2, CHECK_PATCHES**2)
    return Cell(cell.what, CHECK_PATCHES * _sizes(options)["patch_size"], CHECK_PATCHES**2)


def _sizes(options: ViTOptions) -> dict[str, Any]:
    with torch.device("meta"):
        return dict(VisionTransformer.preset(options.preset).config)


def _limits(mixer: str, tokens: int) -> dict[str, int]:
    return {"max_len": tokens} if mixer == "linformer" else {}


def _affordable(options: ViTOptions, report: Report, cell: Cell, mixer: str, which: str) -> bool:
    """Note what is expected to take longer than the limit, from the largest size measured."""
    known = [
        row
        for row in report.rows
        if (row.what["what"], row.what["mixer"], row.what["pass"]) == (cell.what, mixer, BOTH)
    ]
    if not known:
        return True
    last = max(known, key=lambda row: int(row.what["tokens"]))
    growth = cell.tokens / int(last.what["tokens"])
    is_softmax = mixer.removesuffix(AGAIN) == SOFTMAX
    expected = last.seconds.median * growth ** (2 if is_softmax else 1)
    if expected <= options.limit:
        return True
    reason = f"expected to take {expected:.0f} s, more than {options.limit:g}"
    report.leave_out(reason, **cell.named(mixer, which))
    return False


def _record(
    options: ViTOptions, report: Report, cell: Cell, samples: dict[str, list[float]]
) -> None:
    times = {name: spread(taken) for name, taken in samples.items()}
    rows = []
    for name, seconds in times.items():
        mixer, which = name.split("|")
        row = Row(what=cell.named(mixer, which), seconds=seconds)
        row.more["images_per_second"] = options.batch / seconds.median
        softmax = times.get(f"{SOFTMAX}|{which}")
        if softmax is not None:
            row.more["faster_than_softmax"] = softmax.median / seconds.median
        if which == BOTH and options.has_memory:
            _add_peak(options, cell, row)
        rows.append(row)
    report.rows.extend(rows)


def _add_peak(options: ViTOptions, cell: Cell, row: Row) -> None:
    mixer = row.what["mixer"]
    job = {"kind": KIND, "options": asdict(options), "cell": list(cell), "mixer": mixer}
    peak = measured_peak(job, options.device, memory_in_this_process)
    if peak is not None:
        row.more["peak_bytes"] = peak
