"""Checkpointing changes the memory and nothing else: the same outputs, the same gradients."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from subquad.layers.drawn_features import DrawnFeatures
from subquad.models import DecoderLM, EncoderDecoder, EncoderLM, LambdaResNet, VisionTransformer

WAYS = (True, "mixers")
SIZES = {"d_model": 16, "num_layers": 3, "num_heads": 2, "d_ff": 16}


def passes(build, steps=3):
    """Return outputs and gradients of some training passes, and the directions at the end."""
    torch.manual_seed(0)
    model = build().double().train()
    found = []
    for _ in range(steps):
        tokens = torch.randint(7, (2, 9))
        y = model(tokens, tokens) if isinstance(model, EncoderDecoder) else model(tokens)
        model.zero_grad()
        y.sin().sum().backward()
        found += [y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    drawn = [m for m in model.modules() if isinstance(m, DrawnFeatures)]
    return found, [m.projection for m in drawn], [m.schedule for m in drawn]


@pytest.mark.parametrize("mixer", ["linear", "softmax", "performer", "lsh-1", "hybrid", "lstm"])
@pytest.mark.parametrize("model", [DecoderLM, EncoderLM])
def test_outputs_and_gradients_are_the_same_under_dropout(mixer, model):
    options = {**SIZES, "mixer": mixer, "dropout": 0.2}
    plain, *others = (
        passes(lambda c=c: model(7, **options, checkpointing=c))[0] for c in (False, *WAYS)
    )
    for repeated in others:
        assert all(torch.equal(a, b) for a, b in zip(plain, repeated, strict=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", [DecoderLM, EncoderLM, EncoderDecoder])
def test_features_drawn_anew_at_every_pass_are_not_drawn_for_the_repetition(model, way):
    def build(checkpointing):
        lm = model(7, **SIZES, mixer="performer", dropout=0.2, checkpointing=checkpointing)
        for module in lm.modules():
            if isinstance(module, DrawnFeatures):
                module.redraw_every = 1
        return lm

    plain, repeated = (passes(lambda c=c: build(c)) for c in (False, way))
    for a, b in zip(plain, repeated, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert all(int(schedule[1]) == 2 for schedule in repeated[2])  # three passes, two new draws


def test_two_forwards_before_one_backward_keep_their_own_features():
    def gradients(checkpointing):
        torch.manual_seed(0)
        lm = EncoderLM(7, **SIZES, mixer="performer", checkpointing=checkpointing).double().train()
        for block in lm.encoder.stack.blocks:
            block.mixer.features.redraw_every = 1
        tokens = torch.randint(7, (2, 9))
        (lm(tokens).sin().sum() + lm(tokens).cos().sum()).backward()
        now = [block.mixer.features.projection for block in lm.encoder.stack.blocks]
        return [p.grad for p in lm.parameters()] + now

    for a, b in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_blocks_or_mixers_keep_their_inputs_only():
    def kept(checkpointing):
        lm = EncoderLM(7, **{**SIZES, "num_layers": 6}, checkpointing=checkpointing, mixer="linear")
        sizes = {}

        def pack(x):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            y = lm(torch.randint(7, (4, 64)))
        del y
        return sum(sizes.values())

    everything = kept(False)
    assert kept(True) < everything / 4
    inside = 6 * 4 * 64 * 4 * 16 * 4  # q, k, v and what is attended to, of each layer
    assert everything - kept("mixers") >= inside


@pytest.mark.parametrize("way", WAYS)
def test_without_gradients_nothing_is_repeated(monkeypatch, way):
    monkeypatch.setattr("subquad.layers.checkpointing.run_again", None)
    lm = EncoderLM(7, **SIZES, checkpointing=way)
    with torch.no_grad():
        lm(torch.randint(7, (1, 3)))
    with pytest.raises(TypeError):
        lm(torch.randint(7, (1, 3)))


def test_a_graph_may_be_gone_back_twice():
    model = EncoderLM(
        7, d_model=8, num_layers=1, num_heads=2, checkpointing=True, mixer="performer"
    )
    y = model(torch.tensor([[1, 2, 3, 4, 5]]))
    weights = list(model.encoder.parameters())
    first = torch.autograd.grad(y.square().sum(), weights, retain_graph=True)
    second = torch.autograd.grad(y.square().sum(), weights)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("cross", ["linear", "softmax", "performer"])
def test_cross_attention_runs_again_too(cross):
    def count(checkpointing):
        model = EncoderDecoder(7, **SIZES, mixer=cross, checkpointing=checkpointing)
        runs = [0]
        block = model.decoder.blocks[0]
        block.cross.register_forward_pre_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
        model(torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5]])).sum().backward()
        return runs[0]

    assert [count(way) for way in (False, "mixers")] == [1, 2]


@pytest.mark.parametrize("way", [1, "blocks", None])
@pytest.mark.parametrize("build", [partial(EncoderLM, 7), VisionTransformer])
def test_other_ways_are_refused(build, way, unhooked):
    with pytest.raises(ValueError, match=rf'must be False, True or "mixers", got {way!r}'):
        build(**SIZES, checkpointing=way)


def test_batch_norms_count_a_batch_once():
    def trained(checkpointing):
        torch.manual_seed(0)
        model = LambdaResNet(
            ("S", "C", "L", "L"), num_classes=3, width=8, window=3, drop_path=0.2, dropout=0.1,
            zero_init=False, checkpointing=checkpointing,
        ).double()  # fmt: skip
        x = torch.randn(4, 3, 33, 32, dtype=torch.float64)
        for _ in range(2):
            model(x).square().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert set(momenta) == {0.1}
        return gradients, dict(model.named_buffers())

    for plain, again in zip(trained(False), trained(True), strict=True):
        assert_close(again, plain)


def test_batch_norms_count_nothing_in_evaluation():
    """As in a picture of what a trained network's output depends on."""
    torch.manual_seed(0)
    model = LambdaResNet(("C", "C", "C", "L"), num_classes=3, width=8, window=3, checkpointing=True)
    before = {name: b.clone() for name, b in model.named_buffers()}
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    model.eval()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    for name, b in model.named_buffers():
        assert torch.equal(b, before[name]), name
