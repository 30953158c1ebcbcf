import pytest
import torch

from helpers import assert_near
from subquad.layers import HybridAttention, LinearCrossAttention, LocalAttention
from subquad.models import EncoderDecoder
from subquad.ops.state import load_state, map_state, save_state, state_size_bytes

SIZES = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 16}
MIXERS = ("linear", "softmax", "performer")
mixers = pytest.mark.parametrize("mixer", MIXERS)


def model(mixer="linear", **options):
    return (
        EncoderDecoder(7, target_vocab_size=5, mixer=mixer, **{**SIZES, **options}).double().eval()
    )


@mixers
@pytest.mark.parametrize(
    ("norm", "positions"), [("post", "sinusoidal-concat"), ("pre", "rotary"), ("pre", "none")]
)
def test_prefill_and_steps_give_the_logits_of_forward(mixer, norm, positions):
    lm = model(mixer, norm=norm, positions=positions)
    source, target = torch.randint(7, (2, 6)), torch.randint(5, (2, 9))
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    expected = lm(source, target, key_mask=mask)
    assert expected.shape == (2, 9, 5)
    state = lm.init_state(lm.encode(source, key_mask=mask), key_mask=mask)
    logits, state = lm.prefill(target[:, :5], state)
    parts = [logits]
    for t, take in ((5, lm.step), (6, lm.step), (7, lm.step_), (8, lm.step_)):
        with torch.no_grad():
            logits, state = take(target[:, t], state)
        parts.append(logits.unsqueeze(1))
    assert_near(torch.cat(parts, 1), expected, 1e-10)


@mixers
def test_gradients_flow_through_the_state_as_through_forward(mixer):
    lm, source, target = model(mixer), torch.randint(7, (2, 6)), torch.randint(5, (2, 4))
    expected = torch.autograd.grad(lm(source, target).sin().sum(), list(lm.parameters()))
    logits, _ = lm.prefill(target, lm.init_state(lm.encode(source)))
    found = torch.autograd.grad(logits.sin().sum(), list(lm.parameters()))
    largest = max(grad.norm() for grad in expected)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 1e-9 * largest


@mixers
def test_padding_on_either_side_changes_nothing(mixer):
    lm = model(mixer)
    source, target = torch.randint(7, (1, 4)), torch.randint(5, (1, 5))
    expected = lm(source, target)
    s = torch.cat([source, torch.full((1, 3), 6)], 1)
    t = torch.cat([torch.full((1, 2), 4), target], 1)
    s_mask, t_mask = torch.arange(7)[None] < 4, torch.arange(7)[None] >= 2
    actual = lm(s, t, key_mask=s_mask, target_mask=t_mask)
    assert_near(actual[t_mask], expected[0], 1e-10)


@mixers
def test_nan_in_a_padded_context_reaches_no_logit_and_no_gradient(mixer):
    lm, target = model(mixer), torch.randint(5, (2, 3))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    context = lm.encode(torch.randint(7, (2, 3))).detach()
    broken = context.masked_fill(~mask.unsqueeze(-1), torch.nan)
    found = []
    for seen in (context, broken):
        logits, _ = lm.prefill(target, lm.init_state(seen, key_mask=mask))
        parameters = [*lm.decoder.parameters(), *lm.head.parameters()]
        found.append([logits, *torch.autograd.grad(logits.sum(), parameters)])
    assert_near(found[1], found[0], 1e-10)


@mixers
def test_a_later_target_token_changes_no_earlier_logit_and_the_source_all(mixer):
    lm, source, target = model(mixer).float(), torch.randint(7, (1, 6)), torch.randint(5, (1, 20))
    expected = lm(source, target)
    other = target.clone()
    other[:, 7] = (other[:, 7] + 1) % 5
    assert torch.equal(lm(source, other)[:, :7], expected[:, :7])
    changed = source.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 7
    assert (lm(changed, target) != expected).any(-1).all()


@pytest.mark.parametrize("mixer", ["linear", "performer"])
def test_both_states_of_a_layer_are_of_constant_size(mixer):
    lm, sizes = model(mixer), set()
    for s, t in ((2, 1), (40, 1), (2, 30)):
        state = lm.init_state(lm.encode(torch.randint(7, (1, s))))
        _, state = lm.prefill(torch.randint(5, (1, t)), state)
        sizes.add(state_size_bytes(state))
    # A layer: 2 heads, M features, values of 8: sums over tokens and sums over the context.
    features = 8 if mixer == "linear" else 16
    one = 2 * features * (8 + 1) * 8
    largest = 0 if mixer == "linear" else 2 * 8  # the running maxima
    assert sizes == {2 * (2 * one + largest) + 8}


def test_softmax_keeps_what_it_has_seen():
    lm = model("softmax")
    state = lm.init_state(lm.encode(torch.randint(7, (1, 6))))
    assert state_size_bytes(state) == 2 * 2 * 6 * 16 * 8 + 8
    _, state = lm.step(torch.tensor([1]), state)
    assert state_size_bytes(state) == 2 * 2 * 7 * 16 * 8 + 8


