"""How many softmax heads does a linear transformer need? Quality against the size of the state.

Source    The question of many readers of Katharopoulos et al. 2020; associative recall as in Arora
          et al. 2023, "Zoology".
Claim     None with numbers in either paper for this model. Arora et al. find that mixers with a
          state of fixed size fall behind attention at recall.
Expected  More softmax heads, better quality, most of it from the first few; the state grows with
          their share and with the length. A free lunch would be a share below 100 % that is as good
          as 100 %.
Cost      smoke: seconds. laptop: 10 rows in 15 minutes altogether on one CPU core: enough for the
          order of the shares at these lengths (64 tokens to copy, 8 pairs to recall), not for where
          longer training would end. long: about an hour. paper: the copy task's recipe for each
          row, meant for a GPU. --estimate says what a scale costs here.
Command   subquad run hybrid-share --scale laptop
Differs   Not an experiment of the paper. The shares are of the heads of all layers, spread evenly;
          with few heads 12.5 % is one head in one layer. Softmax heads see all tokens unless
          --softmax-window says otherwise; the state is that of one sequence at full length.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments import compare_copy, copy_task
from subquad.experiments.options import ModelOptions, TrainOptions
from subquad.experiments.row_options import HybridShareOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale

MODELS: dict[Scale, ModelOptions] = {
    **compare_copy.MODELS,
    "smoke": replace(compare_copy.MODELS["smoke"], num_heads=4),
}
TRAINING: dict[Scale, TrainOptions] = {
    **compare_copy.TRAINING,
    "paper": copy_task.TRAINING["paper"],
}
PAIRS: dict[Scale, int] = {"smoke": 4, "laptop": 8, "long": 32, "paper": 32}


def preset(scale: Scale, mixer: MixerName) -> HybridShareOptions:
    """Return the options of ``scale``; the rows are all shares."""
    return HybridShareOptions(
        scale=scale,
        max_len=compare_copy.LENGTHS[scale],
        num_pairs=PAIRS[scale],
        num_keys=2 * PAIRS[scale],
        num_values=2 * PAIRS[scale],
        model=MODELS[scale],
        train=TRAINING[scale],
    )


def run(options: HybridShareOptions, folder: Path, say: Say) -> Json:
    """Train and test each share on both tasks; return the results."""
    from subquad.experiments.hybrid_share_run import run_hybrid_share

    return run_hybrid_share(options, folder, say)


def estimate(options: HybridShareOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.hybrid_share_run import hybrid_share_rows
    from subquad.experiments.rows import estimate_rows

    return estimate_rows(hybrid_share_rows(options))


EXPERIMENT = Experiment(
    name="hybrid-share",
    summary="0 to 100 % softmax heads: quality at copying and recall against bytes of state",
    options=HybridShareOptions,
    preset=preset,
    run=run,
    estimate=estimate,
)
