"""The contract that every mixer of this library keeps, as one function for any module.

Axes: B batch, T time, D model width.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from subquad.ops.checks import check_choice, check_positive
from subquad.testing.masks import empty_row, garbage_and_padding, packed_apart, refusals
from subquad.testing.probe import TOLERANCES, CheckResult, MixerReport, Probe
from subquad.testing.states import (
    carried_gradients,
    in_place_step,
    masked_prefill,
    no_state,
    splits,
    state_is_a_value,
)

# One token, odd and short, and longer than any chunk that a mixer is likely to have, and odd.
LENGTHS = (1, 2, 5, 131)


def check_mixer(
    build: Callable[[], nn.Module],
    *,
    d_model: int,
    is_causal: bool,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> MixerReport:
    """Check a mixer against the whole contract of ``subquad.layers.mixer``.

    The mixer maps tokens (B, T, D) to (B, T, D); with ``is_causal`` it also has ``init_state``,
    ``prefill``, ``step`` and ``step_``. It is tried in evaluation mode, at lengths 1 to 131, with
    its parameters moved a little from where the constructor put them, as training would.

    A mixer may claim less, by attributes of its class, which ``subquad.layers.mixer`` explains:
    ``has_state = False``, ``is_past_fixed = False``, ``sees_itself = False``. The report says so.

    Args:
        build: returns a fresh mixer, each time with the same shapes; called several times.
        d_model: width D.
        is_causal: whether the mixer claims that token i sees tokens j <= i only.
        dtype: of parameters and tokens. float64 finds the most; float32, bfloat16 and float16 have
            wider tolerances.
        seed: of parameters and tokens. The global random state is left as it was.

    Returns:
        What was checked, and the largest deviation that each check met.

    Raises:
        MixerFault: (an AssertionError) on the first fault, with the check's name in ``check``.
        TypeError: if ``d_model`` is not an int.
        ValueError: if ``d_model`` is below 1 or ``dtype`` is not a floating one named above.
    """
    check_positive("d_model", d_model)
    check_choice("dtype", dtype, tuple(TOLERANCES))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        probe = Probe(build, d_model=d_model, dtype=dtype, seed=seed)
        checks = {**CHECKS, **(_causal_checks(probe) if is_causal else {}), **LAST_CHECKS}
        results = []
        for name, (rule, run) in checks.items():
            with probe.checking(name):
                run(probe)
            results.append(CheckResult(name=name, rule=rule, deviation=probe.deviation))
    return MixerReport(
        mixer=type(probe.mixer).__name__,
        is_causal=is_causal,
        dtype=dtype,
        tolerance=probe.tolerance,
        results=tuple(results),
        not_claimed=probe.not_claimed(is_causal=is_causal),
    )


def _causal_checks(probe: Probe) -> "dict[str, Check]":
    """Return the checks of what a causal mixer claims: all, or those that are left without."""
    checks = {**FUTURE_CHECKS}
    if not probe.claims("is_past_fixed"):
        checks = {**GRADIENT_CHECKS}
    return {**checks, **(STATE_CHECKS if probe.claims("has_state") else NO_STATE_CHECKS)}


def shapes(probe: Probe) -> None:
    """Run each length."""
    for seq_len in LENGTHS:
        x = probe.draw(2, seq_len, probe.d_model)
        y = probe.mixer(x)
        got = f"the output is {y.dtype} {tuple(y.shape)} for {x.dtype} {tuple(x.shape)}"
        probe.require(y.shape == x.shape and y.dtype == x.dtype, got)
        probe.finite({"the output": y}, f"at length {seq_len}")


def deterministic(probe: Probe) -> None:
    """Run twice under different random states."""
    x = probe.draw(2, 33, probe.d_model)
    first = probe.mixer(x)
    torch.rand(7)
    probe.same(probe.mixer(x), first, "two runs of one input in evaluation mode differ")


def each_token_counts(probe: Probe) -> None:
    """See that a gradient reaches each token: none was cut off or passed over.

    The last of 2 causal tokens is seen by none; if it does not see itself either, it sees one other
    token whatever it is, and cannot count.
    """
    for seq_len in LENGTHS if probe.claims("sees_itself") else (1, 3, 5, 131):
        x = probe.draw(2, seq_len, probe.d_model).requires_grad_()
        (probe.mixer(x) * probe.draw(*x.shape)).sum().backward(inputs=[x])
        reach = torch.zeros_like(x) if x.grad is None else x.grad
        deaf = [t for t, heard in enumerate((reach != 0).any(2).any(0)) if not heard]
        probe.require(not deaf, f"of {seq_len} tokens the output ignores {deaf}")


def rows_apart(probe: Probe) -> None:
    """Compare each row alone with the row in its batch."""
    x = probe.draw(3, 33, probe.d_model)
    together = probe.mixer(x)
    for row in range(len(x)):
        alone, batched = {"the row": probe.mixer(x[row : row + 1])[0]}, {"the row": together[row]}
        probe.close(batched, alone, "in a batch, compared with alone")


def future_unseen(probe: Probe) -> None:
    """Change a token in every form that has a past and a future: plain, padded, from a state."""
    seq_len = LENGTHS[-1]
    x = probe.draw(2, seq_len, probe.d_model)
    for form, run in _forms(probe, seq_len).items():
        expected = run(x)
        for changed in (1, 30, 64, 100, seq_len - 1):
            for value in (-3.0, probe.large, -probe.large):
                other = x.clone()
                other[:, changed] = value
                probe.same(
                    run(other)[:, :changed],
                    expected[:, :changed],
                    f"token {changed} set to {value:.0e} changes outputs before it in {form}",
                )


def future_without_gradient(probe: Probe) -> None:
    """See that no gradient goes from an output to a later token, in the same forms."""
    seq_len = LENGTHS[-1]
    x = probe.draw(2, seq_len, probe.d_model).requires_grad_()
    weight = probe.draw(*x.shape)
    for form, run in _forms(probe, seq_len).items():
        y = run(x) * weight
        for last in (0, 1, 30, 64, 100, seq_len - 2):
            (grad,) = torch.autograd.grad(y[:, last].sum(), x, retain_graph=True)
            later = f"a gradient goes from output {last} to later tokens in {form}"
            probe.require(bool((grad[:, last + 1 :] == 0).all()), later)


def _forms(probe: Probe, seq_len: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the ways to run a causal mixer on (2, seq_len, D)."""
    mask = probe.mask([[True] * seq_len, [True] * 110 + [False] * (seq_len - 110)])
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "forward": probe.mixer,
        "forward with key_mask": lambda x: probe.mixer(x, key_mask=mask),
    }
    if probe.claims("has_state"):
        _, past = probe.mixer.prefill(probe.draw(2, 5, probe.d_model), probe.mixer.init_state(2))
        forms["prefill"] = lambda x: probe.mixer.prefill(x, past)[0]
    return forms


