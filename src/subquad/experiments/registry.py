"""The table of experiments, and the groups that ``subquad run-all`` runs one after another."""

from typing import Any

from subquad.experiments import (
    cifar10_pixels,
    compare_copy,
    copy_task,
    feature_maps,
    hybrid_share,
    lambda_ablations,
    lambda_compare,
    lambda_memory,
    lambda_speed,
    mnist_pixels,
    performer_approximation,
    performer_kernels,
    performer_pixels,
    performer_protein,
    performer_speed,
    performer_text,
    performer_transfer,
    vit_fashion,
    vit_fashion_mixers,
    vit_finetune,
    vit_inductive_bias,
    vit_positions,
    vit_resolution,
)
from subquad.experiments.spec import Experiment, MixerName

EXPERIMENTS: dict[str, Experiment[Any]] = {
    experiment.name: experiment
    for experiment in (
        mnist_pixels.EXPERIMENT,
        cifar10_pixels.EXPERIMENT,
        copy_task.EXPERIMENT,
        compare_copy.EXPERIMENT,
        feature_maps.EXPERIMENT,
        hybrid_share.EXPERIMENT,
        performer_approximation.EXPERIMENT,
        performer_speed.EXPERIMENT,
        performer_protein.EXPERIMENT,
        performer_kernels.EXPERIMENT,
        performer_text.EXPERIMENT,
        performer_pixels.EXPERIMENT,
        performer_transfer.EXPERIMENT,
        lambda_compare.EXPERIMENT,
        lambda_ablations.EXPERIMENT,
        lambda_memory.EXPERIMENT,
        lambda_speed.EXPERIMENT,
        vit_fashion.EXPERIMENT,
        vit_fashion_mixers.EXPERIMENT,
        vit_resolution.EXPERIMENT,
        vit_inductive_bias.EXPERIMENT,
        vit_positions.EXPERIMENT,
        vit_finetune.EXPERIMENT,
    )
}

# A group names its runs in order: (experiment, mixer). An experiment of many rows has its mixers in
# the rows, whichever is named here.
GROUPS: dict[str, tuple[tuple[str, MixerName], ...]] = {
    "mnist-pixels": (("mnist-pixels", "linear"), ("mnist-pixels", "softmax")),
    "cifar10-pixels": (("cifar10-pixels", "linear"), ("cifar10-pixels", "softmax")),
    "copy-task": (("copy-task", "linear"), ("copy-task", "softmax")),
    "linear-transformer": (
        ("mnist-pixels", "linear"),
        ("mnist-pixels", "softmax"),
        ("copy-task", "linear"),
        ("copy-task", "softmax"),
    ),
    "mechanisms": (
        ("compare-copy", "linear"),
        ("feature-maps", "linear"),
        ("hybrid-share", "linear"),
        ("mnist-pixels", "linear"),
        ("mnist-pixels", "softmax"),
        ("mnist-pixels", "lsh-1"),
        ("mnist-pixels", "lsh-4"),
        ("mnist-pixels", "hybrid"),
        ("mnist-pixels", "local"),
    ),
    "performer": (
        ("performer-approximation", "performer"),
        ("performer-speed", "performer"),
        ("performer-protein", "performer"),
        ("performer-transfer", "performer"),
        ("performer-kernels", "performer"),
        ("performer-text", "performer"),
        ("performer-pixels", "performer"),
    ),
    "lambda-networks": (
        ("lambda-compare", "lambda"),
        ("lambda-ablations", "lambda"),
        ("lambda-memory", "lambda"),
        ("lambda-speed", "lambda"),
    ),
    "vit": (
        ("vit-fashion", "softmax"),
        ("vit-fashion", "linear"),
        ("vit-fashion-mixers", "linear"),
        ("vit-resolution", "linear"),
        ("vit-inductive-bias", "linear"),
        ("vit-positions", "softmax"),
        ("vit-finetune", "softmax"),
    ),
}
