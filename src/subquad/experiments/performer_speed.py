"""How fast is a whole Performer, and how much faster could any attention be?

Source    Choromanski et al. 2021, Figure 3 (and 20, 21).
Claim     None with numbers in the text: time grows almost linearly with the length, and comes
          close to that of a network whose attention returns V alone.
Expected  Softmax is faster on short sequences and slower on long ones; the performer's time over
          that of values only tends to a constant.
Cost      smoke: seconds. laptop: 2 layers, up to 8,192 tokens, about 10 minutes on 2 CPU cores.
          long: 6 layers. paper: the published model up to 32,768 tokens, for a GPU.
Command   subquad run performer-speed --scale laptop
Differs   The paper times batches on a V100 until memory ends; here it is one sequence, on whatever
          machine this is, until a call is expected to take longer than --limit. An encoder over
          float inputs in float32, without an embedding of 256 tokens. Values only: the projections
          of queries and keys are computed and not used. Directions are drawn once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from subquad.experiments.options import at_least
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale
from subquad.experiments.tables_report import MeasureOptions, numbers


@dataclass(frozen=True, kw_only=True)
class PerformerSpeedOptions(MeasureOptions):
    """Options of performer-speed."""

    lengths: str
    """Tokens, rising, with commas between."""
    num_layers: int
    """Layers."""
    num_heads: int
    """Heads of a layer."""
    d_model: int
    """Width of the model."""
    d_ff: int
    """Width of the feed-forward network inside."""
    num_features: int
    """Directions of the performer."""
    repetitions: int
    """Rounds at each length; each times everything once."""
    seconds: float
    """Budget for the rounds of one length; at least three are made."""
    limit: float = 30.0
    """Longest call in seconds; what is expected to take longer is left out."""
    threads: int | None = None
    """Threads of torch (default: its own choice)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "num_layers", "num_heads", "d_model", "d_ff", "num_features", "repetitions", "threads",
        ):  # fmt: skip
            at_least(self, name, 1)
        for name in ("seconds", "limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name):g}")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads must divide d_model ({self.d_model}), got {self.num_heads}"
            )
        numbers("lengths", self.lengths, least=1)


def preset(scale: Scale, mixer: MixerName) -> PerformerSpeedOptions:
    """Return the options of ``scale``; there is nothing to choose a mixer for."""
    if scale == "smoke":
        return PerformerSpeedOptions(
            scale=scale, lengths="16,32", num_layers=1, num_heads=2, d_model=16, d_ff=16,
            num_features=8, repetitions=1, seconds=0.1,
        )  # fmt: skip
    longest = 2**15 if scale == "paper" else 2**13
    return PerformerSpeedOptions(
        scale=scale,
        lengths=",".join(str(2**n) for n in range(8, longest.bit_length())),
        num_layers=2 if scale == "laptop" else 6,
        num_heads=8,
        d_model=512,
        d_ff=2048,
        num_features=256,
        repetitions=9,
        seconds=60.0,
        device="cuda" if scale == "paper" else "cpu",
    )


def run(options: PerformerSpeedOptions, folder: Path, say: Say) -> Json:
    """Measure; return the results."""
    from subquad.experiments.performer_speed_run import run_speed

    return run_speed(options, folder, say)


def estimate(options: PerformerSpeedOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.performer_speed_run import estimate_speed

    return estimate_speed(options)


EXPERIMENT = Experiment(
    name="performer-speed",
    summary="time of a whole encoder against its length: softmax, performer, no attention",
    options=PerformerSpeedOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # and no claims: the figures are plots without numbers
)
