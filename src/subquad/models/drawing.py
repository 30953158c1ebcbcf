"""The random numbers of a batch of images, each from a seed of its own, and its progress."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def draw_seeds(seed: int | None, count: int) -> list[int]:
    """Return a seed for each of ``count`` images; None draws from torch's global generator.

    Not seed + i: the images of seeds 0 and 1 must have nothing in common.
    """
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    draws = torch.Generator().manual_seed(seed % 2**63)
    seeds: list[int] = torch.randint(2**62, (count,), generator=draws).tolist()
    return seeds


def draw_uniforms(seeds: list[int], seq_len: int, device: torch.device) -> Float[Tensor, "B L 2"]:
    """Return two numbers from [0, 1) for each byte, drawn from each image's own generator."""
    draws = torch.empty(len(seeds), seq_len, 2)
    for draw, seed in zip(draws, seeds, strict=True):
        draw.uniform_(generator=torch.Generator().manual_seed(seed))
    return draws.to(device)


def progress_of(
    progress: Callable[[int, int], None], first: int, size: int, batch_size: int, seq_len: int
) -> Callable[[int], None]:
    """Return a function of the byte that images ``first`` .. ``first + size - 1`` are at.

    It calls ``progress`` with (bytes done, bytes in all) of the ``batch_size`` images.
    """
    return lambda t: progress(first * seq_len + size * t, batch_size * seq_len)
