"""The training step of a pixel model with several mixers, in turn: images/s, parts, memory.

Source of the model: Katharopoulos et al. 2020, section 4.2. The optimiser is torch's RAdam.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from subquad.bench.memory import measured_apart, peak_bytes
from subquad.bench.options import TrainOptions
from subquad.bench.results import Report, Row, spread
from subquad.bench.timing import Progress, interleave, threads
from subquad.layers import MIXERS
from subquad.models import PixelModel
from subquad.models.stack import POSITIONS

PROFILE_ROWS = 20
BASELINE = "softmax"


class TrainingStep:
    """A model with its batch and optimiser; each part of a step can be run alone."""

    def __init__(self, options: TrainOptions, mixer: str) -> None:
        torch.manual_seed(0)
        config: dict[str, Any] = {
            "num_layers": options.layers,
            "num_heads": options.heads,
            "positions": options.positions,
        }
        model = PixelModel(options.seq_len, d_model=options.width, mixer=mixer, **config)
        self.model = model.to(options.device)
        shape = (options.batch, options.seq_len)
        self.pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(options.device)
        self.optimizer = torch.optim.RAdam(self.model.parameters(), lr=1e-5, foreach=True)
        self._device, self._dtype = options.device, getattr(torch, options.dtype)

    def forward(self) -> Tensor:
        """Return the loss."""
        narrow = self._dtype != torch.float32
        with torch.autocast(self._device, dtype=self._dtype, enabled=narrow):
            return self.model.nll(self.pixels).mean()

    def forward_backward(self) -> None:
        """Compute the gradients."""
        self.optimizer.zero_grad()
        self.forward().backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Make one update of the weights."""
        self.forward_backward()
        self.optimizer.step()


def new_report(options: TrainOptions) -> Report:
    """Return an empty report for these options."""
    return Report(kind="train", options=asdict(options))


def measure_train(
    options: TrainOptions, report: Report, *, progress: Progress | None = None
) -> None:
    """Fill ``report``; after a KeyboardInterrupt it holds what was measured until then.

    Raises:
        ValueError: if a mixer or the positions are unknown, or the model refuses its numbers.
    """
    check_names(options)
    progress = progress or Progress()
    per_mixer = 2 * options.repetitions + 1
    progress.plan(len(options.mixers) * per_mixer)
    with threads(options.threads):
        steps = {mixer: TrainingStep(options, mixer) for mixer in options.mixers}
        samples: dict[str, list[float]] = {}
        runs: dict[str, Callable[[], object]] = {}
        for mixer, step in steps.items():
            runs[f"{mixer}|step"] = step.step
            runs[f"{mixer}|forward"] = step.forward
        try:
            interleave(
                runs,
                samples,
                device=options.device,
                repetitions=options.repetitions,
                seconds=options.seconds,
                on_sample=lambda name: progress.advance(1, name.replace("|", ", ")),
            )
        finally:
            _record(options, report, samples)
        if options.has_memory:
            _measure_memory(options, report, progress)


def check_names(options: TrainOptions) -> None:
    """Refuse a mixer or positions that do not exist.

    Raises:
        ValueError: naming the first that is unknown.
    """
    for mixer in options.mixers:
        if mixer not in MIXERS:
            raise ValueError(f"mixers must be among {', '.join(MIXERS)}, got {mixer!r}")
    if options.positions not in POSITIONS:
        raise ValueError(
            f"positions must be among {', '.join(POSITIONS)}, got {options.positions!r}"
        )


def profile_text(options: TrainOptions, mixer: str) -> str:
    """Return the torch profiler's table of a few steps, by time spent in the operator itself.

    Raises:
        ValueError: as ``measure_train``.
    """
    check_names(options)
    with threads(options.threads):
        step = TrainingStep(options, mixer)
        step.step()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if options.device == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(3):
                step.step()
    key = f"self_{options.device}_time_total"
    text: str = profiler.key_averages().table(sort_by=key, row_limit=PROFILE_ROWS)
    return text


def memory_in_this_process(job: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Measure the peak of one step beyond weights, optimiser and images; see ``child``."""
    options = TrainOptions(**{**job["options"], "mixers": tuple(job["options"]["mixers"])})
    with threads(options.threads):
        step = TrainingStep(options, job["mixer"])
        tell({"peak_bytes": peak_bytes(step.step, options.device)})


def _record(options: TrainOptions, report: Report, samples: dict[str, list[float]]) -> None:
    for name, times in samples.items():
        mixer, part = name.split("|")
        row = Row(what={"mixer": mixer, "part": part}, seconds=spread(times))
        report.rows.append(row)
    baseline = report.find(mixer=BASELINE, part="step")
    for row in report.rows:
        if row.what["part"] != "step":
            continue
        row.more["images_per_second"] = options.batch / row.seconds.median
        if baseline is not None:
            row.more["faster_than_softmax"] = baseline.seconds.median / row.seconds.median


def _measure_memory(options: TrainOptions, report: Report, progress: Progress) -> None:
    for mixer in options.mixers:
        job = {"kind": "train", "options": asdict(options), "mixer": mixer}
        found: list[dict[str, Any]] = []
        if options.device == "cpu":
            found.extend(measured_apart(job))
        else:
            memory_in_this_process(job, found.append)
        row = report.find(mixer=mixer, part="step")
        if found and row is not None:
            row.more["peak_bytes"] = found[0]["peak_bytes"]
            row.more["peak_bytes_per_sample"] = found[0]["peak_bytes"] / options.batch
        elif not found:
            report.leave_out("its memory could not be measured", mixer=mixer)
        progress.advance(1, f"memory of {mixer}")
