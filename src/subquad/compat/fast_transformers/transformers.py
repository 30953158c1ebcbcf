"""What the builders return: this library's models behind the published calls.

Axes: N batch, L tokens, E model width.
"""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from subquad.compat.fast_transformers.layout import speak_published_layout
from subquad.compat.fast_transformers.masking import BaseMask
from subquad.models import TransformerDecoder
from subquad.models import TransformerEncoder as BidirectionalModel
from subquad.models.stack import StackState
from subquad.ops.checks import check_token, check_tokens

WANTED = {
    "full": "None, all ones or lower triangular",
    "linear": "None or all ones",
    "causal-linear": "lower triangular, as TriangularCausalMask is,",
}


class TransformerEncoder(nn.Module):
    """A stack over whole sequences, called with mask objects; made by the builder.

    ``model`` is this library's own: a ``TransformerEncoder``, or a ``TransformerDecoder`` for
    "causal-linear". Under "full" the mask of a call decides whether attention is causal, so there
    is a ``twin`` with the same weights that looks the other way. The state dict has the published
    names.
    """

    def __init__(
        self,
        attention_type: str,
        model: BidirectionalModel | TransformerDecoder,
        twin: TransformerDecoder | None = None,
    ) -> None:
        super().__init__()
        self.attention_type, self.model, self.twin = attention_type, model, twin
        if twin is not None:
            share_weights(model, twin)
        speak_published_layout(self)

    def forward(
        self,
        x: Float[Tensor, "N L E"],
        attn_mask: BaseMask | None = None,
        length_mask: BaseMask | None = None,
    ) -> Float[Tensor, "N L E"]:
        """Encode; outputs at positions that ``length_mask`` hides mean nothing.

        Args:
            x: tokens (N, L, E).
            attn_mask: which tokens a token sees, (L, L): nothing or all ones for all of them,
                ``TriangularCausalMask(L)`` for itself and those before. No other matrix.
            length_mask: which tokens count, (N, L).

        Raises:
            TypeError: if a mask is no mask object.
            ValueError: if a shape does not fit, or the attention type has no such ``attn_mask``.
        """
        check_tokens("x", x, self.model.token_width)
        model = self._model_for(attn_mask, x.shape[1])
        encoded: Tensor = model(x, key_mask=key_mask(length_mask, x))
        return encoded

    def _model_for(self, attn_mask: BaseMask | None, length: int) -> nn.Module:
        if attn_mask is not None:
            _check_mask("attn_mask", attn_mask, (length, length))
        for model in (self.model, self.twin):
            if model is None:
                continue
            if isinstance(model, TransformerDecoder):
                fits = length == 1 if attn_mask is None else attn_mask.lower_triangular
            else:
                fits = attn_mask is None or attn_mask.all_ones
            if fits:
                return model
        raise ValueError(
            f"attn_mask must be {WANTED[self.attention_type]} with attention_type "
            f"{self.attention_type!r}, got {_name(attn_mask)}"
        )


class RecurrentTransformerEncoder(nn.Module):
    """The same stack, causal and one token at a time; made by the recurrent builder.

    ``model`` is this library's ``TransformerDecoder``. The state dict has the published names.
    """

    def __init__(self, model: TransformerDecoder) -> None:
        super().__init__()
        self.model = model
        speak_published_layout(self)

    def forward(
        self,
        x: Float[Tensor, "N E"],
        state: StackState | None = None,
        memory: StackState | None = None,
    ) -> tuple[Float[Tensor, "N E"], StackState]:
        """Take one token of each sequence and return the output and the state after it.

        Args:
            x: tokens (N, E).
            state: what the last call returned, None at the start. It stays as it is: the published
                library changes its lists in place, here a state can be kept and gone on from twice.
            memory: an older name of ``state``.

        Raises:
            TypeError: if the state is not one of this library.
            ValueError: if both names are given, or the batch size changed.
        """
        if state is not None and memory is not None:
            raise ValueError("state and memory must not be given together, got both")
        state = memory if state is None else state
        check_token("x", x, self.model.token_width)
        if state is None:
            state = self.model.init_state(len(x))
        if not isinstance(state, StackState):
            raise TypeError(f"state must be a StackState or None, got {type(state).__name__}")
        return self.model.step(x, state)


def key_mask(length_mask: BaseMask | None, x: Float[Tensor, "N L E"]) -> Bool[Tensor, "N L"] | None:
    """Return the ``key_mask`` that a ``length_mask`` stands for.

    Raises:
        TypeError: if it is no mask object.
        ValueError: if its shape is not (N, L).
    """
    if length_mask is None:
        return None
    _check_mask("length_mask", length_mask, tuple(x.shape[:2]))
    return length_mask.bool_matrix


def share_weights(source: nn.Module, twin: nn.Module) -> None:
    """Make ``twin`` hold the modules of ``source``, down to those that know a direction.

    Modules are shared rather than parameters, so that nothing that replaces parameters (``to``,
    ``load_state_dict(assign=True)``) can part them.
    """
    for name, child in source.named_children():
        other: Any = getattr(twin, name)
        knows_direction = any(hasattr(module, "is_causal") for module in child.modules())
        if knows_direction:
            share_weights(child, other)
        else:
            setattr(twin, name, child)


def _check_mask(name: str, mask: object, shape: tuple[int, ...]) -> None:
    if not isinstance(mask, BaseMask):
        raise TypeError(
            f"{name} must be a FullMask, LengthMask or TriangularCausalMask of this package, "
            f"got {_name(mask)}"
        )
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(mask.shape)}")


def _name(mask: object) -> str:
    return "None" if mask is None else type(mask).__name__
