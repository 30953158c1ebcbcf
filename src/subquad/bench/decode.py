"""Generation, pixel by pixel: time and state of a step against position, and images a second.

The models are the paper's MNIST and CIFAR-10 models with random weights. Three ways to generate:

- linear: the model's own ``generate``, timed byte by byte;
- softmax with a KV cache: steps at sampled positions, from a cache filled with noise of the right
  size, integrated over all positions by the trapezoid rule;
- softmax that recomputes the prefix: forward passes at sampled positions, integrated likewise.

Source: Katharopoulos et al. 2020, sections 3.4 and 4.2, supplement Tables 4 and 5.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise

import torch

from subquad.bench.decode_parts import (
    filled_state,
    prefix_call,
    products_alone,
    state_bytes,
    state_update_alone,
    step_call,
)
from subquad.bench.decode_totals import integrate, positions
from subquad.bench.options import DecodeOptions
from subquad.bench.results import Report, Row, spread
from subquad.bench.timing import Progress, interleave, seconds_of, threads, wait, warm_up
from subquad.models import PixelModel
from subquad.models.memory import free_memory
from subquad.ops.state import state_size_bytes

MODELS: dict[str, Callable[..., PixelModel]] = {
    "mnist": PixelModel.mnist,
    "cifar10": PixelModel.cifar10,
}
MIXERS = ("linear", "softmax")
LINEAR_PARTS = ("step", "products", "state update")
FEWEST_STEPS = 16
RECOMPUTED = "softmax, recomputed"
SHARE_OF_FREE_MEMORY = 0.8


class _Enough(Exception):
    """Ends a generation from within its progress callback, when its time is up."""


def new_report(options: DecodeOptions) -> Report:
    """Return an empty report for these options."""
    return Report(kind="decode", options=asdict(options))


def measure_decode(
    options: DecodeOptions,
    report: Report,
    *,
    progress: Progress | None = None,
    build: Callable[[str, str], PixelModel] | None = None,
) -> None:
    """Fill ``report``; after a KeyboardInterrupt it holds what was measured until then.

    Args:
        options: models, batches, limits.
        report: ``new_report(options)``.
        progress: told of work planned and done; one unit is one model, mixer and batch.
        build: makes the model of a name with a mixer (default: the paper's).

    Raises:
        ValueError: if a model or mixer is unknown.
    """
    for name in options.models if build is None else ():
        if name not in MODELS:
            raise ValueError(f"models must be among {', '.join(MODELS)}, got {name!r}")
    for mixer in options.mixers:
        if mixer not in MIXERS:
            raise ValueError(f"mixers must be among {', '.join(MIXERS)}, got {mixer!r}")
    make = build or _paper_model
    progress = progress or Progress()
    for batch in options.batches:
        progress.plan(len(options.models) * _work(options, batch))
    with threads(options.threads), torch.inference_mode():
        for name in options.models:
            models = {m: make(name, m).eval().to(options.device) for m in options.mixers}
            for batch in options.batches:
                _Session(options, report, models, name, batch, progress).measure()


def _work(options: DecodeOptions, batch: int) -> float:
    """Return the units of progress of one model and batch."""
    parts = options.positions * (1 + options.has_recompute) + 1
    return parts * _weight(batch)


def _weight(batch: int) -> float:
    return 1 + batch / 32


class _Session:
    """One paper's model with each mixer, at one batch size."""

    def __init__(
        self,
        options: DecodeOptions,
        report: Report,
        models: dict[str, PixelModel],
        name: str,
        batch: int,
        progress: Progress,
    ) -> None:
        self.options, self.report, self.models = options, report, models
        self.name, self.batch, self.progress = name, batch, progress
        self.seq_len = next(iter(models.values())).seq_len
        self.places = positions(self.seq_len, options.positions)
        self._left = _work(options, batch)

    def measure(self) -> None:
        """Time the steps of all mixers in turn at each position, then whole generations."""
        chosen = [mixer for mixer in self.models if self._fits(mixer)]
        for place in self.places:
            self._steps(chosen, place)
            self._advance(f"step at {place:,}")
        for mixer in chosen:
            found = [
                (place, self._row(mixer, place, "step").seconds.median) for place in self.places
            ]
            self._images(mixer, found, "steps at sampled positions, integrated")
        if "linear" in chosen:
            self._shares()
            self._generate()
            self._advance("whole generation")
        if "softmax" in self.models and self.options.has_recompute:
            self._recompute()
        self.progress.drop(self._left)

    def _advance(self, label: str) -> None:
        work = _weight(self.batch)
        self._left -= work
        self.progress.advance(work, f"{self.name}, batch {self.batch:,}, {label}")

    def _steps(self, mixers: list[str], place: int) -> None:
        runs: dict[str, Callable[[], object]] = {}
        bytes_held: dict[str, float] = {}
        for mixer in mixers:
            model = self.models[mixer]
            state = filled_state(model, self.batch, place)
            bytes_held[mixer] = state_size_bytes(state) / self.batch
            runs[f"{mixer}|step"] = step_call(model, state, self.batch, place)
            if mixer == "linear":
                runs["linear|products"] = products_alone(model, self.batch)
                runs["linear|state update"] = state_update_alone(model, state)
        samples: dict[str, list[float]] = {}
        try:
            interleave(
                runs,
                samples,
                device=self.options.device,
                repetitions=self.options.repetitions,
                seconds=self.options.seconds / len(self.places),
            )
        finally:
            for run, times in samples.items():
                mixer, part = run.split("|")
                more = {"state_bytes_per_image": bytes_held[mixer]} if part == "step" else {}
                what = self._what(mixer, place, part)
                self.report.rows.append(Row(what=what, seconds=spread(times), more=more))

    def _recompute(self) -> None:
        """Integrate forward passes over growing prefixes; the batch shrinks to keep the limit."""
        found: list[tuple[int, float]] = []
        batch, expected = self.batch, 0.0
        device = self.options.device
        for i, place in enumerate(self.places):
            while batch > 1 and expected * batch > self.options.limit:
                batch //= 2
            tokens = torch.randint(0, 256, (batch, place), device=device)
            run = prefix_call(self.models["softmax"], tokens)
            try:
                times = [warm_up(run, device), *(seconds_of(run, device) for _ in range(2))]
            except (MemoryError, torch.OutOfMemoryError):
                self._leave_out(RECOMPUTED, f"{batch} prefixes of {place} do not fit in memory")
                return
            measured = spread([t * self.batch / batch for t in times])
            more = {"measured_batch": batch}
            what = self._what(RECOMPUTED, place, "step")
            self.report.rows.append(Row(what=what, seconds=measured, more=more))
            found.append((place, measured.median))
            later = self.places[min(i + 1, len(self.places) - 1)]
            # From about 1,000 tokens on attention outweighs the rest.
            expected = measured.median / self.batch * (later / place) ** (2 if place > 1000 else 1)
            self._advance(f"prefix of {place:,} recomputed")
        how = "prefixes of sampled lengths, integrated"
        if batch < self.batch:
            how += f", the longest timed {batch} at once and scaled"
        self._images(RECOMPUTED, found, how)

    def _generate(self) -> None:
        """Run ``generate`` until it is done or its budget is spent; its steps are all alike."""
        stamps: list[float] = []

        def stamp(done: int, total: int) -> None:
            wait(self.options.device)
            stamps.append(time.perf_counter())
            late = stamps[-1] - stamps[0] > self.options.seconds
            if late and len(stamps) > FEWEST_STEPS:
                raise _Enough

        try:
            self.models["linear"].generate(self.batch, seed=0, progress=stamp, max_batch=self.batch)
            how = "a whole generation"
        except _Enough:
            how = f"{len(stamps) - 1} steps of a generation, scaled to all"
        steps = [b - a for a, b in pairwise(stamps)]
        if not steps:
            return
        per_step = sum(steps) / len(steps)
        self.report.rows.append(
            Row(
                what={"model": self.name, "mixer": "linear, generate()",
                      "batch": self.batch, "part": "step"},
                seconds=spread(steps),
            )
        )  # fmt: skip
        self._images("linear, generate()", [(1, per_step), (self.seq_len - 1, per_step)], how)

    def _shares(self) -> None:
        """Say how much of a step is neither matrix products nor state update."""
        step, products, update = (
            statistics.median(self._row("linear", p, part).seconds.median for p in self.places)
            for part in LINEAR_PARTS
        )
        self.report.summary.append(
            {
                "model": self.name,
                "mixer": "linear",
                "batch": self.batch,
                "step_over_products": step / products,
                "products_share": products / step,
                "state_update_share": update / step,
                "other_share": 1 - (products + update) / step,
            }
        )

    def _images(self, mixer: str, found: list[tuple[int, float]], how: str) -> None:
        seconds = integrate(found, self.seq_len)
        self.report.summary.append(
            {
                "model": self.name,
                "mixer": mixer,
                "batch": self.batch,
                "seconds": seconds,
                "images_per_second": self.batch / seconds,
                "how": how,
            }
        )

    def _fits(self, mixer: str) -> bool:
        needed = state_bytes(self.models[mixer], self.batch, self.seq_len)
        free = free_memory(torch.device(self.options.device))
        if free is None or needed <= SHARE_OF_FREE_MEMORY * free:
            return True
        kind = "KV cache" if mixer == "softmax" else "state"
        self._leave_out(
            mixer,
            f"its {kind} of {needed / 1e9:.1f} GB does not fit in {free / 1e9:.1f} GB of free "
            "memory",
        )
        return False

    def _leave_out(self, mixer: str, reason: str) -> None:
        self.report.leave_out(reason, model=self.name, mixer=mixer, batch=self.batch)

    def _what(self, mixer: str, place: int, part: str) -> dict[str, str | int]:
        return {
            "model": self.name, "mixer": mixer, "batch": self.batch, "position": place,
            "part": part,
        }  # fmt: skip

    def _row(self, mixer: str, place: int, part: str) -> Row:
        row = self.report.find(**self._what(mixer, place, part))
        assert row is not None, "timed just before"
        return row


def _paper_model(name: str, mixer: str) -> PixelModel:
    torch.manual_seed(0)
    return MODELS[name](mixer)
