import pytest
import torch

from subquad.data.copy_task import copy_batch


def test_every_sequence_is_symbols_separator_and_the_same_symbols():
    tokens, targets, loss_mask = copy_batch(256, seed=3, step=5)
    assert tokens.shape == targets.shape == loss_mask.shape == (256, 128)
    assert tokens.dtype == targets.dtype == torch.int64
    assert loss_mask.dtype == torch.bool
    lengths = set()
    for x, y, mask in zip(tokens, targets, loss_mask, strict=True):
        n = int((x == 0).nonzero()[0])
        lengths.add(n)
        assert x[:n].min() >= 1
        assert x[:n].max() <= 10
        assert torch.equal(x[n + 1 : 2 * n + 1], x[:n])
        assert not x[2 * n + 1 :].any()
        assert torch.equal(y[:-1], x[1:])
        assert y[-1] == 0
        assert mask.nonzero().flatten().tolist() == list(range(n - 1, 2 * n))
        assert torch.equal(y[mask], torch.cat([x[n : n + 1], x[:n]]))
    assert lengths == set(range(32, 63))


def test_all_symbols_are_drawn_equally_often():
    tokens = copy_batch(2000, seed=0, step=0).tokens[:, :32]
    share = torch.bincount(tokens.flatten(), minlength=11) / tokens.numel()
    assert share[0] == 0
    assert ((share[1:] - 0.1).abs() < 0.01).all()


def test_a_batch_depends_on_seed_and_step_alone():
    first = copy_batch(4, seed=1, step=2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = copy_batch(4, seed=1, step=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (copy_batch(4, seed=1, step=3), copy_batch(4, seed=2, step=1)):
        assert not torch.equal(first.tokens, other.tokens)


@pytest.mark.parametrize(("max_len", "num_symbols"), [(5, 1), (6, 2), (17, 3)])
def test_other_sizes(max_len, num_symbols):
    tokens, _, loss_mask = copy_batch(64, seed=0, step=0, max_len=max_len, num_symbols=num_symbols)
    assert tokens.shape == (64, max_len)
    assert tokens.max() == num_symbols
    n = loss_mask.sum(1) - 1
    assert n.min() == max_len // 4
    assert n.max() == (max_len - 1) // 2 - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"step": -2}, "step must be at least 0, got -2"),
        ({"max_len": 4}, "max_len must be at least 5, got 4"),
        ({"num_symbols": 0}, "num_symbols must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"batch_size": 2, "seed": 0, "step": 0, **change}
    with pytest.raises(ValueError, match=message):
        copy_batch(arguments.pop("batch_size"), **arguments)
