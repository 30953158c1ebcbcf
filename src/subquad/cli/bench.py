"""``subquad bench``: measure attention, generation and training on this machine."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subquad.bench.options import (
    POWERS,
    AttentionOptions,
    DecodeOptions,
    Device,
    DType,
    TrainOptions,
)
from subquad.cli.console import console, say
from subquad.cli.parsing import UsageError, choose, parse

if TYPE_CHECKING:
    from subquad.bench.results import Report
    from subquad.bench.tables import Table
    from subquad.bench.timing import Progress

INTERRUPTED = 130
LONG_CELL, WIDEST = 40, 200
ATTENTION, DECODE, TRAIN = AttentionOptions(), DecodeOptions(), TrainOptions()
PEER_LENGTHS = ",".join(str(n) for n in POWERS if n <= 2**14)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Common:
    """How long to measure, and where."""

    repetitions: int = ATTENTION.repetitions
    """Rounds; in each, everything is timed once, in turn."""
    seconds: float = ATTENTION.seconds
    """Budget for the rounds of one setting; at least three rounds are made."""
    limit: float = ATTENTION.limit
    """Longest call, in seconds; what would take longer is left out, and the table says so."""
    threads: int | None = None
    """Threads of torch (default: its own choice)."""
    device: Device = "cpu"
    """Where to compute."""
    memory: bool = True
    """Measure peak memory too, in processes of their own."""
    out: Path | None = None
    """Write the numbers and the environment to this JSON file, and figures beside it."""

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix != ".json":
            raise ValueError(f"--out must name a .json file, got {self.out}")

    def shared(self) -> dict[str, Any]:
        """Return the options that every benchmark takes."""
        return {
            "repetitions": self.repetitions, "seconds": self.seconds, "limit": self.limit,
            "threads": self.threads, "device": self.device, "has_memory": self.memory,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionFlags(_Common):
    """Options of bench attention and bench peers."""

    lengths: str = ",".join(str(n) for n in POWERS)
    """Sequence lengths, rising, with commas between."""
    heads: int = ATTENTION.heads
    """Heads."""
    head_dim: int = ATTENTION.head_dim
    """Width of a head, for keys and values."""
    batch: int = ATTENTION.batch
    """Samples at once."""
    dtype: DType = ATTENTION.dtype
    """Precision of q, k and v."""
    bidirectional: bool = False
    """Let every token see all others; without it attention is causal."""
    mechanisms: str = ""
    """Which, with commas between (default: all); linear means linear-cpu, linear-torch-64, ..."""

    def options(self) -> AttentionOptions:
        """Return them as the benchmark takes them."""
        return AttentionOptions(
            lengths=_numbers("--lengths", self.lengths), heads=self.heads, head_dim=self.head_dim,
            batch=self.batch, dtype=self.dtype, is_causal=not self.bidirectional,
            mechanisms=_words(self.mechanisms), **self.shared(),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerFlags(AttentionFlags):
    """Options of bench peers."""

    lengths: str = PEER_LENGTHS
    """Sequence lengths, rising, with commas between; some packages need multiples of 128."""
    memory: bool = False
    """Not measured here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeFlags(_Common):
    """Options of bench decode."""

    models: str = ",".join(DECODE.models)
    """The paper's models: mnist, cifar10, or both with a comma between."""
    mixers: str = ",".join(DECODE.mixers)
    """linear, softmax, or both."""
    batches: str = ",".join(str(n) for n in DECODE.batches)
    """Images generated at once, with commas between."""
    positions: int = DECODE.positions
    """How many positions are sampled."""
    recompute: bool = True
    """Also time softmax that recomputes the prefix for each pixel."""

    def options(self) -> DecodeOptions:
        """Return them as the benchmark takes them."""
        return DecodeOptions(
            models=_words(self.models), mixers=_words(self.mixers),
            batches=_numbers("--batches", self.batches), positions=self.positions,
            has_recompute=self.recompute, **self.shared(),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainFlags(_Common):
    """Options of bench train."""

    layers: int = TRAIN.layers
    """Layers."""
    width: int = TRAIN.width
    """Width of the model."""
    heads: int = TRAIN.heads
    """Heads."""
    seq_len: int = TRAIN.seq_len
    """Bytes of an image: 784 for MNIST, 3072 for CIFAR-10."""
    batch: int = TRAIN.batch
    """Images in a step."""
    dtype: DType = TRAIN.dtype
    """float32, or mixed precision with another."""
    positions: str = TRAIN.positions
    """Position encoding, for instance sinusoidal-concat, rotary, learned-rotary."""
    mixers: str = ",".join(TRAIN.mixers)
    """Mixers to compare, with commas between."""
    profile: bool = False
    """Print the torch profiler's top operators of each mixer instead."""

    def options(self) -> TrainOptions:
        """Return them as the benchmark takes them."""
        return TrainOptions(
            layers=self.layers, width=self.width, heads=self.heads, seq_len=self.seq_len,
            batch=self.batch, dtype=self.dtype, positions=self.positions,
            mixers=_words(self.mixers), **self.shared(),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareFlags:
    """Options of bench compare."""

    first: Path
    """A result file, A."""
    second: Path
    """Another, B."""


def bench(words: list[str]) -> int:
    """Run one benchmark; 130 after Ctrl-C, with what was measured until then."""
    if not words or words[0] in ("-h", "--help"):
        say(_help())
        return 0
    return BENCHMARKS[choose(words[0], BENCHMARKS, what="benchmark")][1](words[1:])


def _attention(words: list[str]) -> int:
    flags = _parse(AttentionFlags, words, "attention")
    from subquad.bench.attention import measure_attention, new_report

    report = new_report(flags.options())
    return _run(flags, report, lambda p: measure_attention(flags.options(), report, progress=p))


def _peers(words: list[str]) -> int:
    flags = _parse(PeerFlags, words, "peers")
    from subquad.bench.peers import measure_peers, peer_report

    report = peer_report(flags.options())
    return _run(flags, report, lambda p: measure_peers(flags.options(), report, progress=p))


def _decode(words: list[str]) -> int:
    flags = _parse(DecodeFlags, words, "decode")
    from subquad.bench.decode import measure_decode, new_report

    report = new_report(flags.options())
    return _run(flags, report, lambda p: measure_decode(flags.options(), report, progress=p))


def _train(words: list[str]) -> int:
    flags = _parse(TrainFlags, words, "train")
    from subquad.bench.train import measure_train, new_report, profile_text

    if flags.profile:
        try:
            for mixer in flags.options().mixers:
                say(f"{mixer}\n{profile_text(flags.options(), mixer)}")
        except ValueError as error:
            raise UsageError(str(error)) from error
        return 0
    report = new_report(flags.options())
    return _run(flags, report, lambda p: measure_train(flags.options(), report, progress=p))


def _compare(words: list[str]) -> int:
    named = [w for w in words if w.startswith("-")]
    free = [w for w in words if not w.startswith("-")]
    if not named:
        if len(free) != 2:
            raise UsageError(f"bench compare needs two result files, got {len(free)}")
        words = ["--first", free[0], "--second", free[1]]
    flags = _parse(CompareFlags, words, "compare")
    from subquad.bench.results import changed_options, compare, read_result
    from subquad.bench.tables import compared

    first, second = read_result(flags.first), read_result(flags.second)
    _show(compared(compare(first, second)))
    for line in changed_options(first, second):
        say(f"not the same: {line}")
    return 0


BENCHMARKS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "attention": ("attention operators against sequence length, time and memory", _attention),
    "decode": ("generation: a step against position, images a second", _decode),
    "train": ("the training step of a pixel model, mixers side by side", _train),
    "peers": ("the same attention by other packages that are installed", _peers),
    "compare": ("two result files, A.json B.json, side by side", _compare),
}


def _run(flags: _Common, report: "Report", measure: Callable[["Progress"], None]) -> int:
    """Measure, then print and write what there is, whether or not it was interrupted."""
    from subquad.bench.tables import tables
    from subquad.tasks.memory import keep_freed_memory

    if flags.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--device must be cpu where torch can use no GPU, got cuda")
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)  # before the minutes of measuring
    keep_freed_memory()
    try:
        with _progress_bar() as progress:
            measure(progress)
    except KeyboardInterrupt:
        report.interrupted = True
    except ValueError as error:  # a name that is unknown, or numbers that the model refuses
        raise UsageError(str(error)) from error
    for table in tables(report):
        _show(table)
    if report.interrupted:
        say("interrupted: these are the measurements until then")
    if flags.out is not None:
        report.write(flags.out)
        say(f"{flags.out}")
        for path in _figures(report, flags.out):
            say(f"{path}")
    return INTERRUPTED if report.interrupted else 0


