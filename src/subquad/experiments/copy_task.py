"""Copying: repeat a sequence of random symbols, by attention to the right place each time.

Source    Katharopoulos et al. 2020, "Transformers are RNNs", section 4.1 and Figure 2.
Claim     With linear attention the loss ends as low as with softmax, though softmax is ahead in the
          middle of training. The figure states no numbers.
Expected  paper scale: a masked loss near 0 with both mixers after 10,000 updates. laptop and long
          scale: near 0 with softmax; with linear on the way there.
Cost      smoke: seconds. laptop: 20 minutes of training a mixer, meant for 2 CPU cores. long: 45
          minutes. paper: 10,000 updates of a 4-layer model, meant for a GPU. --estimate says what a
          scale costs here.
Command   subquad run copy-task --mixer linear --scale laptop
Differs   The task is the released one to the symbol: 10 symbols and a separator, length 128, 32
          to 62 symbols copied, the loss on the separator and the copy only. Dropout, the width of
          the feed-forward network and the positions, which the paper does not state, are those of
          the released code. smoke, laptop and long train a smaller pre-norm model with AdamW.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments.options import CopyOptions, ModelOptions, TrainOptions, suited_to
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale

_SMALL = ModelOptions(
    num_layers=2,
    num_heads=4,
    d_model=128,
    d_ff=512,
    dropout=0.0,
    norm="pre",
    positions="rotary",
)
MODELS: dict[Scale, ModelOptions] = {
    "smoke": replace(_SMALL, num_heads=2, d_model=32, d_ff=64),
    "laptop": _SMALL,
    "long": _SMALL,
    "paper": ModelOptions(
        num_layers=4,
        num_heads=8,
        d_model=256,
        d_ff=1024,
        dropout=0.1,
        norm="post",
        positions="sinusoidal-concat",
    ),
}

_QUICK = TrainOptions(
    batch_size=64,
    optimizer="adamw",
    lr=2e-3,
    schedule="cosine",
    warmup_steps=200,
    min_lr_ratio=0.02,
    eval_every=250,
    checkpoint_every=250,
)
TRAINING: dict[Scale, TrainOptions] = {
    "smoke": replace(
        _QUICK, max_steps=8, batch_size=4, warmup_steps=2, eval_every=4, checkpoint_every=4
    ),
    "laptop": replace(_QUICK, minutes=20.0),
    "long": replace(_QUICK, minutes=45.0),
    "paper": TrainOptions(
        max_steps=10_000,
        batch_size=64,
        optimizer="radam",
        lr=1e-3,
        schedule="step",  # to 1e-4 after 3,000 updates
        min_lr_ratio=0.1,
        eval_every=100,
        checkpoint_every=1_000,
    ),
}


def preset(scale: Scale, mixer: MixerName) -> CopyOptions:
    """Return the options of ``scale``; all mixers get the same recipe."""
    return CopyOptions(
        scale=scale,
        mixer=mixer,
        max_len=32 if scale == "smoke" else 128,
        model=suited_to(mixer, MODELS[scale]),
        train=TRAINING[scale],
    )


def run(options: CopyOptions, folder: Path, say: Say) -> Json:
    """Train and test; return the results."""
    from subquad.experiments.copy_run import run_copy

    return run_copy(options, folder, say)


def estimate(options: CopyOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.copy_run import estimate_copy

    return estimate_copy(options)


EXPERIMENT = Experiment(
    name="copy-task",
    summary="copy sequences of random symbols (section 4.1, Figure 2)",
    options=CopyOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # and no claims: Figure 2 is a plot without numbers
)
