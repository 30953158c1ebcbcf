"""What is pre-training worth? Fine-tuning at a higher resolution, and learning from few labels.

Source    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 4.1 and appendix B.1.1
          (fine-tuning: SGD with momentum 0.9, cosine, gradients clipped to 1, no weight decay, a
          head of zeros, a higher resolution with positions resampled); section 4.6 and appendix
          B.1.2 (masked patch prediction).
Claim     B/16 pre-trained by masked patches reaches 79.9 % on ImageNet: 2 points above training
          from scratch, 4 below supervised pre-training. Mean colours and 4 x 4 small patches as
          targets do about as well, all pixels slightly worse.
Expected  Fine-tuned level with from scratch or ahead of it after the same few steps (MNIST has
          labels enough); masked patches ahead of scratch where labels are few.
Cost      smoke: seconds. laptop: 17 rows in 20 minutes altogether on one CPU core. long: about two
          hours. paper: meant for a GPU. --estimate says what a scale costs here.
Command   subquad run vit-finetune --scale laptop
Differs   Fashion-MNIST in place of ImageNet and JFT, MNIST to fine-tune on, its images enlarged
          (bilinear), by one learning rate of the paper's list and by a higher one, for there are
          fewer steps; none is chosen on held-out images. A linear warm-up, as in the published
          code. From scratch: the recipe of pre-training with as many steps, and fine-tuning's own
          recipe besides. With few labels all learn by the recipe of pre-training, and one row by
          the published fine-tuning; the labelled few are the same number of each class. No image is
          augmented.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments import vit_positions
from subquad.experiments.options import TrainOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale
from subquad.experiments.vit_options import ViTOptions
from subquad.experiments.vit_transfer_options import ViTFinetuneOptions

MODELS: dict[Scale, ViTOptions] = {
    scale: replace(model, patch_size=7) for scale, model in vit_positions.MODELS.items()
}
TRAINING: dict[Scale, TrainOptions] = {
    **vit_positions.TRAINING,
    "laptop": replace(vit_positions.TRAINING["laptop"], max_steps=2400, eval_every=600),
    "long": replace(vit_positions.TRAINING["long"], max_steps=16_000, eval_every=4000),
}
FINETUNE_STEPS: dict[Scale, int] = {"smoke": 2, "laptop": 400, "long": 2000, "paper": 10_000}
MASKED_STEPS: dict[Scale, int] = {"smoke": 2, "laptop": 1000, "long": 8000, "paper": 30_000}
LABEL_STEPS: dict[Scale, int] = {"smoke": 2, "laptop": 300, "long": 2000, "paper": 2500}
WARMUP: dict[Scale, int] = {"smoke": 1, "laptop": 20, "long": 100, "paper": 500}


def preset(scale: Scale, mixer: MixerName) -> ViTFinetuneOptions:
    """Return the options of ``scale``; the rows are all of them, with softmax attention."""
    smoke = scale == "smoke"
    return ViTFinetuneOptions(
        scale=scale,
        data="embedded-mnist" if smoke else "fashion-mnist",
        finetune_data="embedded-mnist" if smoke else "mnist",
        finetune_steps=FINETUNE_STEPS[scale],
        finetune_warmup=WARMUP[scale],
        masked_patch_size=4,
        masked_steps=MASKED_STEPS[scale],
        masked_lr=TRAINING[scale].lr,
        label_steps=LABEL_STEPS[scale],
        model=MODELS[scale],
        train=TRAINING[scale],
    )


def run(options: ViTFinetuneOptions, folder: Path, say: Say) -> Json:
    """Pre-train, fine-tune and test; return the results."""
    from subquad.experiments.vit_finetune_run import run_vit_finetune

    return run_vit_finetune(options, folder, say)


def estimate(options: ViTFinetuneOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.rows import estimate_rows
    from subquad.experiments.vit_finetune_run import finetune_rows
    from subquad.experiments.vit_rows import black_pictures

    black = black_pictures(options)
    return estimate_rows(finetune_rows(options, black, black, None))


EXPERIMENT = Experiment(
    name="vit-finetune",
    summary="pre-trained, then fine-tuned larger or with few labels, beside training from scratch",
    options=ViTFinetuneOptions,
    preset=preset,
    run=run,
    estimate=estimate,
)
