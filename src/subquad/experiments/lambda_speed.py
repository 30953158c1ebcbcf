"""Are LambdaResNets as fast for their accuracy as the paper says: in multiply-adds, in seconds?

Source    Bello 2021, Figure "Speed-accuracy trade-off" (the seconds of a training step of 1,024
          images against accuracy), and the tables of placements (ResNet-50) and of depths; widths
          and sizes of EfficientNets from Tan and Le 2019.
Claim     At equal accuracy LambdaResNets train 3.2 to 4.4 times as fast as EfficientNets (at B7's
          and B6's accuracy), 1.4 to 1.5 times at B0's to B2's, as read off the figure. An
          all-lambda ResNet-50 infers 6.2 times as slowly as the convolutional one, one with lambdas
          in the last two stages 1.5 times. At equal depth, hybrids infer about as fast as ResNets
          with squeeze-excitation.
Expected  EfficientNets have fewer multiply-adds at equal accuracy, and train more slowly in
          seconds, since they do less with each byte. Nothing here trains: accuracies are the
          paper's alone.
Cost      smoke: seconds. laptop: depths 50 to 152 and B0 to B2, about 6 minutes on 2 CPU cores.
          long: all placements, depths to 200 and B0 to B4, about 40 minutes. paper: all depths and
          EfficientNets in bfloat16, for a GPU.
Command   subquad run lambda-speed --scale laptop
Differs   The paper times 8 TPUv3 cores, batches of 1,024 or as many as fit, training in bfloat16;
          its inference is float32. Here it is whatever machine this is, in small batches, and
          float32 on a CPU. The figure does not say which LambdaResNets its small points are: their
          depths and sizes are marked as probable. ResNets of equal depth have the stem and
          shortcuts of the hybrids. Rates of the tables of depths were not read in the paper itself.
          EfficientNets are transformers' and are left out where that is absent. Random weights,
          noise for images; batch-norm is not folded into convolutions.
"""

from pathlib import Path
from typing import NamedTuple

from subquad.experiments.lambda_measure_options import LambdaSpeedOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale

# Images a second at inference, and top-1 accuracy in per cent, by pattern: ResNet-50 at 224 px.
PLACEMENTS: dict[str, tuple[int, float]] = {
    "CCCC": (7240, 76.9), "LCCC": (1880, 77.3), "LLCC": (1280, 77.2), "LLLC": (1160, 77.8),
    "LLLL": (1160, 78.4), "CLLL": (2200, 78.3), "CCLL": (4980, 78.3), "CCCL": (7160, 77.3),
}  # fmt: skip

# The same by depth, for the ResNet, with squeeze-excitation, and the LambdaResNet; the first number
# is the side of the images.
DEPTHS: dict[int, tuple[int, tuple[int, float], tuple[int, float], tuple[int, float]]] = {
    101: (224, (4600, 81.3), (4000, 81.8), (4040, 82.3)),
    152: (256, (2780, 82.5), (2400, 83.0), (2400, 83.4)),
}


class CurvePoint(NamedTuple):
    """Seconds of a training step of 1,024 images, and top-1 accuracy in per cent."""

    seconds: float
    accuracy: float


class Pair(NamedTuple):
    """An EfficientNet's point, and that of the LambdaResNet of nearly the same accuracy.

    ``is_probable`` where the figure does not say which LambdaResNet it is.
    """

    efficientnet: CurvePoint
    depth: int
    image_size: int
    lambdas: CurvePoint
    is_probable: bool


# Read off the figure, by the EfficientNet's number.
CURVE: dict[int, Pair] = {
    0: Pair(CurvePoint(0.09, 77.1), 50, 128, CurvePoint(0.06, 77.4), True),
    1: Pair(CurvePoint(0.15, 79.1), 50, 160, CurvePoint(0.10, 79.2), True),
    2: Pair(CurvePoint(0.21, 80.1), 101, 160, CurvePoint(0.15, 80.8), True),
    3: Pair(CurvePoint(0.34, 81.6), 101, 192, CurvePoint(0.20, 81.85), True),
    4: Pair(CurvePoint(0.72, 82.9), 152, 224, CurvePoint(0.38, 83.2), False),
    5: Pair(CurvePoint(1.51, 83.7), 152, 256, CurvePoint(0.49, 83.75), False),
    6: Pair(CurvePoint(3.01, 84.0), 270, 256, CurvePoint(0.91, 84.25), False),
    7: Pair(CurvePoint(6.03, 84.7), 350, 320, CurvePoint(1.92, 84.7), False),
}


def preset(scale: Scale, mixer: MixerName) -> LambdaSpeedOptions:
    """Return the options of ``scale``; there is nothing to choose a mixer for."""
    if scale == "smoke":
        return LambdaSpeedOptions(
            scale=scale, placements="CCCC,LLLL", depths="50", efficientnets="0", image_size=32,
            width=8, batch_size=2, repetitions=1, seconds=0.1, has_memory=False,
        )  # fmt: skip
    if scale == "laptop":
        return LambdaSpeedOptions(
            scale=scale, placements="CCCC,CCLL,LLLL", depths="50,101,152", efficientnets="0,1,2",
            batch_size=4, repetitions=7, seconds=40.0,
        )  # fmt: skip
    if scale == "long":
        return LambdaSpeedOptions(
            scale=scale, placements=",".join(PLACEMENTS), depths="50,101,152,200",
            efficientnets="0,1,2,3,4", batch_size=8, repetitions=9, seconds=240.0,
        )  # fmt: skip
    return LambdaSpeedOptions(
        scale=scale, placements=",".join(PLACEMENTS), depths="50,101,152,200,270,350,420",
        efficientnets="0,1,2,3,4,5,6,7", batch_size=32, repetitions=9, seconds=30.0,
        device="cuda", dtype="bfloat16", channels_last=True,
    )  # fmt: skip


def run(options: LambdaSpeedOptions, folder: Path, say: Say) -> Json:
    """Measure; return the results."""
    from subquad.experiments.lambda_speed_run import run_lambda_speed

    return run_lambda_speed(options, folder, say)


def estimate(options: LambdaSpeedOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.lambda_speed_run import estimate_lambda_speed

    return estimate_lambda_speed(options)


EXPERIMENT = Experiment(
    name="lambda-speed",
    summary="seconds and multiply-adds of LambdaResNets beside ResNets and EfficientNets",
    options=LambdaSpeedOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # the claims are columns of its tables
)
