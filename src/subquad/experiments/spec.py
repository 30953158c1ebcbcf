"""What an experiment is: a claim of a paper, options with presets per scale, and a function to run.

This file and the experiment files that use it import no torch, so that the command line can list
the experiments and all their options at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

Scale = Literal["smoke", "laptop", "long", "paper"]

SCALES: dict[Scale, str] = {
    "smoke": "under a minute; shows only that it works (used by the tests)",
    "laptop": "a meaningful number on 2 CPU cores, 15 to 20 minutes a mixer",
    "long": "about 45 minutes a mixer; can be stopped and resumed",
    "paper": "the published recipe; wants a GPU",
}
# The mixers at the command line: those of layers.registry (which imports torch) that can be causal,
# as every experiment here needs them.
MIXER_HELP: dict[str, str] = {
    "linear": "linear attention, elu(x) + 1",
    "softmax": "softmax attention, with a KV cache when it generates",
    "performer": "FAVOR+: softmax attention by random features, drawn anew while training",
    "hybrid": "half the heads softmax over the last 256 tokens, half linear",
    "local": "softmax attention over the last 256 tokens",
    "strided": "softmax attention over a window and every 128th token",
    "lsh-1": "the Reformer's LSH attention, 1 round; it cannot generate",
    "lsh-4": "the same, 4 rounds",
    "lsh-8": "the same, 8 rounds",
    "lambda": "a lambda layer: content of all tokens, position of the last 64",
    "lstm": "a recurrent network, torch's LSTM",
}
if TYPE_CHECKING:
    MixerName = str
else:
    MixerName = Literal[tuple(MIXER_HELP)]  # so that --help and its checks know the names

Json = dict[str, Any]
Say = Callable[[str], None]  # shows a line to whoever waits
OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One number that a paper reports, and where it stands there."""

    value: float
    unit: str
    source: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[OptionsT]):
    """One experiment: ``preset`` gives the options of a scale, ``run`` trains and measures.

    ``run(options, folder, say)`` writes figures and the model below ``folder`` and returns the
    results; ``estimate(options)`` says what that would cost. Both import torch when called.
    ``claims`` maps a mixer to what the paper reports for it, if anything.
    """

    name: str
    summary: str
    options: type[OptionsT]
    preset: Callable[[Scale, MixerName], OptionsT]
    run: Callable[[OptionsT, Path, Say], Json]
    estimate: Callable[[OptionsT], Json]
    claims: dict[MixerName, tuple[Claim, ...]] = field(default_factory=dict)