def finite_gradients(probe: Probe) -> None:
    """Go back through each length."""
    for seq_len in LENGTHS:
        x = probe.draw(2, seq_len, probe.d_model).requires_grad_()
        loss = (probe.mixer(x) * probe.draw(*x.shape)).sum()
        probe.finite(probe.gradients(loss, {"x": x}), f"at length {seq_len}")


def numerical_gradients(probe: Probe) -> None:
    """Hold the gradients against finite differences, in float64 whatever the dtype."""
    mixer = copy.deepcopy(probe.mixer).double()
    names = list(probe.parameters())
    values = [p.detach().double().requires_grad_() for p in probe.parameters().values()]
    x = probe.draw(2, 3, probe.d_model).double().requires_grad_()
    mask = probe.mask([[True, True, True], [False, True, False]])

    def run(key_mask: Tensor | None) -> Callable[..., Tensor]:
        def mixed(x: Tensor, *values: Tensor) -> Tensor:
            weights = dict(zip(names, values, strict=True))
            y: Tensor = functional_call(mixer, weights, (x,), {"key_mask": key_mask})
            return y if key_mask is None else y[key_mask]

        return mixed

    for key_mask in (None, mask):
        torch.autograd.gradcheck(run(key_mask), (x, *values), fast_mode=True)


def state_dict_round_trip(probe: Probe) -> None:
    """Load the weights and buffers into a fresh mixer drawn from another seed."""
    torch.manual_seed(torch.initial_seed() + 1)
    fresh = probe.build().to(probe.device, probe.dtype).eval()
    fresh.load_state_dict(probe.mixer.state_dict())
    x = probe.draw(2, 33, probe.d_model)
    probe.same(fresh(x), probe.mixer(x), "a fresh mixer with the loaded state dict differs")


Check = tuple[str, Callable[[Probe], None]]

# In this order: a fault that shows in several checks is reported by the plainest.
CHECKS: dict[str, Check] = {
    "shapes": ("(B, T, D) and dtype in = out, finite, T = 1 to 131", shapes),
    "deterministic": ("evaluation is not random", deterministic),
    "each_token_counts": ("every token reaches the output, at any length", each_token_counts),
    "rows_apart": ("a row alone = the row in a batch", rows_apart),
    "finite_gradients": ("gradients of tokens and parameters are finite", finite_gradients),
    "numerical_gradients": ("gradients = finite differences (gradcheck)", numerical_gradients),
}
FUTURE_CHECKS: dict[str, Check] = {
    "future_unseen": ("a token changes no output before it by a single bit", future_unseen),
}
GRADIENT_CHECKS: dict[str, Check] = {
    "future_without_gradient": ("outputs have no gradient in later tokens", future_without_gradient)
}
STATE_CHECKS: dict[str, Check] = {
    "state_is_a_value": ("prefill and step leave the given state as it is", state_is_a_value),
    "splits": ("prefill and step, split anywhere = forward", splits),
    "carried_gradients": ("so do gradients, through the carried state", carried_gradients),
    "in_place_step": ("step_ = step", in_place_step),
    "masked_prefill": ("prefill of a padded batch, continued = one by one", masked_prefill),
}
NO_STATE_CHECKS: dict[str, Check] = {
    "no_state": ("init_state, prefill, step and step_ raise a ValueError", no_state),
}
LAST_CHECKS: dict[str, Check] = {
    "key_mask": ("padding (left, right, NaN in it) = cu_seqlens = one by one", garbage_and_padding),
    "packed_apart": ("packed sequences do not see each other", packed_apart),
    "empty_row": ("a row without a valid token: finite outputs and gradients", empty_row),
    "refusals": ("cu_seqlens together with key_mask is refused", refusals),
    "state_dict": ("state_dict into a fresh mixer gives the same outputs", state_dict_round_trip),
}
