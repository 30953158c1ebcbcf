import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers import assert_near
from subquad.data.proteins import PROTEINS, made_up_proteins
from subquad.data.text import BYTES, source_text
from subquad.data.token_rows import block_rows, sequence_rows
from subquad.models import DecoderLM, EncoderLM
from subquad.tasks.config import TrainConfig
from subquad.tasks.language_modelling import LanguageModellingTask, Masking, unigram
from subquad.tasks.training import fit

SIZES = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16}
PARTS = ("train", "validation", "test", "held_out")
ROWS = {p: sequence_rows(getattr(made_up_proteins(), p), PROTEINS.boundary) for p in PARTS}


def task(objective="masked", **options):
    torch.manual_seed(0)
    model = (EncoderLM if objective == "masked" else DecoderLM)(28, **SIZES)
    given = {part: ROWS[part] for part in PARTS[:3]}
    given |= {"vocabulary": PROTEINS, "seq_len": 40, "batch_size": 16, "objective": objective}
    return LanguageModellingTask(options.pop("model", model), **{**given, **options})


def test_masks_are_berts_in_their_shares_and_never_on_what_is_no_letter():
    found = task(batch_size=500)
    tokens, targets, chosen, keep = found.batch(0)
    letters = targets < 25
    assert not (chosen & ~letters).any()
    assert abs(chosen.sum() / letters.sum() - 0.15) < 0.01
    assert torch.equal(tokens[~chosen], targets[~chosen])
    masked, same = tokens[chosen] == 26, tokens[chosen] == targets[chosen]
    assert abs(masked.double().mean() - 0.8) < 0.03
    assert abs(same.double().mean() - 0.1 - 0.1 / 25) < 0.03
    assert (tokens[chosen][~masked] < 25).all()
    assert torch.equal(keep, targets != 27)
    assert not keep.all()
    assert (
        targets[:, 0] == 25
    ).float().mean() > 0.3  # rows that were not cut begin with a boundary


@pytest.mark.parametrize(("masked", "replaced"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.1, 0.8)])
def test_other_shares_of_masks(masked, replaced):
    found = task(batch_size=300, masking=Masking(chosen=0.5, masked=masked, replaced=replaced))
    tokens, targets, chosen, _ = found.batch(0)
    assert abs((tokens[chosen] == 26).double().mean() - masked) < 0.03
    changed = (tokens[chosen] != targets[chosen]) & (tokens[chosen] != 26)
    assert abs(changed.double().mean() - replaced * 24 / 25) < 0.03


def test_a_causal_row_is_shifted_by_one_and_boundaries_do_not_count():
    tokens, targets, counts = task("causal").batch(0)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert torch.equal(counts, targets < 25)
    assert tokens.shape == (16, 40)
    assert (counts.sum(1) > 20).all()


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_a_batch_is_a_pure_function_of_seed_and_step(objective):
    one, again, other = task(objective), task(objective), task(objective, seed=1)
    later = one.batch(9)
    for step in (0, 9, 3):
        batch = one.batch(step)
        assert all(torch.equal(a, b) for a, b in zip(batch, again.batch(step), strict=True))
        assert not all(
            a.shape == b.shape and torch.equal(a, b)
            for a, b in zip(batch, other.batch(step), strict=True)
        )
    assert all(torch.equal(a, b) for a, b in zip(later, one.batch(9), strict=True))


def test_a_pass_shows_every_row_once():
    found = task("causal", batch_size=7, seq_len=100)
    count = len(ROWS["train"].starts)
    rows = [
        row[row < 25].tobytes() for s in range(-(-count // 7)) for row in found.batch(s)[0].numpy()
    ]
    assert len(set(rows[:count])) == count


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_the_loss_is_the_mean_over_what_counts(objective):
    found = task(objective)
    tokens, targets, counts, *key_mask = batch = found.batch(0)
    logits = found.model(tokens, key_mask=key_mask[0] if key_mask else None)
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    expected = nats[counts.flatten()].mean()
    assert_near(found.loss(*batch), expected, 1e-6)
    found.loss(*batch).backward()
    assert all(torch.isfinite(p.grad).all() for p in found.model.parameters())


def test_nothing_to_guess_costs_nothing_and_is_not_measured():
    found = task(masking=Masking(chosen=0.0))
    loss = found.loss(*found.batch(0))
    loss.backward()
    assert float(loss.detach()) == 0
    with pytest.raises(ValueError, match="rows must hold a token to guess, got none in "):
        found.evaluate(full=True)


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_evaluations_are_the_same_for_every_seed_and_leave_no_trace(objective):
    one = task(objective)
    one.model.train()
    state = torch.get_rng_state()
    measured = one.evaluate(full=True)
    assert one.model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert measured == task(objective, seed=5).evaluate(full=True)
    assert measured["perplexity"] == pytest.approx(math.exp(measured["loss"]))
    assert measured.keys() == one.evaluate(full=False).keys()
    assert one.measure(ROWS["held_out"]) != measured
    assert one.evaluate(full=False) == one.measure(ROWS["validation"])


def test_bytes_are_measured_in_bits():
    text = source_text()
    parts = {p: block_rows(getattr(text, p), 33) for p in ("train", "validation", "test")}
    lm = DecoderLM(256, **SIZES)
    options = {**parts, "vocabulary": BYTES, "seq_len": 32, "unit": "bits/byte", "model": lm}
    found = task("causal", **options)
    tokens, _, counts = found.batch(0)
    assert tokens.shape == (16, 32)
    assert counts.all()
    measured = found.evaluate(full=False)
    assert measured["perplexity"] == pytest.approx(2 ** measured["loss"])
    assert found.metric(math.log(2)) == pytest.approx(1)


def test_the_unigram_baseline_by_hand():
    train = sequence_rows([np.array([0, 0, 0, 1], np.uint8)], 25)
    test = sequence_rows([np.array([0, 1], np.uint8)], 25)
    found = unigram(train, test, PROTEINS)
    assert found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx(-(math.log(4 / 29) + math.log(2 / 29)) / 2)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


def test_it_learns_on_the_training_loop(tmp_path):
    config = TrainConfig(max_steps=30, batch_size=16, lr=1e-2, eval_every=30, device="cpu")
    found = task("causal")
    before = found.evaluate(full=True)["loss"]
    fit(found, config, tmp_path / "run", quiet=True)
    assert found.evaluate(full=True)["loss"] < before - 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "both"}, "objective must be one of masked, causal; got 'both'"),
        ({"unit": "dB"}, "unit must be one of nats/token, bits/byte; got 'dB'"),
        ({"seq_len": 1}, "seq_len must be at least 2, got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 1_000_000_007}, "seed must be below 1000000007, got 1000000007"),
        ({"vocabulary": dataclasses.replace(PROTEINS, mask=None)}, "vocabulary must have a mask"),
        ({"vocabulary": BYTES}, "model must have the vocabulary's 256 ids, got 28"),
        ({"model": torch.nn.Linear(2, 2)}, "model must have the vocabulary's 28 ids, got None"),
        ({"test": block_rows(np.zeros(4, np.uint8), 4)._replace(starts=np.zeros(0, np.int64))},
         "test must hold at least one row, got none"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, message, unhooked):
    with pytest.raises(ValueError, match=message):
        task(**change)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"chosen": 1.5}, "chosen must lie from 0 to 1, got 1.5"),
        ({"masked": -0.1}, "masked must lie from 0 to 1, got -0.1"),
        ({"masked": 0.8, "replaced": 0.3}, "at most 1 together, got 0.8 and 0.3"),
    ],
)
def test_masking_out_of_range_is_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        Masking(**shares)
