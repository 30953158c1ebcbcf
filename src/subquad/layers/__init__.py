"""Mixers: modules that let tokens see each other, all with one interface."""

from subquad.layers.attention_rows import attention_rows
from subquad.layers.hybrid import HybridAttention
from subquad.layers.lambda_layer import LambdaLayer
from subquad.layers.lambda_mixer import LambdaMixer
from subquad.layers.learned_feature_map import LearnedFeatureMap
from subquad.layers.linear_attention import LinearAttention, LinearCrossAttention
from subquad.layers.linformer import LinformerAttention
from subquad.layers.local_attention import LocalAttention
from subquad.layers.lsh_attention import LSHAttention
from subquad.layers.lstm import LSTMMixer
from subquad.layers.mixer import CausalMixer, CrossMixer, Mixer
from subquad.layers.performer import PerformerAttention, PerformerCrossAttention
from subquad.layers.registry import MIXERS
from subquad.layers.softmax_attention import SoftmaxAttention, SoftmaxCrossAttention
from subquad.layers.strided_attention import StridedAttention

__all__ = [
    "MIXERS",
    "CausalMixer",
    "CrossMixer",
    "HybridAttention",
    "LSHAttention",
    "LSTMMixer",
    "LambdaLayer",
    "LambdaMixer",
    "LearnedFeatureMap",
    "LinearAttention",
    "LinearCrossAttention",
    "LinformerAttention",
    "LocalAttention",
    "Mixer",
    "PerformerAttention",
    "PerformerCrossAttention",
    "SoftmaxAttention",
    "SoftmaxCrossAttention",
    "StridedAttention",
    "attention_rows",
]
