"""A Vision Transformer on Fashion-MNIST, from nothing: how good with attention of linear cost?

Source    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; a stem of convolutions and
          sequence pooling for small data as in Hassani et al. 2021, "Escaping the Big Data
          Paradigm with Compact Transformers".
Claim     None on these images: the paper's smallest data set is ImageNet, on which B/16 from
          scratch reaches 77.91 % at 384 pixels.
Expected  laptop: at least 91 % of the test images right with softmax, linear within a point of it.
Cost      smoke: seconds. laptop: 30 minutes of training a mixer, meant for one or two CPU cores.
          long: 2 hours. paper: the paper's B/16 and its recipe for ImageNet from scratch (300
          epochs, weight decay 0.3, dropout 0.1), on images of 28 x 28 with patches of 2, for a GPU.
          --estimate says what a scale costs here.
Command   subquad run vit-fashion --mixer softmax --scale laptop
Differs   Images of 28 x 28 in grey, ten classes. But at paper scale a stem of two convolutions
          makes 49 tokens of patches of 4 x 4, and the head reads a weighted mean of all of them.
          A mixer has its defaults here, so a window of 256 sees all tokens; vit-fashion-mixers has
          windows for so few.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments.options import TrainOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale
from subquad.experiments.vit_options import ViTFashionOptions, ViTOptions

EPOCH = 60_000  # training images

SMALL = ViTOptions(
    patch_size=4,
    num_layers=4,
    num_heads=4,
    d_model=128,
    d_ff=256,
    pooling="sequence",
    stem="conv",
)
MODELS: dict[Scale, ViTOptions] = {
    "smoke": replace(SMALL, patch_size=2, num_layers=1, num_heads=2, d_model=16, d_ff=32),
    "laptop": SMALL,
    "long": replace(SMALL, num_layers=6),
    "paper": ViTOptions(patch_size=2, num_layers=12, num_heads=12, d_model=768, dropout=0.1),
}

_QUICK = TrainOptions(
    batch_size=128,
    optimizer="adamw",
    lr=2e-3,
    schedule="cosine",
    warmup_steps=200,
    min_lr_ratio=0.01,
    weight_decay=0.05,
    clip_norm=1.0,
    precision="bf16",
)
TRAINING: dict[Scale, TrainOptions] = {
    "smoke": replace(
        _QUICK, max_steps=4, batch_size=8, warmup_steps=1, eval_every=2, checkpoint_every=2,
        log_every=2,
    ),
    "laptop": replace(_QUICK, minutes=30.0),
    "long": replace(_QUICK, minutes=120.0),
    "paper": replace(
        _QUICK, max_steps=300 * EPOCH // 4096, batch_size=4096, lr=3e-3, warmup_steps=1000,
        weight_decay=0.3, min_lr_ratio=0.0, eval_every=100,
    ),
}  # fmt: skip


def preset(scale: Scale, mixer: MixerName) -> ViTFashionOptions:
    """Return the options of ``scale``; all mixers get the same recipe."""
    smoke, paper = scale == "smoke", scale == "paper"
    return ViTFashionOptions(
        scale=scale,
        mixer=mixer,
        data="embedded-mnist" if smoke else "fashion-mnist",
        half_size=smoke,
        shift=1,
        mirror=not smoke,
        label_smoothing=0.0 if paper else 0.1,
        model=MODELS[scale],
        train=TRAINING[scale],
    )


def run(options: ViTFashionOptions, folder: Path, say: Say) -> Json:
    """Train and test; return the results."""
    from subquad.experiments.vit_fashion_run import run_fashion

    return run_fashion(options, folder, say)


def estimate(options: ViTFashionOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.vit_fashion_run import estimate_fashion

    return estimate_fashion(options)


EXPERIMENT = Experiment(
    name="vit-fashion",
    summary="classify Fashion-MNIST with a Vision Transformer, from nothing",
    options=ViTFashionOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # and no claims: the paper has no such images
)
