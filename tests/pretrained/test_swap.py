import copy

import pytest
import torch

pytest.importorskip("transformers")

import subquad
from cases.transformers import TEXT_MODELS, bert, gpt2, llama, tokens, vit
from subquad.ops.generalized_features import GeneralizedKernel
from subquad.ops.performer_attention import performer_attention
from subquad.ops.random_features import Estimator, SoftmaxKernel
from subquad.pretrained import attention_inputs, swap
from subquad.pretrained.swapping import attention_modules

MIXERS = ["performer", "linear", "softmax"]


@pytest.fixture(params=TEXT_MODELS)
def model(request):
    return TEXT_MODELS[request.param]()


def logits(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits


def test_softmax_by_our_registry_is_the_model_itself(model):
    x = tokens()
    mask = torch.ones_like(x)
    mask[0, :3] = 0
    before = [logits(model, input_ids=x, attention_mask=m) for m in (torch.ones_like(x), mask)]
    swap(model, "softmax")
    torch.testing.assert_close(logits(model, input_ids=x), before[0])
    after = logits(model, input_ids=x, attention_mask=mask)
    torch.testing.assert_close(after[mask.bool()], before[1][mask.bool()])


def test_vit_is_swapped_too():
    model, pixels = vit(), torch.randn(2, 3, 16, 16)
    before = logits(model, pixel_values=pixels)
    torch.testing.assert_close(logits(swap(model, "softmax"), pixel_values=pixels), before)
    far, near = (
        (logits(swap(model, num_features=m), pixel_values=pixels) - before).norm()
        for m in (16, 4096)
    )
    assert near < 0.6 * far


def test_many_features_come_near_to_softmax(model):
    x = tokens()
    before = logits(model, input_ids=x)
    far, near = (
        (logits(swap(model, num_features=m), input_ids=x) - before).norm() / before.norm()
        for m in (16, 4096)
    )
    assert near < 0.6 * far


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, mixer, side):
    """Padded = unpadded, whatever stands in the padding, NaN included."""
    swap(model, mixer)
    x = tokens(1, 7)
    embedded = model.get_input_embeddings()(x)
    alone = logits(model, inputs_embeds=embedded)
    junk = torch.full((1, 4, embedded.shape[2]), torch.nan)
    left = side == "left"
    padded = torch.cat([junk, embedded] if left else [embedded, junk], 1)
    mask = torch.zeros(1, 11, dtype=torch.long)
    kept = slice(4, 11) if left else slice(0, 7)
    mask[:, kept] = 1
    positions = torch.zeros(1, 11, dtype=torch.long)
    positions[:, kept] = torch.arange(7)
    both = logits(model, inputs_embeds=padded, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(both[:, kept], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("build", [gpt2, llama])
def test_causal_models_stay_causal(build, mixer):
    model, x = swap(build(), mixer), tokens()
    changed = x.clone()
    changed[:, 5:] = tokens(seed=7)[:, 5:]
    assert not torch.equal(x, changed)
    before, after = (logits(model, input_ids=t) for t in (x, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_a_decoder_made_to_see_both_sides_does():
    model, x = swap(llama(is_causal=False)), tokens()
    changed = x.clone()
    changed[:, -1] = 3 + (x[:, -1] - 2) % 20
    before, after = (logits(model, input_ids=t) for t in (x, changed))
    assert not torch.equal(before[:, 0], after[:, 0])


@pytest.mark.parametrize("build", [bert, llama])
def test_one_layer_is_performer_attention_with_the_models_own_scale(build):
    """The first layer's output, by hand from its recorded q, k, v; grouped keys repeated."""
    model, x = build(), tokens()
    module = attention_modules(model)[0]
    module.scaling = 0.37
    q, k, v, key_mask, scale, is_causal = attention_inputs(model, 0, input_ids=x)
    assert (scale, is_causal, key_mask) == (0.37, build is llama, None)
    swap(model, num_features=64)
    seen = []
    module.subquad.register_forward_hook(lambda *call: seen.append(call[2]))
    logits(model, input_ids=x)
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    features = module.subquad.features.current()
    expected = performer_attention(q, k, v, features=features, scale=0.37, is_causal=is_causal)
    torch.testing.assert_close(seen[0], expected)
    other = performer_attention(q, k, v, features=features, is_causal=is_causal)
    assert (other - expected).norm() > 1e-3 * expected.norm()


def test_directions_are_in_the_state_dict_differ_by_layer_and_come_from_the_seed():
    model = swap(bert(), seed=5)
    name = "bert.encoder.layer.{}.attention.self.subquad.features.projection"
    state = model.state_dict()
    first, second = (state[name.format(i)] for i in (0, 1))
    assert first.shape == (44, 16)  # int(16 ln 16)
    assert not torch.equal(first, second)
    assert torch.equal(swap(bert(), seed=5).state_dict()[name.format(0)], first)
    assert not torch.equal(swap(bert(), seed=6).state_dict()[name.format(0)], first)
    loaded = swap(bert(), seed=6)
    loaded.load_state_dict(state)
    x = tokens()
    assert torch.equal(logits(loaded, input_ids=x), logits(model, input_ids=x))


def test_swapping_leaves_the_random_state_alone():
    model = bert()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    swap(model)
    assert torch.equal(torch.rand(1), expected)


def test_redraw_happens_in_training_alone():
    model, x = swap(bert(), redraw_every=1), tokens()
    draws = [swapped.subquad.features for swapped in attention_modules(model)]
    before = draws[0].projection
    logits(model, input_ids=x)
    logits(model, input_ids=x)
    assert torch.equal(draws[0].projection, before)
    model.train()
    logits(model, input_ids=x)
    logits(model, input_ids=x)
    assert not torch.equal(draws[0].projection, before)


def test_some_layers_only():
    model, x = swap(bert(), layers=[1]), tokens()
    found = [module.subquad.mixer for module in attention_modules(model)]
    assert found == ["softmax", "performer"]
    assert not torch.equal(logits(model, input_ids=x), logits(bert(), input_ids=x))
    whole = copy.deepcopy(model)
    whole.bert.encoder.layer[1].attention.self.subquad = (
        swap(bert(), "softmax").bert.encoder.layer[1].attention.self.subquad
    )
    torch.testing.assert_close(logits(whole, input_ids=x), logits(bert(), input_ids=x))


@pytest.mark.parametrize(
    "kernel", [SoftmaxKernel(estimator=Estimator.TRIGONOMETRIC), GeneralizedKernel()]
)
def test_other_kernels(kernel):
    model = swap(llama(), kernel=kernel, num_features=32)
    assert logits(model, input_ids=tokens()).isfinite().all()


def test_gradients_reach_the_projections():
    model = swap(bert()).train()
    model(input_ids=tokens()).logits.square().mean().backward()
    attention = model.bert.encoder.layer[0].attention.self
    assert all(x.weight.grad.abs().sum() > 0 for x in (attention.query, attention.key))


def test_attention_inputs_leaves_the_model_as_it_is():
    model, x = bert(), tokens()
    before = logits(model, input_ids=x)
    mask = torch.ones_like(x)
    mask[0, 6:] = 0
    found = attention_inputs(model, 1, input_ids=x, attention_mask=mask)
    assert found.q.shape == found.k.shape == found.v.shape == (2, 2, 9, 16)
    assert torch.equal(found.key_mask, mask.bool())
    assert not hasattr(attention_modules(model)[0], "subquad")
    assert torch.equal(logits(model, input_ids=x), before)
    with pytest.raises(ValueError, match="layer must be from 0 to 1, got 2"):
        attention_inputs(model, 2, input_ids=x)


def test_the_name_is_found_from_the_package():
    assert subquad.pretrained.swap is swap
