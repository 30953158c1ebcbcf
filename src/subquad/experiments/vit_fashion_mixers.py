"""Every bidirectional mixer in one small Vision Transformer, on Fashion-MNIST, side by side.

Source    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; the mixers' own papers.
Claim     None: the paper has softmax only. Its R50 with convolutions is the better one on few
          images, and falls behind on many.
Expected  With 49 tokens softmax is no slower than what has linear cost. After so few images the
          convolutional network and lambda layers are 4 points and more ahead; the other mixers lie
          within 5 points of each other, LSH with one round behind.
Cost      smoke: seconds. laptop: 12 rows of 500 updates, about 30 minutes altogether on one CPU
          core: enough to tell what learns from what does not, not to rank close ones. long: 10
          times as many updates. paper: as many as the paper's 300 epochs, for a GPU. --estimate
          says what a scale costs here.
Command   subquad run vit-fashion-mixers --scale laptop
Differs   Equal updates on the same images in the same order. Patches come row by row: a window sees
          those above, below and between; see mixer_settings in experiments/vit_rows.py. The
          convolutional network is a small ResNet with batch-norm, as wide as --resnet-width says.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments import vit_fashion
from subquad.experiments.options import TrainOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale
from subquad.experiments.vit_options import ViTMixersOptions

MIXERS = "softmax,linear,performer,local,strided,linformer,hybrid,lsh-1,lsh-4,lambda,lstm"
TRAINING: dict[Scale, TrainOptions] = {
    "smoke": vit_fashion.TRAINING["smoke"],
    "laptop": replace(
        vit_fashion.TRAINING["laptop"], minutes=None, max_steps=500, batch_size=64,
        warmup_steps=50, eval_every=250, checkpoint_every=125,
    ),
    "long": replace(vit_fashion.TRAINING["laptop"], minutes=None, max_steps=5000, batch_size=64),
    "paper": vit_fashion.TRAINING["paper"],
}  # fmt: skip


def preset(scale: Scale, mixer: MixerName) -> ViTMixersOptions:
    """Return the options of ``scale``; ``mixer`` plays no part, the rows have their own."""
    like = vit_fashion.preset(scale, mixer)
    return ViTMixersOptions(
        scale=scale,
        data=like.data,
        half_size=like.half_size,
        shift=like.shift,
        mirror=like.mirror,
        label_smoothing=like.label_smoothing,
        mixers=MIXERS,
        resnet_width=4 if scale == "smoke" else 16,
        model=like.model,
        train=TRAINING[scale],
    )


def run(options: ViTMixersOptions, folder: Path, say: Say) -> Json:
    """Train and test the rows; return the results."""
    from subquad.experiments.vit_fashion_mixers_run import run_mixers

    return run_mixers(options, folder, say)


def estimate(options: ViTMixersOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.rows import estimate_rows
    from subquad.experiments.vit_fashion_mixers_run import mixer_rows
    from subquad.experiments.vit_rows import black_pictures

    return estimate_rows(mixer_rows(options, black_pictures(options)))


EXPERIMENT = Experiment(
    name="vit-fashion-mixers",
    summary="every bidirectional mixer and a ResNet on Fashion-MNIST: accuracy, speed, memory",
    options=ViTMixersOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # and no claims: see the docstring
)