@mixers
def test_step_leaves_its_state_and_a_saved_or_forked_one_goes_on(mixer, tmp_path):
    lm = model(mixer)
    _, state = lm.prefill(
        torch.randint(5, (2, 3)), lm.init_state(lm.encode(torch.randint(7, (2, 4))))
    )
    token = torch.tensor([1, 2])
    expected, _ = lm.step(token, state)
    save_state(state, tmp_path / "state")
    for past in (state, load_state(tmp_path / "state", like=state), map_state(torch.clone, state)):
        assert torch.equal(lm.step(token, past)[0], expected)
    first, _ = lm.step(token[:1], map_state(lambda x: x[:1], state))
    assert_near(first, expected[:1], 1e-12)


@pytest.mark.parametrize(
    ("mixer", "cross"),
    [
        ("lstm", "linear"),
        (LocalAttention, "softmax"),
        (["linear", "softmax"], LinearCrossAttention),
    ],
)
def test_the_cross_form_may_be_another_than_the_mixers(mixer, cross):
    mixers = ["linear", "softmax"] if mixer == "lstm" else mixer
    lm = model(mixers, cross=cross)
    source, target = torch.randint(7, (1, 3)), torch.randint(5, (1, 4))
    logits, _ = lm.prefill(target, lm.init_state(lm.encode(source)))
    assert_near(logits, lm(source, target), 1e-10)


def test_the_target_may_share_the_vocabulary():
    lm = EncoderDecoder(7, **SIZES)
    assert lm(torch.randint(7, (1, 3)), torch.full((1, 2), 6)).shape == (1, 2, 7)
    with torch.device("meta"):
        EncoderDecoder(7, **SIZES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "local"}, "cross must be given with a mixer other than softmax, .*got 'local'"),
        ({"mixer": ["linear", "linear"]}, r"cross must be given .* got \['linear', 'linear'\]"),
        ({"cross": "lsh-1"}, "cross must be one of softmax, linear, performer or .*got 'lsh-1'"),
        ({"target_vocab_size": 0}, "target_vocab_size must be at least 1, got 0"),
        ({"num_heads": 3}, r"num_heads must divide d_model \(16\)"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, unhooked):
    with pytest.raises(ValueError, match=message):
        EncoderDecoder(7, **{**SIZES, **options})


@pytest.mark.parametrize(
    ("source", "target", "error", "message"),
    [
        ([[7]], [[0]], ValueError, "source must lie from 0 to 6, got 7"),
        ([[0]], [[5]], ValueError, "target must lie from 0 to 4, got 5"),
        ([[0], [1]], [[0]], ValueError, r"source must have the batch size of target \(1\), got 2"),
        ([[0.0]], [[0]], TypeError, "source must be of an integer dtype"),
        ([0], [[0]], ValueError, r"source must have shape \(B, T\), got \(1,\)"),
        ([[0]], [0], ValueError, r"target must have shape \(B, T\), got \(1,\)"),
    ],
)
def test_errors(source, target, error, message, unhooked):
    with pytest.raises(error, match=message):
        model()(torch.tensor(source), torch.tensor(target))


def test_a_state_of_another_context_or_batch_is_refused(unhooked):
    lm = model()
    with pytest.raises(ValueError, match=r"context must have shape \(B, T, 16\)"):
        lm.init_state(torch.randn(1, 3, 5).double())
    context = lm.encode(torch.zeros(1, 3).long())
    with pytest.raises(ValueError, match=r"key_mask must have shape"):
        lm.init_state(context, key_mask=torch.ones(1, 4).bool())
    with pytest.raises(
        ValueError, match=r"state must have the batch size of the tokens \(2\), got 1"
    ):
        lm.prefill(torch.zeros(2, 3).long(), lm.init_state(context))


def test_the_decoder_has_a_stepper():
    lm = model("linear")
    state = lm.init_state(lm.encode(torch.randint(7, (2, 6))))
    target = torch.randint(5, (2, 4))
    expected, _ = lm.prefill(target, state)
    take = lm.decoder.stepper(2, 4)
    with torch.no_grad():
        for t in range(4):
            y, state = take(lm.target_embedding(target[:, t]), state)
            assert_near(lm.head(y), expected[:, t], 1e-10)


def test_a_share_of_softmax_heads_decodes_as_it_trains():
    lm = model("linear", softmax_share=0.5)
    kinds = {type(block.mixer) for block in lm.encoder.stack.blocks}
    assert kinds == {HybridAttention}
    source, target = torch.randint(7, (2, 6)), torch.randint(5, (2, 7))
    expected = lm(source, target)
    logits, state = lm.prefill(target[:, :4], lm.init_state(lm.encode(source)))
    parts = [logits]
    for t in range(4, 7):
        logits, state = lm.step(target[:, t], state)
        parts.append(logits.unsqueeze(1))
    assert_near(torch.cat(parts, 1), expected, 1e-10)
