"""Every causal mixer learns to copy: their learning curves in one figure.

Source    Katharopoulos et al. 2020, "Transformers are RNNs", section 4.1 and Figure 2.
Claim     Linear attention ends at as low a loss as softmax and learns more smoothly than LSH
          attention, whose noise keeps its loss higher. The figure states no numbers.
Expected  laptop and long scale: softmax lowest after equal steps, hybrid close to it; linear on its
          way there; local held back by its window, lsh-4 by its noise. paper scale: linear as low
          as softmax.
Cost      smoke: seconds. laptop: 5 rows in 15 minutes altogether on one CPU core, half of it for
          lsh-4; enough to see which mixers can learn to copy short sequences and which are slower,
          not where each would end. long: all mixers in about an hour and a half. paper: 10,000
          updates a row, meant for a GPU. --estimate says what a scale costs here.
Command   subquad run compare-copy --scale laptop
Differs   Equal numbers of updates on the same sequences; the paper's figure has softmax, lsh-4 and
          linear, the other rows are ours. LSH attention has chunks of a quarter of the length and
          half as many buckets as tokens, in the proportion of the paper's 32 and 64 at 128. The
          windows of local and hybrid are a quarter of the length too: too short for one layer to
          see the symbol to be copied; strided sees every (length / 8)-th token besides a window of
          as many. smoke and laptop copy sequences of 32 and 64. All but the paper scale train a
          smaller pre-norm model with rotary positions and AdamW; an LSTM has nothing to rotate and
          gets added ones.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments import copy_task
from subquad.experiments.options import ModelOptions, TrainOptions
from subquad.experiments.row_options import CompareCopyOptions
from subquad.experiments.spec import MIXER_HELP, Experiment, Json, MixerName, Say, Scale

_SMALL = replace(copy_task.MODELS["laptop"], d_model=64, d_ff=128)
MODELS: dict[Scale, ModelOptions] = {**copy_task.MODELS, "laptop": _SMALL}
TRAINING: dict[Scale, TrainOptions] = {
    **copy_task.TRAINING,
    "laptop": replace(copy_task.TRAINING["laptop"], minutes=None, max_steps=3_000, batch_size=32),
    "long": replace(copy_task.TRAINING["long"], minutes=None, max_steps=4_000),
}
LENGTHS: dict[Scale, int] = {"smoke": 32, "laptop": 64, "long": 128, "paper": 128}
OF_THE_FIGURE = ("softmax", "linear", "lsh-4")
ALL = ",".join([*OF_THE_FIGURE, *(name for name in MIXER_HELP if name not in OF_THE_FIGURE)])
ROWS: dict[Scale, str] = {
    "smoke": ALL,
    "laptop": ",".join([*OF_THE_FIGURE, "local", "hybrid"]),
    "long": ALL,
    "paper": ALL,
}


def preset(scale: Scale, mixer: MixerName) -> CompareCopyOptions:
    """Return the options of ``scale``; ``mixer`` plays no part, the rows have their own."""
    return CompareCopyOptions(
        scale=scale,
        mixers=ROWS[scale],
        max_len=LENGTHS[scale],
        model=MODELS[scale],
        train=TRAINING[scale],
    )


def run(options: CompareCopyOptions, folder: Path, say: Say) -> Json:
    """Train and test a row a mixer; return the results."""
    from subquad.experiments.compare_copy_run import run_compare_copy

    return run_compare_copy(options, folder, say)


def estimate(options: CompareCopyOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.compare_copy_run import compare_copy_rows
    from subquad.experiments.rows import estimate_rows

    return estimate_rows(compare_copy_rows(options))


EXPERIMENT = Experiment(
    name="compare-copy",
    summary="all causal mixers learn to copy, in one figure (Figure 2)",
    options=CompareCopyOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # and no claims: Figure 2 is a plot without numbers
)
