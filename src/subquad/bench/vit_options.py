"""What ``subquad bench vit`` is told. No torch here."""

from dataclasses import dataclass

from subquad.bench.options import DType, TimingOptions, at_least


@dataclass(frozen=True, kw_only=True)
class ViTOptions(TimingOptions):
    """Sizes of the Vision Transformers that are timed.

    Args:
        preset: size and patch, as ``VisionTransformer.preset`` names them.
        image_sizes: sides of the square images, rising; none measures no whole model.
        block_tokens: tokens of one block alone, rising; none measures no block.
        mixers: in place of attention; ratios are to "softmax", which is SDPA.
        repeats: also measure training with mixers that keep their inputs alone for the backward
            pass, and run again there (checkpointing="mixers").
        batch: images at once.
        dtype: "bfloat16" and "float16" are autocast.
    """

    preset: str = "S/8"
    image_sizes: tuple[int, ...] = (512,)
    block_tokens: tuple[int, ...] = (16_384,)
    mixers: tuple[str, ...] = ("softmax", "linear")
    repeats: bool = True
    batch: int = 1
    dtype: DType = "float32"
    repetitions: int = 5
    seconds: float = 120.0
    limit: float = 120.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, batch=self.batch)
        for name in ("image_sizes", "block_tokens"):
            sizes = getattr(self, name)
            if sorted(set(sizes)) != list(sizes):
                raise ValueError(f"{name} must rise, got {list(sizes)}")
            at_least(1, **{name: min(sizes, default=1)})
        if not self.image_sizes and not self.block_tokens:
            raise ValueError("image_sizes or block_tokens must name a size, got none")
        if not self.mixers or len(set(self.mixers)) < len(self.mixers):
            raise ValueError(f"mixers must be at least one, none twice, got {list(self.mixers)}")
