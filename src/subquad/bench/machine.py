"""How fast the machine itself is: matrix products and copies, and the roofline made of the two."""

from collections.abc import Callable

import torch

PROBE_NAMES = ("gemm", "copy")
# Large enough to leave the caches, small enough to be asked in every round.
CPU_GEMM, GPU_GEMM = 1024, 8192
CPU_COPY, GPU_COPY = 2**27, 2**30  # bytes


class Probes:
    """A square matrix product and a copy, timed in turn with what is measured.

    Args:
        device: "cpu" or "cuda".
        dtype: of the product.
    """

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        gpu = device.startswith("cuda")
        size = GPU_GEMM if gpu else CPU_GEMM
        self.bytes = GPU_COPY if gpu else CPU_COPY
        self.flops = 2 * size**3
        self._a = torch.randn(size, size, device=device).to(dtype)
        self._out = torch.empty_like(self._a)
        self._source = torch.ones(self.bytes // 4, device=device)
        self._target = torch.empty_like(self._source)

    def runs(self) -> dict[str, Callable[[], object]]:
        """Return the two probes by name."""
        return {
            "gemm": lambda: torch.mm(self._a, self._a, out=self._out),
            "copy": lambda: self._target.copy_(self._source),
        }

    def rates(self, gemm_seconds: float, copy_seconds: float) -> "Rates":
        """Return the rates that these times mean."""
        return Rates(self.flops / gemm_seconds, 2 * self.bytes / copy_seconds)


class Rates:
    """FLOP/s of matrix products, and bytes/s of a copy (bytes read plus bytes written)."""

    def __init__(self, gemm: float, copy: float) -> None:
        self.gemm, self.copy = gemm, copy


def linear_roofline_seconds(
    rates: Rates,
    *,
    seq_len: int,
    batch: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    element_bytes: int,
    is_backward: bool,
) -> float:
    """Return the least time that linear attention can take on a machine with these rates.

    Useful FLOPs are 4 T K V H forward and 10 T K V H forward and backward together. Bytes are q, k,
    v and out, each once; with a backward pass also three gradients and the incoming one.
    """
    tokens = seq_len * batch * heads
    flops = (10 if is_backward else 4) * tokens * key_dim * value_dim
    arrays = (4 if is_backward else 2) * (key_dim + value_dim)  # q, k, v, out, and their gradients
    return max(flops / rates.gemm, tokens * arrays * element_bytes / rates.copy)
