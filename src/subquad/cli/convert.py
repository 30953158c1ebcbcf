"""``subquad convert``: another attention in a pretrained model, fine-tuned, with a report."""

import dataclasses
from pathlib import Path
from typing import Literal

from subquad.cli.console import console, say
from subquad.cli.parsing import UsageError, parse
from subquad.tasks.config import Device


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of convert."""

    model: str
    """A folder in transformers' layout, or antiberty, or minilm."""
    out: Path
    """The folder to make; a conversion that was stopped there goes on."""
    mixer: Literal["performer", "linear"] = "performer"
    """performer: FAVOR+ or another --kernel; linear: elu + 1."""
    kernel: str = "positive"
    """positive, hyperbolic, trigonometric, regularized; or a function: relu, exp, elu_plus_one."""
    num_features: int | None = None
    """Random directions of a layer (default: K ln K for heads of width K)."""
    redraw_every: int | None = None
    """Steps between new directions while training (default: never)."""
    data: Path | None = None
    """A text, or a FASTA file, to measure and train on; antiberty has chains of its own."""
    transfer_steps: int = 100
    """Steps in which each layer's attention is matched with softmax's, the first ones."""
    finetune_steps: int = 100
    """Steps on the model's own loss, after these; a model without such a loss takes none."""
    batch_size: int = 8
    """Rows in one step."""
    seq_len: int = 128
    """Tokens of a row."""
    lr: float = 2e-4
    """Highest learning rate."""
    seed: int = 0
    """Seed of the directions, of the order of the rows and of the masks."""
    device: Device = "auto"
    """auto takes the GPU where there is one."""

    def __post_init__(self) -> None:
        for name, least in (
            ("transfer_steps", 0),
            ("finetune_steps", 0),
            ("seq_len", 4),
            ("batch_size", 1),
            ("num_features", 1),
            ("redraw_every", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.transfer_steps + self.finetune_steps < 1:
            raise ValueError("transfer_steps and finetune_steps must be at least 1 together, got 0")
        if self.mixer == "linear" and (self.num_features is not None or self.kernel != "positive"):
            raise ValueError("kernel and num_features must be left out with the mixer linear")


def convert(words: list[str]) -> int:
    """Convert the model, and say before and after."""
    options = parse(
        ConvertOptions,
        words,
        prog="subquad convert",
        description="Put another attention into a pretrained model: measure it before the swap, "
        "after it, and after a short fine-tuning that first matches each layer's attention. "
        "Writes the model, as subquad.pretrained.load_converted reads it, and report.html.",
        positional="model",
    )
    _check_transformers()
    from subquad.experiments.convert import Conversion
    from subquad.experiments.convert import convert as run
    from subquad.pretrained.saving import KERNELS, SwapOptions
    from subquad.tasks.config import TrainConfig
    from subquad.tasks.memory import keep_freed_memory

    if options.kernel not in KERNELS:
        raise UsageError(f"--kernel must be one of {', '.join(KERNELS)}, got {options.kernel!r}")
    steps = options.transfer_steps + options.finetune_steps
    often = max(1, steps // 10)
    conversion = Conversion(
        model=options.model,
        out=options.out,
        data=options.data,
        swap=SwapOptions(
            mixer=options.mixer, kernel=options.kernel, num_features=options.num_features,
            seed=options.seed, redraw_every=options.redraw_every,
        ),
        transfer_steps=options.transfer_steps,
        seq_len=options.seq_len,
        train=TrainConfig(
            max_steps=steps, batch_size=options.batch_size, optimizer="adamw", lr=options.lr,
            schedule="cosine", warmup_steps=min(10, steps // 10), clip_norm=1.0,
            seed=options.seed, device=options.device, log_every=often, eval_every=often,
            checkpoint_every=often,
        ),
    )  # fmt: skip
    keep_freed_memory()
    results = run(conversion, command=["subquad", "convert", *words], say=console().print)
    for stage in ("before", "swapped", "trained"):
        measured = ", ".join(f"{name} {value:.4g}" for name, value in results[stage].items())
        say(f"{stage:<8} {measured}")
    say(f"{options.out}: the model; {options.out / 'report.html'}")
    return 0


def _check_transformers() -> None:
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise UsageError("convert needs transformers: pip install 'subquad[hf]'")
