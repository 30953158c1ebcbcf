import pytest
import torch

pytest.importorskip("transformers")

from cases.transformers import TEXT_MODELS, bert, tokens
from subquad.pretrained import swap
from subquad.pretrained.swapping import attention_modules
from subquad.pretrained.transfer import LanguageModel, Teacher


@pytest.fixture(params=TEXT_MODELS)
def model(request):
    return TEXT_MODELS[request.param]()


def mask():
    kept = torch.ones(2, 9, dtype=torch.long)
    kept[0, 6:] = 0
    return kept


def test_the_error_falls_with_features_and_is_0_for_softmax_alone(model):
    teacher = Teacher(model)
    with torch.no_grad():
        few, many = (
            teacher.transfer_loss(swap(model, num_features=m), tokens(), mask()) for m in (16, 4096)
        )
    assert 0 < many < 0.3 * few


def test_the_error_is_that_of_each_layer_on_the_teachers_input():
    """By hand for the second layer: the first one's error does not reach it."""
    model = bert()
    teacher = Teacher(model)
    seen = []
    second = attention_modules(teacher.model)[1]
    second.register_forward_hook(lambda *call: seen.append((call[1], call[2][0])))
    swap(model, num_features=16, layers=[1])
    with torch.no_grad():
        loss = teacher.transfer_loss(model, tokens(), None)
        (hidden, *_), wanted = seen[0]
        found = attention_modules(model)[1](hidden)[0]
    expected = (found - wanted).square().sum() / wanted.square().sum()
    torch.testing.assert_close(loss, expected)


def test_hidden_tokens_are_not_compared(model):
    teacher = Teacher(model)
    swap(model, num_features=16)
    x = tokens()
    other = x.clone()
    other[0, 6:] = 3
    with torch.no_grad():
        first, second = (teacher.transfer_loss(model, t, mask()) for t in (x, other))
    torch.testing.assert_close(first, second)


def test_training_brings_it_down_and_leaves_the_teacher_alone(model):
    teacher = Teacher(model)
    swap(model, num_features=16)
    before = [p.clone() for p in teacher.model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = teacher.transfer_loss(model, tokens(), mask())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.model.parameters(), strict=True))


def test_only_attention_gets_gradients():
    model = bert()
    teacher = Teacher(model)
    swap(model)
    teacher.transfer_loss(model, tokens(), None).backward()
    layer = model.bert.encoder.layer[0]
    assert layer.attention.self.query.weight.grad is not None
    assert layer.output.dense.weight.grad is None


def test_a_language_model_speaks_our_ids(model):
    ids = torch.tensor([7, 3, 5, 9])
    ours = torch.tensor([[0, 2, 1], [3, 3, 0]])
    key_mask = torch.tensor([[True, True, True], [True, True, False]])
    with torch.no_grad():
        found = LanguageModel(model, ids)(ours, key_mask=key_mask)
        theirs = model(input_ids=ids[ours], attention_mask=key_mask.long()).logits
    assert LanguageModel(model, ids).vocab_size == 4
    torch.testing.assert_close(found, theirs[..., ids])
