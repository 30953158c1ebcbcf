"""How a Vision Transformer starts: as Google's code has it.

Source: the initialisers of that code, which are flax's defaults but for the feed-forward networks.
"""

from torch import nn

from subquad.layers.block import Block

CUT = 2.0  # deviations at which normal numbers are cut off
CUT_STD = 0.87962566103423978  # deviation of what is left


def initialize(model: nn.Module) -> None:
    """Draw all weights that do not draw themselves as they should.

    Convolutions and the hidden layer of the head: normal numbers of variance 1 / inputs, cut at two
    deviations. Feed-forward networks: Glorot's uniform numbers, biases of deviation 1e-6. Head: 0.
    Position tables and mixers have drawn theirs, the class token is 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _lecun(module)
        if isinstance(module, Block):
            for linear in (module.feed_forward.inner, module.feed_forward.outer):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.normal_(linear.bias, std=1e-6)
    for name in ("pre_logits", "scores"):
        linear = getattr(model, name)
        if linear is not None:
            _lecun(linear)
    head = model.head
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)


def _lecun(layer: nn.Conv2d | nn.Linear) -> None:
    std = layer.weight[0].numel() ** -0.5 / CUT_STD
    nn.init.trunc_normal_(layer.weight, std=std, a=-CUT * std, b=CUT * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
