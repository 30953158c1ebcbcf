import pytest
import torch

pytest.importorskip("transformers")

from cases.transformers import CAUSAL_MODELS, bert, gpt2, tokens
from subquad.pretrained import StateCache, swap


@pytest.fixture(params=CAUSAL_MODELS)
def model(request):
    return CAUSAL_MODELS[request.param]()


def generate(model, x, mask=None, **options):
    mask = torch.ones_like(x) if mask is None else mask
    return model.generate(
        x, attention_mask=mask, max_new_tokens=7, min_new_tokens=7, pad_token_id=0,
        **{"do_sample": False, **options},
    )  # fmt: skip


@pytest.mark.parametrize("mixer", ["performer", "linear"])
@pytest.mark.parametrize("kept", [False, True])
def test_generation_is_the_same_by_any_cache(model, mixer, kept):
    swap(model, mixer, layers=[1] if kept else None)
    x, mask = tokens(), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    anew = generate(model, x, mask, use_cache=False)
    assert torch.equal(generate(model, x, mask), anew)
    assert torch.equal(generate(model, x, mask, past_key_values=StateCache(model)), anew)
    assert anew[:, 9:].unique().numel() > 1


@pytest.mark.parametrize("max_per_feature", [False, True])
def test_stretches_and_single_tokens_equal_the_parallel_form(model, max_per_feature):
    swap(model, max_per_feature=max_per_feature)
    x = tokens()
    with torch.no_grad():
        whole = model(x, use_cache=False).logits
        for cache in (StateCache(model), None):
            parts = []
            for start, end in ((0, 4), (4, 7), (7, 8), (8, 9)):
                found = model(x[:, start:end], past_key_values=cache, use_cache=True)
                cache = found.past_key_values
                parts.append(found.logits)
            torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-4)


def test_the_state_does_not_grow(model):
    swap(model, num_features=8)
    sizes = []
    cache = StateCache(model)
    assert cache.size_bytes() == 0
    for start in range(4):
        model(tokens()[:, start : start + 1], past_key_values=cache, use_cache=True)
        sizes.append(cache.size_bytes())
    assert len(set(sizes)) == 1
    assert sizes[0] > 0
    assert cache.get_seq_length() == 4


def test_beams_are_reordered():
    model = swap(gpt2())
    x = tokens()
    anew = generate(model, x, use_cache=False, num_beams=3)
    assert torch.equal(generate(model, x, past_key_values=StateCache(model), num_beams=3), anew)


def test_reset_forgets(model):
    swap(model)
    x, cache = tokens(), StateCache(model)
    with torch.no_grad():
        first = model(x, past_key_values=cache, use_cache=True).logits
        second = model(x, past_key_values=cache, use_cache=True).logits
        cache.reset()
        third = model(x, past_key_values=cache, use_cache=True).logits
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


def test_rows_can_be_picked_and_repeated():
    model = swap(gpt2())
    cache = StateCache(model)
    x = tokens()
    model(x, past_key_values=cache, use_cache=True)
    cache.batch_select_indices(torch.tensor([1]))
    cache.batch_repeat_interleave(3)
    with torch.no_grad():
        found = model(x[:1, :1].expand(3, 1), past_key_values=cache, use_cache=True).logits
        whole = model(torch.cat([x[1:], x[:1, :1]], 1), use_cache=False).logits
    torch.testing.assert_close(found, whole[:, -1:].expand(3, 1, -1), atol=2e-5, rtol=1e-4)


def test_rows_can_be_put_in_another_order():
    model = swap(gpt2())
    cache, x = StateCache(model), tokens()
    with torch.no_grad():
        model(x, past_key_values=cache, use_cache=True)
        cache.reorder_cache(torch.tensor([1, 0]))
        found = model(x[:, :1], past_key_values=cache, use_cache=True).logits
        whole = model(torch.cat([x.flip(0), x[:, :1]], 1), use_cache=False).logits
    torch.testing.assert_close(found, whole[:, -1:], atol=2e-5, rtol=1e-4)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="attention module 0 that is not swapped"):
        StateCache(gpt2())
    with pytest.raises(ValueError, match="attention module 0 that is not causal"):
        StateCache(swap(bert()))
    cache = StateCache(swap(gpt2()))
    cache.layers[0].crop(0)
    with pytest.raises(ValueError, match="crop must be 0, got -2"):
        cache.layers[0].crop(-2)
