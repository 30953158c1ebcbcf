"""English text byte by byte: Performers beside elu + 1 and exact softmax.

Source    Choromanski et al. 2021, "Rethinking Attention with Performers", section 4.3 (PG-19),
          Figures 5 (right) and 15.
Claim     Positive features with redraw end as low as exact softmax, without redraw higher. The
          figures are plots without numbers that this experiment could be set beside.
Expected  laptop: softmax lowest, the others close to each other. Well above what longer training
          gives.
Cost      smoke: seconds. laptop: 4 rows of 5 minutes each on 2 CPU cores. long: 4 rows of 45
          minutes. paper: the standard model (8 heads, 6 layers, width 512), meant for a GPU.
          --estimate says what a scale costs here.
Command   subquad run performer-text --scale laptop
Differs   Bytes of a dictionary of 40 MB, cut 90 : 5 : 5 in order, in place of PG-19's word pieces;
          left to right, where the paper masks. Equal minutes, not equal updates, but at the paper
          scale.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments import performer_protein
from subquad.experiments.language_options import TextOptions
from subquad.experiments.options import ModelOptions, TrainOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale

MODELS: dict[Scale, ModelOptions] = {
    **performer_protein.MODELS,
    "paper": replace(
        performer_protein.MODELS["paper"], num_layers=6, num_heads=8, d_model=512, d_ff=2048
    ),
}
TRAINING: dict[Scale, TrainOptions] = {
    scale: replace(train, batch_size=min(train.batch_size, 8) if scale != "paper" else 32)
    for scale, train in performer_protein.TRAINING.items()
}
TRAINING["laptop"] = replace(TRAINING["laptop"], minutes=5.0)
LENGTHS: dict[Scale, int] = {"smoke": 32, "laptop": 512, "long": 1024, "paper": 2048}


def preset(scale: Scale, mixer: MixerName) -> TextOptions:
    """Return the options of ``scale``; ``mixer`` plays no part, the rows have their own."""
    return TextOptions(
        scale=scale,
        data="source" if scale == "smoke" else "gcide",
        seq_len=LENGTHS[scale],
        num_features=256 if scale == "paper" else None,
        attentions="softmax,relu,favor+,elu+1",
        model=MODELS[scale],
        train=TRAINING[scale],
    )


def run(options: TextOptions, folder: Path, say: Say) -> Json:
    """Train and test the rows; return the results."""
    from subquad.experiments.performer_text_run import run_performer_text

    return run_performer_text(options, folder, say)


def estimate(options: TextOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.data.text import BYTES
    from subquad.experiments.language_rows import blank_parts
    from subquad.experiments.performer_text_run import text_rows
    from subquad.experiments.rows import estimate_rows

    return estimate_rows(text_rows(options, blank_parts(options, BYTES, options.seq_len)))


EXPERIMENT = Experiment(
    name="performer-text",
    summary="Performers, elu + 1 and softmax on English text, byte by byte",
    options=TextOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # and no claims: the figures are plots of other data
)
