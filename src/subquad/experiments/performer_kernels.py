"""Which kernel function? Eight of them in generalised attention, on masked proteins.

Source    Choromanski et al. 2021, "Rethinking Attention with Performers", appendix D.3, Figures 16
          and 17.
Claim     Relu is best for large batches, some functions end in NaN, and attention without the
          normaliser is not always worse. The figures are plots without numbers.
Expected  laptop: the functions that cannot be negative close to each other; those that go without
          the normaliser behind them or broken off. More features help little at such sizes.
Cost      smoke: seconds. laptop: 12 rows of 1.6 minutes on 2 CPU cores, enough to tell functions
          that learn from functions that do not, not to rank the close ones. long: 12 rows of 15
          minutes. paper: the published sizes, meant for GPUs. --estimate says what a scale costs.
Command   subquad run performer-kernels --scale laptop
Differs   Proteins and split as performer-protein. gelu, cos, tanh and identity can be negative, so
          they are computed without the normaliser; the paper tries both for all. Every function
          has projected features, as many as --num-features; cos is a kernel function here, not the
          trigonometric estimator of softmax. Equal minutes at laptop and long scale.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments import performer_protein
from subquad.experiments.language_options import FUNCTIONS, KernelsOptions
from subquad.experiments.options import ModelOptions, TrainOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale

_SMALL = replace(performer_protein.MILLION, num_layers=3, num_heads=2, d_model=64, d_ff=256)
MODELS: dict[Scale, ModelOptions] = {
    **performer_protein.MODELS,
    "laptop": _SMALL,
    "long": performer_protein.MILLION,
    "paper": replace(
        performer_protein.MODELS["paper"], num_layers=6, num_heads=8, d_model=512, d_ff=2048
    ),
}
TRAINING: dict[Scale, TrainOptions] = {
    **performer_protein.TRAINING,
    "laptop": replace(performer_protein.QUICK, minutes=1.6),
    "long": replace(performer_protein.QUICK, minutes=15.0),
}
LENGTHS: dict[Scale, int] = {"smoke": 32, "laptop": 128, "long": 256, "paper": 512}
FEATURES: dict[Scale, tuple[int, tuple[int, ...]]] = {
    "smoke": (8, (4,)),
    "laptop": (64, (16, 256)),
    "long": (64, (16, 256)),
    "paper": (256, (64, 1024)),
}


def preset(scale: Scale, mixer: MixerName) -> KernelsOptions:
    """Return the options of ``scale``; the rows are all functions."""
    return KernelsOptions(
        scale=scale,
        data="made-up" if scale == "smoke" else "proteins",
        seq_len=LENGTHS[scale],
        functions=",".join(FUNCTIONS),
        swept="relu,exp",
        num_features=FEATURES[scale][0],
        sizes=FEATURES[scale][1],
        model=MODELS[scale],
        train=TRAINING[scale],
    )


def run(options: KernelsOptions, folder: Path, say: Say) -> Json:
    """Train and test each function; return the results."""
    from subquad.experiments.performer_kernels_run import run_performer_kernels

    return run_performer_kernels(options, folder, say)


def estimate(options: KernelsOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.data.proteins import PROTEINS
    from subquad.experiments.language_rows import blank_parts
    from subquad.experiments.performer_kernels_run import kernel_rows
    from subquad.experiments.rows import estimate_rows

    return estimate_rows(kernel_rows(options, blank_parts(options, PROTEINS, options.seq_len)))


EXPERIMENT = Experiment(
    name="performer-kernels",
    summary="eight kernel functions of generalised attention on masked proteins (Figures 16, 17)",
    options=KernelsOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # and no claims: the figures are plots without numbers
)
