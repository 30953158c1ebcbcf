"""Mixers: modules that let tokens see each other, all with one interface."""

from subquad.layers.learned_feature_map import LearnedFeatureMap
from subquad.layers.linear_attention import LinearAttention, LinearCrossAttention
from subquad.layers.mixer import CausalMixer, CrossMixer, Mixer
from subquad.layers.registry import MIXERS
from subquad.layers.softmax_attention import SoftmaxAttention, SoftmaxCrossAttention

__all__ = [
    "MIXERS",
    "CausalMixer",
    "CrossMixer",
    "LearnedFeatureMap",
    "LinearAttention",
    "LinearCrossAttention",
    "Mixer",
    "SoftmaxAttention",
    "SoftmaxCrossAttention",
]
