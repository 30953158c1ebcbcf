"""How much memory and time does one layer take: attention of all kinds, and lambda layers?

Source    Bello 2021, the table of memory and throughput of its section on results (ResNet-50, 224
          px), and that of complexities.
Claim     Of 128 images in float32, the three layers at 56 x 56 need 120 GB with global attention,
          4.8 with axial attention, 1.9 with lambda layers, 0.95 with k = 8 and 0.63 with embeddings
          shared by the three. A whole network of local attention 7 x 7 infers 440 images a second,
          axial 960, lambda convolution 7 x 7 1,100, lambda 1,160, shared 1,210, k = 8 1,640.
Expected  The paper counts attention maps and embeddings alone, and in its form of the lambda layer:
          all embeddings E (n, m, k) at once. Its order of memory needs many images, since E does
          not grow with their number and attention maps do. By transform or by rows no E is held:
          less than all of these, and sharing saves parameters only. Nor does it save much of the
          peak in training where E is held: each layer's gradient of E is as large as E.
Cost      smoke: seconds. laptop: to 256 x 256, about 8 minutes on 2 CPU cores and 6 GB. long: 4
          images. paper: 16 images, for a GPU.
Command   subquad run lambda-memory --scale laptop
Differs   One layer of width 64 instead of a network (and three for sharing), with batch-norm of
          queries and values; measured peaks instead of counts, beyond inputs and weights, forward
          and backward; 2 images, from which and from 1 image the need of 128 is extrapolated.
          Global attention has row and column tables (Bello 2019). Local attention is computed in
          blocks and made again in backward, axial attention is two layers, one a direction.
          What is expected to need more than --limit is left out, and said so. Sharing: the paper
          has one E for all layers of a size, so here one table for three layers, whose E is made
          once in the einsum form.
"""

from pathlib import Path
from typing import NamedTuple

from subquad.experiments.lambda_measure_options import LambdaMemoryOptions
from subquad.experiments.spec import Experiment, Json, MixerName, Say, Scale


class PaperRow(NamedTuple):
    """Space in the paper's letters, GB of three layers, images a second, top-1 accuracy in %."""

    space: str
    gigabytes: float | None
    images_per_second: int | None
    accuracy: float | None


PAPER = {
    "global attention": PaperRow("b l h n^2", 120.0, None, None),
    "axial attention": PaperRow("b l h n sqrt(n)", 4.8, 960, 77.5),
    "local attention 7 x 7": PaperRow("b l h n m", None, 440, 77.4),
    "lambda, einsum": PaperRow("l k n^2", 1.9, 1160, 78.4),
    "lambda, half of k, einsum": PaperRow("l k n^2", 0.95, 1640, 77.9),
    "three lambdas, einsum, shared embeddings": PaperRow("k n^2", 0.63, 1210, 78.0),
    "lambda 7 x 7": PaperRow("l k n m", None, 1100, 78.1),
}
PAPER_BATCH, PAPER_LAYERS = 128, 3


def preset(scale: Scale, mixer: MixerName) -> LambdaMemoryOptions:
    """Return the options of ``scale``; there is nothing to choose a mixer for."""
    if scale == "smoke":
        return LambdaMemoryOptions(
            scale=scale, sides="4,6", base_side=4, batch_size=2, channels=16, attention_heads=2,
            head_dim=4, repetitions=1, seconds=0.1, has_memory=False,
        )  # fmt: skip
    if scale == "paper":
        return LambdaMemoryOptions(
            scale=scale, sides="16,32,56,64,128,256", base_side=56, batch_size=16, repetitions=9,
            seconds=30.0, limit=100.0, device="cuda", dtype="float32",
        )  # fmt: skip
    return LambdaMemoryOptions(
        scale=scale, sides="16,32,56,64,128,256", base_side=56,
        batch_size=2 if scale == "laptop" else 4, repetitions=7 if scale == "laptop" else 15,
        seconds=30.0 if scale == "laptop" else 300.0,
    )  # fmt: skip


def run(options: LambdaMemoryOptions, folder: Path, say: Say) -> Json:
    """Measure; return the results."""
    from subquad.experiments.lambda_memory_run import run_lambda_memory

    return run_lambda_memory(options, folder, say)


def estimate(options: LambdaMemoryOptions) -> Json:
    """Return what ``run`` would cost."""
    from subquad.experiments.lambda_memory_run import estimate_lambda_memory

    return estimate_lambda_memory(options)


EXPERIMENT = Experiment(
    name="lambda-memory",
    summary="memory and time of one layer over images: attention of all kinds, and lambdas",
    options=LambdaMemoryOptions,
    preset=preset,
    run=run,
    estimate=estimate,  # the claims are columns of its tables
)
