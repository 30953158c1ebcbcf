import math

import pytest
import torch

from helpers import assert_near
from subquad.layers import LinearAttention, SoftmaxAttention
from subquad.layers.positions import (
    LearnedPositions,
    NoPositions,
    Rotary,
    SinusoidalAdd,
    SinusoidalConcat,
    next_position,
    token_positions,
)

ENCODINGS = {
    "none": NoPositions(),
    "concat": SinusoidalConcat(4),
    "added": SinusoidalAdd(8),
    "learned": LearnedPositions(20, 8),
}


def test_positions_count_the_valid_tokens_before():
    x = torch.zeros(2, 5, 1)
    assert token_positions(x).tolist() == [[0, 1, 2, 3, 4]] * 2
    mask = torch.tensor([[False, False, True, True, True], [True, True, True, False, False]])
    left, right = token_positions(x, key_mask=mask)
    assert left[2:].tolist() == right[:3].tolist() == [0, 1, 2]
    assert next_position(torch.tensor([0, 7]), 5, mask).tolist() == [3, 10]
    assert next_position(torch.tensor([0, 7]), 5, None).tolist() == [5, 12]
    started = token_positions(x, key_mask=mask, start=torch.tensor([4, 10]))
    assert started[0, 2:].tolist() == [4, 5, 6]
    assert started[1, :3].tolist() == [10, 11, 12]


def test_packed_sequences_are_numbered_each_from_0():
    borders = torch.tensor([0, 3, 3, 4, 8])
    positions = token_positions(torch.zeros(1, 8, 1), cu_seqlens=borders)
    assert positions.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3]]


@pytest.mark.parametrize("name", ENCODINGS)
def test_left_padding_and_packing_encode_a_token_as_right_padding_does(name):
    encode = ENCODINGS[name].double()
    width = encode.token_width(8)
    x = torch.randn(1, 3, width).double()
    expected = encode(x, token_positions(x))
    padded = torch.cat([torch.zeros(1, 2, width).double(), x], 1)
    mask = torch.tensor([[False, False, True, True, True]])
    assert torch.equal(encode(padded, token_positions(padded, key_mask=mask))[:, 2:], expected)
    pack = torch.cat([x, x], 1)
    packed = encode(pack, token_positions(pack, cu_seqlens=torch.tensor([0, 3, 6])))
    assert torch.equal(packed, torch.cat([expected, expected], 1))


def test_the_waves_are_sines_at_even_and_cosines_at_odd_channels():
    positions = torch.tensor([[0, 1, 500]])
    waves = SinusoidalAdd(6)(torch.zeros(1, 3, 6), positions)[0]
    for row, position in zip(waves, (0, 1, 500), strict=True):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            assert math.isclose(row[2 * i], math.sin(angle), abs_tol=1e-4)
            assert math.isclose(row[2 * i + 1], math.cos(angle), abs_tol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [SinusoidalAdd, SinusoidalConcat])
def test_a_model_cast_to_half_precision_still_tells_far_positions_apart(build, dtype):
    encode, positions = build(64), torch.arange(3000)[None]
    x = torch.zeros(1, 3000, encode.token_width(128) if build is SinusoidalConcat else 64)
    expected = encode(x, positions)
    actual = encode.to(dtype)(x.to(dtype), positions)
    assert actual.dtype == dtype
    assert (actual.float() - expected).abs().max() < 2 * torch.finfo(dtype).eps


def test_rotary_of_a_model_cast_to_bf16_turns_by_the_same_angles():
    positions = torch.arange(3000)[None]
    rotation = Rotary(16).bfloat16()(positions, torch.bfloat16)
    assert torch.equal(rotation.cos, Rotary(16)(positions, torch.float32).cos)


def test_a_rotation_keeps_lengths_and_turns_as_a_complex_number_does():
    x, positions = torch.randn(1, 2, 5, 6).double(), torch.tensor([[0, 1, 2, 30, 400]])
    rotated = Rotary(6)(positions, torch.float64)(x)
    assert_near(rotated.norm(dim=-1), x.norm(dim=-1), 1e-12)
    angle = positions[0, :, None] * torch.exp(torch.arange(0, 6, 2) * (-math.log(1e4) / 6)).double()
    factor = torch.polar(torch.ones_like(angle), angle)
    expected = torch.view_as_complex(x.unflatten(-1, (3, 2))) * factor
    assert_near(rotated, torch.view_as_real(expected).flatten(-2), 1e-12)
    assert torch.equal(rotated[:, :, 0], x[:, :, 0])


def test_a_rotated_score_depends_on_the_difference_of_positions_only():
    rotary, q, k = Rotary(8), *torch.randn(2, 1, 1, 4, 8).double()
    near, far = (rotary(torch.arange(4)[None] + start, torch.float64) for start in (0, 1000))
    assert_near(far(q) @ far(k).mT, near(q) @ near(k).mT, 1e-9)
    assert (near(q) @ far(k).mT - near(q) @ near(k).mT).norm() > 0.1


@pytest.mark.parametrize("build", [LinearAttention, SoftmaxAttention])
def test_a_rotary_mixer_sees_differences_of_positions_only(build):
    mixer = build(8, 2, is_causal=True, rotary=True).double()
    x, start = torch.randn(2, 9, 8).double(), mixer.init_state(2)
    later = start._replace(position=start.position + torch.tensor([5, 900]))
    assert_near(mixer.prefill(x, later)[0], mixer.prefill(x, start)[0], 1e-9)
    plain = build(8, 2, is_causal=True).double()
    plain.load_state_dict(mixer.state_dict())
    assert (plain(x) - mixer(x)).norm() > 1e-3


def test_learned_positions_are_added_and_end():
    encode, x = LearnedPositions(4, 3), torch.randn(2, 4, 3)
    assert torch.equal(encode(x, token_positions(x)), x + encode.embedding.weight)
    with pytest.raises(ValueError, match=r"positions must be below max_len \(4\), got 4"):
        encode(torch.randn(1, 5, 3), torch.arange(5)[None])


def test_errors(unhooked):
    with pytest.raises(ValueError, match=r"position width must be below d_model \(8\), got 8"):
        SinusoidalConcat(8).token_width(8)
    with pytest.raises(ValueError, match="position width must be divisible by 2, got 5"):
        SinusoidalConcat(5)
    with pytest.raises(ValueError, match="position width must be at least 1, got 0"):
        SinusoidalAdd(0)
    with pytest.raises(ValueError, match="rotary width must be divisible by 2, got 3"):
        Rotary(3)
    with pytest.raises(ValueError, match="max_len must be at least 1, got 0"):
        LearnedPositions(0, 8)
