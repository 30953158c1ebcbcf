"""The table of commands, and the overview that ``subquad --help`` prints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from subquad.experiments.registry import EXPERIMENTS


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: a line of help, and what takes the words after its name."""

    summary: str
    run: Callable[[list[str]], int]


def overview() -> str:
    """Return the help text of the program itself."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: subquad COMMAND [OPTIONS]",
            "",
            "Transformers whose cost does not grow with the square of the input.",
            "",
            "commands:",
            *lines,
            "",
            "subquad COMMAND --help lists a command's options. --version prints the version;",
            "--debug, with any command, shows the traceback of an error.",
            "",
            "examples:",
            "  subquad demo                                     five minutes, two models, a report",
            "  subquad sample runs/demo/linear --count 100      draw digits with a trained model",
            "  subquad run mnist-pixels --scale laptop --estimate",
        ]
    )


def is_experiment(words: Sequence[str]) -> bool:
    """Return whether the words are one experiment's name."""
    return len(words) == 1 and words[0] in EXPERIMENTS


# Each handler's module is imported when its command is called: the overview stays quick.
def _demo(words: list[str]) -> int:
    from subquad.cli.demo import demo

    return demo(words)


def _run(words: list[str]) -> int:
    from subquad.cli.run import run

    return run(words)


def _run_all(words: list[str]) -> int:
    from subquad.cli.run import run_all

    return run_all(words)


def _compare(words: list[str]) -> int:
    from subquad.cli.compare import compare

    return compare(words)


def _sample(words: list[str]) -> int:
    from subquad.cli.sample import sample

    return sample(words)


def _explain(words: list[str]) -> int:
    from subquad.cli.explain import explain

    return explain(words)


def _bench(words: list[str]) -> int:
    from subquad.cli.bench import bench

    return bench(words)


def _approx(words: list[str]) -> int:
    from subquad.cli.approx import approx

    return approx(words)


def _convert(words: list[str]) -> int:
    from subquad.cli.convert import convert

    return convert(words)


def _data(words: list[str]) -> int:
    from subquad.cli.data import data

    return data(words)


def _package(words: list[str]) -> int:
    from subquad.cli.package import package

    return package(words)


def _train_images(words: list[str]) -> int:
    from subquad.cli.train_images import train_images

    return train_images(words)


def _predict(words: list[str]) -> int:
    from subquad.cli.predict import predict

    return predict(words)


def _info(words: list[str]) -> int:
    from subquad.cli.info import info

    return info(words)


COMMANDS = {
    "demo": Command(summary="train, draw and complete digits with two mixers, compare", run=_demo),
    "run": Command(summary="run one experiment of a paper", run=_run),
    "run-all": Command(summary="run a group of experiments, one after another", run=_run_all),
    "compare": Command(
        summary="finished runs in one table, with the spread over seeds", run=_compare
    ),
    "sample": Command(summary="draw or complete images with a trained model", run=_sample),
    "explain": Command(summary="draw what a Vision Transformer looks at", run=_explain),
    "bench": Command(summary="measure attention, generation and training here", run=_bench),
    "approx": Command(summary="the error of random features beside softmax", run=_approx),
    "train-images": Command(summary="train a classifier on a folder of images", run=_train_images),
    "predict": Command(summary="tell the classes of images with a trained model", run=_predict),
    "convert": Command(summary="put another attention into a pretrained model", run=_convert),
    "data": Command(summary="bring or check a data set", run=_data),
    "package": Command(summary="put a run's model into the package (maintainers)", run=_package),
    "info": Command(summary="show versions, devices, weights and data found here", run=_info),
}
