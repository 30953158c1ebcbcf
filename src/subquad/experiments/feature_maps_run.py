"""The rows of feature-maps: each map on copying and on images, and softmax attention besides."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from subquad.experiments.attention_maps import last_layer_rows
from subquad.experiments.copy_rows import COPY, ONE_SEED, copy_task
from subquad.experiments.image_data import load_images
from subquad.experiments.options import train_config
from subquad.experiments.pixel_run import MNIST_SHAPE
from subquad.experiments.row_options import FeatureMapsOptions
from subquad.experiments.rows import Row, as_file_name, combined, run_rows, write_figure
from subquad.experiments.softmax_distance import distance_from_softmax
from subquad.experiments.spec import Json, Say
from subquad.layers.learned_feature_map import LearnedFeatureMap
from subquad.layers.linear_attention import LinearAttention
from subquad.layers.registry import MixerFactory
from subquad.models.pixel_model import PixelModel
from subquad.ops import feature_maps
from subquad.ops.feature_maps import FeatureMap
from subquad.plots import Point, picture_attention_figure, tradeoff_figure
from subquad.tasks.pixels import PixelTask

IMAGES = "images"
SOFTMAX = "softmax"
LOOKING = (0.35, 0.55, 0.75)  # which bytes' attention is drawn, as shares of the image

Digits = NDArray[np.uint8]  # (N, H, W, C)
Build = Callable[[int, int], FeatureMap]  # of heads and their width


@dataclass(frozen=True, kw_only=True)
class Halves:
    """The images to train on and those to test on."""

    train: Digits
    test: Digits


def run_feature_maps(options: FeatureMapsOptions, folder: Path, say: Say) -> Json:
    """Train the rows in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options.
        OSError: if data is missing or the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    found = load_images(options.data, options.data_folder, half_size=True)
    images = Halves(train=found.train, test=found.test)
    rows = run_rows("feature-maps", feature_map_rows(options, images), options, folder, say)
    file = "figures/distance.png"
    write_figure(folder, file, _distance_figure(rows))
    notes = [
        f"Every map got the same model, the same {found.source} or sequences in the same order and "
        "as many updates. The distance from softmax is the total variation between attention rows "
        "on normal q and k of this width, 0 for the same rows and 1 for rows without overlap.",
        ONE_SEED,
    ]
    figures = {file: "Quality against the map's distance from softmax"}
    return combined(rows, folder, figures) | {"data": found.source, "notes": notes}


def feature_map_rows(options: FeatureMapsOptions, images: Halves) -> list[Row]:
    """Return the rows: softmax and every map, first on copying, then on images."""
    config = train_config(options)
    rows = []
    for name, mixer in mixers(options).items():
        facts = _facts(name, options)
        build = partial(copy_task, options, mixer)
        rows.append(Row(group=COPY, label=name, build=build, train=config, facts=facts))
    if config.minutes is None:
        config = dataclasses.replace(config, max_steps=options.image_steps)
    for name, mixer in mixers(options).items():
        rows.append(
            Row(
                group=IMAGES,
                label=name,
                build=partial(_image_task, options, mixer, images),
                train=config,
                facts=_facts(name, options),
                measure=partial(_draw_attention, name, images.test[0]),
            )
        )
    return rows


def maps(head_dim: int) -> dict[str, Build]:
    """Return every map: those without weights, and learned ones of three sizes."""
    fixed: dict[str, FeatureMap] = {
        "elu + 1": feature_maps.elu_plus_one,
        "relu": feature_maps.relu,
        "relu squared": feature_maps.squared_relu,
        "exp": feature_maps.exp,
        "degree 2": feature_maps.degree_2_polynomial,
        "identity": feature_maps.identity,
    }
    built: dict[str, Build] = {name: partial(_same, value) for name, value in fixed.items()}
    for size in (head_dim // 2, head_dim, 4 * head_dim):
        built[f"learned {size}"] = partial(_learned, num_features=size)
    return built


def mixers(options: FeatureMapsOptions) -> dict[str, str | MixerFactory]:
    """Return softmax, and linear attention with each map."""
    found: dict[str, str | MixerFactory] = {SOFTMAX: SOFTMAX}
    for name, build in maps(_head_dim(options)).items():
        found[name] = partial(_linear, build=build)
    return found


def black_images(options: FeatureMapsOptions) -> Halves:
    """Return images for an estimate, which needs no data."""
    height, width, channels = MNIST_SHAPE
    black = np.zeros((options.train.batch_size, height // 2, width // 2, channels), np.uint8)
    return Halves(train=black, test=black)


def _linear(
    d_model: int, num_heads: int, *, is_causal: bool, build: Build, rotary: bool = False
) -> LinearAttention:
    feature_map = build(num_heads, d_model // num_heads)
    return LinearAttention(
        d_model,
        num_heads,
        is_causal=is_causal,
        rotary=rotary,
        feature_map=feature_map,
        normalize=feature_map.nonnegative,
    )


def _same(value: FeatureMap, num_heads: int, head_dim: int) -> FeatureMap:
    return value


def _learned(num_heads: int, head_dim: int, *, num_features: int) -> FeatureMap:
    return LearnedFeatureMap(num_heads, head_dim, num_features)


def _head_dim(options: FeatureMapsOptions) -> int:
    return options.model.d_model // options.model.num_heads


def _facts(name: str, options: FeatureMapsOptions) -> Json:
    """Return the map's features a head and its distance; for learned ones with first weights."""
    head_dim, num_heads = _head_dim(options), options.model.num_heads
    if name == SOFTMAX:
        return {"distance": 0.0}
    torch.manual_seed(options.seed)
    feature_map = maps(head_dim)[name](num_heads, head_dim)
    facts: Json = {"num_features": feature_map.num_features(head_dim)}
    if feature_map.nonnegative:
        facts["distance"] = distance_from_softmax(
            feature_map,
            num_heads=num_heads,
            head_dim=head_dim,
            seq_len=options.max_len,
            seed=options.seed,
        )
    return facts


def _image_task(
    options: FeatureMapsOptions, mixer: str | MixerFactory, images: Halves
) -> PixelTask:
    torch.manual_seed(options.seed)
    model = PixelModel(images.train[0].size, mixer=mixer, **dataclasses.asdict(options.model))
    return PixelTask(
        model,
        images.train.reshape(len(images.train), -1),
        images.test.reshape(len(images.test), -1),
        batch_size=options.train.batch_size,
        seed=options.seed,
    )


def _draw_attention(name: str, picture: Digits, task: PixelTask, folder: Path) -> Json:
    """Draw what the last layer looks at when it predicts some bytes of a test image."""
    tokens = torch.from_numpy(picture.reshape(1, -1))
    rows = [int(share * tokens.shape[1]) for share in LOOKING]
    weights = last_layer_rows(task.model, tokens, rows)
    if weights is None:
        return {}
    file = f"figures/attention-{as_file_name(name)}.png"
    write_figure(folder, file, picture_attention_figure(weights, rows, picture=picture))
    return {"figures": {file: f"What the last layer looks at: {name}"}}


def _distance_figure(rows: Sequence[Json]) -> Figure:
    panels = {
        group: [
            Point(label=row["label"], x=row["distance"], y=row["test"])
            for row in rows
            if row["group"] == group and "distance" in row and "test" in row
        ]
        for group in (COPY, IMAGES)
    }
    units = {group: next(r["unit"] for r in rows if r["group"] == group) for group in panels}
    return tradeoff_figure(panels, xlabel="distance from softmax", ylabels=units)
