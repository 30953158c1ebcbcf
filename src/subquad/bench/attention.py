"""Time and memory of attention operators against sequence length: the paper's Figure 1.

All operators are timed in turn, round after round, together with a matrix product and a copy, so
that ratios between them hold even on a machine whose speed wanders.
Source: Katharopoulos et al. 2020, Figure 1 and section 4.1.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from subquad.bench.check import OTHER_DIRECTION, Verdict, check_mechanism
from subquad.bench.machine import PROBE_NAMES, Probes, linear_roofline_seconds
from subquad.bench.mechanisms import Mechanism, mechanisms, select
from subquad.bench.memory import measured_apart, peak_bytes
from subquad.bench.options import AttentionOptions
from subquad.bench.results import Report, Row, spread
from subquad.bench.summary import summarize
from subquad.bench.timing import Progress, Run, interleave, threads

FORWARD, BOTH = "forward", "forward+backward"
PASSES = (FORWARD, BOTH)
STEEPEST = 2.5  # one slow moment must not leave an operator out of all that follows
MEMORY_SHARE = 3  # what a memory measurement costs, in timed calls


def measure_attention(
    options: AttentionOptions,
    report: Report,
    *,
    progress: Progress | None = None,
    table: Mapping[str, Mechanism] | None = None,
) -> None:
    """Fill ``report``; after a KeyboardInterrupt it holds what was measured until then.

    Args:
        options: sizes, repetitions and limits.
        report: ``new_report(options)``.
        progress: told of work planned and done.
        table: operators by name (default: ``mechanisms()``). Memory is measured of those in the
            default table only, because another process must be able to find them.

    Raises:
        ValueError: if a mechanism is unknown or none can run.
    """
    own = dict(mechanisms() if table is None else table)
    names = select(options.mechanisms or own, own)
    progress = progress or Progress()
    with threads(options.threads):
        for name in list(names):
            reason, error = _verdict(own[name], options)
            if reason is None:
                report.machine.setdefault("error", {})[name] = error
            else:
                names.remove(name)
                if options.mechanisms or not reason.startswith(OTHER_DIRECTION):
                    report.leave_out(reason, mechanism=name)
        if not names:
            reasons = "; ".join(f"{x['mechanism']} {x['reason']}" for x in report.left_out)
            raise ValueError(f"mechanisms must hold one that runs here, got {reasons}")
        session = _Session(options, report, {name: own[name] for name in names}, progress)
        try:
            session.time_all()
            if options.has_memory and table is None:
                session.measure_memory()
        finally:
            report.summary = summarize(report)


def new_report(options: AttentionOptions, kind: str = "attention") -> Report:
    """Return an empty report for these options."""
    return Report(kind=kind, options=asdict(options))


def inputs(options: AttentionOptions, seq_len: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v that want gradients."""
    dtype = getattr(torch, options.dtype)
    shape = (options.batch, options.heads, seq_len, options.head_dim)
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(shape, generator=generator) for _ in range(3))
    q, k, v = (x.to(options.device, dtype).requires_grad_() for x in drawn)
    return q, k, v


def call(mechanism: Mechanism, which: str, qkv: tuple[Tensor, ...], is_causal: bool) -> Run:
    """Return a function that runs the operator once, forward or forward and backward."""
    q, k, v = qkv
    mechanism.prepare(q)
    upstream = torch.ones_like(v)

    def forward() -> Tensor:
        with torch.no_grad():
            return mechanism.attend(q, k, v, is_causal)

    def both() -> tuple[Tensor | None, ...]:
        y = mechanism.attend(q, k, v, is_causal)
        return (y, *torch.autograd.grad(y, (q, k, v), upstream, allow_unused=True))

    return forward if which == FORWARD else both


