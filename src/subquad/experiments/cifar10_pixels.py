"""CIFAR-10, byte by byte: images of 3,072 numbers, where the length of the sequence tells.

Source    Katharopoulos et al. 2020, "Transformers are RNNs", section 4.2.2, Tables 2, 4 and 5.
Claim     3.40 bits/dim with linear attention, 3.47 with softmax, after equal days of training;
          17.85 images/s against 0.004.
Expected  paper scale: near 3.4 bits/dim. laptop and long scale: far from it, since so short a
          training has few steps on images of this length.
Cost      smoke: seconds. laptop: 15 minutes of training a mixer, meant for 2 CPU cores. long: 45
          minutes. paper: 7 days on one GPU were the paper's. --estimate says what it costs here.
Command   subquad run cifar10-pixels --data-folder FOLDER --mixer linear --scale laptop
Differs   The learning rate and batch are the released command's (2e-4, 10; 100 epochs); the paper
          trained for 7 days with batches of 4 and, for softmax, 1. Our softmax keeps a KV cache.
          Initial values and the recipe of laptop and long differ as in mnist_pixels.
          The smoke scale uses embedded digits, because CIFAR-10 comes in no package.
"""

from dataclasses import replace

from subquad.experiments import mnist_pixels
from subquad.experiments.options import ModelOptions, PixelOptions, TrainOptions, suited_to
from subquad.experiments.paper_tables import TABLE_2, TABLE_4_CIFAR
from subquad.experiments.spec import Experiment, MixerName, Scale

EPOCH = 50_000  # training images

MODELS: dict[Scale, ModelOptions] = {
    "smoke": mnist_pixels.MODELS["smoke"],
    "laptop": mnist_pixels.MODELS["laptop"],
    "long": mnist_pixels.MODELS["laptop"],
    "paper": replace(mnist_pixels.MODELS["paper"], num_layers=16),
}

TRAINING: dict[Scale, TrainOptions] = {
    "smoke": mnist_pixels.TRAINING["smoke"],
    "laptop": replace(mnist_pixels.TRAINING["laptop"], batch_size=8, eval_every=200),
    "long": replace(mnist_pixels.TRAINING["long"], batch_size=8, eval_every=200),
    "paper": replace(
        mnist_pixels.TRAINING["paper"], max_steps=100 * EPOCH // 10, batch_size=10, lr=2e-4
    ),
}


def preset(scale: Scale, mixer: MixerName) -> PixelOptions:
    """Return the options of ``scale``; all mixers get the same recipe."""
    smoke = scale == "smoke"
    return PixelOptions(
        scale=scale,
        mixer=mixer,
        data="embedded-mnist" if smoke else "cifar10",
        half_size=smoke,
        samples=4 if smoke else 16,
        completions=2 if smoke else 8,
        model=suited_to(mixer, MODELS[scale]),
        train=TRAINING[scale],
    )


EXPERIMENT = Experiment(
    name="cifar10-pixels",
    summary="the same on CIFAR-10, 3,072 bytes an image (Tables 2, 4, 5)",
    options=PixelOptions,
    preset=preset,
    run=mnist_pixels.run,
    estimate=mnist_pixels.estimate,
    claims={
        "linear": (
            TABLE_2.claim("linear", "bits/dim", "after 7 days on one GPU"),
            TABLE_2.claim("linear", "images/s", "one GPU, largest batch"),
        ),
        "softmax": (
            TABLE_2.claim("softmax", "bits/dim", "after 7 days on one GPU"),
            TABLE_4_CIFAR.claim("stateful softmax", "images/s", "one GPU, with a KV cache"),
        ),
    },
)
