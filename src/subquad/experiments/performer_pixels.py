"""Images as sequences of bytes: Performers beside elu + 1 and exact softmax, up to 12,288 bytes.

Source    Choromanski et al. 2021, "Rethinking Attention with Performers", section 4.5 (ImageNet64),
          Figures 7 (left) and 15.
Claim     At 12,288 tokens a Performer-ReLU of 6 layers ends as low as a Reformer of 12: after
          100,000 steps 3.67 bits a byte, softmax features 3.69. On ImageNet64, so no claim that
          other pictures could be held against.
Expected  laptop: on MNIST elu + 1 ahead, which has the fewest features and so sees the most images;
          softmax near it. On drawings exact softmax takes some dozen steps where the others take
          hundreds, and is far behind for that reason.
Cost      smoke: seconds. laptop: 4 rows of 5 minutes on MNIST and 4 of 4 minutes on drawings, on 2
          CPU cores, and some minutes of testing. long: 4 rows of 45 and 4 of 30 minutes. paper: a
          GPU. --estimate says what a scale costs here.
Command   subquad run performer-pixels --scale laptop
Differs   MNIST besides, which the paper does not have. Drawings of the Open Clip Art Library in
          place of photographs: flat colours on white, so bits a byte are low and not ImageNet64's.
          One drawing a step at every scale. A mixture of logistics a byte, where the paper has 256
          classes. Equal minutes, not equal updates, but at the paper scale.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments import mnist_pixels
from subquad.experiments.language_options import PerformerPixelsOptions
from subquad.experiments.options import ModelOptions, TrainOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale

MODELS: dict[Scale, ModelOptions] = {
    "smoke": replace(mnist_pixels.MODELS["smoke"], d_model=16, d_ff=32),
    "laptop": mnist_pixels.MODELS["laptop"],
    "long": mnist_pixels.MODELS["laptop"],
    "paper": replace(
        mnist_pixels.MODELS["laptop"], num_layers=6, num_heads=8, d_model=512, d_ff=2048
    ),
}
TRAINING: dict[Scale, TrainOptions] = {
    "smoke": replace(mnist_pixels.TRAINING["smoke"], max_steps=4, batch_size=4, eval_every=2),
    "laptop": replace(mnist_pixels.TRAINING["laptop"], minutes=5.0),
    "long": mnist_pixels.TRAINING["long"],
    "paper": replace(
        mnist_pixels.TRAINING["laptop"], minutes=None, max_steps=100_000, batch_size=32, lr=1e-3
    ),
}
DRAWING_MINUTES: dict[Scale, float] = {"laptop": 4.0, "long": 30.0}  # the others count steps
IMAGE_TESTS: dict[Scale, int] = {"smoke": 8, "laptop": 2000, "long": 10_000, "paper": 10_000}
DRAWING_TESTS: dict[Scale, int] = {"smoke": 2, "laptop": 16, "long": 64, "paper": 800}


def preset(scale: Scale, mixer: MixerName) -> PerformerPixelsOptions:
    """Return the options of ``scale``; ``mixer`` plays no part, the rows have their own."""
    smoke = scale == "smoke"
    return PerformerPixelsOptions(
        scale=scale,
        data="embedded-mnist" if smoke else "mnist",
        half_size=smoke,
        attentions="softmax,relu,favor+,elu+1",
        num_features=256 if scale == "paper" else None,
        drawings="made-up" if smoke else "clipart",
        drawing_minutes=DRAWING_MINUTES.get(scale, 1.0),
        image_tests=IMAGE_TESTS[scale],
        drawing_tests=DRAWING_TESTS[scale],
        model=MODELS[scale],
        train=TRAINING[scale],
    )


def run(options: PerformerPixelsOptions, folder: Path, say: Say) -> Json:
    """Train and test the rows; return the results."""
    from subquad.experiments.performer_pixels_run import run_performer_pixels

    return run_performer_pixels(options, folder, say)


def estimate(options: PerformerPixelsOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.performer_pixels_run import blank_pictures, pixel_rows
    from subquad.experiments.rows import estimate_rows

    return estimate_rows(pixel_rows(options, blank_pictures(options)))


EXPERIMENT = Experiment(
    name="performer-pixels",
    summary="Performers, elu + 1 and softmax on MNIST and on pictures of 12,288 bytes",
    options=PerformerPixelsOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # and no claims: see the head
)
