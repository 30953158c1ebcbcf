"""What in a lambda layer does the work: scope, content and position, norms, sizes.

Source    Bello 2021, "LambdaNetworks", the appendix on ablations (ResNet-50, ImageNet, 224 px).
Claim     Position lambdas carry almost everything: 78.1 % with them alone, 68.8 % with content
          alone, 78.4 % with both. A scope of 7 x 7 gives 78.2 %, 3 x 3 77.6 %, more than 15 x 15
          nothing. Keys without a norm 70.0 %, no batch-norm 76.2 %. k = 8 77.9 %, h = 8 78.1 %,
          u = 4 78.9 %.
Expected  The same order of content and position; scopes close to each other, since the maps are of
          16 pixels a side and less. After so few updates rows within a point are ties.
Cost      smoke: seconds. laptop: 13 rows of one to two minutes each, on one CPU core. long: four
          times as many updates. paper: 90 epochs of the paper's recipe, for a GPU. --estimate says
          what a scale costs here.
Command   subquad run lambda-ablations --scale laptop
Differs   The network of lambda-compare on Fashion-MNIST. Those accuracies, but for the default's,
          k = 8's and u = 4's, were not read in the paper itself. Over which axes the norms run is
          our reading; see experiments/lambda_variants.py. Peak memory is not measured.
"""

from pathlib import Path

from subquad.experiments import lambda_compare
from subquad.experiments.lambda_options import ABLATIONS, LambdaAblationsOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale


def preset(scale: Scale, mixer: MixerName) -> LambdaAblationsOptions:
    """Return the options of ``scale``; ``mixer`` plays no part."""
    like = lambda_compare.preset(scale, mixer)
    return LambdaAblationsOptions(
        scale=scale,
        data=like.data,
        half_size=like.half_size,
        shift=like.shift,
        mirror=like.mirror,
        label_smoothing=like.label_smoothing,
        ablations=",".join(ABLATIONS),
        network=like.network,
        train=like.train,
    )


def run(options: LambdaAblationsOptions, folder: Path, say: Say) -> Json:
    """Train and test the rows; return the results."""
    from subquad.experiments.lambda_ablations_run import run_lambda_ablations

    return run_lambda_ablations(options, folder, say)


def estimate(options: LambdaAblationsOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.lambda_ablations_run import ablation_rows
    from subquad.experiments.lambda_rows import blank_sets
    from subquad.experiments.rows import estimate_rows

    return estimate_rows(ablation_rows(options, blank_sets(options)[0]))


EXPERIMENT = Experiment(
    name="lambda-ablations",
    summary="lambda layers with other scopes, without content or position, normalised otherwise",
    options=LambdaAblationsOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # the claims are a column of its table
)
