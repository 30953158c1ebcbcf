"""The options of ``subquad train-images``, and the settings that they and a recipe make. No torch.

What an option leaves open is the recipe's.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from subquad.experiments.options import at_least
from subquad.experiments.recipes import Recipe, RecipeName, recipe_for
from subquad.experiments.spec import MixerName
from subquad.experiments.vit_options import share
from subquad.tasks.config import Device, Precision, TrainConfig

DEFAULT_MODEL = "small-vit"
NAME = "train-images"  # what stands for the experiment in a run's folder


@dataclass(frozen=True, kw_only=True)
class ImageTrainingOptions:
    """The images, the network, the training."""

    folder: Path
    """FOLDER/CLASS/*, or FOLDER/train/CLASS/* with FOLDER/val/CLASS/* or FOLDER/test/CLASS/*."""
    model: str | None = None
    """small-vit (default), small-resnet, small-lambda, vit:PRESET as vit:S/16, lambda:PRESET as
    lambda:50 or lambda:resnet50-CCLL."""
    mixer: MixerName | None = None
    """The attention of a new Vision Transformer (default: softmax)."""
    start_from: str | None = None
    """Fine-tune this trained model: a run's folder, or a packaged one; its head is made anew."""
    recipe: RecipeName = "small"
    """Whose training it is; the options below with no default have the recipe's."""
    image_size: int | None = None
    """Side of the squares that the network sees."""
    channels: Literal[1, 3] = 3
    """1 trains on grey images, 3 on colours."""
    test_share: float = 0.1
    """Share of each class held back for testing, if the folder has no val or test."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """What to do with files that are no images or damaged; skip names them and leaves them out."""
    memory_gb: float = 4.0
    """Most memory for the images, which are all held there, in 10^9 bytes."""
    epochs: float | None = None
    """Passes over the training images."""
    max_steps: int | None = None
    """Updates of the weights (instead of --epochs)."""
    minutes: float | None = None
    """Train for about this long (instead of --epochs)."""
    batch_size: int | None = None
    """Images in one step (default: the recipe's, divided by --grad-accumulation)."""
    grad_accumulation: int = 1
    """Add up the gradients of this many batches before each update."""
    lr: float | None = None
    """Highest learning rate; the lambda recipes' grows with the batch."""
    warmup_steps: int | None = None
    """Updates in which the learning rate rises from 0."""
    weight_decay: float | None = None
    """See TrainConfig: decoupled with AdamW, a penalty with SGD."""
    ema_decay: float | None = None
    """Evaluate and keep a moving average of the weights with this decay; 0 keeps none."""
    label_smoothing: float | None = None
    """Share of the target spread over all classes."""
    mirror: Literal["yes", "no"] | None = None
    """Mirror half of the training images; not for digits or letters."""
    rand_augment: int | None = None
    """Magnitude (of 30) of RandAugment's two operations; 0 leaves them out."""
    dropout: float | None = None
    """Share of activations dropped in training."""
    drop_path: float | None = None
    """Share of the last residual branches dropped in training; less in earlier layers."""
    batch_norm_momentum: float | None = None
    """Share that a batch has in the running statistics of batch norms."""
    normalization: Literal["data", "half", "imagenet"] | None = None
    """What channels are normalised by: the images' own mean, 0.5, or ImageNet's."""
    precision: Precision = "fp32"
    """bf16 and fp16 are mixed precision."""
    channels_last: bool = False
    """Lay convolutions out with the channels last: often faster, the same up to rounding."""
    checkpointing: bool = False
    """Run each block again in the backward pass, to save memory."""
    seed: int = 0
    """Seed of the weights, of the test images held back, of the order and how images are varied."""
    device: Device = "auto"
    """auto takes the GPU where there is one."""
    log_every: int = 20
    """Steps between two lines of metrics.csv."""
    eval_every: int | None = None
    """Steps between two quick evaluations (default: an epoch, or a 100th of the steps)."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints (default: as --eval-every)."""

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.epochs, self.max_steps, self.minutes)) > 1:
            raise ValueError("only one of --epochs, --max-steps and --minutes may be given")
        if self.model is not None and self.start_from is not None:
            raise ValueError("only one of --model and --start-from may be given")
        if self.recipe == "vit-finetune" and self.start_from is None:
            raise ValueError("--recipe vit-finetune needs --start-from, a trained model")
        for name, least in (
            ("image_size", 1), ("batch_size", 1), ("grad_accumulation", 1), ("seed", 0),
            ("warmup_steps", 0), ("max_steps", 1), ("eval_every", 1), ("checkpoint_every", 1),
            ("log_every", 1), ("rand_augment", 0),
        ):  # fmt: skip
            at_least(self, name, least)
        for name in ("ema_decay", "label_smoothing", "dropout", "drop_path"):
            if getattr(self, name) is not None:
                share(self, name)
        for name in ("epochs", "minutes", "memory_gb", "lr"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value:g}")
        momentum = self.batch_norm_momentum
        if momentum is not None and not 0 < momentum <= 1:
            raise ValueError(f"batch_norm_momentum must be above 0 and up to 1, got {momentum:g}")

    @property
    def network(self) -> str:
        """The name of the network, or of the trained one it begins with."""
        return self.start_from or self.model or DEFAULT_MODEL


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does: options where they were given, else the recipe.

    Args:
        recipe: with what the options change in it.
        train: settings of the training loop.
        crop: side of random resized crops; None crops nothing.
        side: of the images kept in memory.
        shift: pixels that images are moved by.
        remarks: what a reader of the results should know.
    """

    recipe: Recipe
    train: TrainConfig
    crop: int | None
    side: int
    shift: int
    remarks: tuple[str, ...]


def chosen_recipe(options: ImageTrainingOptions) -> Recipe:
    """Return the recipe with the options in place of its own numbers."""
    recipe = recipe_for(options.recipe, options.network)
    given = {
        name: getattr(options, name)
        for name in (
            "image_size", "weight_decay", "ema_decay", "label_smoothing", "dropout", "drop_path",
            "batch_norm_momentum", "normalization",
        )
        if getattr(options, name) is not None
    }  # fmt: skip
    if options.ema_decay == 0:
        given["ema_decay"] = None
    if options.lr is not None:
        given |= {"lr": options.lr, "lr_per": None}
    if options.mirror is not None:
        given["mirror"] = options.mirror == "yes"
    if options.rand_augment is not None:
        number = recipe.rand_augment[0] if recipe.rand_augment else 2
        given["rand_augment"] = (number, options.rand_augment) if options.rand_augment else None
    return replace(recipe, **given)


def stored_side(recipe: Recipe) -> int:
    """Return the side of the images kept in memory."""
    if recipe.crop_area is None:
        return recipe.image_size
    return round(recipe.stored * recipe.image_size)


def make_plan(options: ImageTrainingOptions, images: int) -> Plan:
    """Turn options and recipe into settings for so many training images.

    Raises:
        ValueError: if they do not fit together.
    """
    recipe = chosen_recipe(options)
    batch_size = options.batch_size
    if batch_size is None:
        if recipe.batch_size % options.grad_accumulation:
            raise ValueError(
                f"--grad-accumulation must divide the recipe's batch of {recipe.batch_size}, "
                f"got {options.grad_accumulation}; or give --batch-size"
            )
        batch_size = recipe.batch_size // options.grad_accumulation
    an_update = batch_size * options.grad_accumulation
    an_epoch = images / an_update
    steps = _steps(options, recipe, an_epoch)
    warmup = options.warmup_steps
    if warmup is None:
        warmup = recipe.warmup_steps or round(recipe.warmup_epochs * an_epoch)
    if steps is not None and warmup >= steps > 1:
        raise ValueError(
            f"warmup_steps must be less than the {steps:,} steps of the run, got {warmup:,}; "
            "give --warmup-steps, or train longer"
        )
    often = options.eval_every or max(1, math.ceil(an_epoch), (steps or 0) // 100)
    train = TrainConfig(
        max_steps=steps,
        minutes=options.minutes,
        batch_size=batch_size,
        grad_accumulation=options.grad_accumulation,
        optimizer=recipe.optimizer,
        lr=recipe.rate(an_update),
        betas=recipe.betas,
        momentum=recipe.momentum,
        schedule=recipe.schedule,
        min_lr_ratio=recipe.min_lr_ratio,
        warmup_steps=warmup,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        ema_decay=recipe.ema_decay,
        precision=options.precision,
        seed=options.seed,
        device=options.device,
        log_every=options.log_every,
        eval_every=often,
        checkpoint_every=options.checkpoint_every or often,
    )
    return Plan(
        recipe=recipe,
        train=train,
        crop=None if recipe.crop_area is None else recipe.image_size,
        side=stored_side(recipe),
        shift=round(recipe.shift_share * recipe.image_size),
        remarks=tuple(_remarks(recipe, steps)),
    )


def _steps(options: ImageTrainingOptions, recipe: Recipe, an_epoch: float) -> int | None:
    """Return the updates of the run, None where minutes say how long it is."""
    if options.minutes is not None:
        return None
    if options.max_steps is not None:
        return options.max_steps
    if options.epochs is None and recipe.max_steps is not None:
        return recipe.max_steps
    epochs = options.epochs or recipe.epochs
    assert epochs is not None  # every recipe has one of both
    return max(1, round(epochs * an_epoch))


def _remarks(recipe: Recipe, steps: int | None) -> list[str]:
    """Return a sentence for each moving average that the run is too short for."""
    if steps is None:
        return []
    found = []
    if recipe.ema_decay is not None and steps * (1 - recipe.ema_decay) < 3:
        found.append(
            f"The averaged weights, which are what is tested and kept, hold on to "
            f"{recipe.ema_decay**steps:.0%} of the first ones after {steps:,} steps with the decay "
            f"{recipe.ema_decay:g}: --ema-decay 0 keeps the last weights, a smaller decay averages "
            "over fewer."
        )
    momentum = recipe.batch_norm_momentum
    if momentum is not None and steps * momentum < 3:
        found.append(
            f"The running statistics of batch norms hold on to {(1 - momentum) ** steps:.0%} of "
            f"their first values after {steps:,} steps with the momentum {momentum:g}: "
            "--batch-norm-momentum 0.1 is torch's own."
        )
    return found
