"""Our encoder and decoder against what the linear transformer authors' own package computed.

The files in tests/oracles hold names, shapes and outputs; weights and input come from numpy's
random numbers, as described there: key i of the sorted names is drawn from seed 1000 s + i.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import published_weights
from subquad.models import TransformerDecoder, TransformerEncoder

ORACLES = Path(__file__).parents[1] / "oracles"


RENAMED = {
    "attention.out_projection": "mixer.heads.out_proj",
    "linear1": "feed_forward.inner",
    "linear2": "feed_forward.outer",
    "norm1": "mixer_norm",
    "norm2": "feed_forward_norm",
}


def converted(weights, num_layers):
    """Rename, and lay query, key and value projections into one matrix."""
    ours = {}
    for part in ("weight", "bias"):
        ours[f"stack.final_norm.{part}"] = weights.pop(f"norm.{part}")
        for n in range(num_layers):
            for old, new in RENAMED.items():
                ours[f"stack.blocks.{n}.{new}.{part}"] = weights.pop(f"layers.{n}.{old}.{part}")
            rows = [
                weights.pop(f"layers.{n}.attention.{name}_projection.{part}")
                for name in ("query", "key", "value")
            ]
            ours[f"stack.blocks.{n}.mixer.heads.qkv_proj.{part}"] = torch.cat(rows)
    assert not weights
    return ours


@pytest.mark.parametrize(
    ("name", "build", "mixer", "tolerance"),
    [
        # The package adds 1e-6 to the denominator and we add nothing.
        ("linear", TransformerEncoder, "linear", 2e-6),
        ("causal-linear", TransformerDecoder, "linear", 2e-6),
        ("full", TransformerEncoder, "softmax", 1e-6),
    ],
)
def test_the_published_package_computes_the_same(name, build, mixer, tolerance):
    oracle = json.loads((ORACLES / f"fast-transformers-{name}-21.json").read_text())
    model = build(24, num_layers=2, num_heads=3, d_ff=48, mixer=mixer, norm="post").eval()
    weights = published_weights(oracle["keys"], oracle["fill_seed"])
    model.load_state_dict(converted(weights, num_layers=2))
    seed, shape = 1000 * oracle["fill_seed"] + 999, oracle["input_shape"]
    x = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    with torch.inference_mode():
        y = model(torch.from_numpy(x)).flatten()
    expected = torch.tensor(oracle["output_first_32"])
    assert len(y) == oracle["output_size"]
    assert (y[:32] - expected).norm() < tolerance * expected.norm()
    assert abs(y.norm() - oracle["output_norm"]) < tolerance * oracle["output_norm"]
