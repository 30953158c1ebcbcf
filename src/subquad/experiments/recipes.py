"""Published recipes for image classifiers, and one for small folders, as frozen values. No torch.

Sources: Bello 2021, "LambdaNetworks", and for what it does not state Bello et al. 2021, "Revisiting
ResNets" (ResNet-RS, the released configuration files); Dosovitskiy et al. 2021, "An Image is Worth
16x16 Words", tables 3 and 4, and the released code where it says so. What neither states is marked.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from subquad.ops.checks_numbers import check_choice, check_positive_number
from subquad.tasks.config import Normalization, Optimizer, Schedule

STORED = 8 / 7  # side of images kept in memory over that of random crops, as 256 to 224
RESNET_RS = {
    # depth: magnitude of RandAugment, dropout, drop path; of its 50 at 160 pixels, 101 at 192, 152
    # at 224, 270 and 350 at 256, 420 at 320.
    50: (10, 0.25, 0.0), 101: (15, 0.25, 0.0), 152: (15, 0.25, 0.0), 270: (15, 0.25, 0.1),
    350: (15, 0.25, 0.1), 420: (15, 0.4, 0.1),
}  # fmt: skip
JFT_RATES = {
    "B/16": 8e-4, "B/32": 8e-4, "L/32": 6e-4, "L/16": 4e-4, "H/14": 3e-4, "R50+B/16": 8e-4,
    "R50+B/32": 8e-4, "R50+L/32": 2e-4, "R50+L/16": 4e-4,
}  # fmt: skip
FINETUNING = {  # data: steps, the learning rates tried
    "imagenet": (20_000, (0.003, 0.01, 0.03, 0.06)),
    "cifar": (10_000, (0.001, 0.003, 0.01, 0.03)),
    "pets": (500, (0.001, 0.003, 0.01, 0.03)),
    "vtab": (2_500, (0.01,)),
}

PretrainingData = Literal["jft", "imagenet-21k", "imagenet"]
FinetuningData = Literal["imagenet", "cifar", "pets", "vtab"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is trained.

    Args:
        source: whose recipe it is.
        image_size: side of the images that the network sees.
        batch_size: images of one update.
        epochs, max_steps: length; one of them is given.
        lr: highest learning rate; with ``lr_per`` that of so many images an update, and in
            proportion for other batches.
        warmup_epochs, warmup_steps: how long the learning rate rises; at most one is given.
        ema_decay: see ``TrainConfig``; so too for what has its names.
        label_smoothing: share of the target spread over all classes.
        stored: where images are cropped, side of what is cut out of over ``image_size``.
        crop_area: shares of the image that random resized crops take; None crops nothing.
        shift_share: images are moved by up to this share of their side.
        mirror: half of the images are mirrored.
        rand_augment: operations, and their magnitude of 30.
        dropout, drop_path: of the network; None leaves it as it is.
        batch_norm_momentum: share that a batch has in the running statistics; None leaves torch's.
        normalization: see ``tasks.normalizing``.
    """

    source: str
    image_size: int
    batch_size: int
    epochs: float | None = None
    max_steps: int | None = None
    optimizer: Optimizer
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    lr: float
    lr_per: int | None = None
    schedule: Schedule
    min_lr_ratio: float = 0.0
    warmup_epochs: float = 0.0
    warmup_steps: int = 0
    weight_decay: float
    clip_norm: float | None = None
    ema_decay: float | None = None
    label_smoothing: float = 0.0
    crop_area: tuple[float, float] | None = None
    stored: float = STORED
    shift_share: float = 0.0
    mirror: bool = True
    rand_augment: tuple[int, int] | None = None
    dropout: float | None = None
    drop_path: float | None = None
    batch_norm_momentum: float | None = None
    normalization: Normalization = "data"

    def rate(self, batch_size: int) -> float:
        """Return the learning rate for updates of so many images."""
        return self.lr if self.lr_per is None else self.lr * batch_size / self.lr_per


def lambda_90() -> Recipe:
    """The comparisons of lambda layers with ResNet-50's convolutions: 90 epochs of ImageNet.

    Momentum 0.9 and the average of weights are not stated for it; they are those of the 350 epochs.
    The running statistics keep 0.9999 of themselves, so they need tens of thousands of updates.
    """
    return Recipe(
        source="Bello 2021, 90 epochs",
        image_size=224,
        batch_size=4096,
        epochs=90.0,
        optimizer="sgd",
        lr=0.1,
        lr_per=256,
        schedule="cosine",
        warmup_epochs=5.0,
        weight_decay=1e-4,
        ema_decay=0.9999,
        label_smoothing=0.1,
        crop_area=(0.08, 1.0),
        batch_norm_momentum=1e-4,
    )


def lambda_350(depth: int = 50) -> Recipe:
    """LambdaResNets of the speed-accuracy curve: 350 epochs of ImageNet.

    Augmentation, dropout and stochastic depth grow with the network; the paper's own table could
    not be had, so they are those of the ResNet-RS of that depth, or of the next smaller one. Images
    of the larger networks have 256 and 320 pixels.

    Raises:
        ValueError: if ``depth`` is below 50.
    """
    known = [d for d in RESNET_RS if d <= depth]
    if not known:
        raise ValueError(f"depth must be at least {min(RESNET_RS)}, got {depth}")
    magnitude, dropout, drop_path = RESNET_RS[max(known)]
    return Recipe(
        source="Bello 2021, 350 epochs; ResNet-RS",
        image_size=224,
        batch_size=4096,
        epochs=350.0,
        optimizer="sgd",
        lr=0.1,
        lr_per=256,
        schedule="cosine",
        warmup_epochs=5.0,
        weight_decay=4e-5,
        ema_decay=0.9999,
        label_smoothing=0.1,
        crop_area=(0.08, 1.0),
        rand_augment=(2, magnitude),
        dropout=dropout,
        drop_path=drop_path,
    )


