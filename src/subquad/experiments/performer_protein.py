"""Proteins as a language: Performers beside exact softmax, from both sides and left to right.

Source    Choromanski et al. 2021, "Rethinking Attention with Performers", section 4.4, Table 2,
          Figures 6 and 7 (right), appendix C.
Claim     Table 2, accuracy / perplexity on the test set: bidirectional softmax 33.32 % / 9.22,
          Performer-ReLU 36.09 / 8.36, Performer-softmax 33.00 / 9.24; unidirectional softmax
          30.80 / 9.37, Performer-ReLU 31.58 / 9.17; always the most frequent residue 9.92 / 17.80.
          On held-out families all are worse and exact softmax is ahead.
Expected  laptop and long: all rows a little above the unigram baseline and close to each other;
          the paper's numbers are out of reach for a million parameters and so few sequences. What
          can be seen is whether a mechanism learns at all, the order of speed, and the distance
          between test set and held-out families.
Cost      smoke: seconds. laptop: 6 rows of 10 minutes each on 2 CPU cores. long: 9 rows of 45
          minutes each. paper: the published sizes, meant for GPUs. --estimate says what a scale
          costs here. --concatenated: 2 rows.
Command   subquad run performer-protein --scale laptop
          subquad run performer-protein --scale laptop --concatenated --out FOLDER
Differs   18,801 different sequences in place of 106 million. Held-out families are sequences
          joined by ten residues in a row, not Pfam families (data/proteins.py); the test set has
          relatives in the training set, as the paper's has. Equal minutes, not equal updates, but
          at the paper scale. 80 / 10 / 10 of the masked residues are hidden, replaced, kept; the
          released code has 10 / 80 / 10. Boundaries are not guessed. Performer-ReLU takes projected
          features as the paper's text says; the released default projects nothing. FAVOR+ redraws
          every 100 steps; the released code at every call. Added sinusoidal positions; the paper's
          are learned. The pair on joined sequences has one size for both mechanisms, where the
          paper's softmax had to be smaller.
"""

from dataclasses import replace
from pathlib import Path

from subquad.experiments.language_options import ProteinOptions
from subquad.experiments.options import ModelOptions, TrainOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale

MILLION = ModelOptions(
    num_layers=5,
    num_heads=4,
    d_model=128,
    d_ff=512,
    dropout=0.0,
    norm="pre",
    positions="sinusoidal",
    activation="gelu",
)
MODELS: dict[Scale, ModelOptions] = {
    "smoke": replace(MILLION, num_layers=1, num_heads=2, d_model=16, d_ff=32),
    "laptop": MILLION,
    "long": replace(MILLION, dropout=0.1),
    "paper": replace(MILLION, num_layers=36, num_heads=8, d_model=512, d_ff=1024, dropout=0.1),
}

QUICK = TrainOptions(
    batch_size=16,
    optimizer="adamw",
    lr=2e-3,
    beta2=0.98,
    weight_decay=0.1,
    clip_norm=0.5,
    schedule="cosine",
    warmup_steps=100,
    min_lr_ratio=0.02,
    precision="bf16",
)
TRAINING: dict[Scale, TrainOptions] = {
    "smoke": replace(
        QUICK, max_steps=4, batch_size=4, warmup_steps=1, precision="fp32", eval_every=2
    ),
    "laptop": replace(QUICK, minutes=10.0),
    "long": replace(QUICK, minutes=45.0),
    "paper": replace(
        QUICK, max_steps=500_000, batch_size=64, lr=1e-3, schedule="constant", warmup_steps=0,
        eval_every=5_000, checkpoint_every=5_000,
    ),
}  # fmt: skip
LENGTHS: dict[Scale, int] = {"smoke": 32, "laptop": 256, "long": 512, "paper": 1024}
ALL = ("softmax,relu,favor+,elu+1,linformer", "softmax,relu,favor+,elu+1")
ROWS: dict[Scale, tuple[str, str]] = {
    "smoke": ALL,
    "laptop": ("softmax,relu,favor+,elu+1", "softmax,relu"),
    "long": ALL,
    "paper": ALL,
}


def preset(scale: Scale, mixer: MixerName) -> ProteinOptions:
    """Return the options of ``scale``; ``mixer`` plays no part, the rows have their own."""
    return ProteinOptions(
        scale=scale,
        data="made-up" if scale == "smoke" else "proteins",
        seq_len=LENGTHS[scale],
        num_features=256 if scale == "paper" else None,
        bidirectional=ROWS[scale][0],
        unidirectional=ROWS[scale][1],
        joined_len=64 if scale == "smoke" else 8192,
        model=MODELS[scale],
        train=TRAINING[scale],
    )


def run(options: ProteinOptions, folder: Path, say: Say) -> Json:
    """Train and test the rows; return the results."""
    from subquad.experiments.performer_protein_run import run_performer_protein

    return run_performer_protein(options, folder, say)


def estimate(options: ProteinOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.data.proteins import PROTEINS
    from subquad.experiments.language_rows import blank_parts
    from subquad.experiments.performer_protein_run import protein_rows, row_len
    from subquad.experiments.rows import estimate_rows

    return estimate_rows(protein_rows(options, blank_parts(options, PROTEINS, row_len(options))))


EXPERIMENT = Experiment(
    name="performer-protein",
    summary="Performers and softmax on protein sequences, masked and causal (Table 2)",
    options=ProteinOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # the claims are columns of its table
)
