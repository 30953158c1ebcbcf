"""Learning from images without labels: half of the patches are hidden, what was there is guessed.

Axes: B images, N patches in raster order, P pixels along a side of a patch, C channels, D width.
Source: Dosovitskiy et al. 2021, section 4.6 and appendix B.1.2 (masked patch prediction): of the
corrupted half 80 % are replaced by a learned [mask], 10 % by another patch, 10 % stay; the target
is the 3-bit mean colour, or one of two others. What is replaced is the embedding of a patch;
positions are added behind it. Not said there: "another patch" is here one of the same image; the
corrupted are exactly half of an image's patches.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.data.augment import middle
from subquad.data.image_set import ImageSet
from subquad.models.vision_transformer import VisionTransformer
from subquad.models.vit_parts import check_images, grid_of
from subquad.ops.checks import check_choice
from subquad.tasks.image_batches import Augmentation, Bytes, ImageBatches, some_places
from subquad.tasks.normalizing import Normalization
from subquad.tasks.patch_colours import (
    LEVELS,
    SMALL_SIDE,
    mean_colours,
    patches_of,
    small_patches,
)

PatchTarget = Literal["mean-colour", "small-patch", "pixels"]
TARGETS: tuple[PatchTarget, ...] = get_args(PatchTarget)

MASK = -1  # in place of the number of a patch
MASKS_SEED = 1_000_000_007  # of what is hidden in evaluations
QUICK_IMAGES = 500
EVALUATION_BATCH = 250
STD = 0.02

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """Which patches are guessed, and what stands in their places.

    Args:
        corrupted: share of an image's patches that are guessed, rounded to whole patches.
        masked: chance of each of these to be replaced by the mask.
        replaced: chance to be replaced by another patch of the image; the rest stays.

    Raises:
        ValueError: if a share does not lie from 0 to 1, the last two are more than 1 together, or
            ``corrupted`` is 0.
    """

    corrupted: float = 0.5
    masked: float = 0.8
    replaced: float = 0.1

    def __post_init__(self) -> None:
        for name in ("corrupted", "masked", "replaced"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie from 0 to 1, got {getattr(self, name)}")
        if self.corrupted == 0:
            raise ValueError("corrupted must be above 0, got 0")
        if self.masked + self.replaced > 1:
            raise ValueError(
                "masked and replaced must be at most 1 together, "
                f"got {self.masked} and {self.replaced}"
            )

    def count(self, patches: int) -> int:
        """Return how many of so many patches are guessed, at least one."""
        return max(1, round(self.corrupted * patches))

    def __call__(self, images: int, patches: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
        """Draw for each image which patches are guessed, and what stands in their places.

        Returns:
            The guessed patches (B, G) of B ``images``, in order, and for each the number of the
            patch that stands there: its own, another, or ``MASK``.
        """
        count = self.count(patches)
        guessed = np.sort(rng.permuted(np.tile(np.arange(patches), (images, 1)), axis=1)[:, :count])
        kind = rng.random((images, count))
        # 1 to N - 1 places on, around the image's end: any patch but itself.
        others = (guessed + rng.integers(1, max(2, patches), (images, count))) % patches
        masked, replaced = self.masked, self.masked + self.replaced
        return guessed, np.where(kind < masked, MASK, np.where(kind < replaced, others, guessed))


class MaskedPatchModel(nn.Module):
    """A Vision Transformer that guesses hidden patches; (B, C, H, W) and (B, G) twice -> (B, G, O).

    O is the number of classes of a colour (512, or 8 for grey images), sixteen times as many, or
    the P * P * C numbers of a patch.

    Args:
        backbone: the transformer, with any mixer; its head is not used. It is trained in place. A
            stem whose convolutions overlap has seen pixels of a hidden patch in its neighbours too.
        target: what is guessed.

    Raises:
        ValueError: if ``target`` is unknown.
    """

    def __init__(self, backbone: VisionTransformer, *, target: PatchTarget = "mean-colour") -> None:
        super().__init__()
        check_choice("target", target, TARGETS)
        self.config: dict[str, Any] = {"backbone": backbone.config, "target": target}
        self.backbone, self.target = backbone, target
        channels, width = backbone.config["in_channels"], backbone.config["d_model"]
        colours = LEVELS**channels
        outputs = {
            "mean-colour": colours,
            "small-patch": SMALL_SIDE**2 * colours,
            "pixels": backbone.patch_size**2 * channels,
        }
        self.mask = nn.Parameter(torch.empty(width))
        self.predict = nn.Linear(width, outputs[target])
        nn.init.normal_(self.mask, std=STD)
        nn.init.normal_(self.predict.weight, std=STD)
        nn.init.zeros_(self.predict.bias)
        for name, parameter in backbone.named_parameters():
            if name.startswith(("head.", "pre_logits.", "scores.")):
                parameter.requires_grad_(False)

    def forward(
        self, x: Float[Tensor, "B C H W"], guessed: Int[Tensor, "B G"], shown: Int[Tensor, "B G"]
    ) -> Float[Tensor, "B G O"]:
        """Return predictions for the ``guessed`` patches; ``shown`` says what stands there.

        Raises:
            TypeError: if ``x`` is not floating.
            ValueError: if its shape does not fit.
        """
        check_images("x", x, self.backbone.config["in_channels"], is_batch=True)
        grid = grid_of(x.shape[2:], self.backbone.patch_size)  # a stem would cut what is over
        patches = self.backbone.stem(x).flatten(2).mT
        width = (-1, -1, patches.shape[2])
        others = patches.gather(1, shown.clamp(min=0)[..., None].expand(width))
        seen = torch.where((shown == MASK)[..., None], self.mask.to(patches.dtype), others)
        patches = patches.scatter(1, guessed[..., None].expand(width), seen)
        tokens = self.backbone.encode(patches, grid)
        tokens = tokens[:, tokens.shape[1] - patches.shape[1] :]  # no class token
        predictions: Tensor = self.predict(tokens.gather(1, guessed[..., None].expand(width)))
        return predictions

    def released(self) -> VisionTransformer:
        """Return the transformer, all of its weights trainable again."""
        return self.backbone.requires_grad_(True)


class MaskedPatchTask:
    """Minimise what a model is wrong by about the corrupted patches.

    That is the mean cross-entropy of the colours' classes, or for "pixels" the mean squared error
    of pixels as the model sees them, normalised.

    Args:
        model: the transformer with its head for patches.
        images: training and test images; their labels are not used.
        batch_size: images in one micro-batch.
        seed: of the order of the images, of how they are varied and of what is corrupted.
        corruption: how patches are hidden.
        augmentation: how training images are varied.
        evaluation_batch: images in one forward pass of an evaluation.
        quick_images: test images of a quick evaluation, always the same.
        normalization: of the channels; see ``tasks.normalizing``.

    Raises:
        ValueError: if a number is out of its range, or the images do not fit the model.
    """

    sample_name = "images"

    def __init__(
        self,
        model: MaskedPatchModel,
        images: ImageSet,
        *,
        batch_size: int,
        seed: int = 0,
        corruption: Corruption | None = None,
        augmentation: Augmentation | None = None,
        evaluation_batch: int = EVALUATION_BATCH,
        quick_images: int = QUICK_IMAGES,
        normalization: Normalization = "data",
    ) -> None:
        for name, value in (
            ("evaluation_batch", evaluation_batch),
            ("quick_images", quick_images),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if seed >= MASKS_SEED:
            raise ValueError(f"seed must be below {MASKS_SEED}, got {seed}")
        self.model, self.samples_per_step = model, batch_size
        self.unit: str = "squared error" if model.target == "pixels" else "nats"
        self._corruption = Corruption() if corruption is None else corruption
        self._side = model.backbone.patch_size
        self._evaluation_batch, self._quick_images = evaluation_batch, quick_images
        augmentation = augmentation or Augmentation()
        self._crop = augmentation.crop
        self._batches = ImageBatches(
            images,
            batch_size=batch_size,
            seed=seed,
            augmentation=augmentation,
            normalization=normalization,
        )
        self._examples(images.test[:1], np.random.default_rng(0))  # refuses what does not fit
        self.identity: dict[str, Any] = {
            "name": "masked patches",
            **self._batches.identity,
            "target": model.target,
            **vars(self._corruption),
        }

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return images (B, C, H, W), guessed and shown patches (B, G), and targets (B, G, ...)."""
        rng = np.random.default_rng((self._batches.seed, 2, step))
        return self._examples(self._batches(step)[0], rng)

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the mean nats per colour, or squared error per number."""
        x, guessed, shown, targets = batch
        predictions = self.model(x, guessed, shown).float()
        if self.model.target == "pixels":
            return F.mse_loss(predictions, targets)
        return F.cross_entropy(self._logits(predictions), targets.flatten())

    def metric(self, loss: float) -> float:
        """Return ``loss`` as it is."""
        return loss

    @torch.no_grad()
    def evaluate(self, *, full: bool) -> dict[str, float]:
        """Return the loss, and of colours the share right; what is hidden is always the same."""
        images = self._batches.images.test
        images = images[some_places(len(images), None if full else self._quick_images)]
        device, was_training = next(self.model.parameters()).device, self.model.training
        self.model.eval()
        loss, right, count = 0.0, 0, 0
        try:
            for i, start in enumerate(range(0, len(images), self._evaluation_batch)):
                part = images[start : start + self._evaluation_batch]
                examples = self._examples(part, np.random.default_rng((MASKS_SEED, i)))
                x, guessed, shown, targets = (t.to(device) for t in examples)
                predictions = self.model(x, guessed, shown).float()
                count += targets.numel()
                if self.model.target == "pixels":
                    loss += float(F.mse_loss(predictions, targets, reduction="sum"))
                    continue
                logits, wanted = self._logits(predictions), targets.flatten()
                loss += float(F.cross_entropy(logits, wanted, reduction="sum"))
                right += int((logits.argmax(1) == wanted).sum())
        finally:
            self.model.train(was_training)
        found = {"loss": loss / count}
        return found if self.model.target == "pixels" else found | {"accuracy": right / count}

    def _logits(self, predictions: Tensor) -> Tensor:
        """Return predictions (B, G, O) as (colours, classes)."""
        return predictions.reshape(-1, LEVELS ** self.model.backbone.config["in_channels"])

    def _examples(self, images: Bytes, rng: np.random.Generator) -> tuple[Tensor, ...]:
        if self._crop is not None:
            images = middle(images, self._crop)  # as the model sees test images
        patches = patches_of(images, self._side)
        guessed, shown = self._corruption(len(images), patches.shape[1], rng)
        x, rows = self._batches.prepared(images), np.arange(len(images))[:, None]
        targets: Tensor
        if self.model.target == "pixels":
            seen = x.permute(0, 2, 3, 1).numpy()
            wanted = patches_of(seen, self._side)[rows, guessed]
            targets = torch.from_numpy(wanted.reshape(*guessed.shape, -1))
        else:
            classes = mean_colours if self.model.target == "mean-colour" else small_patches
            targets = torch.from_numpy(classes(patches[rows, guessed]))
        return x, torch.from_numpy(guessed), torch.from_numpy(shown), targets
