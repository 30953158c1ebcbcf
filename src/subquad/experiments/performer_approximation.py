"""How well does FAVOR+ approximate softmax attention, and does theory say how well?

Source    Choromanski et al. 2021, Figures 4 and 14, equation 8 (Lemma 2), Theorems 1 and 2.
Claim     Orthogonal directions err less than iid ones and positive features less than
          trigonometric ones (Figure 4, a plot without numbers); Lemma 2's mean squared errors;
          Theorem 1's ratio of the regularised kernel; Theorem 2's bound for m <= d; an error that
          grows with the number of layers (Figure 14, without numbers).
Expected  The order of Figure 4; the formulas within the noise of drawing; a bound that holds.
Cost      smoke: seconds. laptop: about 3 minutes on one CPU core. long and paper: more draws.
Command   subquad run performer-approximation --scale laptop
Differs   The paper does not say how its inputs are normalised; here every query and key has the
          length --norm, in a direction that is uniform, and values are normal. Figure 4 is drawn
          against the number of features, for that is what attention costs: "positive" has one of
          each direction, the others two. Equation 8 is checked only where drawing can: the squared
          error of positive features at pairs far from each other's opposite has tails that no
          number of draws reaches.
"""

from dataclasses import dataclass
from pathlib import Path

from subquad.experiments.options import at_least
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale
from subquad.experiments.tables_report import MeasureOptions, numbers


@dataclass(frozen=True, kw_only=True)
class PerformerApproximationOptions(MeasureOptions):
    """Options of performer-approximation."""

    seq_len: int
    """Tokens of Figure 4."""
    head_dim: int = 16
    """Width of queries, keys and values of Figure 4."""
    norm: float = 2.0
    """Length of each query and key, before the scale; 2 is length 1 after it at width 16."""
    num_features: str
    """Numbers of features, even and rising, with commas between."""
    repetitions: int
    """Inputs, each with its own draw of the directions."""
    draws: int
    """Directions drawn for each check of a formula."""
    num_layers: int
    """Layers of the random Transformer of Figure 14."""
    depth_seq_len: int
    """Its tokens."""
    depth_draws: int
    """Its Performer copies, for each number of features."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seq_len", "head_dim", "num_layers", "depth_seq_len", "depth_draws"):
            at_least(self, name, 1)
        at_least(self, "repetitions", 2)
        at_least(self, "draws", 100)
        if not self.norm > 0:
            raise ValueError(f"norm must be above 0, got {self.norm:g}")
        if any(count % 2 for count in self.counts):
            raise ValueError(f"num_features must be even, got {self.num_features!r}")

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of features."""
        return numbers("num_features", self.num_features, least=2)


def preset(scale: Scale, mixer: MixerName) -> PerformerApproximationOptions:
    """Return the options of ``scale``; there is nothing to choose a mixer for."""
    smoke = scale == "smoke"
    draws: dict[Scale, int] = {
        "smoke": 500, "laptop": 200_000, "long": 1_000_000, "paper": 1_000_000,
    }  # fmt: skip
    return PerformerApproximationOptions(
        scale=scale,
        seq_len=64 if smoke else 4096,
        num_features="4,8" if smoke else "8,16,32,64,128,256,512",
        repetitions=2 if smoke else 15,
        draws=draws[scale],
        num_layers=2 if smoke else 12,
        depth_seq_len=16 if smoke else 512,
        depth_draws=1 if smoke else 5,
    )


def run(options: PerformerApproximationOptions, folder: Path, say: Say) -> Json:
    """Measure; return the results."""
    from subquad.experiments.performer_approximation_run import run_approximation

    return run_approximation(options, folder, say)


def estimate(options: PerformerApproximationOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.performer_approximation_run import estimate_approximation

    return estimate_approximation(options)


EXPERIMENT = Experiment(
    name="performer-approximation",
    summary="FAVOR+ beside softmax: Figures 4 and 14, and the theorems held against draws",
    options=PerformerApproximationOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # and no claims: the figures are plots without numbers
)
