"""How many sequences can be generated at once in the memory that is free."""

import math
from pathlib import Path

import torch

from subquad.models.decoder import TransformerDecoder
from subquad.ops.state import state_size_bytes

SHARE_OF_FREE_MEMORY = 0.5
PROBED_TOKENS = 512  # from which the growth of a state is taken
# A cache that grows by doubling holds up to twice its content, and the old copy while it grows.
GROWTH_FACTOR = 3
# Rough count of tensors as wide as the feed-forward network alive at once while a prefix is read.
LIVE_ACTIVATIONS = 4


def generation_batch(
    decoder: TransformerDecoder, batch_size: int, *, seq_len: int, prefix_len: int
) -> int:
    """Return how many of ``batch_size`` sequences of ``seq_len`` tokens to generate at once."""
    parameter = next(decoder.parameters())
    free = free_memory(parameter.device)
    if free is None:
        return batch_size
    per_token = LIVE_ACTIVATIONS * parameter.element_size() * _widest(decoder)
    needed = full_state_bytes(decoder, seq_len) + prefix_len * per_token
    return max(1, min(batch_size, int(SHARE_OF_FREE_MEMORY * free / needed)))


def full_state_bytes(decoder: TransformerDecoder, seq_len: int) -> int:
    """Estimate the memory of one sequence's state at full length, room to grow included."""
    parameter = next(decoder.parameters())
    # Over many tokens, for some states grow by one token in a hundred.
    tokens = parameter.new_zeros(1, min(seq_len, PROBED_TOKENS), decoder.token_width)
    with torch.inference_mode():
        empty = decoder.init_state(1)
        _, later = decoder.prefill(tokens, empty)
    growth = (state_size_bytes(later) - state_size_bytes(empty)) / tokens.shape[1]
    return state_size_bytes(empty) + math.ceil(GROWTH_FACTOR * growth * seq_len)


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of ``device``, or None where the system does not say.

    On a GPU what torch keeps for itself without using it counts as free; on a CPU the limit of the
    process's group (a container's) counts where it is lower.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    known = [free for free in (_system_memory(), _group_memory()) if free is not None]
    return min(known, default=None)


def _system_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(kilobytes) * 1024


def _group_memory(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return what a cgroup (version 2) leaves; files in the page cache are given up on demand."""
    try:
        limit, used = ((folder / name).read_text() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - int(used) + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):  # none here, no limit ("max"), or nothing that can be read
        return None


def _widest(decoder: TransformerDecoder) -> int:
    return max(p.shape[0] for p in decoder.parameters() if p.dim() == 2)
