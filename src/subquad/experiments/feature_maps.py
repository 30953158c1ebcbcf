"""Which feature map? Every map of the library on two tasks, beside how far it is from softmax.

Source    Katharopoulos et al. 2020, "Transformers are RNNs", section 3.2.1 (elu + 1, the degree-2
          polynomial); the learned map is that of Zhang et al. 2024, "Hedgehog".
Claim     None with numbers: the paper takes elu + 1 without comparing it with others.
Expected  laptop: at copying every map learns, none is near softmax after so few updates, and the
          maps lie close together; on images they are closer still. Whether the distance from
          softmax tells the order is what is asked here.
Cost      smoke: seconds. laptop: 20 rows in 15 minutes altogether on one CPU core, a third of it
          for degree 2: enough to tell maps that learn from maps that do not, not to rank the close
          ones. long: about two hours. paper: the copy task's recipe for each row, meant for a GPU.
          --estimate says what a scale costs here.
Command   subquad run feature-maps --scale laptop
Differs   Not an experiment of the paper. Equal numbers of updates on the same data, so a map with
          more features costs more time. The distance is the total variation between the attention
          rows of the map and of softmax, both causal, on the same normal q and k (no positions),
          averaged over rows; learned maps have their first weights there. Identity goes without
          the division by the sum of the weights, and so has no distance.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments import compare_copy, copy_task
from subquad.experiments.options import TrainOptions
from subquad.experiments.row_options import FeatureMapsOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale

TRAINING: dict[Scale, TrainOptions] = {
    "smoke": copy_task.TRAINING["smoke"],
    "laptop": replace(compare_copy.TRAINING["laptop"], max_steps=2_000, batch_size=16),
    "long": replace(compare_copy.TRAINING["laptop"], max_steps=8_000),
    "paper": copy_task.TRAINING["paper"],
}
IMAGE_STEPS: dict[Scale, int] = {"smoke": 4, "laptop": 500, "long": 2_000, "paper": 60_000}


def preset(scale: Scale, mixer: MixerName) -> FeatureMapsOptions:
    """Return the options of ``scale``; the rows are all maps."""
    return FeatureMapsOptions(
        scale=scale,
        max_len=32 if scale == "smoke" else 64,
        data="embedded-mnist" if scale == "smoke" else "mnist",
        image_steps=IMAGE_STEPS[scale],
        model=compare_copy.MODELS["laptop" if scale == "long" else scale],
        train=TRAINING[scale],
    )


def run(options: FeatureMapsOptions, folder: Path, say: Say) -> Json:
    """Train and test each map on both tasks; return the results."""
    from subquad.experiments.feature_maps_run import run_feature_maps

    return run_feature_maps(options, folder, say)


def estimate(options: FeatureMapsOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.feature_maps_run import black_images, feature_map_rows
    from subquad.experiments.rows import estimate_rows

    return estimate_rows(feature_map_rows(options, black_images(options)))


EXPERIMENT = Experiment(
    name="feature-maps",
    summary="every feature map of linear attention on two tasks, and its distance from softmax",
    options=FeatureMapsOptions,
    preset=preset,
    run=run,
    estimate=estimate,
)
