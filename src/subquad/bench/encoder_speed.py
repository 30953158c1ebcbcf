"""Time and memory of a whole encoder, linear beside softmax: ``subquad bench encoder``.

The model is the example in the linear transformer's released code: 12 layers, 12 heads of 64,
d_ff 3072, on input (10, 4000, 768), in inference mode. Each mixer makes one forward pass for the
time, and on a CPU another for the memory, in a process of its own; each takes one to two minutes
on one CPU core.
Source: Katharopoulos et al. 2020 and the documentation of their package.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from subquad.bench.memory import measured_apart, peak_bytes
from subquad.bench.options import EncoderOptions, EncoderSize
from subquad.bench.tables import Table
from subquad.bench.timing import threads, wait
from subquad.environment import environment
from subquad.layers import MIXERS
from subquad.models import TransformerEncoder


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One forward pass.

    ``cpu_seconds`` are those of this process, over all threads: near ``threads * seconds`` if
    nothing else was running. ``peak_bytes`` is what was needed on top of the model and its input,
    None if that was not measured or could not be.
    """

    mixer: str
    device: str
    threads: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int | None


def measure_encoder(options: EncoderOptions) -> Iterator[Measurement]:
    """Yield a measurement for each mixer, as they come.

    Raises:
        ValueError: if a mixer is unknown.
        RuntimeError: if outputs are not finite.
    """
    for mixer in options.mixers:
        if mixer not in MIXERS:
            raise ValueError(f"mixers must be among {', '.join(MIXERS)}, got {mixer!r}")
    for mixer in options.mixers:
        measured = _timed(mixer, options)
        if options.has_memory:
            measured = replace(measured, peak_bytes=_peak(mixer, options))
        yield measured


def memory_in_this_process(job: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Measure the peak of one pass beyond model and input; see ``child``."""
    given = job["options"]
    options = EncoderOptions(**{**given, "size": EncoderSize(**given["size"])})
    with threads(options.threads), torch.inference_mode():
        tell({"peak_bytes": peak_bytes(_forward(job["mixer"], options), options.device)})


def encoder_table(measurements: Sequence[Measurement], size: EncoderSize) -> Table:
    """Return the measurements, at least one, as a table."""
    first = measurements[0]
    return Table(
        title="one forward pass of an encoder",
        note=f"{size.num_layers} layers, {size.num_heads} heads, d_ff {size.d_ff}, input "
        f"({size.batch_size}, {size.seq_len}, {size.d_model}), float32, {first.device}, "
        f"{first.threads} threads",
        header=("mixer", "seconds", "CPU seconds", "peak memory, MB"),
        rows=[
            (
                m.mixer,
                f"{m.seconds:.1f}",
                f"{m.cpu_seconds:.1f}",
                "" if m.peak_bytes is None else f"{m.peak_bytes / 1e6:.0f}",
            )
            for m in measurements
        ],
    )


def results(measurements: Sequence[Measurement], size: EncoderSize) -> dict[str, Any]:
    """Return sizes, measurements and where they were made, ready for JSON."""
    return {
        "size": asdict(size),
        "measurements": [asdict(measured) for measured in measurements],
        "environment": environment(),
    }


def _forward(mixer: str, options: EncoderOptions) -> Callable[[], Tensor]:
    """Return one forward pass, after a small one that loads what a first call loads."""
    size = options.size
    model = TransformerEncoder(
        size.d_model,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        d_ff=size.d_ff,
        mixer=mixer,
    )
    model = model.to(options.device).eval()
    x = torch.randn(size.batch_size, size.seq_len, size.d_model, device=options.device)
    model(x[:1, :16])

    def run() -> Tensor:
        y: Tensor = model(x)
        return y

    return run


def _timed(mixer: str, options: EncoderOptions) -> Measurement:
    with threads(options.threads), torch.inference_mode():
        run = _forward(mixer, options)
        wait(options.device)
        start, cpu_start = time.perf_counter(), time.process_time()
        y = run()
        wait(options.device)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        if not bool(torch.isfinite(y).all()):
            raise RuntimeError(f"mixer {mixer} gave outputs that are not finite")
        return Measurement(
            mixer=mixer,
            device=options.device,
            threads=torch.get_num_threads(),
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            peak_bytes=None,
        )


def _peak(mixer: str, options: EncoderOptions) -> int | None:
    job = {"kind": "encoder", "options": asdict(replace(options, mixers=(mixer,))), "mixer": mixer}
    found: list[dict[str, Any]] = []
    if options.device == "cpu":
        found.extend(measured_apart(job))
    else:
        memory_in_this_process(job, found.append)
    return int(found[0]["peak_bytes"]) if found else None
