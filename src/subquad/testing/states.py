"""Checks of the state: prefill and step, split anywhere, must be forward."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from subquad.ops.state import map_state
from subquad.testing.masks import draw_sequences, pad
from subquad.testing.probe import Probe

STEP = 0  # a part of this length is one step; any other is a prefill of so many tokens
SHORT_SPLITS = ((9,), (4, 5), (1, 7, 1), (3, STEP, 5), (STEP,) * 9, (STEP, 2, STEP, STEP, 4))
LONG_SPLITS = ((131,), (64, 67), (130, STEP), (1, 130), (32, 3, STEP, 95))


def run_split(probe: Probe, x: Tensor, parts: Iterable[int]) -> tuple[Tensor, Any]:
    """Run x (B, T, D) from the empty state in ``parts``; return the outputs and the last state."""
    state, outputs, start = probe.mixer.init_state(len(x)), [], 0
    for part in parts:
        if part == STEP:
            y, state = probe.mixer.step(x[:, start], state)
            y = y.unsqueeze(1)
        else:
            y, state = probe.mixer.prefill(x[:, start : start + part], state)
        outputs.append(y)
        start += y.shape[1]
    return torch.cat(outputs, 1), state


def splits(probe: Probe) -> None:
    """Compare values, over short and long sequences and batches of 1 and 3."""
    for batch_size, seq_len, all_parts in ((3, 9, SHORT_SPLITS), (1, 131, LONG_SPLITS)):
        x = probe.draw(batch_size, seq_len, probe.d_model)
        expected = {"the output": probe.mixer(x)}
        for parts in all_parts:
            actual = {"the output": run_split(probe, x, parts)[0]}
            probe.close(actual, expected, f"split into {_words(parts)}, compared with forward")


def carried_gradients(probe: Probe) -> None:
    """Compare gradients; a loss on the last part must reach the first tokens by the state."""
    for batch_size, seq_len, all_parts in ((3, 9, SHORT_SPLITS), (1, 131, LONG_SPLITS)):
        x = probe.draw(batch_size, seq_len, probe.d_model).requires_grad_()
        weight = probe.draw(*x.shape)
        expected = probe.gradients((probe.mixer(x) * weight).sum(), {"x": x})
        for parts in all_parts:
            y, _ = run_split(probe, x, parts)
            actual = probe.gradients((y * weight).sum(), {"x": x})
            probe.close(actual, expected, f"split into {_words(parts)}, compared with forward")


def state_is_a_value(probe: Probe) -> None:
    """Go on twice from one state; it must stay as it was, and give the same again."""
    x = probe.draw(2, 9, probe.d_model)
    for past in (0, 4):
        state = probe.mixer.init_state(2)
        if past:
            _, state = probe.mixer.prefill(x[:, :past], state)
        before = tensors(map_state(torch.clone, state))
        for name, go_on, more in (
            ("step", probe.mixer.step, x[:, 5]),
            ("prefill", probe.mixer.prefill, x[:, 5:]),
        ):
            first = go_on(more, state)[0]
            for after, kept in zip(tensors(state), before, strict=True):
                probe.same(after, kept, f"{name} changes the state that it was given")
            probe.same(go_on(more, state)[0], first, f"{name} from one state gives two answers")


def in_place_step(probe: Probe) -> None:
    """Step both ways, from the empty state and from a prefilled one."""
    x = probe.draw(2, 9, probe.d_model)
    with torch.inference_mode():
        for past in (0, 4):
            state = probe.mixer.init_state(2)
            if past:
                _, state = probe.mixer.prefill(x[:, :past], state)
            other = map_state(torch.clone, state)
            for t in range(past, 9):
                y, state = probe.mixer.step(x[:, t], state)
                z, other = probe.mixer.step_(x[:, t], other)
                probe.close({"step_": z}, {"step_": y}, f"at token {t}, compared with step")


def masked_prefill(probe: Probe) -> None:
    """Prefill rows of unlike length with NaN in the padding, in one call and in two; go on."""
    sequences, more = draw_sequences(probe, (7, 1, 4)), probe.draw(3, 3, probe.d_model)
    expected = _continued_alone(probe, sequences.tokens, more)
    fill = probe.draw(3, 8, probe.d_model).fill_(torch.nan)
    for side in ("right", "left"):
        x, mask = pad(sequences.tokens, 8, fill, left=side == "left")
        for cut in (8, 5):
            x = x.detach().requires_grad_()
            state, outputs = probe.mixer.init_state(3), []
            for part, keep in zip(torch.split(x, cut, 1), torch.split(mask, cut, 1), strict=True):
                y, state = probe.mixer.prefill(part, state, key_mask=keep)
                outputs.append(y)
            y_t, state = probe.mixer.step(more[:, 0], state)
            last, state = probe.mixer.prefill(more[:, 1:], state)
            y = torch.cat(outputs, 1)
            probe.finite({"an output at a padded position": y[~mask]}, "in prefill")
            later = torch.cat([y_t.unsqueeze(1), last], 1)
            rows = [torch.cat([y[i][mask[i]], later[i]]) for i in range(3)]
            grads = probe.gradients(later.square().sum(), {"x": x})
            grad = grads.pop("the gradient of x")
            for i, row in enumerate(rows):
                grads[f"the output of row {i}"] = row
                grads[f"the gradient of row {i}"] = grad[i][mask[i]]
            probe.close(grads, expected, f"after a prefill of {side} padded rows in parts of {cut}")


def _continued_alone(probe: Probe, rows: list[Tensor], more: Tensor) -> dict[str, Tensor]:
    leaves = [row.clone().requires_grad_() for row in rows]
    outputs = [
        probe.mixer(torch.cat([leaf, more[i]]).unsqueeze(0))[0] for i, leaf in enumerate(leaves)
    ]
    later = torch.stack([y[-more.shape[1] :] for y in outputs])
    grads = probe.gradients(later.square().sum(), {f"row {i}": x for i, x in enumerate(leaves)})
    return {**{f"the output of row {i}": y for i, y in enumerate(outputs)}, **grads}


def no_state(probe: Probe) -> None:
    """Ask a mixer without a state for one; whoever tries to decode must be told."""
    x = probe.draw(1, 2, probe.d_model)
    for name, arguments in (
        ("init_state", (1,)),
        ("prefill", (x, None)),
        ("step", (x[:, 0], None)),
        ("step_", (x[:, 0], None)),
    ):
        try:
            getattr(probe.mixer, name)(*arguments)
        except ValueError:
            continue
        probe.fail(f"{name} of a mixer with has_state = False raises no ValueError")


def tensors(state: Any) -> list[Tensor]:
    """Return the tensors of a state in a fixed order."""
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_state(keep, state)
    return found


def _words(parts: tuple[int, ...]) -> str:
    return ", ".join("a step" if part == STEP else f"a prefill of {part}" for part in parts)
