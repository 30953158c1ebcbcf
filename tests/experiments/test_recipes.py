from pathlib import Path

import pytest

from subquad.experiments.image_training import ImageTrainingOptions, make_plan
from subquad.experiments.recipes import (
    RECIPES,
    in_words,
    lambda_350,
    recipe_for,
    vit_finetune,
    vit_pretrain,
)

IMAGENET = 1_281_167


def plan(images=IMAGENET, **options):
    return make_plan(ImageTrainingOptions(folder=Path("x"), **options), images)


def test_ninety_epochs_of_imagenet():
    found = plan(recipe="lambda-90", model="lambda:resnet50-LLLL")
    train = found.train
    assert (train.optimizer, train.momentum, train.schedule) == ("sgd", 0.9, "cosine")
    assert train.lr == pytest.approx(1.6)  # 0.1 for 256 images
    assert (train.batch_size, train.max_steps) == (4096, 28_151)
    assert train.warmup_steps == round(5 * IMAGENET / 4096)
    assert (train.weight_decay, train.ema_decay, train.min_lr_ratio) == (1e-4, 0.9999, 0)
    recipe = found.recipe
    assert (recipe.label_smoothing, recipe.batch_norm_momentum) == (0.1, 1e-4)
    assert (found.crop, found.side, recipe.rand_augment) == (224, 256, None)
    assert plan(recipe="lambda-90", lr=0.5, batch_size=64).train.lr == 0.5
    assert plan(recipe="lambda-90", batch_size=512).train.lr == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("depth", "magnitude", "dropout", "drop_path"),
    [
        (50, 10, 0.25, 0),
        (152, 15, 0.25, 0),
        (200, 15, 0.25, 0),
        (350, 15, 0.25, 0.1),
        (420, 15, 0.4, 0.1),
    ],
)
def test_350_epochs_grow_with_the_network(depth, magnitude, dropout, drop_path):
    found = plan(recipe="lambda-350", model=f"lambda:{depth}")
    recipe = found.recipe
    assert recipe == lambda_350(depth)
    assert recipe.rand_augment == (2, magnitude)
    assert (recipe.dropout, recipe.drop_path) == (dropout, drop_path)
    assert found.train.max_steps == 109_475  # as the released configuration files have it
    assert (found.train.weight_decay, found.train.ema_decay) == (4e-5, 0.9999)
    assert recipe_for("lambda-350", f"lambda:resnet-rs-{depth}-SSSS") == recipe
    assert recipe_for("lambda-350", "small-lambda") == lambda_350(50)


def test_pre_training_by_data():
    imagenet, jft = vit_pretrain(), vit_pretrain("jft", "L/16")
    assert (imagenet.lr, imagenet.weight_decay, imagenet.dropout) == (3e-3, 0.3, 0.1)
    assert (imagenet.epochs, imagenet.schedule, imagenet.clip_norm) == (300, "cosine", 1.0)
    assert (jft.lr, jft.weight_decay, jft.dropout) == (4e-4, 0.1, 0.0)
    assert (jft.epochs, jft.schedule, jft.clip_norm) == (7, "linear", None)
    more = vit_pretrain("imagenet-21k")
    assert (more.lr, more.weight_decay, more.epochs) == (1e-3, 0.03, 90)
    for recipe in (imagenet, jft, more):
        assert (recipe.optimizer, recipe.betas) == ("adamw", (0.9, 0.999))
        assert (recipe.batch_size, recipe.warmup_steps, recipe.image_size) == (4096, 10_000, 224)
    with pytest.raises(ValueError, match="model must be one of B/16"):
        vit_pretrain("jft", "S/16")
    with pytest.raises(ValueError, match="data must be one of jft"):
        vit_pretrain.__wrapped__("laion")


def test_fine_tuning():
    found = plan(recipe="vit-finetune", start_from="run", images=50_000)
    train = found.train
    assert (train.optimizer, train.momentum, train.lr) == ("sgd", 0.9, 0.03)
    assert (train.batch_size, train.max_steps, train.warmup_steps) == (512, 10_000, 500)
    assert (train.weight_decay, train.clip_norm, train.ema_decay) == (0, 1.0, None)
    assert (found.crop, found.side) == (384, 384)
    assert plan(recipe="vit-finetune", start_from="r", ema_decay=0.9999).train.ema_decay == 0.9999
    assert (vit_finetune("imagenet").max_steps, vit_finetune("vtab").max_steps) == (20_000, 2_500)
    assert vit_finetune("pets").warmup_steps == 50


def test_numbers_per_epoch_become_steps_by_the_size_of_the_data():
    found = plan(images=1000, epochs=10.0, batch_size=25, grad_accumulation=2)
    assert (found.train.max_steps, found.train.warmup_steps) == (200, 20)
    assert (found.train.eval_every, found.train.checkpoint_every) == (20, 20)
    assert (found.crop, found.side, found.shift) == (None, 64, 4)
    assert plan(images=1000, max_steps=7, warmup_steps=3).train.max_steps == 7
    minutes = plan(images=1000, minutes=2.0).train
    assert (minutes.max_steps, minutes.minutes) == (None, 2.0)
    split = plan(recipe="lambda-90", grad_accumulation=16).train
    assert (split.batch_size, split.samples_per_update) == (256, 4096)
    assert split.lr == pytest.approx(1.6)


def test_options_take_the_place_of_the_recipes_numbers():
    found = plan(
        recipe="lambda-350", rand_augment=0, ema_decay=0.0, mirror="no", dropout=0.5,
        image_size=64, batch_norm_momentum=0.2, normalization="half",
    ).recipe  # fmt: skip
    assert (found.rand_augment, found.ema_decay, found.mirror) == (None, None, False)
    assert (found.dropout, found.image_size, found.normalization) == (0.5, 64, "half")
    assert found.batch_norm_momentum == 0.2
    assert plan(rand_augment=7).recipe.rand_augment == (2, 7)


def test_a_short_run_is_told_what_its_averages_hold_on_to():
    remarks = plan(images=6400, recipe="lambda-90", batch_size=64, epochs=10.0).remarks
    assert len(remarks) == 2
    assert "hold on to 90% of the first ones after 1,000 steps" in remarks[0]
    assert "hold on to 90% of their first values" in remarks[1]
    assert plan(recipe="lambda-90", epochs=350.0).remarks == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1.0, "minutes": 1.0}, "only one of --epochs, --max-steps and --minutes"),
        ({"model": "small-vit", "start_from": "run"}, "only one of --model and --start-from"),
        ({"recipe": "vit-finetune"}, "--recipe vit-finetune needs --start-from"),
        ({"epochs": -1.0}, "epochs must be above 0, got -1"),
        ({"lr": 0.0}, "lr must be above 0, got 0"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1"),
        ({"batch_norm_momentum": 0.0}, "batch_norm_momentum must be above 0 and up to 1, got 0"),
        ({"grad_accumulation": 3}, "--grad-accumulation must divide the recipe's batch of 64, got"),
        ({"max_steps": 5, "warmup_steps": 5}, "warmup_steps must be less than the 5 steps of the"),
        ({"recipe": "vit-pretrain", "max_steps": 100}, "than the 100 steps .* got 10,000; give"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan(images=640, **options)


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_can_be_said_in_words(name):
    words = in_words(RECIPES[name]())
    assert "None" not in words
    assert "pixels, batch" in words
