"""Tiny models of transformers with random weights: nothing is downloaded."""

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

VOCAB = 30


def bert(dropout=0.0, **options):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=32, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=dropout, initializer_range=0.15, **options,
    )  # fmt: skip
    return BertForMaskedLM(config).eval()


def gpt2(dropout=0.0):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=1,
        eos_token_id=2, attn_pdrop=dropout, resid_pdrop=0.0, embd_pdrop=0.0, initializer_range=0.15,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def llama(dropout=0.0, **options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=32,
        attention_dropout=dropout, initializer_range=0.15, **options,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def vit(dropout=0.0):
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, attention_probs_dropout_prob=dropout, initializer_range=0.15,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


TEXT_MODELS = {"bert": bert, "gpt2": gpt2, "llama": llama}
CAUSAL_MODELS = {"gpt2": gpt2, "llama": llama}


def tokens(batch=2, length=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)
