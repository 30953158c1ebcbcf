"""``subquad bench``: measure attention, generation, training and encoding on this machine."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from subquad.cli.bench_flags import (
    AttentionFlags,
    CommonFlags,
    CompareFlags,
    DecodeFlags,
    EncoderFlags,
    LambdaFlags,
    LshFlags,
    PeerFlags,
    PerformerFlags,
    TrainFlags,
    ViTFlags,
)
from subquad.cli.bench_output import progress_bar, show, write_figures
from subquad.cli.console import INTERRUPTED, say
from subquad.cli.parsing import UsageError, choose, parse

if TYPE_CHECKING:
    from subquad.bench.encoder_speed import Measurement
    from subquad.bench.results import Report
    from subquad.bench.timing import Progress

INTERRUPTION = "interrupted: these are the measurements until then"


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


def _encoder(words: list[str]) -> int:
    flags = _parse(EncoderFlags, words, "encoder")
    from subquad.bench.encoder_speed import encoder_table, measure_encoder, results
    from subquad.files import atomic_write_json

    options = flags.options()
    _check_place(flags)
    measured: list[Measurement] = []
    code = 0
    try:
        for found in measure_encoder(options):
            say(f"{found.mixer}: {found.seconds:.1f} s")
            measured.append(found)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except ValueError as error:
        raise UsageError(str(error)) from error
    if measured:
        show(encoder_table(measured, options.size))
    if code:
        say(INTERRUPTION)
    if measured and flags.out is not None:
        atomic_write_json(flags.out, results(measured, options.size))
        say(f"{flags.out}")
    return code


def _lsh_rounds(words: list[str]) -> int:
    flags = _parse(LshFlags, words, "lsh-rounds")
    from subquad.bench.lsh_rounds import measure_lsh_rounds, new_report

    report = new_report(flags.options())
    return _run(flags, report, lambda p: measure_lsh_rounds(flags.options(), report, progress=p))


def _performer(words: list[str]) -> int:
    flags = _parse(PerformerFlags, words, "performer")
    from subquad.bench.performer_speed import measure_performer, new_report

    report = new_report(flags.options())
    return _run(flags, report, lambda p: measure_performer(flags.options(), report, progress=p))


def _lambda(words: list[str]) -> int:
    flags = _parse(LambdaFlags, words, "lambda")
    from subquad.bench.lambda_forms import measure_lambda, new_report

    report = new_report(flags.options())
    return _run(flags, report, lambda p: measure_lambda(flags.options(), report, progress=p))


def _vit(words: list[str]) -> int:
    flags = _parse(ViTFlags, words, "vit")
    from subquad.bench.vit import measure_vit, new_report

    try:
        report = new_report(flags.options())
    except ValueError as error:
        raise UsageError(str(error)) from error
    return _run(flags, report, lambda p: measure_vit(flags.options(), report, progress=p))


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
    show(compared(compare(first, second)))
    for line in changed_options(first, second):
        say(f"not the same: {line}")
    return 0


BENCHMARKS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "attention": ("attention operators against sequence length, time and memory", _attention),
    "decode": ("generation: a step against position, images a second", _decode),
    "train": ("the training step of a pixel model, mixers side by side", _train),
    "encoder": ("one forward pass of a whole encoder, linear beside softmax", _encoder),
    "lsh-rounds": ("the error of LSH attention against its rounds of hashing", _lsh_rounds),
    "performer": ("FAVOR+ beside softmax, and beside as many features of elu + 1", _performer),
    "lambda": ("one lambda layer in all its forms, time and memory", _lambda),
    "vit": ("Vision Transformers of large images, mixers side by side, time and memory", _vit),
    "peers": ("the same attention by other packages that are installed", _peers),
    "compare": ("two result files, A.json B.json, side by side", _compare),
}


def _run(
    flags: CommonFlags | LambdaFlags | LshFlags | PerformerFlags,
    report: "Report",
    measure: Callable[["Progress"], None],
) -> int:
    """Measure, then print and write what there is, whether or not it was interrupted."""
    from subquad.bench.tables import tables
    from subquad.tasks.memory import keep_freed_memory

    _check_place(flags)
    keep_freed_memory()
    try:
        with progress_bar() as progress:
            measure(progress)
    except KeyboardInterrupt:
        report.interrupted = True
    except ValueError as error:  # a name that is unknown, or numbers that the model refuses
        raise UsageError(str(error)) from error
    for table in tables(report):
        show(table)
    if report.interrupted:
        say(INTERRUPTION)
    if flags.out is not None:
        report.write(flags.out)
        say(f"{flags.out}")
        for path in write_figures(report, flags.out):
            say(f"{path}")
    return INTERRUPTED if report.interrupted else 0


def _check_place(
    flags: CommonFlags | EncoderFlags | LambdaFlags | LshFlags | PerformerFlags,
) -> None:
    """Look for the GPU and make the folder before the minutes of measuring."""
    if flags.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--device must be cpu where torch can use no GPU, got cuda")
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)


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
