import pytest
import torch

from subquad.data.associative_recall import recall_batch

SIZES = {"num_pairs": 5, "num_keys": 7, "num_values": 3}


def test_every_key_is_asked_once_and_has_one_answer():
    tokens, targets, loss_mask = recall_batch(64, seed=3, step=5, **SIZES)
    assert tokens.shape == targets.shape == loss_mask.shape == (64, 20)
    assert tokens.dtype == targets.dtype == torch.int64
    assert loss_mask.dtype == torch.bool
    same_order = 0
    for x, y, mask in zip(tokens, targets, loss_mask, strict=True):
        pairs = dict(x[:10].reshape(5, 2).tolist())
        assert len(pairs) == 5
        assert all(0 <= key < 7 <= value < 10 for key, value in pairs.items())
        assert mask.nonzero().flatten().tolist() == [10, 12, 14, 16, 18]
        asked = x[mask].tolist()
        assert sorted(asked) == sorted(pairs)
        assert y[mask].tolist() == [pairs[key] for key in asked]
        assert torch.equal(y[:-1], x[1:])
        assert y[-1] == 0
        same_order += asked == list(pairs)
    assert same_order < 10  # 1 of 120 by chance


def test_all_keys_and_values_are_drawn_equally_often():
    tokens = recall_batch(2000, seed=0, step=0, **SIZES).tokens[:, :10]
    share = torch.bincount(tokens.flatten(), minlength=10) / 10_000
    assert ((share[:7] - 1 / 7).abs() < 0.01).all()
    assert ((share[7:] - 1 / 3).abs() < 0.02).all()


def test_a_batch_depends_on_seed_and_step_alone():
    first = recall_batch(4, seed=1, step=2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = recall_batch(4, seed=1, step=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (recall_batch(4, seed=1, step=3), recall_batch(4, seed=2, step=1)):
        assert not torch.equal(first.tokens, other.tokens)


def test_one_pair_is_the_shortest_sequence():
    tokens, targets, loss_mask = recall_batch(
        3, seed=0, step=0, num_pairs=1, num_keys=1, num_values=1
    )
    assert tokens.tolist() == [[0, 1, 0, 1]] * 3
    assert targets[loss_mask].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"step": -2}, "step must be at least 0, got -2"),
        ({"num_pairs": 0}, "num_pairs must be at least 1, got 0"),
        ({"num_keys": 15}, "num_keys must be at least 16, got 15"),
        ({"num_values": 0}, "num_values must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"batch_size": 2, "seed": 0, "step": 0, **change}
    with pytest.raises(ValueError, match=message):
        recall_batch(arguments.pop("batch_size"), **arguments)
