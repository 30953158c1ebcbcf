"""The demonstration: two small models learn real digits, draw them and complete them.

Source    Katharopoulos et al. 2020, "Transformers are RNNs", section 4.2.1, in miniature.
Claim     A linear transformer models images about as well as a softmax one, and draws them with a
          state of constant size.
Expected  Bits/dim close to each other. At 14 x 14 = 196 bytes softmax can be the faster one; the
          table and the remarks say so where it is.
Cost      5 minutes, most of which train the two models; --minutes asks for more or less.
Command   subquad demo
Differs   4,500 digits of 14 x 14 (2 x 2 means), a model a tenth of the paper's size, AdamW.
          Learned and rotary positions, pre-norm; initial values differ as in mnist_pixels.
          Both mixers get one recipe, the same images in the same order, and as many steps.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from subquad.experiments.options import ImageOptions, ModelOptions, TrainOptions
from subquad.experiments.spec import MixerName
from subquad.tasks.config import Device

DEMO_MIXERS: tuple[MixerName, ...] = ("linear", "softmax")

MODEL = ModelOptions(
    num_layers=4,
    num_heads=2,
    d_model=96,
    d_ff=384,
    dropout=0.0,
    norm="pre",
    positions="learned-rotary",
    activation="gelu",
)
TRAINING = TrainOptions(
    max_steps=1,  # takes the place of this once the steps have been timed
    batch_size=8,
    optimizer="adamw",
    lr=4e-3,
    schedule="cosine",
    min_lr_ratio=0.02,
    weight_decay=0.01,
    beta2=0.95,
    eval_every=200,
    checkpoint_every=200,
)
WARMUP_SHARE = 0.05  # of the steps


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of demo."""

    minutes: float = 5.0
    """How long all of it may take, about."""
    full_size: bool = False
    """Take the digits at 28 x 28 instead of 14 x 14."""
    seed: int = 0
    """Seed of the weights, the order of the images and the samples."""
    samples: int = 64
    """Images that each model draws."""
    completions: int = 16
    """Test images that each model completes."""
    device: Device = "auto"
    """auto takes the GPU where there is one."""
    out: Path | None = None
    """Folder of the run (default: runs/demo, runs/demo-2 and so on)."""

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"--minutes must be above 0, got {self.minutes:g}")
        if self.samples < 2:
            raise ValueError(f"--samples must be at least 2, got {self.samples}")
        if self.completions < 1:
            raise ValueError(f"--completions must be at least 1, got {self.completions}")


def pixel_options(options: DemoOptions, mixer: MixerName, max_steps: int) -> ImageOptions:
    """Return one model's options: the recipe is the same for all mixers."""
    warmup = int(WARMUP_SHARE * max_steps)
    return ImageOptions(
        mixer=mixer,
        seed=options.seed,
        device=options.device,
        data="embedded-mnist",
        half_size=not options.full_size,
        samples=options.samples,
        completions=options.completions,
        model=MODEL,
        train=replace(TRAINING, max_steps=max_steps, warmup_steps=warmup),
    )
