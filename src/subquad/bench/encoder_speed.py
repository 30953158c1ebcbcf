"""Time and memory of a whole encoder, linear beside softmax: python -m subquad.bench.encoder_speed

The model is the example in the linear transformer's released code: 12 layers, 12 heads of 64,
d_ff 3072, on input (10, 4000, 768), in inference mode. Each mixer runs in a process of its own, so
that one's memory does not count for the other. One to two minutes each on one CPU core. With
``--out FILE.json`` the numbers are also written to a file, beside where they were measured.
Source: Katharopoulos et al. 2020 and the documentation of their package.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from subquad.environment import environment
from subquad.files import atomic_write_json
from subquad.models import TransformerEncoder


@dataclass(frozen=True, kw_only=True)
class EncoderSize:
    """Input (batch_size, seq_len, d_model) and the encoder that takes it."""

    batch_size: int = 10
    seq_len: int = 4000
    d_model: int = 768
    num_layers: int = 12
    num_heads: int = 12
    d_ff: int = 3072


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One forward pass.

    ``cpu_seconds`` are those of this process, over all threads: near ``threads * seconds`` if
    nothing else was running. ``peak_bytes`` is what was needed on top of the model and its input.
    """

    mixer: str
    device: str
    threads: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(mixer: str, size: EncoderSize, *, device: str = "cpu") -> Measurement:
    """Run one forward pass in this process.

    On a CPU the peak is that of the process, so call this once in a process (``measure_apart``).

    Raises:
        RuntimeError: if the outputs are not finite.
    """
    model = TransformerEncoder(
        size.d_model,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        d_ff=size.d_ff,
        mixer=mixer,
    )
    model = model.to(device).eval()
    x = torch.randn(size.batch_size, size.seq_len, size.d_model, device=device)
    with torch.inference_mode():
        model(x[:1, :16])
        before = _peak_bytes(device)
        start, cpu_start = time.perf_counter(), time.process_time()
        finite = bool(torch.isfinite(model(x)).all())
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    if not finite:
        raise RuntimeError(f"mixer {mixer} gave outputs that are not finite")
    return Measurement(
        mixer=mixer,
        device=device,
        threads=torch.get_num_threads(),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_bytes=_peak_bytes(device) - before,
    )


def measure_apart(mixer: str, size: EncoderSize, *, device: str = "cpu") -> Measurement:
    """Run ``measure`` in a process of its own.

    Raises:
        subprocess.CalledProcessError: if that process fails.
    """
    command = [sys.executable, "-m", "subquad.bench.encoder_speed", "--child", mixer]
    command += ["--size", json.dumps(asdict(size)), "--device", device]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return Measurement(**json.loads(finished.stdout.splitlines()[-1]))


def table(measurements: Sequence[Measurement], size: EncoderSize) -> str:
    """Return the measurements as a Markdown table."""
    first = measurements[0]
    lines = [
        f"{size.num_layers} layers, {size.num_heads} heads, d_ff {size.d_ff}, input "
        f"({size.batch_size}, {size.seq_len}, {size.d_model}), float32, {first.device}, "
        f"{first.threads} threads",
        "",
        "| mixer | seconds | CPU seconds | peak memory, MB |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {m.mixer} | {m.seconds:.1f} | {m.cpu_seconds:.1f} | {m.peak_bytes / 1e6:.0f} |"
        for m in measurements
    ]
    return "\n".join(lines)


def results(measurements: Sequence[Measurement], size: EncoderSize) -> dict[str, Any]:
    """Return sizes, measurements and where they were made, ready for JSON."""
    return {
        "size": asdict(size),
        "measurements": [asdict(measured) for measured in measurements],
        "environment": environment(),
    }


def _peak_bytes(device: str) -> int:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write a table.

    Raises:
        OSError: if the file given by ``--out`` cannot be written.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mixers", nargs="+", default=["linear", "softmax"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the numbers here")
    parser.add_argument("--size", type=json.loads, default={}, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    size = EncoderSize(**options.size)
    if options.child is not None:
        measured = measure(options.child, size, device=options.device)
        sys.stdout.write(json.dumps(asdict(measured)) + "\n")
        return
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)  # before the minutes of measuring
    measurements = [measure_apart(mixer, size, device=options.device) for mixer in options.mixers]
    sys.stdout.write(table(measurements, size) + "\n")
    if options.out is not None:
        atomic_write_json(options.out, results(measurements, size))


if __name__ == "__main__":
    main()
