"""What cross-attention layers share: a context, and the queries that see it, cut into heads.

Axes: B batch, T time of the queries, S of the context, C its width, H heads, K and V widths of one.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from subquad.layers.heads import Heads
from subquad.ops.checks import check_key_mask, check_state_batch, check_tokens


def context_heads(
    heads: Heads, context: Float[Tensor, "B S C"], key_mask: Bool[Tensor, "B S"] | None
) -> tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S V"]]:
    """Check a context, clear what ``key_mask`` hides, and project it to keys and values."""
    check_tokens("context", context, heads.context_dim or heads.d_model)
    check_key_mask(key_mask, context, *context.shape[:2])
    if key_mask is not None:
        context = context.masked_fill(~key_mask.unsqueeze(-1), 0)
    return heads.split_context(context)


def query_heads(
    heads: Heads, x: Float[Tensor, "B T D"], state_batch: int
) -> Float[Tensor, "B H T K"]:
    """Check tokens against the batch size of a context's state, and project them to queries."""
    check_tokens("x", x, heads.d_model)
    check_state_batch(state_batch, len(x))
    return heads.split_query(x)