def _figures(report: "Report", out: Path) -> Iterator[Path]:
    from subquad.files import atomic_write_bytes
    from subquad.plots import png_bytes
    from subquad.plots.bench import figures

    for name, figure in figures(report.as_json()).items():
        path = out.with_name(f"{out.stem}-{name}.png")
        atomic_write_bytes(path, png_bytes(figure))
        yield path


def _show(table: "Table") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    shown = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, name in enumerate(table.header):
        cells = [row[i] for row in table.rows]
        number, long = all(map(_is_number, cells)), max(map(len, cells)) > LONG_CELL
        shown.add_column(name, justify="right" if number else "left", no_wrap=not long)
    for row in table.rows:
        shown.add_row(*row)
    # Wider than a narrow terminal rather than cut short: a name that is cut says nothing.
    needed = shown.__rich_measure__(console(), console().options.update(max_width=WIDEST)).maximum
    has_long = any(len(cell) > LONG_CELL for row in table.rows for cell in row)
    width = console().width if has_long else max(console().width, needed)
    Console(width=width, highlight=False).print(shown)
    if table.note:
        say(f"{table.note}\n")


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] == "-"


@contextlib.contextmanager
def _progress_bar() -> Iterator["Progress"]:
    """Give a Progress that moves a bar on standard error, with an estimate of the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from subquad.bench.timing import Progress

    columns = (
        BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    # A long memory for the speed: the units of work differ much. Few redraws: they take time.
    with Bar(
        *columns, console=Console(stderr=True), transient=True, refresh_per_second=1,
        speed_estimate_period=900,
    ) as bar:  # fmt: skip
        task = bar.add_task("warming up", total=None)

        def show(done: float, total: float, label: str) -> None:
            options: dict[str, Any] = {"description": label} if label else {}
            bar.update(task, completed=done, total=total, **options)

        yield Progress(show)


def _parse(kind: type[Any], words: list[str], name: str) -> Any:
    summary = BENCHMARKS[name][0]
    flags = parse(
        kind, words, prog=f"subquad bench {name}", description=f"Measure: {summary}."
        if name != "compare" else f"Show {summary}.",
    )  # fmt: skip
    if hasattr(flags, "options"):
        try:
            flags.options()
        except ValueError as error:
            raise UsageError(str(error)) from error
    return flags


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(name: str, text: str) -> tuple[int, ...]:
    words: Sequence[str] = _words(text)
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f"{name} must be whole numbers with commas between, got {text!r}")
    return tuple(int(word) for word in words)


def _help() -> str:
    lines = [f"  {name:<10} {summary}" for name, (summary, _) in BENCHMARKS.items()]
    return "\n".join(
        [
            "usage: subquad bench WHAT [OPTIONS]",
            "",
            "Measure on this machine. Ctrl-C prints and writes what there is.",
            "",
            "what:",
            *lines,
            "",
            "subquad bench WHAT --help lists the options.",
        ]
    )
