"""The encoder builders of pytorch-fast-transformers 0.4 over this library's own models.

Code that builds ``TransformerEncoder`` or its recurrent twin runs with only its import changed,
``from fast_transformers.builders import ...`` to ``from subquad.compat.fast_transformers.builders
import ...``, and its state dicts load. What is not honoured is refused by an error, never passed
over; docs/migrating.md lists it. The library: https://github.com/idiap/fast-transformers.
"""

from subquad.compat.fast_transformers.builders import (
    RecurrentEncoderBuilder,
    TransformerEncoderBuilder,
)
from subquad.compat.fast_transformers.feature_maps import elu_feature_map
from subquad.compat.fast_transformers.masking import FullMask, LengthMask, TriangularCausalMask
from subquad.compat.fast_transformers.utils import make_mirror

__all__ = [
    "FullMask",
    "LengthMask",
    "RecurrentEncoderBuilder",
    "TransformerEncoderBuilder",
    "TriangularCausalMask",
    "elu_feature_map",
    "make_mirror",
]
