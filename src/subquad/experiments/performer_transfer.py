"""FAVOR+ put into a pretrained model: what it costs at the swap, and how training gives it back.

Source    Choromanski et al. 2021, section 4.3 and Figure 5 (backward compatibility): weights of a
          pretrained transformer are copied into a Performer, which is then fine-tuned.
Claim     On LM1B the accuracy starts at 0.07 after the copy, and recovers in a small fraction of
          the original steps, with trigonometric features too; on PG-19 features that are drawn anew
          reach the transformer, fixed ones do not. Figure 5 is a plot without further numbers.
Expected  A collapse at the swap, and most of the accuracy back after some hundred steps; fewer
          where attention is first matched, layer by layer.
Cost      smoke: seconds, on a tiny random model and made-up chains. laptop: 6 rows, meant for 10
          minutes each on 2 CPU cores. long: the same for longer. paper: a GPU. --estimate says what
          a scale costs here.
Command   subquad run performer-transfer --scale laptop
Differs   AntiBERTy (Ruffolo et al. 2021), 26 M parameters, in place of their language models, on
          heavy chains simulated by AIRRSHIP, tested on V genes that were held out from the
          fine-tuning; AntiBERTy itself is likely to have seen them in its own training. Attention
          is matched before the fine-tuning (Zhang et al. 2024), which the paper does not do; one
          row goes without. All guessed residues are masked, in batches of 8 chains. Besides: the
          sentence similarities of MiniLM with FAVOR+ swapped in, against the number of features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from subquad.experiments.options import TrainedRowsOptions, TrainOptions, at_least
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale


@dataclass(frozen=True, kw_only=True)
class TransferOptions(TrainedRowsOptions):
    """Options of performer-transfer; --max-steps and --minutes are those of a row."""

    weights: Literal["antiberty", "tiny"]
    """The pretrained model; see subquad data. tiny is a small random one on made-up chains."""
    num_features: int
    """Random directions of a layer."""
    redraw_every: int
    """Steps between new directions, in the row that draws them anew."""
    transfer_steps: int
    """Steps of a row in which attention is matched, the first ones."""

    def __post_init__(self) -> None:
        for name, least in (("num_features", 1), ("redraw_every", 1), ("transfer_steps", 1)):
            at_least(self, name, least)
        steps = self.train.max_steps
        if steps is not None and self.transfer_steps >= steps:
            raise ValueError(
                f"transfer_steps must be below max_steps = {steps}, got {self.transfer_steps}"
            )


STEPS: dict[Scale, int] = {"smoke": 4, "laptop": 300, "long": 1000, "paper": 10_000}


def preset(scale: Scale, mixer: MixerName) -> TransferOptions:
    """Return the options of ``scale``; the rows are all kinds of features."""
    steps, smoke = STEPS[scale], scale == "smoke"
    return TransferOptions(
        scale=scale,
        weights="tiny" if smoke else "antiberty",
        num_features=16 if smoke else 256,
        redraw_every=2 if smoke else 20,
        transfer_steps=steps // 3 if not smoke else 2,
        train=TrainOptions(
            max_steps=steps,
            batch_size=8,
            optimizer="adamw",
            lr=2e-4,
            schedule="cosine",
            warmup_steps=1 if smoke else 10,
            clip_norm=1.0,
            log_every=1 if smoke else 10,
            eval_every=2 if smoke else max(20, steps // 15),
            checkpoint_every=2 if smoke else 100,
        ),
    )


def run(options: TransferOptions, folder: Path, say: Say) -> Json:
    """Swap, train and test each row; return the results."""
    from subquad.experiments.performer_transfer_run import run_transfer

    return run_transfer(options, folder, say)


def estimate(options: TransferOptions) -> Json:
    """Return what ``run`` would cost; as if each step were one in which attention is matched."""
    from subquad.experiments.performer_transfer_run import transfer_rows
    from subquad.experiments.rows import estimate_rows

    return estimate_rows(transfer_rows(options))


EXPERIMENT = Experiment(
    name="performer-transfer",
    summary="FAVOR+ swapped into AntiBERTy: accuracy at the swap, and its recovery by training",
    options=TransferOptions,
    preset=preset,
    run=run,
    estimate=estimate,
)
