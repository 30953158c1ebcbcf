"""``swap``: another attention inside an unchanged model of transformers."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from subquad.layers.drawn_features import Kernel
from subquad.ops.checks import check_choice
from subquad.ops.random_features import SoftmaxKernel
from subquad.pretrained.mixers import ELU_PLUS_ONE, KeptSoftmax, SwappedAttention
from subquad.pretrained.registry import MIXERS, NAMES

ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def swap(
    model: ModelT,
    mixer: str = "performer",
    *,
    kernel: Kernel | None = None,
    num_features: int | None = None,
    seed: int = 0,
    redraw_every: int | None = 1000,
    max_per_feature: bool = False,
    layers: Sequence[int] | None = None,
    attention_dropout: float | None = None,
) -> ModelT:
    """Put another attention into ``model``, in place, through transformers' attention registry.

    BERT, ViT, GPT-2, Llama and what is built like them: the weights, the code and the names stay;
    each attention module gets a submodule ``subquad`` whose random directions are in the state
    dict. Causal modules stay causal, padding stays hidden, grouped keys stay grouped, and the
    model's own factor on q . k is kept (by its root on both sides where the features are a map, as
    of "linear"). Without fine-tuning the model's quality suffers, often all of it.

    Args:
        model: any model whose attention goes through that registry.
        mixer: "performer" (FAVOR+, or another ``kernel``), "linear" (elu + 1), or "softmax", what
            was there, by which the same masks pass.
        kernel: which features "performer" draws: ``SoftmaxKernel`` or ``GeneralizedKernel``.
        num_features: directions a layer, by default int(K ln K) for heads of width K.
        seed: of the directions; each layer has its own.
        redraw_every: new directions after so many passes in training mode; None: never.
        max_per_feature: causal FAVOR+ at any magnitude of q and k, slower.
        layers: which attention modules, numbered in the model's order; the others keep softmax.
            None: all.
        attention_dropout: 0.0 sets the dropout of attention weights to 0 in the swapped modules.
            There are no weights to drop: training with another is refused.

    Returns:
        The model.

    Raises:
        TypeError: if ``model`` is not transformers', or a number is not an int.
        ValueError: if an option does not fit, or the model's attention cannot be exchanged.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers model, got a {type(model).__name__}")
    check_choice("mixer", mixer, MIXERS)
    if mixer != "performer" and (kernel is not None or num_features is not None):
        raise ValueError(f"kernel and num_features must be None with the mixer {mixer!r}")
    if attention_dropout not in (None, 0.0):
        raise ValueError(f"attention_dropout must be None or 0.0, got {attention_dropout}")
    modules = attention_modules(model)
    chosen = _chosen(layers, len(modules))
    options: Any = {"redraw_every": redraw_every, "max_per_feature": max_per_feature}
    if mixer == "linear":
        kernel = ELU_PLUS_ONE
    made: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU, as is what draws
        for i, module in enumerate(modules):
            if mixer == "softmax" or i not in chosen:
                made.append(KeptSoftmax())
                continue
            features = SwappedAttention(
                mixer, kernel or SoftmaxKernel(), _head_dim(module), num_features=num_features,
                **options,
            )  # fmt: skip
            made.append(features.to(next(module.parameters()).device))
    _set_implementation(model, NAMES[mixer])
    for i, (module, new) in enumerate(zip(modules, made, strict=True)):
        module.subquad = new.train(module.training)
        if attention_dropout == 0.0 and i in chosen:
            _without_dropout(module)
    _refuse_output_attentions(model)
    return model


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """Return the attention modules of a transformers model, in its order.

    Raises:
        ValueError: if there are none that call the registry.
    """
    found = list(_attention_modules(model))
    if not found:
        raise ValueError(
            "model must have attention modules that go through transformers' attention registry "
            f"(BERT, ViT, GPT-2, Llama and the like), got none in a {type(model).__name__}"
        )
    return found


def _attention_modules(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if hasattr(module, "is_causal") and hasattr(module, "scaling") and _head_dim(module):
            yield module


def _head_dim(module: nn.Module) -> int:
    found = getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
    return found if isinstance(found, int) else 0


def _chosen(layers: Sequence[int] | None, count: int) -> set[int]:
    if layers is None:
        return set(range(count))
    for number in layers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"layers must be whole numbers, got {number!r}")
        if not 0 <= number < count:
            raise ValueError(f"layers must be from 0 to {count - 1}, got {number}")
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"layers must name at least one, none twice, got {list(layers)}")
    return set(layers)


def _set_implementation(model: PreTrainedModel, name: str) -> None:
    if model.config.output_attentions:
        raise ValueError(
            "output_attentions must be False in the config of a model whose attention is swapped"
        )
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise ValueError(
            f"{type(model).__name__} must let its attention be exchanged, transformers says that "
            "it does not"
        )


def _refuse_output_attentions(model: PreTrainedModel) -> None:
    """GPT-2 does not tell its attention function that weights are asked for."""
    for module in model.modules():
        hooks = module._forward_pre_hooks.values()
        if isinstance(module, PreTrainedModel) and _check_no_weights not in hooks:
            module.register_forward_pre_hook(_check_no_weights, with_kwargs=True)


def _check_no_weights(module: Any, _: Any, options: dict[str, Any]) -> None:
    name = module.config._attn_implementation
    if options.get("output_attentions") and name in NAMES.values():
        raise ValueError(f"output_attentions must be left out with {name}, got True")


def _without_dropout(module: nn.Module) -> None:
    for word in ("dropout", "attn_dropout", "attention_dropout"):
        found = getattr(module, word, None)
        if isinstance(found, nn.Dropout):
            found.p = 0.0
        elif isinstance(found, float):
            setattr(module, word, 0.0)