def memory_in_this_process(job: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Measure the peak of one mechanism at each (pass, length) of a job; see ``child``."""
    options = AttentionOptions(**{**job["options"], "lengths": tuple(job["options"]["lengths"])})
    mechanism = mechanisms()[job["mechanism"]]
    with threads(options.threads):
        call(mechanism, BOTH, inputs(options, 64), options.is_causal)()
        for which, seq_len in job["cells"]:
            run = call(mechanism, which, inputs(options, seq_len), options.is_causal)
            peak = peak_bytes(run, options.device)
            tell({"pass": which, "seq_len": seq_len, "peak_bytes": peak})


def _verdict(mechanism: Mechanism, options: AttentionOptions) -> Verdict:
    return check_mechanism(
        mechanism,
        is_causal=options.is_causal,
        device=options.device,
        dtype=getattr(torch, options.dtype),
        head_dim=options.head_dim,
    )


class _Session:
    """One run of the benchmark: the operators that can run here, and what was found so far."""

    def __init__(
        self,
        options: AttentionOptions,
        report: Report,
        table: dict[str, Mechanism],
        progress: Progress,
    ) -> None:
        self.options, self.report, self.table, self.progress = options, report, table, progress
        self.probes = Probes(options.device, getattr(torch, options.dtype))
        for seq_len in options.lengths:
            for mechanism in table.values():
                for which in PASSES:
                    progress.plan(self._cost(mechanism, which, seq_len) * self._calls())

    def time_all(self) -> None:
        """Time every operator at every length, shortest first."""
        for seq_len in self.options.lengths:
            for which in PASSES:
                self._time(which, seq_len)

    def _time(self, which: str, seq_len: int) -> None:
        chosen = self._affordable(which, seq_len)
        if not chosen:
            return
        qkv = inputs(self.options, seq_len)
        runs = {name: call(self.table[name], which, qkv, self.options.is_causal) for name in chosen}
        samples: dict[str, list[float]] = {}

        def on_sample(name: str) -> None:
            if name in chosen:
                label = f"{name}, {which}, T = {seq_len:,}"
                self.progress.advance(self._cost(self.table[name], which, seq_len), label)

        def on_failure(name: str, error: Exception) -> None:
            if name not in chosen:
                raise error
            reason = f"failed: {' '.join(str(error).split())[:200]}"
            self.report.leave_out(reason, mechanism=name, seq_len=seq_len, **{"pass": which})

        try:
            interleave(
                {**runs, **self.probes.runs()},
                samples,
                device=self.options.device,
                repetitions=self.options.repetitions,
                seconds=self.options.seconds,
                on_sample=on_sample,
                on_failure=on_failure,
            )
        finally:
            self._record(which, seq_len, samples)
            for name in chosen:
                rest = self.options.repetitions - len(samples.get(name, []))
                self.progress.drop(self._cost(self.table[name], which, seq_len) * rest)

    def _affordable(self, which: str, seq_len: int) -> list[str]:
        """Return the operators expected to keep the limit; note the others as left out."""
        chosen = []
        for name in self.table:
            expected = predicted_seconds(self.report, name, which, seq_len)
            if expected is None or expected <= self.options.limit:
                chosen.append(name)
                continue
            self.report.leave_out(
                f"would take about {expected:.0f} s a call, more than the limit of "
                f"{self.options.limit:g} s",
                mechanism=name, seq_len=seq_len, **{"pass": which},
            )  # fmt: skip
            self.progress.drop(self._cost(self.table[name], which, seq_len) * self._calls())
        return chosen

    def _record(self, which: str, seq_len: int, samples: dict[str, list[float]]) -> None:
        """Write rows for what was sampled, with the roofline's share where it applies."""
        probes = {name: samples.pop(name) for name in PROBE_NAMES if name in samples}
        rates = None
        if len(probes) == len(PROBE_NAMES):
            gemm, copy = (spread(probes[name]).median for name in PROBE_NAMES)
            rates = self.probes.rates(gemm, copy)
            self.report.machine.setdefault("rates", []).append(
                {
                    "pass": which,
                    "seq_len": seq_len,
                    "gemm_gflops": rates.gemm / 1e9,
                    "copy_gb_per_s": rates.copy / 1e9,
                }
            )
        for name in (name for name in self.table if samples.get(name)):
            row = Row(
                what={"mechanism": name, "pass": which, "seq_len": seq_len},
                seconds=spread(samples[name]),
            )
            if rates is not None and self.table[name].is_linear:
                o = self.options
                least = linear_roofline_seconds(
                    rates,
                    seq_len=seq_len, batch=o.batch, heads=o.heads,
                    key_dim=o.head_dim, value_dim=o.head_dim,
                    element_bytes=getattr(torch, o.dtype).itemsize, is_backward=which == BOTH,
                )  # fmt: skip
                row.more["roofline_share"] = least / row.seconds.median
            self.report.rows.append(row)

    def measure_memory(self) -> None:
        """Add the peak memory to each row, in one process for each operator."""
        for name, mechanism in self.table.items():
            rows = [row for row in self.report.rows if row.what["mechanism"] == name]
            cells = [(str(row.what["pass"]), int(row.what["seq_len"])) for row in rows]
            job = {
                "kind": "attention",
                "options": asdict(self.options),
                "mechanism": name,
                "cells": cells,
            }
            for row, found in zip(rows, self._peaks(mechanism, job), strict=False):
                row.more["peak_bytes"] = found["peak_bytes"]
                row.more["peak_bytes_per_sample"] = found["peak_bytes"] / self.options.batch
                cost = self._cost(mechanism, found["pass"], found["seq_len"])
                self.progress.advance(cost * MEMORY_SHARE, f"memory of {name}")
            for row in rows:
                if "peak_bytes" not in row.more:
                    self.report.leave_out("its memory could not be measured", **row.what)

    def _peaks(self, mechanism: Mechanism, job: dict[str, Any]) -> Any:
        if not self.options.device.startswith("cuda"):
            return measured_apart(job)
        found: list[dict[str, Any]] = []
        memory_in_this_process(job, found.append)
        return found

    def _calls(self) -> int:
        return self.options.repetitions + (MEMORY_SHARE if self.options.has_memory else 0)

    @staticmethod
    def _cost(mechanism: Mechanism, which: str, seq_len: int) -> float:
        return mechanism.cost(seq_len) * (3.0 if which == BOTH else 1.0)


def predicted_seconds(report: Report, name: str, which: str, seq_len: int) -> float | None:
    """Predict a call's time from the last two lengths; from one with T^2; None from nothing."""
    known = [
        (int(row.what["seq_len"]), row.seconds.median)
        for row in report.rows
        if row.what["mechanism"] == name and row.what["pass"] == which
    ]
    if not known:
        # Not measured before because it was too slow, or because this is the first length.
        skipped = any(x.get("mechanism") == name and x.get("pass") == which
                      for x in report.left_out)  # fmt: skip
        return math.inf if skipped else None
    length, seconds = known[-1]
    slope = 2.0
    if len(known) > 1:
        before, was = known[-2]
        slope = math.log(seconds / was) / math.log(length / before)
        slope = min(max(0.0, slope), STEEPEST)
    predicted: float = seconds * (seq_len / length) ** slope
    return predicted
