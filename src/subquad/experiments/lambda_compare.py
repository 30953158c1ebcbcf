"""One small residual network, with ten layers in turn where its 3 x 3 convolutions were.

Source    Bello 2021, "LambdaNetworks", tables of layers (ResNet-50, 224 px, 90 epochs) and of
          placements (C a convolution, L a lambda layer, a letter a stage).
Claim     On ImageNet lambda layers give 78.4 % with 15.0 million parameters, convolutions 76.9 %
          with 25.6, squeeze-excitation 77.6 %, self-attention 77.3 to 78.2 %. Lambda layers in the
          last two stages alone give 78.3 %, and are much faster than in all. Here: with equal
          updates the network of lambda layers is at least as good as that of convolutions with
          fewer parameters, on one of the two sets.
Expected  Lambda layers at least as good as convolutions after so few updates, with fewer
          parameters, and several times as slow in seconds on a CPU; the paper's throughput falls as
          much. Whether they stay ahead with long training it cannot show: in independent
          reproductions on CIFAR-10 lambda networks were from 3 points worse to 1 better.
Cost      smoke: seconds. laptop: 24 rows of a minute or so each, on one CPU core: enough to tell
          what learns quickly, not where long training ends. long: four times as many updates.
          paper: 90 epochs of the paper's recipe, for a GPU. --estimate says what a scale costs
          here.
Command   subquad run lambda-compare --scale laptop
Differs   Fashion-MNIST, and drawings of the Open Clip Art Library at 32 pixels in 22 classes, in
          place of ImageNet. Three stages of one bottleneck each, a quarter as wide as ResNet-50's,
          behind a 3 x 3 convolution of stride 2. AdamW, and at laptop scale a third of an epoch of
          Fashion-MNIST, three of the drawings. Position sees 15 x 15 of at most 16 x 16
          pixels; with u = 4 it sees 7 x 7, as the paper's count of parameters says. Attention
          stands in the place of convolutions, where some of the paper's rows keep them beside it.
          Every row gets equal updates, as the paper's get equal epochs; minutes stand beside them.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments.lambda_options import (
    LAYERS,
    LambdaCompareOptions,
    SmallResNetOptions,
)
from subquad.experiments.options import TrainOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale

PLACEMENTS = "LCC,LLC,CLL,CCL"
EPOCH = 60_000  # training images of Fashion-MNIST

NETWORKS: dict[Scale, SmallResNetOptions] = {
    "smoke": SmallResNetOptions(
        blocks=1, width=8, stem_stride=1, num_heads=2, head_dim=4, window=3, attention_window=3
    ),
    "laptop": SmallResNetOptions(blocks=1, width=16),
    "long": SmallResNetOptions(blocks=1, width=16),
    "paper": SmallResNetOptions(blocks=4, width=64, stem_stride=1, window=23),
}
_QUICK = TrainOptions(
    max_steps=300,
    batch_size=64,
    optimizer="adamw",
    lr=1e-2,
    schedule="cosine",
    warmup_steps=30,
    min_lr_ratio=0.0,
    weight_decay=0.05,
    eval_every=100,
    checkpoint_every=100,
)
TRAINING: dict[Scale, TrainOptions] = {
    "smoke": replace(
        _QUICK, max_steps=2, batch_size=4, warmup_steps=1, eval_every=2, checkpoint_every=2,
        log_every=1,
    ),
    "laptop": _QUICK,
    "long": replace(_QUICK, max_steps=1200, warmup_steps=120, eval_every=300),
    "paper": replace(
        _QUICK, max_steps=90 * EPOCH // 256, batch_size=256, optimizer="sgd", lr=0.1,
        warmup_steps=5 * EPOCH // 256, weight_decay=1e-4,
    ),
}  # fmt: skip


def preset(scale: Scale, mixer: MixerName) -> LambdaCompareOptions:
    """Return the options of ``scale``; ``mixer`` plays no part, the rows have their own layers."""
    smoke = scale == "smoke"
    return LambdaCompareOptions(
        scale=scale,
        data="embedded-mnist" if smoke else "fashion-mnist",
        half_size=smoke,
        shift=1 if smoke else 2,
        mirror=not smoke,
        label_smoothing=0.1,
        has_memory=not smoke,
        layers=",".join(LAYERS),
        placements=PLACEMENTS,
        drawings="made-up" if smoke else "clipart",
        network=NETWORKS[scale],
        train=TRAINING[scale],
    )


def run(options: LambdaCompareOptions, folder: Path, say: Say) -> Json:
    """Train and test the rows; return the results."""
    from subquad.experiments.lambda_compare_run import run_lambda_compare

    return run_lambda_compare(options, folder, say)


def estimate(options: LambdaCompareOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.lambda_compare_run import compare_rows
    from subquad.experiments.lambda_rows import blank_sets
    from subquad.experiments.rows import estimate_rows

    return estimate_rows(compare_rows(options, blank_sets(options, options.drawings)))


EXPERIMENT = Experiment(
    name="lambda-compare",
    summary="small residual networks of convolutions, attention and lambda layers, side by side",
    options=LambdaCompareOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # the claims are columns of its tables
)
