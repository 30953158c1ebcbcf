"""Smaller patches, more tokens: from where on is attention of linear cost faster, and how good?

Source    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", sections 3.1 and 4.4: the length
          is inversely proportional to the square of the patch, and smaller patches help.
Claim     None on these images. Appendix D.4 finds softmax's square of the length to show in speed
          for the largest models and images only.
Expected  At 49 patches softmax is slightly the faster one; linear overtakes it before 196, and
          trains ten times as fast at 3,136. After equal updates linear is behind softmax: by 6 to
          12 points after 300, 1 to 3 after 1,000. Windows learn fastest.
Cost      smoke: seconds. laptop: 12 rows of 300 updates, 30 minutes altogether on one CPU core, and
          some minutes of timing. long: 10 times as many updates. paper: 20 passes over all images,
          for a GPU. --estimate says what a scale costs here.
Command   subquad run vit-resolution --scale laptop
Differs   Fashion-MNIST, a small model, patches of 4, 2 and 1 pixels; 3,136 are the pixels of images
          blown up to 56 x 56, timed and not trained. Equal updates, and few: what is compared is
          how far each has come, and longer training would go further. A window is a row of patches
          and one more to each side. subquad bench vit times ViT-S/8 on large images.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments import vit_fashion
from subquad.experiments.options import TrainOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale
from subquad.experiments.vit_options import ViTOptions, ViTResolutionOptions

SMALL = ViTOptions(patch_size=4, num_layers=4, num_heads=2, d_model=64, d_ff=128, pooling="mean")
TRAINING: dict[Scale, TrainOptions] = {
    "smoke": replace(vit_fashion.TRAINING["smoke"], max_steps=2, eval_every=2, log_every=1),
    "laptop": replace(
        vit_fashion.TRAINING["laptop"], minutes=None, max_steps=300, batch_size=32,
        warmup_steps=30, eval_every=150, checkpoint_every=50, log_every=10,
    ),
    "long": replace(
        vit_fashion.TRAINING["laptop"], minutes=None, max_steps=3000, batch_size=32
    ),
    "paper": replace(
        vit_fashion.TRAINING["laptop"], minutes=None, max_steps=20 * vit_fashion.EPOCH // 128
    ),
}  # fmt: skip


def preset(scale: Scale, mixer: MixerName) -> ViTResolutionOptions:
    """Return the options of ``scale``; ``mixer`` plays no part, the rows have their own."""
    smoke = scale == "smoke"
    return ViTResolutionOptions(
        scale=scale,
        data="embedded-mnist" if smoke else "fashion-mnist",
        half_size=smoke,
        mixers="softmax,linear" if smoke else "softmax,linear,performer,local",
        patch_sizes=(7, 2) if smoke else (4, 2, 1),
        timed_upsampled=not smoke,
        model=replace(SMALL, num_layers=1, d_model=16) if smoke else SMALL,
        timed_batch=2 if smoke else 8,
        repetitions=1 if smoke else 7,
        seconds=0.1 if smoke else 40.0,
        train=TRAINING[scale],
    )


def run(options: ViTResolutionOptions, folder: Path, say: Say) -> Json:
    """Measure and train; return the results."""
    from subquad.experiments.vit_resolution_run import run_resolution

    return run_resolution(options, folder, say)


def estimate(options: ViTResolutionOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.vit_resolution_run import estimate_resolution

    return estimate_resolution(options)


EXPERIMENT = Experiment(
    name="vit-resolution",
    summary="time, memory and accuracy of a ViT as patches shrink: where linear overtakes softmax",
    options=ViTResolutionOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # and no claims: the paper has softmax only
)
