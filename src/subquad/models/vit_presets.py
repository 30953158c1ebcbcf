"""The published Vision Transformers by name: sizes, hybrids, and what three codes do differently.

Source: Dosovitskiy et al. 2021, table 1 (B, L, H, and R50+ with the sizes' trailing number the
pixels of a side that a token stands for); Steiner et al. 2021 (Ti, S, R+ and R26+).
"""

import re
from difflib import get_close_matches
from typing import Any, Literal

from subquad.ops.checks import check_choice

Style = Literal["google", "timm", "hf"]

SIZES: dict[str, dict[str, int]] = {
    "Ti": {"num_layers": 12, "d_model": 192, "d_ff": 768, "num_heads": 3},
    "S": {"num_layers": 12, "d_model": 384, "d_ff": 1536, "num_heads": 6},
    "B": {"num_layers": 12, "d_model": 768, "d_ff": 3072, "num_heads": 12},
    "L": {"num_layers": 24, "d_model": 1024, "d_ff": 4096, "num_heads": 16},
    "H": {"num_layers": 32, "d_model": 1280, "d_ff": 5120, "num_heads": 16},
}
STYLES: dict[str, dict[str, Any]] = {
    "google": {
        "activation": "gelu-tanh", "norm_eps": 1e-6, "stem_style": "google", "resampling": "zoom",
    },
    "timm": {
        "activation": "gelu", "norm_eps": 1e-6, "stem_style": "timm",
        "resampling": "bicubic-antialias",
    },
    "hf": {
        "activation": "gelu", "norm_eps": 1e-12, "stem_style": "timm", "resampling": "bicubic",
    },
}  # fmt: skip
HYBRIDS: dict[tuple[str, int], dict[str, Any]] = {
    # The stem alone makes a quarter of the sides and not, as its name has it, a half: with its
    # patches of 8 x 8 features a token stands for 32 pixels.
    ("R", 16): {"stem": "r-ti", "patch_size": 32},
    ("R26", 32): {"stem": "r26", "patch_size": 32},
    ("R50", 16): {"stem": "r50-3", "patch_size": 16},
    ("R50", 32): {"stem": "r50", "patch_size": 32},
}
PATTERN = re.compile(rf"(?:(R|R26|R50)\+)?({'|'.join(SIZES)})/([1-9]\d*)")
KNOWN = (
    "Ti/16", "S/16", "S/32", "B/8", "B/16", "B/32", "L/16", "L/32", "H/14", "R+Ti/16", "R26+S/32",
    "R26+B/32", "R50+B/16", "R50+B/32", "R50+L/16", "R50+L/32",
)  # fmt: skip


def preset_options(name: str, style: Style = "google") -> dict[str, Any]:
    """Return the options of a preset; see ``VisionTransformer.preset``.

    Raises:
        ValueError: if there is none of that name, or ``style`` is unknown.
    """
    check_choice("style", style, tuple(STYLES))
    match = PATTERN.fullmatch(name)
    if match:
        hybrid, size, number = match[1], match[2], int(match[3])
        stem = HYBRIDS.get((hybrid, number)) if hybrid else {"stem": "patch", "patch_size": number}
        if stem is not None:
            return {**SIZES[size], **stem, **STYLES[style]}
    near = get_close_matches(name.upper(), [known.upper() for known in KNOWN], n=1, cutoff=0.6)
    hint = next((f", did you mean {known}?" for known in KNOWN if [known.upper()] == near), "")
    raise ValueError(
        f"name must be a size of {', '.join(SIZES)} and a patch as in B/16, or with a stem (R with "
        f"/16, R26 with /32, R50 with /16 or /32) as in R50+B/16; got {name!r}{hint}"
    )
