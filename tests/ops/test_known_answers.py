"""The worked example of the fact sheet: phi = elu + 1, one head, D = V = 2, three tokens."""

import torch
from torch import Tensor

import subquad
from helpers import leaves
from subquad.ops.feature_maps import elu_plus_one
from subquad.ops.linear_attention import linear_attention_chunked
from subquad.ops.linear_state import linear_state

Q = [[1, -1], [0, 2], [-2, 0.5]]
K = [[0.5, 0], [-1, 1], [2, -0.5]]
VALUES = [[1, 0], [0, 1], [2, -1]]
BOTH_WAYS = [[1.429523, -0.429523], [0.901304, 0.098696], [0.714269, 0.285731]]
CAUSAL = [[1, 0], [0.414064, 0.585936], [0.714269, 0.285731]]
PHI_Q = [[2, 0.367879], [1, 3], [0.135335, 1.5]]
PHI_K = [[1.5, 1], [0.367879, 2], [3, 0.606531]]
UPSTREAM = [[1, 0], [0, 1], [1, 1]]
GRAD_PHI_Q = [[1.5, 1], [0.367879, 2], [4.867879, 3.606531]]
GRAD_PHI_K = [[2.135335, 1.867879], [1.135335, 4.5], [0.135335, 1.5]]
GRAD_V = [[5.070882, 6.203003], [3.049787, 9.417667], [1.315802, 1.315802]]
S_3 = [[7.5, -2.632121], [2.213061, 1.393469]]
Z_3 = [4.867879, 3.606531]


def four_axes(rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)[None, None]


def test_known_answers():
    q, k, v = four_axes(Q), four_axes(K), four_axes(VALUES)
    close = {"rtol": 0, "atol": 6e-7}
    torch.testing.assert_close(elu_plus_one(q), four_axes(PHI_Q), **close)
    torch.testing.assert_close(elu_plus_one(k), four_axes(PHI_K), **close)
    torch.testing.assert_close(subquad.linear_attention(q, k, v), four_axes(BOTH_WAYS), **close)
    causal = subquad.linear_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(causal, four_axes(CAUSAL), **close)
    inputs = leaves(elu_plus_one(q), elu_plus_one(k), v)
    numerator, state = linear_attention_chunked(
        *inputs, linear_state(1, 1, 2, 2, like=v), normalize=False, chunk_size=2
    )
    torch.testing.assert_close(state.kv, four_axes(S_3), **close)
    torch.testing.assert_close(state.k_sum, four_axes(Z_3), **close)
    gradients = torch.autograd.grad(numerator, inputs, four_axes(UPSTREAM))
    for actual, expected in zip(gradients, (GRAD_PHI_Q, GRAD_PHI_K, GRAD_V), strict=True):
        torch.testing.assert_close(actual, four_axes(expected), **close)
