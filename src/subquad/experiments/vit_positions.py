"""Where is a patch? Ways to tell it to a Vision Transformer, and what its head should read.

Source    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", appendix D.4, Table 8 (position
          embeddings) and appendix D.3, Figure 9 (class token against average pooling).
Claim     B/16, pre-trained on JFT, 5-shot on ImageNet: 0.614 without positions, 0.640 to 0.643 with
          any of the seven others, which differ little. The mean of all tokens is as good as a class
          token, but at another learning rate: 3e-4 where the class token has 8e-4.
Expected  Without positions clearly the worst; the rest near each other, coordinates (which the
          paper has not) a little behind. Class token and mean near each other, each at its better
          rate.
Cost      smoke: seconds. laptop: 13 rows in 20 minutes altogether on one CPU core: enough to see
          what positions are worth, not to tell ways apart that are as near as in the paper; one way
          is trained with two seeds, which shows how far apart that is. long: about two hours.
          paper: meant for a GPU. --estimate says what a scale costs here.
Command   subquad run vit-positions --scale laptop
Differs   Fashion-MNIST in place of JFT: the share right is that of the test images. Few-shot: MNIST
          in place of ImageNet, 5 and 10 of each class, the mean over several draws. A small
          transformer, trained for a minute or so a row.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments.options import TrainOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale
from subquad.experiments.vit_options import ViTOptions
from subquad.experiments.vit_transfer_options import ViTPositionsOptions

LAPTOP_MODEL = ViTOptions(patch_size=4, num_layers=4, num_heads=4, d_model=64)
LAPTOP_TRAINING = TrainOptions(
    max_steps=550,
    batch_size=64,
    optimizer="adamw",
    lr=2e-3,
    schedule="cosine",
    warmup_steps=50,
    min_lr_ratio=0.0,
    weight_decay=0.03,
    clip_norm=1.0,
    log_every=25,
    eval_every=275,
    checkpoint_every=550,
)

MODELS: dict[Scale, ViTOptions] = {
    "smoke": replace(LAPTOP_MODEL, patch_size=7, num_layers=2, d_model=16),
    "laptop": LAPTOP_MODEL,
    "long": LAPTOP_MODEL,
    "paper": replace(LAPTOP_MODEL, num_layers=12, num_heads=6, d_model=384, dropout=0.1),
}
TRAINING: dict[Scale, TrainOptions] = {
    "smoke": replace(
        LAPTOP_TRAINING,
        max_steps=2,
        batch_size=4,
        warmup_steps=1,
        log_every=1,
        eval_every=2,
        checkpoint_every=2,
    ),
    "laptop": LAPTOP_TRAINING,
    "long": replace(LAPTOP_TRAINING, max_steps=4000, warmup_steps=200, eval_every=1000),
    "paper": replace(
        LAPTOP_TRAINING,
        max_steps=30_000,
        batch_size=512,
        lr=8e-4,
        warmup_steps=1000,
        eval_every=1000,
        precision="bf16",
    ),
}


def preset(scale: Scale, mixer: MixerName) -> ViTPositionsOptions:
    """Return the options of ``scale``; the rows are all ways, with softmax attention."""
    smoke = scale == "smoke"
    training = TRAINING[scale]
    return ViTPositionsOptions(
        scale=scale,
        data="embedded-mnist" if smoke else "fashion-mnist",
        few_shot_data="embedded-mnist" if smoke else "mnist",
        few_shot_draws=2 if smoke else 10,
        low_lr=training.lr * 3 / 8,
        model=MODELS[scale],
        train=training,
    )


def run(options: ViTPositionsOptions, folder: Path, say: Say) -> Json:
    """Train and test each way; return the results."""
    from subquad.experiments.vit_positions_run import run_vit_positions

    return run_vit_positions(options, folder, say)


def estimate(options: ViTPositionsOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.rows import estimate_rows
    from subquad.experiments.vit_positions_run import position_rows
    from subquad.experiments.vit_rows import black_pictures

    black = black_pictures(options)
    return estimate_rows(position_rows(options, black, black))


EXPERIMENT = Experiment(
    name="vit-positions",
    summary="how patches know their places, and class token or mean: share right and few-shot",
    options=ViTPositionsOptions,
    preset=preset,
    run=run,
    estimate=estimate,
)
