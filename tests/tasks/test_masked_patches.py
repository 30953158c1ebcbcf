"""Masked patch prediction: what is hidden, what is to be guessed, and that guesses see nothing."""

import numpy as np
import pytest
import torch

from helpers import assert_near
from subquad.data.image_set import ImageSet
from subquad.models.vision_transformer import VisionTransformer
from subquad.tasks.masked_patches import (
    MASK,
    TARGETS,
    Corruption,
    MaskedPatchModel,
    MaskedPatchTask,
)
from subquad.tasks.patch_colours import mean_colours, patches_of, unseen_colours
from subquad.tasks.task import Task
from subquad.tasks.training import TrainConfig, fit


def backbone(side=8, channels=1, **options):
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=side, in_channels=channels, num_classes=3,
        **{"patch_size": 4, "d_model": 16, "num_layers": 1, "num_heads": 2, **options},
    )  # fmt: skip


def images(count=12, side=8, channels=1):
    drawn = np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)
    labels = np.zeros(count, np.uint8)
    return ImageSet(
        train=drawn, train_labels=labels, test=drawn[:5], test_labels=labels[:5], source="drawn"
    )


def task(target="mean-colour", *, channels=1, batch_size=4, model=None, **options):
    found = MaskedPatchModel(model or backbone(channels=channels), target=target)
    return MaskedPatchTask(found, images(channels=channels), batch_size=batch_size, **options)


def test_the_patches_are_those_of_the_stem():
    model = backbone(side=(8, 12), channels=2)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 2), np.uint8)
    x = torch.from_numpy(pictures).float().permute(0, 3, 1, 2)
    weight = model.stem.proj.weight.permute(2, 3, 1, 0).flatten(0, 2)
    by_hand = torch.from_numpy(patches_of(pictures, 4)).float().flatten(2) @ weight
    assert_near(model.stem(x).flatten(2).mT, by_hand + model.stem.proj.bias, 1e-5)


def test_half_of_the_patches_are_corrupted_by_80_10_10():
    guessed, shown = Corruption()(2000, 50, np.random.default_rng(0))
    assert guessed.shape == shown.shape == (2000, 25)
    assert (np.diff(guessed, axis=1) > 0).all()  # none twice
    assert guessed.min() >= 0
    assert guessed.max() == 49
    per_patch = np.bincount(guessed.ravel()) / 2000
    assert np.abs(per_patch - 0.5).max() < 0.05
    masked, kept = (shown == MASK).mean(), (shown == guessed).mean()
    assert abs(masked - 0.8) < 0.01
    assert abs(kept - 0.1) < 0.005
    other = shown[(shown != MASK) & (shown != guessed)]
    assert np.abs(np.bincount(other, minlength=50) / len(other) - 1 / 50).max() < 0.01
    replaced = Corruption(corrupted=1.0, masked=0.0, replaced=1.0)
    guessed, shown = replaced(100, 3, np.random.default_rng(0))
    assert (shown != guessed).all()  # no other patch is the patch itself
    assert set(np.unique((shown - guessed) % 3)) == {1, 2}


@pytest.mark.parametrize(("share", "count"), [(0.15, 7), (0.5, 24), (1.0, 49), (0.001, 1)])
def test_other_shares(share, count):
    corruption = Corruption(corrupted=share, masked=0.0, replaced=0.0)
    guessed, shown = corruption(3, 49, np.random.default_rng(0))
    assert guessed.shape == (3, count)
    np.testing.assert_array_equal(shown, guessed)


@pytest.mark.parametrize("pooling", ["class", "mean", "sequence"])
@pytest.mark.parametrize("mixer", ["softmax", "linear"])
def test_what_is_kept_is_seen_as_without_corruption(pooling, mixer):
    model = backbone(side=(8, 12), pooling=pooling, mixer=mixer).double()
    masked = MaskedPatchModel(model).double()
    x = torch.randn(2, 1, 8, 12, dtype=torch.float64)
    guessed = torch.tensor([[0, 2, 5], [1, 3, 4]])
    expected = model.forward_features(x)[:, pooling == "class" :]
    expected = masked.predict(torch.stack([expected[i, guessed[i]] for i in range(2)]))
    assert_near(masked(x, guessed, guessed), expected, 1e-12)
    wide = torch.randn(2, 1, 16, 8, dtype=torch.float64)  # another grid, of eight patches
    expected = masked.predict(model.forward_features(wide)[:, pooling == "class" :][:, 7:])
    last = torch.full((2, 1), 7)
    assert_near(masked(wide, last, last), expected, 1e-12)