def vit_pretrain(data: PretrainingData = "imagenet", model: str = "B/16") -> Recipe:
    """Vision Transformers from scratch, table 3.

    Adam with decay is AdamW here: see ``TrainConfig``. Crops, mirroring and numbers from -1 to 1
    are not stated in the paper; they are those of its code.

    Raises:
        ValueError: if there is no such data, or no rate for that model on it.
    """
    check_choice("data", data, ("jft", "imagenet-21k", "imagenet"))
    lr, decay, dropout, epochs = 3e-3, 0.3, 0.1, 300.0
    if data == "jft":
        check_choice("model", model, tuple(JFT_RATES))
        lr, decay, dropout, epochs = JFT_RATES[model], 0.1, 0.0, 14.0 if model == "H/14" else 7.0
    elif data == "imagenet-21k":
        lr, decay, epochs = 1e-3, 0.03, 90.0
    return Recipe(
        source="Dosovitskiy et al. 2021, table 3",
        image_size=224,
        batch_size=4096,
        epochs=epochs,
        optimizer="adamw",
        lr=lr,
        schedule="cosine" if data == "imagenet" else "linear",
        warmup_steps=10_000,
        weight_decay=decay,
        clip_norm=1.0 if data == "imagenet" else None,
        crop_area=(0.05, 1.0),
        dropout=dropout,
        normalization="half",
    )


def vit_finetune(data: FinetuningData = "cifar", *, lr: float = 0.03) -> Recipe:
    """Vision Transformers from a pre-trained one, table 4: a head of zeros, more pixels.

    The paper tries the rates of ``FINETUNING`` and keeps the best on held-out images; 0.03 and the
    warm-up are those of its code. The weights of its ImageNet results were averaged (``ema_decay``
    0.9999); the others were not.

    Raises:
        ValueError: if there is no such data, or ``lr`` is not above 0.
    """
    check_choice("data", data, tuple(FINETUNING))
    check_positive_number("lr", lr)
    return Recipe(
        source="Dosovitskiy et al. 2021, table 4",
        image_size=384,
        batch_size=512,
        max_steps=FINETUNING[data][0],
        optimizer="sgd",
        lr=lr,
        schedule="cosine",
        warmup_steps=min(500, FINETUNING[data][0] // 10),
        weight_decay=0.0,
        clip_norm=1.0,
        crop_area=(0.05, 1.0),
        stored=1.0,
        normalization="half",
    )


def small() -> Recipe:
    """A start for folders of some thousand images on a CPU; nobody's publication."""
    return Recipe(
        source="this library's",
        image_size=64,
        batch_size=64,
        epochs=30.0,
        optimizer="adamw",
        lr=1e-3,
        schedule="cosine",
        warmup_epochs=1.0,
        weight_decay=0.05,
        clip_norm=1.0,
        label_smoothing=0.1,
        shift_share=1 / 16,
        drop_path=0.1,
    )


RecipeName = Literal["small", "lambda-90", "lambda-350", "vit-pretrain", "vit-finetune"]
RECIPES: dict[RecipeName, Callable[[], Recipe]] = {
    "small": small,
    "lambda-90": lambda_90,
    "lambda-350": lambda_350,
    "vit-pretrain": vit_pretrain,
    "vit-finetune": vit_finetune,
}


def recipe_for(name: RecipeName, model: str) -> Recipe:
    """Return the recipe of that name, with what it has for the network ``model``.

    Raises:
        ValueError: if there is none of that name.
    """
    check_choice("recipe", name, tuple(RECIPES))
    depth = re.search(r"(?:^lambda:|resnet-rs-|resnet)(\d+)", model)
    if name == "lambda-350" and depth:
        return lambda_350(max(min(RESNET_RS), int(depth[1])))
    return RECIPES[name]()


def in_words(recipe: Recipe) -> str:
    """Return the recipe's numbers in one line, those left out that are off."""
    length = f"{recipe.epochs:g} epochs" if recipe.epochs else f"{recipe.max_steps:,} steps"
    per = f" for {recipe.lr_per} images an update" if recipe.lr_per else ""
    warmup = (
        f"{recipe.warmup_epochs:g} epochs"
        if recipe.warmup_epochs
        else f"{recipe.warmup_steps:,} steps"
    )
    parts = [
        f"{recipe.image_size} pixels, batch {recipe.batch_size}, {length}, {recipe.optimizer}, "
        f"rate {recipe.lr:g}{per}, warm-up of {warmup}, {recipe.schedule} to "
        f"{recipe.min_lr_ratio:g}, weight decay {recipe.weight_decay:g}",
        recipe.clip_norm and f"gradients clipped at {recipe.clip_norm:g}",
        recipe.ema_decay and f"weights averaged with {recipe.ema_decay:g}",
        recipe.label_smoothing and f"label smoothing {recipe.label_smoothing:g}",
        recipe.crop_area
        and f"random crops of {recipe.crop_area[0]:.0%} to {recipe.crop_area[1]:.0%}",
        recipe.shift_share and f"shifts of up to {recipe.shift_share:.1%}",
        recipe.mirror and "mirrored",
        recipe.rand_augment and "RandAugment {} / {}".format(*recipe.rand_augment),
        recipe.dropout and f"dropout {recipe.dropout:g}",
        recipe.drop_path and f"drop path {recipe.drop_path:g}",
        recipe.batch_norm_momentum and f"batch-norm momentum {recipe.batch_norm_momentum:g}",
        f"normalised by {recipe.normalization}",
    ]
    return ", ".join(part for part in parts if part)
