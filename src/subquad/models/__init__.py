"""Models over any mixer: what a user builds, trains and generates with."""

from subquad.models.decoder import TransformerDecoder
from subquad.models.encoder import TransformerEncoder
from subquad.models.encoder_decoder import EncoderDecoder
from subquad.models.lambda_resnet import LambdaResNet
from subquad.models.language_model import DecoderLM, EncoderLM
from subquad.models.pixel_model import PixelModel
from subquad.models.saving import load_model, save_model
from subquad.models.small_resnet import SmallResNet
from subquad.models.vision_transformer import VisionTransformer

__all__ = [
    "DecoderLM",
    "EncoderDecoder",
    "EncoderLM",
    "LambdaResNet",
    "PixelModel",
    "SmallResNet",
    "TransformerDecoder",
    "TransformerEncoder",
    "VisionTransformer",
    "load_model",
    "save_model",
]