def test_the_hidden_are_not_seen_and_the_shown_are():
    masked = MaskedPatchModel(backbone()).double()
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    guessed, shown = torch.tensor([[1, 2, 3]]), torch.tensor([[MASK, 0, MASK]])
    found = masked(x, guessed, shown)
    hidden, seen = x.clone(), x.clone()
    hidden[:, :, :4, 4:] = 7.0  # patch 1
    hidden[:, :, 4:] = -3.0  # patches 2, 3
    seen[:, :, :4, :4] = 7.0  # patch 0, which stands in the place of 2 too
    assert torch.equal(masked(hidden, guessed, shown), found)
    assert not torch.allclose(masked(seen, guessed, shown), found)
    # The same by hand: embeddings put together, then positions and blocks.
    model = masked.backbone
    first = model.stem(x).flatten(2).mT[:, 0]
    mask = masked.mask[None]
    tokens = model.encode(torch.stack([first, mask, first, mask], dim=1))
    assert_near(found, masked.predict(tokens[:, 2:]), 1e-12)


def test_gradients_reach_all_that_learns_and_the_head_is_left_alone():
    made = task(model=backbone(pooling="sequence", pre_logits=True, num_layers=2))
    made.loss(*made.batch(0)).backward()
    for name, parameter in made.model.named_parameters():
        unused = name.startswith(("backbone.head", "backbone.pre_logits", "backbone.scores"))
        assert parameter.requires_grad == (not unused), name
        assert (parameter.grad is not None) == (not unused), name
    assert made.model.mask.grad.abs().max() > 0
    assert all(p.requires_grad for p in made.model.released().parameters())


@pytest.mark.parametrize(("channels", "classes"), [(1, 8), (3, 512)])
def test_the_losses_by_hand(channels, classes):
    for target in TARGETS:
        made = task(target, channels=channels)
        x, guessed, shown, targets = made.batch(0)
        predictions = made.model(x, guessed, shown)
        count = guessed.shape[1]
        if target == "pixels":
            assert targets.shape == (4, count, 16 * channels)
            pixels = patches_of(x.permute(0, 2, 3, 1).numpy(), 4).reshape(4, 4, -1)
            for i in range(4):
                assert_near(targets[i], torch.from_numpy(pixels[i, guessed[i]]), 1e-7)
            expected = (predictions - targets).square().mean()
            assert made.unit == "squared error"
        else:
            heads = 16 if target == "small-patch" else 1
            assert predictions.shape == (4, count, heads * classes)
            log_p = predictions.unflatten(2, (heads, classes)).log_softmax(3)
            wanted = targets.reshape(4, count, heads, 1)
            expected = -log_p.gather(3, wanted).mean()
            assert int(targets.max()) < classes
        assert_near(made.loss(x, guessed, shown, targets), expected.detach(), 1e-6)


