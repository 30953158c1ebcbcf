import pytest
import torch

from helpers import assert_near
from subquad.models import DecoderLM, EncoderLM

SIZES = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 16}


def model(mixer="linear", **options):
    return DecoderLM(7, mixer=mixer, **{**SIZES, **options}).double().eval()


@pytest.mark.parametrize("mixer", ["linear", "softmax"])
@pytest.mark.parametrize("positions", ["sinusoidal-concat", "rotary"])
def test_prefill_and_steps_give_the_logits_of_forward(mixer, positions):
    lm, tokens = model(mixer, positions=positions), torch.randint(7, (2, 9))
    expected = lm(tokens)
    assert expected.shape == (2, 9, 7)
    logits, state = lm.prefill(tokens[:, :5], lm.init_state(2))
    parts = [logits]
    for t, take in ((5, lm.step), (6, lm.step), (7, lm.step_), (8, lm.step_)):
        with torch.no_grad():
            logits, state = take(tokens[:, t], state)
        parts.append(logits.unsqueeze(1))
    assert_near(torch.cat(parts, 1), expected, 1e-10)


@pytest.mark.parametrize("mixer", ["linear", "softmax"])
def test_padded_and_packed_tokens_are_read_as_alone(mixer):
    lm, a, b = model(mixer), torch.randint(7, (1, 5)), torch.randint(7, (1, 3))
    alone = torch.cat([lm(a), lm(b)], 1)[0]
    packed = lm(torch.cat([a, b], 1), cu_seqlens=torch.tensor([0, 5, 8]))
    assert_near(packed[0], alone, 1e-10)
    batch = torch.cat([a, torch.cat([torch.zeros(1, 2).long(), b], 1)])
    mask = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    assert_near(lm(batch, key_mask=mask)[mask], alone, 1e-10)
    prefilled, state = lm.prefill(batch, lm.init_state(2), key_mask=mask)
    assert_near(prefilled[mask], alone, 1e-10)
    logits, _ = lm.step(torch.tensor([1, 2]), state)
    for row, tokens, last in ((0, a, 1), (1, b, 2)):
        expected = lm(torch.cat([tokens, torch.tensor([[last]])], 1))[0, -1]
        assert_near(logits[row], expected, 1e-10)


@pytest.mark.parametrize("mixer", ["linear", "softmax"])
def test_a_later_token_changes_no_earlier_logit(mixer):
    lm, tokens = model(mixer).float(), torch.randint(7, (2, 70))
    expected = lm(tokens)
    for t in (1, 40, 69):
        other = tokens.clone()
        other[:, t] = (other[:, t] + 1) % 7
        changed = lm(other)
        assert torch.equal(changed[:, :t], expected[:, :t])
        assert not torch.equal(changed[:, t], expected[:, t])


def test_the_config_rebuilds_the_model():
    lm = DecoderLM(7, **SIZES, mixer="softmax", positions="rotary")
    again = DecoderLM(**lm.config)
    again.load_state_dict(lm.state_dict())
    tokens = torch.randint(7, (1, 5))
    assert torch.equal(lm(tokens), again(tokens))
    assert DecoderLM(7, **SIZES).config["positions"] == "sinusoidal-concat"


def test_the_size_of_the_papers_copy_model():
    with torch.device("meta"):
        lm = DecoderLM(11, d_model=256, num_layers=4, num_heads=8, d_ff=1024)
    block = 4 * (256 * 256 + 256) + (256 * 1024 + 1024) + (1024 * 256 + 256) + 4 * 256
    assert sum(p.numel() for p in lm.parameters()) == 4 * block + 512 + 11 * 128 + 256 * 11 + 11


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (torch.tensor([[0, 7]]), ValueError, "tokens must lie from 0 to 6, got 7"),
        (torch.tensor([[-1, 2]]), ValueError, "tokens must lie from 0 to 6, got -1"),
        (torch.zeros(1, 2), TypeError, r"tokens must be of an integer dtype, got torch\.float32"),
        (torch.zeros(1, 2).bool(), TypeError, "tokens must be of an integer dtype"),
        (torch.zeros(2).long(), ValueError, r"tokens must have shape \(B, T\), got \(2,\)"),
        (torch.zeros(1, 0).long(), ValueError, r"no axis of size 0, got shape \(1, 0\)"),
        (torch.zeros(0, 2).long(), ValueError, r"no axis of size 0, got shape \(0, 2\)"),
    ],
)
def test_errors(tokens, error, message, unhooked):
    lm = model()
    for call in (lm, lambda tokens: lm.prefill(tokens, lm.init_state(1))):
        with pytest.raises(error, match=message):
            call(tokens)


@pytest.mark.parametrize("mixer", ["linear", "softmax", "performer", "linformer"])
def test_a_padded_or_packed_encoder_reads_as_alone(mixer):
    lm = EncoderLM(7, mixer=mixer, max_len=9, **SIZES).double().eval()
    a, b = torch.randint(7, (1, 5)), torch.randint(7, (1, 3))
    alone = torch.cat([lm(a), lm(b)], 1)[0]
    packed = lm(torch.cat([a, b], 1), cu_seqlens=torch.tensor([0, 5, 8]))
    assert_near(packed[0], alone, 1e-10)
    batch = torch.cat([a, torch.cat([b, torch.zeros(1, 2).long()], 1)])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    assert_near(lm(batch, key_mask=mask)[mask], alone, 1e-10)


def test_an_encoder_sees_both_sides_and_is_rebuilt_from_its_config():
    lm, tokens = EncoderLM(7, **SIZES), torch.randint(7, (1, 5))
    other = tokens.clone()
    other[0, 4] = (other[0, 4] + 1) % 7
    assert not torch.equal(lm(tokens)[0, 0], lm(other)[0, 0])
    again = EncoderLM(**lm.config)
    again.load_state_dict(lm.state_dict())
    assert torch.equal(lm(tokens), again(tokens))
    assert not hasattr(lm, "init_state")
    with pytest.raises(ValueError, match="tokens must lie from 0 to 6, got 7"):
        lm(torch.full((1, 2), 7))


def test_vocab_size_must_be_positive(unhooked):
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        DecoderLM(0)
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        EncoderLM(0)
