"""Every causal mixer learns to copy: their learning curves in one figure.

Source    Katharopoulos et al. 2020, "Transformers are RNNs", section 4.1 and Figure 2.
Claim     Linear attention ends at as low a loss as softmax and learns more smoothly than LSH
          attention, whose noise keeps its loss higher. The figure states no numbers.
Expected  laptop and long scale: softmax lowest after equal steps; the others in an order that the
          paper does not tell, but for lsh-4 behind softmax. paper scale: linear as low as softmax.
Cost      smoke: seconds. laptop: 9 rows in 20 minutes altogether, meant for 2 CPU cores; enough to
          see which mixers can learn to copy short sequences and which are slower, not where each
          would end. long: about an hour. paper: 10,000 updates a row, meant for a GPU.
          --estimate says what a scale costs here.
Command   subquad run compare-copy --scale laptop
Differs   Equal numbers of updates on the same sequences; the paper's figure has softmax, lsh-4 and
          linear, the other rows are ours. Chunks of LSH attention are a quarter of the length (the
          paper's 32 at 128), so are the windows of local and hybrid: just too short for a single
          layer to see the symbol to be copied; strided sees every (length / 8)-th token besides a
          window of as many. smoke and laptop copy sequences of 32 and 64. All but the paper scale
          train a smaller pre-norm model with rotary positions and AdamW; an LSTM has nothing to
          rotate and gets added ones.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments import copy_task
from subquad.experiments.options import ModelOptions, TrainOptions
from subquad.experiments.row_options import CompareCopyOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale

_SMALL = replace(copy_task.MODELS["laptop"], d_model=64, d_ff=128)
MODELS: dict[Scale, ModelOptions] = {**copy_task.MODELS, "laptop": _SMALL}
TRAINING: dict[Scale, TrainOptions] = {
    **copy_task.TRAINING,
    "laptop": replace(copy_task.TRAINING["laptop"], minutes=None, max_steps=4_000, batch_size=32),
    "long": replace(copy_task.TRAINING["long"], minutes=None, max_steps=4_000),
}
LENGTHS: dict[Scale, int] = {"smoke": 32, "laptop": 64, "long": 128, "paper": 128}


def preset(scale: Scale, mixer: MixerName) -> CompareCopyOptions:
    """Return the options of ``scale``; the rows are all mixers."""
    return CompareCopyOptions(
        scale=scale, max_len=LENGTHS[scale], model=MODELS[scale], train=TRAINING[scale]
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
