import dataclasses
import typing

import pytest

from subquad.experiments.copy_task import EXPERIMENT as COPY
from subquad.experiments.mnist_pixels import EXPERIMENT as MNIST
from subquad.experiments.options import (
    UNROTATED,
    ModelOptions,
    Positions,
    TrainOptions,
    resolve_duration,
    train_config,
)
from subquad.experiments.paper_tables import TABLE_1
from subquad.experiments.registry import EXPERIMENTS, GROUPS
from subquad.experiments.spec import MIXER_HELP, SCALES, MixerName, Scale
from subquad.layers.registry import MIXERS as LAYER_MIXERS
from subquad.models.stack import POSITIONS
from subquad.tasks.config import TrainConfig


def test_names_at_the_command_line_are_those_of_the_library():
    bidirectional_only = {"linformer"}
    names = set(LAYER_MIXERS) - bidirectional_only
    assert set(typing.get_args(MixerName)) == set(MIXER_HELP) == names
    assert set(typing.get_args(Scale)) == set(SCALES)
    assert set(typing.get_args(Positions)) == set(POSITIONS)
    config = {field.name for field in dataclasses.fields(TrainConfig)}
    assert {field.name for field in dataclasses.fields(TrainOptions)} - {"beta2"} <= config


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", SCALES)
def test_every_preset_is_valid_and_the_same_for_all_mixers(name, scale):
    presets = [EXPERIMENTS[name].preset(scale, mixer) for mixer in MIXER_HELP]
    for options, mixer in zip(presets, MIXER_HELP, strict=True):
        if not hasattr(options, "model"):  # it builds none of its own, so there is no mixer
            assert options == presets[0]
            assert options.scale == scale
            continue
        if not any(field.name == "mixer" for field in dataclasses.fields(options)):  # in its rows
            assert options == presets[0]
        else:
            model = options.model if mixer in UNROTATED else presets[0].model  # of other positions
            assert options == dataclasses.replace(presets[0], mixer=mixer, model=model)
            assert "rotary" not in options.model.positions or mixer not in UNROTATED
        assert options.scale == scale
        if hasattr(options.model, "num_heads"):
            assert options.model.d_model % options.model.num_heads == 0
        train_config(options)


def test_the_paper_scale_is_the_published_recipe():
    mnist = EXPERIMENTS["mnist-pixels"].preset("paper", "linear")
    assert mnist.model == ModelOptions(
        num_layers=8,
        num_heads=8,
        d_model=256,
        d_ff=1024,
        dropout=0.1,
        norm="post",
        positions="sinusoidal-concat",
    )
    train = mnist.train
    assert (train.optimizer, train.lr, train.batch_size) == ("radam", 1e-4, 10)
    assert train.max_steps == 1_500_000
    cifar = EXPERIMENTS["cifar10-pixels"].preset("paper", "linear")
    assert (cifar.model.num_layers, cifar.train.lr) == (16, 2e-4)
    copying = EXPERIMENTS["copy-task"].preset("paper", "softmax")
    assert (copying.model.num_layers, copying.model.d_model) == (4, 256)
    assert (copying.train.max_steps, copying.train.batch_size) == (10_000, 64)
    assert copying.train.drop_at * copying.train.max_steps == 3_000
    assert copying.train.lr * copying.train.min_lr_ratio == pytest.approx(1e-4)


def with_length(experiment, **train):
    preset = experiment.preset("laptop", "linear")
    return dataclasses.replace(preset, train=dataclasses.replace(preset.train, **train)), preset


def test_a_given_number_of_steps_takes_the_place_of_the_presets_minutes():
    options, preset = with_length(MNIST, max_steps=7)
    settled = resolve_duration(options, preset)
    assert (settled.train.max_steps, settled.train.minutes) == (7, None)


def test_given_minutes_take_the_place_of_the_presets_steps():
    preset = COPY.preset("paper", "linear")
    options = dataclasses.replace(preset, train=dataclasses.replace(preset.train, minutes=2.0))
    settled = resolve_duration(options, preset)
    assert (settled.train.max_steps, settled.train.minutes) == (None, 2.0)


def test_only_one_length_of_training_may_be_given():
    options, preset = with_length(MNIST, max_steps=7, minutes=2.0)
    with pytest.raises(ValueError, match=r"only one of --minutes and --max-steps .* got 2 and 7"):
        resolve_duration(options, preset)
    options, preset = with_length(MNIST, minutes=None)
    with pytest.raises(ValueError, match="must be given, got none"):
        resolve_duration(options, preset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"completions": -1}, "completions must be at least 0, got -1"),
        ({"num_mixtures": 0}, "num_mixtures must be at least 1, got 0"),
    ],
)
def test_options_of_images_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MNIST.preset("smoke", "linear"), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_len": 4}, "max_len must be at least 5, got 4"),
        ({"num_symbols": 0}, "num_symbols must be at least 1, got 0"),
    ],
)
def test_options_of_copying_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(COPY.preset("smoke", "linear"), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_heads": 3}, r"num_heads must divide d_model \(32\), got 3"),
        ({"position_width": 0}, "position_width must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1"),
    ],
)
def test_options_of_models_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MNIST.preset("smoke", "linear").model, **change)


def test_the_second_beta_is_refused_by_the_name_it_has_here():
    with pytest.raises(ValueError, match="beta2 must be at least 0 and below 1, got 1"):
        dataclasses.replace(MNIST.preset("smoke", "linear").train, beta2=1.0)


def test_claims_are_the_cells_of_the_papers_tables():
    (bits, _), (_, drawn) = MNIST.claims["linear"], MNIST.claims["softmax"]
    assert (bits.value, bits.unit, bits.source) == (0.644, "bits/dim", "Table 1")
    assert (drawn.value, drawn.unit, drawn.source) == (7.56, "images/s", "Table 4")
    with pytest.raises(KeyError):
        TABLE_1.claim("linaer", "bits/dim")
    empty = dataclasses.replace(TABLE_1, rows={"linear": (None, 1.0)})
    with pytest.raises(ValueError, match="must hold bits/dim of linear, got none"):
        empty.claim("linear", "bits/dim")


def test_groups_name_experiments_and_mixers_that_exist():
    for runs in GROUPS.values():
        for name, mixer in runs:
            assert name in EXPERIMENTS
            assert mixer in MIXER_HELP


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_file_is_a_lab_note(name):
    import subquad.experiments as package

    module = name.replace("-", "_")
    __import__(f"{package.__name__}.{module}")
    note = getattr(package, module).__doc__
    for head in ("Source", "Claim", "Expected", "Cost", "Command", "Differs"):
        assert f"\n{head} " in note, head
    assert f"subquad run {name}" in note
