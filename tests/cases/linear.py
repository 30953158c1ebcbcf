"""Linear attention as the recurrence is written down, and inputs for it."""

import torch

from subquad.ops.linear_state import LinearState

B, H, T, D, V = 2, 3, 19, 4, 5


def recurrence(phi_q, phi_k, v, log_decay, state, normalize=True, key_mask=None):
    """Go token by token as the recurrence is written down; the oracle of the causal forms."""
    kv, k_sum = state
    outputs = []
    for t in range(v.shape[2]):
        keep = 1 if key_mask is None else key_mask[:, t, None, None].to(kv.dtype)
        if log_decay is not None:
            g = log_decay[:, :, t].reshape(*k_sum.shape[:2], -1) * keep
            kv, k_sum = g.exp().unsqueeze(-1) * kv, g.exp() * k_sum
        key = phi_k[:, :, t] * keep
        kv, k_sum = kv + torch.einsum("bhk,bhv->bhkv", key, v[:, :, t]), k_sum + key
        y = torch.einsum("bhk,bhkv->bhv", phi_q[:, :, t], kv)
        total = torch.einsum("bhk,bhk->bh", phi_q[:, :, t], k_sum).unsqueeze(-1)
        quotient = torch.where(total == 0, 0, y / torch.where(total == 0, 1, total))
        outputs.append(quotient if normalize else y)
    return torch.stack(outputs, dim=2), LinearState(kv, k_sum)


def make_inputs(num_features, kind, seq_len=T, dtype=torch.float64, seed=0):
    """Return q, k, v, log_decay (or None) and a state that is not empty."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    q, k, v = draw(B, H, seq_len, D), draw(B, H, seq_len, D), draw(B, H, seq_len, V)
    shape = {"none": None, "token": (B, H, seq_len), "feature": (B, H, seq_len, num_features)}[kind]
    log_decay = None if shape is None else -draw(*shape).abs()
    return q, k, v, log_decay, draw(B, H, num_features, V), draw(B, H, num_features).abs()
