"""The share of images whose class is among the likeliest."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from torch import Tensor


class Accuracy:
    """Counts over batches how often the class is among the k likeliest.

    For k = 1 by comparing; for larger k by torchmetrics, which is imported at once (it takes
    seconds) so that no evaluation waits for it.

    Args:
        top_k: the k's.

    Raises:
        ValueError: if a k is below 1.
        ModuleNotFoundError: if torchmetrics is needed and not installed.
    """

    def __init__(self, top_k: Sequence[int]) -> None:
        if not top_k or min(top_k) < 1:
            raise ValueError(f"top_k must be at least 1 each, got {tuple(top_k)}")
        self._count: Callable[..., Any] | None = _counter() if max(top_k) > 1 else None
        self._right = dict.fromkeys(top_k, 0)
        self._seen = 0

    def reset(self) -> None:
        """Forget all batches."""
        self._right, self._seen = dict.fromkeys(self._right, 0), 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take in logits (B, K) and labels (B,).

        Raises:
            ValueError: if a k is above K.
        """
        classes = logits.shape[1]
        for k in self._right:
            if k > classes:
                raise ValueError(f"top_k must be at most the {classes} classes, got {k}")
            if self._count is None or k == 1:
                right = (logits.argmax(1) == labels).sum()
            else:
                # True positives come first.
                right = self._count(logits, labels, num_classes=classes, average="micro", top_k=k)[
                    0
                ]
            self._right[k] += int(right)
        self._seen += len(labels)

    def compute(self) -> dict[str, float]:
        """Return the shares: "accuracy" for k = 1, "accuracy_top5" for k = 5."""
        return {
            "accuracy" if k == 1 else f"accuracy_top{k}": right / self._seen
            for k, right in self._right.items()
        }


def _counter() -> Callable[..., Any]:
    if find_spec("torchmetrics") is None:
        raise ModuleNotFoundError(
            "top_k above 1 needs the package torchmetrics, which comes with "
            "pip install 'subquad[images]'",
            name="torchmetrics",
        )
    from torchmetrics.functional.classification import multiclass_stat_scores

    return multiclass_stat_scores
