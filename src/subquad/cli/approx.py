"""``subquad approx``: how far random features are from softmax attention, on the user's tensors."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from subquad.bench.approximation_options import (
    DIRECTIONS,
    ESTIMATORS,
    ApproximationOptions,
    RandomInput,
)
from subquad.cli.bench_flags import check_out, numbers, words_of
from subquad.cli.bench_output import progress_bar, show
from subquad.cli.console import INTERRUPTED, say
from subquad.cli.parsing import UsageError, parse

if TYPE_CHECKING:
    from subquad.bench.approximation import Approximation
    from subquad.bench.approximation_inputs import Tokens

SIZE, DEFAULT = RandomInput(), ApproximationOptions()
RANDOM_ONLY = ("seq_len", "heads", "head_dim", "norm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApproxFlags:
    """This command."""

    file: Path | None = None
    """A .npz or .safetensors file with q, k and, if wanted, v: (T, width), (H, T, width) or
    (B, H, T, width) (default: random numbers)."""
    model: str | None = None
    """A pretrained model, as subquad convert takes it: look at one of its layers, at its scale."""
    layer: int = 0
    """Which attention layer of --model, from 0."""
    data: Path | None = None
    """A text that --model reads; antiberty has chains of its own."""
    seq_len: int = SIZE.seq_len
    """Tokens of the random input."""
    heads: int = SIZE.heads
    """Heads of the random input."""
    head_dim: int = SIZE.head_dim
    """Width of a head of the random input."""
    norm: float = SIZE.norm
    """Length of each random query and key, before the scale."""
    num_features: str = ",".join(str(n) for n in DEFAULT.num_features)
    """Features a token, even and rising, with commas between."""
    estimators: str = ",".join(ESTIMATORS)
    """Which functions are the features, with commas between."""
    directions: str = ",".join(DIRECTIONS)
    """How directions are drawn, with commas between; regularized ones are orthogonal."""
    draws: int = DEFAULT.draws
    """Draws of the directions, for each kind and number."""
    causal: bool = False
    """Each query sees keys up to itself only."""
    scale: float | None = None
    """Factor on q . k (default: 1 / sqrt(width))."""
    max_queries: int = DEFAULT.max_queries
    """Of a longer sequence so many queries, evenly spread, are looked at."""
    error: float = 0.1
    """Say how many features bring the error of the output to this share of its norm."""
    seed: int = 0
    """Seed of the directions, and of the random input."""
    threads: int | None = None
    """Threads of torch (default: its own choice)."""
    out: Path | None = None
    """Write the numbers and the environment to this JSON file, and a figure beside it."""

    def __post_init__(self) -> None:
        check_out(self.out)
        if not self.error > 0:
            raise ValueError(f"error must be above 0, got {self.error:g}")
        given = [name for name in RANDOM_ONLY if getattr(self, name) != getattr(SIZE, name)]
        if self.model is not None:
            self._check_model(given)
        elif self.data is not None or self.layer:
            raise ValueError("--data and --layer are of a pretrained model: name it by --model")
        if self.file is not None and given:
            flag = "--" + given[0].replace("_", "-")
            raise ValueError(f"{flag} is of random input, but there is a file: {self.file}")

    def _check_model(self, given: list[str]) -> None:
        names = [n for n in ("file", "scale") if getattr(self, n) is not None]
        names += ["causal"] * self.causal + given
        if names:
            flag = "--" + names[0].replace("_", "-")
            raise ValueError(f"{flag} must be left out with --model, which has its own")
        if self.layer < 0:
            raise ValueError(f"layer must be at least 0, got {self.layer}")

    def options(self) -> ApproximationOptions:
        """Return what to measure."""
        return ApproximationOptions(
            num_features=numbers("--num-features", self.num_features),
            estimators=words_of(self.estimators), directions=words_of(self.directions),
            draws=self.draws, is_causal=self.causal, scale=self.scale,
            max_queries=self.max_queries, seed=self.seed, threads=self.threads,
        )  # fmt: skip

    def random_input(self) -> RandomInput:
        """Return the sizes of random input."""
        return RandomInput(
            seq_len=self.seq_len, heads=self.heads, head_dim=self.head_dim, norm=self.norm,
            seed=self.seed,
        )  # fmt: skip


def approx(words: list[str]) -> int:
    """Measure, print the tables and write the files; 130 after Ctrl-C, with what there is."""
    if words and not words[0].startswith("-"):
        words = ["--file", *words]
    flags = parse(
        ApproxFlags, words, prog="subquad approx [FILE]",
        description="Hold random features against softmax attention, on queries and keys of a "
        "FILE or on random ones. Ctrl-C prints and writes what there is.",
    )  # fmt: skip
    try:
        options, sizes = flags.options(), flags.random_input()
    except ValueError as error:
        raise UsageError(str(error)) from error
    from subquad.bench.approximation import Approximation, approximation_report

    if flags.model is None:
        tokens, source = _tokens(flags.file, sizes)
    else:
        tokens, source, options = _layer(flags, options)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
    found = Approximation(options=dataclasses.asdict(options))
    try:
        with progress_bar() as progress:
            approximation_report(
                *tokens, options=options, into=found, source=source, progress=progress
            )
    except KeyboardInterrupt:
        found.interrupted = True
    _show(found, flags)
    return INTERRUPTED if found.interrupted else 0


def _tokens(file: Path | None, sizes: RandomInput) -> "tuple[Tokens, str]":
    from subquad.bench.approximation_inputs import random_tokens, read_tokens

    if file is not None:
        return read_tokens(file), file.name
    return random_tokens(sizes), f"random input of norm {sizes.norm:g}"


def _layer(
    flags: ApproxFlags, options: ApproximationOptions
) -> "tuple[Tokens, str, ApproximationOptions]":
    """Return what a layer of a pretrained model attends to, and the options with its own scale."""
    from importlib.util import find_spec

    from subquad.bench.approximation_inputs import checked_tokens

    if find_spec("transformers") is None:
        raise UsageError("--model needs transformers: pip install 'subquad[hf]'")
    from subquad.experiments.layer_input import layer_input

    assert flags.model is not None
    found = layer_input(flags.model, flags.layer, flags.data)
    own = dataclasses.replace(options, scale=found.scale, is_causal=found.is_causal)
    source = f"layer {flags.layer} of {Path(flags.model).name}"
    return checked_tokens(found.q, found.k, found.v), source, own


def _show(found: "Approximation", flags: ApproxFlags) -> None:
    from subquad.bench.approximation_tables import approximation_tables

    result = found.as_json()
    for table in approximation_tables(result, flags.error) if found.rows else ():
        show(table)
    if found.interrupted:
        say("interrupted: these are the measurements until then")
    if flags.out is not None:
        from subquad.files import atomic_write_bytes
        from subquad.plots import png_bytes
        from subquad.plots.approximation import approximation_figure

        found.write(flags.out)
        say(f"{flags.out}")
        if found.rows:
            path = flags.out.with_name(f"{flags.out.stem}-error.png")
            atomic_write_bytes(path, png_bytes(approximation_figure(result)))
            say(f"{path}")
