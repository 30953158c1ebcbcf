"""``check_mixer`` must catch mixers that are broken on purpose, each by the check meant for it."""

import pytest
import torch

from cases.broken_mixers import (
    D_MODEL,
    BatchIsMixed,
    CutToAChunk,
    DividesByTheRow,
    EmptyRowPoisonsGradients,
    FutureLeaks,
    HiddenRandomTable,
    InfiniteGradient,
    NaNReachesGradients,
    PackedSequencesMeet,
    PaddedKeysInTheDenominator,
    PaddingGetsAGradient,
    PrefillForgetsTheMask,
    Raises,
    RandomInEvaluation,
    RoundedToAChunk,
    StateIsDetached,
    StateLostAtASplit,
    StepForgetsTheBias,
    StepInPlaceDrifts,
    StepOverwrites,
    TakesBothMasks,
    WidensTheDtype,
    Wrapped,
    WrongGradient,
)
from subquad.testing import MixerFault, check_mixer


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (FutureLeaks, "future_unseen"),
        (PaddedKeysInTheDenominator, "key_mask"),
        (StateLostAtASplit, "splits"),
        (RandomInEvaluation, "deterministic"),
        (RoundedToAChunk, "each_token_counts"),
        (CutToAChunk, "shapes"),
        (BatchIsMixed, "rows_apart"),
        (WrongGradient, "numerical_gradients"),
        (InfiniteGradient, "finite_gradients"),
        (NaNReachesGradients, "key_mask"),
        (PaddingGetsAGradient, "key_mask"),
        (DividesByTheRow, "empty_row"),
        (EmptyRowPoisonsGradients, "empty_row"),
        (PackedSequencesMeet, "packed_apart"),
        (TakesBothMasks, "refusals"),
        (StepForgetsTheBias, "splits"),
        (StateIsDetached, "carried_gradients"),
        (StepOverwrites, "state_is_a_value"),
        (StepInPlaceDrifts, "in_place_step"),
        (PrefillForgetsTheMask, "masked_prefill"),
        (HiddenRandomTable, "state_dict"),
        (Raises, "shapes"),
    ],
)
def test_a_broken_causal_mixer_is_caught_by_the_check_meant_for_it(broken, check):
    with pytest.raises(MixerFault, match=f"^{check}: ") as caught:
        check_mixer(broken, d_model=D_MODEL, is_causal=True)
    assert caught.value.check == check
    assert isinstance(caught.value, AssertionError)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (PaddedKeysInTheDenominator, "key_mask"),
        (RandomInEvaluation, "deterministic"),
        (RoundedToAChunk, "each_token_counts"),
        (NaNReachesGradients, "key_mask"),
        (DividesByTheRow, "empty_row"),
    ],
)
def test_a_broken_bidirectional_mixer_is_caught(broken, check):
    with pytest.raises(MixerFault) as caught:
        check_mixer(lambda: broken(is_causal=False), d_model=D_MODEL, is_causal=False)
    assert caught.value.check == check


def test_a_bidirectional_mixer_does_not_pass_as_causal():
    class Liar(Wrapped):
        def forward(self, x, *, key_mask=None, cu_seqlens=None):
            self.inner.is_causal = False
            y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
            self.inner.is_causal = True
            return y

    with pytest.raises(MixerFault, match=r"^future_unseen: token 1 set to") as caught:
        check_mixer(Liar, d_model=D_MODEL, is_causal=True)
    assert "changes outputs before it in forward" in str(caught.value)


def test_a_wrong_dtype_is_caught():
    with pytest.raises(MixerFault, match=r"^shapes: the output is torch.float64 \(2, 1, 6\)"):
        check_mixer(WidensTheDtype, d_model=D_MODEL, is_causal=True, dtype=torch.float32)


def test_what_a_mixer_raises_is_named_with_its_check():
    with pytest.raises(MixerFault, match=r"^shapes: it raised IndexError: no second token"):
        check_mixer(Raises, d_model=D_MODEL, is_causal=True)


def test_a_right_mixer_passes_and_the_report_says_what_was_checked():
    report = check_mixer(Wrapped, d_model=D_MODEL, is_causal=True)
    assert {result.name for result in report.results} >= {"shapes", "future_unseen", "key_mask"}
    deviations = {result.name: result.deviation for result in report.results}
    assert deviations["future_unseen"] == 0
    assert deviations["shapes"] is None
    assert 0 < deviations["splits"] < report.tolerance == 1e-10
    text = str(report).splitlines()
    assert text[0].startswith(
        f"Wrapped, causal, torch.float64: {len(report.results)} checks passed"
    )
    assert len(text) == 1 + len(report.results)


def test_checking_leaves_the_global_random_state_alone_and_is_reproducible():
    def build():
        return Wrapped(is_causal=False)

    before = torch.get_rng_state()
    first = check_mixer(build, d_model=D_MODEL, is_causal=False, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert check_mixer(build, d_model=D_MODEL, is_causal=False, seed=3) == first


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"d_model": 0}, ValueError, "d_model must be at least 1, got 0"),
        ({"d_model": 1.5}, TypeError, "d_model must be an int, got float 1.5"),
        ({"dtype": torch.int64}, ValueError, "dtype must be one of torch.float64"),
    ],
)
def test_bad_arguments(options, error, message, unhooked):
    with pytest.raises(error, match=message):
        check_mixer(Wrapped, **{"d_model": D_MODEL, "is_causal": True, **options})
