import pytest
import torch

from subquad.tasks import accuracy
from subquad.tasks.accuracy import Accuracy

LOGITS = torch.tensor(
    [[5.0, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [1, 9, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
)
LABELS = torch.tensor([0, 0, 4, 3])  # the likeliest; the least; the third; the third


def test_shares_by_hand_over_batches():
    found = Accuracy((1, 2, 3, 5))
    for labels in (LABELS, LABELS.roll(1)):  # what was before a reset does not count
        found.update(LOGITS, labels)
        found.reset()
        found.update(LOGITS[:3], LABELS[:3])
        found.update(LOGITS[3:], LABELS[3:])
        assert found.compute() == {
            "accuracy": 0.25,
            "accuracy_top2": 0.25,
            "accuracy_top3": 0.75,
            "accuracy_top5": 0.75,
        }


def test_the_likeliest_alone_needs_no_package(monkeypatch):
    monkeypatch.setattr(accuracy, "find_spec", lambda name: None)
    found = Accuracy((1,))
    found.update(LOGITS, LABELS)
    assert found.compute() == {"accuracy": 0.25}
    with pytest.raises(ModuleNotFoundError, match="top_k above 1 needs the package torchmetrics"):
        Accuracy((1, 5))


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match=r"top_k must be at least 1 each, got \(0,\)"):
        Accuracy((0,))
    with pytest.raises(ValueError, match="top_k must be at most the 6 classes, got 7"):
        Accuracy((1, 7)).update(LOGITS, LABELS)
