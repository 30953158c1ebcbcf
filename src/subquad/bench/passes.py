"""Time the passes of several things in turn: what each took, and why those failed that did."""

from collections.abc import Callable, Mapping

import torch

from subquad.bench.results import Spread, spread
from subquad.bench.timing import interleave

LONGEST = 200  # letters of a reason
Key = tuple[str, str]  # what is timed, and which pass of it


def check_device(device: str) -> None:
    """Require a device that is there.

    Raises:
        ValueError: if it is "cuda" where torch can use no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be cpu where torch can use no GPU, got cuda")


def time_passes(
    runs: Mapping[Key, Callable[[], object]], *, device: str, repetitions: int, seconds: float
) -> tuple[dict[Key, Spread], dict[Key, str]]:
    """Time all runs in turn, round after round; see ``timing.interleave``.

    Returns:
        What each took that could be made, and for each other one the reason.
    """
    keys = {"|".join(key): key for key in runs}
    samples: dict[str, list[float]] = {}
    reasons: dict[Key, str] = {}

    def failed(name: str, error: Exception) -> None:
        reasons[keys[name]] = " ".join(str(error).split())[:LONGEST]

    interleave(
        {name: runs[key] for name, key in keys.items()}, samples, device=device,
        repetitions=repetitions, seconds=seconds, on_failure=failed,
    )  # fmt: skip
    return {keys[name]: spread(taken) for name, taken in samples.items()}, reasons
