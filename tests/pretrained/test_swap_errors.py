import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from cases.transformers import TEXT_MODELS, bert, gpt2, llama, tokens, vit
from subquad.ops.random_features import SoftmaxKernel
from subquad.pretrained import swap


@pytest.fixture(params=TEXT_MODELS)
def model(request):
    return TEXT_MODELS[request.param]()


def test_the_name_alone_is_refused_at_the_first_forward(model):
    model.set_attn_implementation("subquad_performer")
    with pytest.raises(ValueError, match=r"prepared for subquad_performer by .*swap\(model, 'perf"):
        model(tokens())


def test_another_name_than_that_of_the_swap_is_refused():
    model = swap(bert(), "performer")
    model.set_attn_implementation("subquad_linear")
    with pytest.raises(ValueError, match="prepared for subquad_linear by"):
        model(tokens())


def test_a_mask_of_four_axes_is_refused(model):
    swap(model)
    mask = torch.ones(2, 1, 9, 9).tril()
    with pytest.raises(ValueError, match=r"shape \(batch, tokens\).*got \(2, 1, 9, 9\)"):
        model(tokens(), attention_mask=mask)


@pytest.mark.parametrize("build", [gpt2, llama])
def test_packed_sequences_are_refused(build):
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with pytest.raises(ValueError, match="the mask must be causal or none"):
        swap(build())(tokens(1), position_ids=positions, use_cache=False)


def test_a_sliding_window_is_refused():
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=30, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=32, sliding_window=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match="the mask must be causal or none"):
        swap(MistralForCausalLM(config).eval())(tokens())


def test_a_mask_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="a column for each of 9 tokens, got 5"):
        swap(gpt2())(tokens(), attention_mask=torch.ones(2, 5))


def test_a_static_cache_is_refused():
    with pytest.raises(ValueError, match="the KV cache must grow with its tokens"):
        swap(llama()).generate(
            tokens(), max_new_tokens=2, cache_implementation="static", pad_token_id=0
        )


def test_weights_cannot_be_given_out(model):
    swap(model)
    with pytest.raises(ValueError, match="output_attentions must be left out with subquad_perf"):
        model(tokens(), output_attentions=True)
    model.config._output_attentions = True
    with pytest.raises(ValueError, match="output_attentions must be False in the config"):
        swap(model)


@pytest.mark.parametrize("build", [bert, gpt2, llama])
def test_dropout_of_weights_is_refused_in_training_unless_it_is_set_to_0(build):
    model = swap(build(dropout=0.1))
    model(tokens())
    model.train()
    with pytest.raises(ValueError, match=r"dropout of attention weights must be 0.*got 0\.1"):
        model(tokens())
    assert swap(model, attention_dropout=0.0)(tokens()).logits.isfinite().all()


def test_dropout_is_set_to_0_in_a_vit_too():
    model = swap(vit(dropout=0.1), attention_dropout=0.0).train()
    assert model(torch.randn(1, 3, 16, 16)).logits.isfinite().all()


def test_dropout_of_kept_softmax_still_drops():
    model = swap(bert(dropout=0.5), "softmax").train()
    assert not torch.equal(model(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "favor"}, "mixer must be one of"),
        ({"mixer": "linear", "num_features": 8}, "must be None with the mixer 'linear'"),
        ({"mixer": "softmax", "kernel": SoftmaxKernel()}, "must be None with the mixer 'softmax'"),
        ({"attention_dropout": 0.1}, "attention_dropout must be None or 0.0, got 0.1"),
        ({"layers": [2]}, "layers must be from 0 to 1, got 2"),
        ({"layers": []}, "layers must name at least one"),
        ({"layers": [0, 0]}, "none twice"),
        ({"num_features": 0}, "num_features"),
        ({"redraw_every": 0}, "redraw_every"),
        ({"mixer": "linear", "max_per_feature": True}, "max_per_feature must be False"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        swap(bert(), **options)


def test_what_is_no_transformers_model(unhooked):
    with pytest.raises(TypeError, match="model must be a transformers model, got a Linear"):
        swap(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"layers must be whole numbers, got 1\.5"):
        swap(bert(), layers=[1.5])


def test_a_model_without_such_attention_is_refused():
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=4, hidden_sizes=[8], depths=[1])
    with pytest.raises(ValueError, match=r"model must have attention modules.*got none"):
        swap(ResNetModel(config))