def test_batches_are_functions_of_their_number_and_targets_of_the_bytes():
    one = task()
    assert isinstance(one, Task)
    for step in (5, 0, 2):
        for a, b in zip(one.batch(step), task().batch(step), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(one.batch(0)[2], task(seed=1).batch(0)[2])
    whole = task(batch_size=12)
    x, guessed, _, targets = whole.batch(0)
    assert not torch.equal(guessed, whole.batch(1)[1])
    std, mean = (torch.tensor(v).float() for v in (whole._batches.std, whole._batches.mean))
    pixels = (255 * (x.permute(0, 2, 3, 1) * std + mean)).round().byte().numpy()
    classes = torch.from_numpy(mean_colours(patches_of(pixels, 4)))
    assert torch.equal(classes.gather(1, guessed), targets)


@pytest.mark.parametrize("target", TARGETS)
def test_evaluations_are_always_the_same_and_leave_the_model_as_it_was(target):
    made = task(target, evaluation_batch=2, quick_images=3)
    before = torch.get_rng_state()
    full = made.evaluate(full=True)
    assert (
        full
        == made.evaluate(full=True)
        == task(target, seed=9, evaluation_batch=2).evaluate(full=True)
    )
    assert made.evaluate(full=False) != full
    assert torch.equal(torch.get_rng_state(), before)
    assert made.model.training
    assert ("accuracy" in full) == (target != "pixels")
    # One batch of two and the rest have other masks; the loss is the mean over all of them.
    total, count = 0.0, 0
    for i, start in enumerate((0, 2, 4)):
        rng = np.random.default_rng((1_000_000_007, i))
        batch = made._examples(images().test[start : start + 2], rng)
        total += made.loss(*batch).item() * batch[3].numel()
        count += batch[3].numel()
    assert full["loss"] == pytest.approx(total / count, rel=1e-5)


def test_it_learns_what_neighbours_tell(tmp_path):
    # Each image is of one grey: any patch that is left tells the others.
    greys = (np.arange(64) % 8 * 32 + 16).astype(np.uint8)
    drawn = np.broadcast_to(greys[:, None, None, None], (64, 8, 8, 1)).copy()
    labels = np.zeros(64, np.uint8)
    found = ImageSet(
        train=drawn, train_labels=labels, test=drawn[:16], test_labels=labels[:16], source="grey"
    )
    made = MaskedPatchTask(MaskedPatchModel(backbone()), found, batch_size=32)
    config = TrainConfig(max_steps=80, batch_size=32, optimizer="adamw", lr=1e-2, device="cpu")
    fit(made, config, tmp_path, quiet=True)
    assert made.evaluate(full=True)["accuracy"] > 0.9
    unseen = unseen_colours(found, 4)
    assert unseen["accuracy"] == 1 / 8
    assert unseen["loss"] == pytest.approx(np.log(8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task(quick_images=0), "quick_images must be at least 1, got 0"),
        (lambda: task(evaluation_batch=0), "evaluation_batch must be at least 1, got 0"),
        (lambda: task(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: task(seed=-1), "seed must be at least 0, got -1"),
        (lambda: task(seed=1_000_000_007), "seed must be below 1000000007, got 1000000007"),
        (
            lambda: MaskedPatchTask(
                MaskedPatchModel(backbone(side=10, patch_size=5)), images(), batch_size=1
            ),
            "side must divide 8 and 8, got 5",
        ),
        (
            lambda: task("small-patch", model=backbone(patch_size=2)),
            "the side of a patch must be a multiple of 4, got 2",
        ),
        (lambda: Corruption(corrupted=0.0), "corrupted must be above 0, got 0"),
        (lambda: Corruption(corrupted=1.5), "corrupted must lie from 0 to 1, got 1.5"),
        (lambda: Corruption(masked=-0.1), "masked must lie from 0 to 1, got -0.1"),
        (
            lambda: Corruption(masked=0.8, replaced=0.3),
            "masked and replaced must be at most 1 together, got 0.8 and 0.3",
        ),
        (
            lambda: MaskedPatchModel(backbone(), target="colour"),
            "target must be one of .*; got 'colour'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(unhooked, make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_that_do_not_fit_are_refused_and_not_cut(unhooked):
    model, places = MaskedPatchModel(backbone()), torch.tensor([[1]])
    with pytest.raises(ValueError, match=r"multiples of patch_size \(4\), got 9 x 10"):
        model(torch.zeros(1, 1, 9, 10), places, places)
    with pytest.raises(ValueError, match=r"x must have the shape \(B, 1, H, W\), got"):
        model(torch.zeros(1, 3, 8, 8), places, places)
    with pytest.raises(TypeError, match=r"x must be of a floating dtype, got torch\.uint8"):
        model(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), places, places)


def test_patches_of_another_shape_are_refused(unhooked):
    model = backbone()
    with pytest.raises(
        ValueError, match=r"patches must have the shape \(B, 4, 16\), got \(2, 5, 16\)"
    ):
        model.encode(torch.zeros(2, 5, 16))
    with pytest.raises(
        ValueError, match=r"patches must have the shape \(B, 6, 16\), got \(2, 4, 16\)"
    ):
        model.encode(torch.zeros(2, 4, 16), (2, 3))
