from functools import partial

import pytest
import torch

from helpers import as_users_have_it, assert_near
from subquad.layers import (
    HybridAttention,
    LinearAttention,
    LinformerAttention,
    LocalAttention,
    SoftmaxAttention,
)
from subquad.models import (
    PixelModel,
    TransformerDecoder,
    TransformerEncoder,
    VisionTransformer,
)
from subquad.models.mixing import layer_factories, softmax_heads
from subquad.models.saving import load_model, save_model


def kinds(model):
    return [type(block.mixer) for block in model.stack.blocks]


def test_a_mixer_for_each_layer():
    model = TransformerDecoder(8, num_layers=3, num_heads=2, mixer=["linear", "softmax", "local"])
    assert kinds(model) == [LinearAttention, SoftmaxAttention, LocalAttention]
    with pytest.raises(ValueError, match="one for each of 2 layers, got 3"):
        TransformerDecoder(8, num_layers=2, num_heads=2, mixer=["linear", "softmax", "local"])


@pytest.mark.parametrize(
    ("share", "counts"),
    [(0.0, [0] * 4), (0.125, [0, 1, 0, 1]), (0.25, [1] * 4), (0.5, [2] * 4), (1.0, [4] * 4)],
)
def test_softmax_heads_are_spread_evenly(share, counts):
    assert softmax_heads(share, 4, 4) == counts


def test_a_share_of_softmax_heads():
    model = TransformerDecoder(16, num_layers=2, num_heads=4, softmax_share=0.125)
    assert kinds(model) == [LinearAttention, HybridAttention]
    assert model.stack.blocks[1].mixer.softmax.heads.num_heads == 1
    whole = TransformerDecoder(16, num_layers=2, num_heads=4, softmax_share=1.0)
    assert kinds(whole) == [SoftmaxAttention] * 2
    near = TransformerDecoder(16, num_layers=2, num_heads=4, softmax_share=1.0, softmax_window=5)
    assert [block.mixer.window for block in near.stack.blocks] == [5, 5]


def test_a_hybrid_decodes_as_it_trains():
    torch.manual_seed(0)
    model = TransformerDecoder(
        16, num_layers=2, num_heads=4, softmax_share=0.25, softmax_window=3, positions="rotary"
    ).double()
    x = torch.randn(2, 9, 16).double()
    y, state = model.prefill(x[:, :5], model.init_state(2))
    rest = []
    for t in range(5, 9):
        y_t, state = model.step(x[:, t], state)
        rest.append(y_t)
    assert_near(torch.cat([y, torch.stack(rest, 1)], 1), model(x), 1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"softmax_share": 1.5}, "softmax_share must be from 0 to 1, got 1.5"),
        ({"softmax_share": float("nan")}, "softmax_share must be from 0 to 1, got nan"),
        ({"softmax_share": 0.3}, r"whole number of the 8 heads.*got 0.3, which is 2.4"),
        ({"softmax_share": 0.5, "mixer": "local"}, 'must be "linear" with a softmax_share'),
        ({"softmax_window": 4}, "softmax_window needs a softmax_share"),
        ({"softmax_share": 0.5, "softmax_window": 0}, "softmax_window must be at least 1"),
    ],
)
def test_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        as_users_have_it(layer_factories)(options.pop("mixer", "linear"), 2, 4, **options)


def test_linformer_is_told_the_longest_sequence():
    model = TransformerEncoder(8, num_layers=1, num_heads=2, mixer="linformer", max_len=40)
    assert isinstance(model.stack.blocks[0].mixer, LinformerAttention)
    assert model.stack.blocks[0].mixer.max_len == 40


def test_a_model_of_mixed_layers_is_saved_and_loaded(tmp_path):
    options = {"d_model": 16, "num_heads": 2, "num_layers": 2}
    model = PixelModel(9, **options, mixer=["linear", "softmax"]).eval()
    save_model(model, tmp_path / "mixed")
    pixels = torch.randint(0, 256, (2, 9))
    assert torch.equal(load_model(tmp_path / "mixed").eval()(pixels), model(pixels))
    shared = PixelModel(9, **options, softmax_share=0.25).eval()
    save_model(shared, tmp_path / "shared")
    assert torch.equal(load_model(tmp_path / "shared").eval()(pixels), shared(pixels))


def test_a_partial_with_too_low_a_limit_is_refused_before_the_first_call():
    mixer = partial(LinformerAttention, max_len=8)
    with pytest.raises(ValueError, match="mixer must take the model's 9 tokens, got max_len=8"):
        TransformerEncoder(8, num_layers=1, num_heads=2, mixer=mixer, max_len=9)


@pytest.mark.parametrize("own", [None, 40])
def test_a_partial_keeps_the_limit_that_it_says(own):
    """Even one that is larger than the model needs."""
    said = {} if own is None else {"max_len": own}
    stack = TransformerEncoder(
        8, num_layers=1, num_heads=2, mixer=partial(LinformerAttention, **said), max_len=9
    )
    model = VisionTransformer(
        image_size=8, patch_size=4, d_model=8, num_layers=1, num_heads=2,
        mixer=partial(LinformerAttention, **said),
    )  # fmt: skip
    limits = [stack.stack.blocks[0].mixer.max_len, model.blocks[0].mixer.max_len]
    assert limits == ([9, 5] if own is None else [own, own])
