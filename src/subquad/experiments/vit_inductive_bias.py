"""Who needs data, who needs order? Six kinds of networks on more and more training images.

Source    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 4.3, Figures 3 and 4.
Claim     No numbers in the text: with few images (9 million of JFT) a ResNet of the same cost is
          ahead of ViT-B/32, with 90 million and more behind it.
Expected  laptop: with pixels in order the ResNet and the hybrid ahead of the ViT, most with few
          images; with all of them scrambled by one permutation the hybrid loses most, then the
          ResNet and the LSTM, the ViT nothing, and plain layers over all pixels neither: what
          those lose or win is chance.
Cost      smoke: seconds. laptop: 48 rows (6 networks, 4 numbers of images, order and scrambled), 40
          to 50 minutes altogether on one CPU core. long: 10 times as many updates. paper: 300
          epochs of 60,000 images, for a GPU. --estimate says what a scale costs here.
Command   subquad run vit-inductive-bias --scale laptop
Differs   The paper pre-trains on up to 303 million photographs and tests on other data sets. Here:
          Fashion-MNIST, networks of 0.1 to 0.3 million weights, no
          variation of images (a shift means nothing to scrambled ones). All rows have equally many
          updates: 77 passes over 1,000 images and 1.3 over 60,000. So this shows what more data
          buys at the same cost, not where each network would end; the first rows have learned their
          images by heart, and those of 60,000 could go on. Scrambled test images have the same
          permutation.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments import vit_fashion
from subquad.experiments.options import TrainOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale
from subquad.experiments.vit_options import NETWORKS, InductiveBiasOptions, ViTOptions

SMALL = ViTOptions(patch_size=4, num_layers=4, num_heads=2, d_model=64, d_ff=128, pooling="mean")
TRAINING: dict[Scale, TrainOptions] = {
    "smoke": replace(vit_fashion.TRAINING["smoke"], max_steps=2, eval_every=2, log_every=1),
    "laptop": replace(
        vit_fashion.TRAINING["laptop"], minutes=None, max_steps=1200, batch_size=64,
        warmup_steps=120, eval_every=400, checkpoint_every=400,
    ),
    "long": replace(vit_fashion.TRAINING["laptop"], minutes=None, max_steps=12_000, batch_size=64),
    "paper": replace(
        vit_fashion.TRAINING["laptop"], minutes=None, max_steps=300 * vit_fashion.EPOCH // 128
    ),
}  # fmt: skip


def preset(scale: Scale, mixer: MixerName) -> InductiveBiasOptions:
    """Return the options of ``scale``; the rows are networks, so ``mixer`` plays no part."""
    smoke = scale == "smoke"
    return InductiveBiasOptions(
        scale=scale,
        data="embedded-mnist" if smoke else "fashion-mnist",
        half_size=smoke,
        networks=",".join(NETWORKS),
        train_images=(100, 400) if smoke else (1_000, 5_000, 20_000, 60_000),
        model=replace(SMALL, patch_size=2, num_layers=1, d_model=16) if smoke else SMALL,
        train=TRAINING[scale],
    )


def run(options: InductiveBiasOptions, folder: Path, say: Say) -> Json:
    """Train and test the rows; return the results."""
    from subquad.experiments.vit_inductive_bias_run import run_inductive_bias

    return run_inductive_bias(options, folder, say)


def estimate(options: InductiveBiasOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.vit_inductive_bias_run import estimate_inductive_bias

    return estimate_inductive_bias(options)


EXPERIMENT = Experiment(
    name="vit-inductive-bias",
    summary="ViT, hybrid, ResNet, MLP, MLP-Mixer and LSTM on more and more images, and scrambled",
    options=InductiveBiasOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # and no claims: Figures 3 and 4 are plots without numbers
)
