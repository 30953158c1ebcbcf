"""Every sentence of ``ops/checks.py``, and that every operator asks for it."""

import re

import pytest
import torch

from helpers import as_users_have_it
from subquad.ops import checks
from subquad.ops.linear_attention import (
    linear_attention,
    linear_attention_bidirectional,
    linear_attention_causal,
    linear_attention_quadratic,
    linear_attention_sums,
)
from subquad.ops.linear_state import linear_state
from subquad.ops.softmax_attention import kv_cache, softmax_attention, softmax_attention_cached

Q = torch.ones(2, 3, 4, 5)
MASK = torch.ones(2, 4, dtype=torch.bool)
BORDERS = torch.tensor([0, 2, 4])
ONE = Q[:1]

SHAPE_ERRORS = {
    "q must be of a floating dtype, got torch.int64": (Q.long(), Q, Q),
    "v must be of a floating dtype, got torch.bool": (Q, Q, Q.bool()),
    "k must have shape (B, H, T, features), got (3, 4, 5)": (Q, Q[0], Q),
    "v must be on the device of q (cpu), got meta": (Q, Q, Q.to("meta")),
    "q must have no axis of size 0, got shape (2, 3, 0, 5)": (Q[:, :, :0], Q, Q),
    "k must have no axis of size 0, got shape (0, 3, 4, 5)": (Q, Q[:0], Q),
    "v must have no axis of size 0, got shape (2, 3, 4, 0)": (Q, Q, Q[..., :0]),
    "k and v must agree in (B, H, T), got (2, 3, 4) and (2, 3, 2)": (Q, Q, Q[:, :, :2]),
    "q and k must agree in (B, H), got (2, 1) and (2, 3)": (Q[:, :1], Q, Q),
    "q and k must have the same last size, got 3 and 5": (Q[..., :3], Q, Q),
}
OPERATORS = {
    "linear": linear_attention,
    "bidirectional": linear_attention_bidirectional,
    "causal": linear_attention_causal,
    "quadratic": linear_attention_quadratic,
    "sums": lambda *qkv, **masks: as_users_have_it(linear_attention_sums)(
        *qkv, linear_state(2, 3, 5, 5, like=Q), **masks
    ),
    "softmax": softmax_attention,
    "cached": lambda *qkv, **masks: as_users_have_it(softmax_attention_cached)(
        *qkv, kv_cache(2, 3, 5, 5, like=Q), **masks
    ),
}


@pytest.fixture(params=OPERATORS)
def operator(request):
    return as_users_have_it(OPERATORS[request.param])


@pytest.mark.parametrize("message", SHAPE_ERRORS)
def test_tensors_that_do_not_fit_are_refused(operator, message):
    error = TypeError if "dtype" in message else ValueError
    with pytest.raises(error, match=re.escape(message)):
        operator(*SHAPE_ERRORS[message])


def test_causal_operators_need_one_length():
    for form in ("linear", "softmax", "quadratic"):
        with pytest.raises(ValueError, match="same length when is_causal or packed, got 2 and 4"):
            as_users_have_it(OPERATORS[form])(Q[:, :, :2], Q, Q, is_causal=True)
    for form in ("linear", "softmax", "bidirectional"):
        with pytest.raises(ValueError, match="same length when is_causal or packed, got 2 and 4"):
            as_users_have_it(OPERATORS[form])(ONE[:, :, :2], ONE, ONE, cu_seqlens=BORDERS)


# "causal" hands its mask on to "sums".
@pytest.mark.parametrize("operator", sorted(OPERATORS.keys() - {"causal"}), indirect=True)
def test_masks_that_do_not_fit_are_refused(operator):
    with pytest.raises(TypeError, match=r"key_mask must be bool with True = keep, got torch.f"):
        operator(Q, Q, Q, key_mask=MASK.float())
    message = r"key_mask must have shape \(B, T\) = \(2, 4\), got \(4, 2\)"
    with pytest.raises(ValueError, match=message):
        operator(Q, Q, Q, key_mask=MASK.mT)
    with pytest.raises(
        ValueError, match=r"key_mask must be on the device of the keys \(cpu\), got m"
    ):
        operator(Q, Q, Q, key_mask=MASK.to("meta"))


BORDER_ERRORS = {
    "cu_seqlens and key_mask must not be given together, got both": (BORDERS, MASK[:1], ONE),
    "cu_seqlens must be int32 or int64, got torch.float32": (BORDERS.float(), None, ONE),
    "cu_seqlens must have shape (sequences + 1,), got (3, 1)": (BORDERS[:, None], None, ONE),
    "cu_seqlens must have shape (sequences + 1,), got (1,)": (BORDERS[:1], None, ONE),
    "cu_seqlens needs a batch of size 1, got 2": (BORDERS, None, Q),
    "cu_seqlens must start with 0 and end with T = 4, got 0 and 2": (BORDERS[:2], None, ONE),
    "cu_seqlens must start with 0 and end with T = 4, got 2 and 4": (BORDERS[1:], None, ONE),
    "cu_seqlens must never fall, got [0, 3, 2, 4]": (torch.tensor([0, 3, 2, 4]), None, ONE),
}


@pytest.mark.parametrize("form", ["linear", "bidirectional", "causal", "softmax"])
@pytest.mark.parametrize("message", BORDER_ERRORS)
def test_borders_that_do_not_fit_are_refused(form, message):
    borders, mask, q = BORDER_ERRORS[message]
    error = TypeError if "int32" in message else ValueError
    with pytest.raises(error, match=re.escape(message)):
        as_users_have_it(OPERATORS[form])(q, q, q, cu_seqlens=borders, key_mask=mask)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 4, 1), (3, 4)])
def test_decays_of_another_shape_are_refused(shape):
    message = "log_decay must have shape (B, H, T) = (2, 3, 4) or (B, H, T, K) = (2, 3, 4, 5), got "
    log_decay = torch.zeros(shape)
    with pytest.raises(ValueError, match=re.escape(f"{message}{shape}")):
        OPERATORS["sums"](Q, Q, Q, log_decay=log_decay)
    quadratic = as_users_have_it(linear_attention_quadratic)
    with pytest.raises(ValueError, match=re.escape(f"{message}{shape}")):
        quadratic(Q, Q, Q, log_decay=log_decay, is_causal=True)
    with pytest.raises(TypeError, match=r"log_decay must be of a floating dtype, got torch\.int64"):
        checks.check_log_decay(torch.zeros(2, 3, 4).long(), Q.shape, None, is_causal=True)


def test_a_decay_may_be_anything_where_it_is_masked():
    log_decay = torch.tensor([[[-1.0, 3.0]]])
    mask = torch.tensor([[True, False]])
    checks.check_log_decay(log_decay, torch.Size((1, 1, 2, 1)), mask, is_causal=True)
    checks.check_log_decay(log_decay[..., None], torch.Size((1, 1, 2, 1)), mask, is_causal=True)
    with pytest.raises(ValueError, match=r"log_decay must be at most 0, got 3.0"):
        checks.check_log_decay(log_decay, torch.Size((1, 1, 2, 1)), ~mask, is_causal=True)
    with pytest.raises(ValueError, match="log_decay must be at most 0, got nan"):
        checks.check_log_decay(log_decay.log(), torch.Size((1, 1, 2, 1)), mask, is_causal=True)


@pytest.mark.parametrize("value", [1.0, True, "2", None])
def test_a_count_is_an_int(value):
    with pytest.raises(TypeError, match=f"heads must be an int, got {type(value).__name__}"):
        as_users_have_it(checks.check_positive)("heads", value)


def test_numbers_that_do_not_fit_are_refused():
    for value in (0, -3):
        with pytest.raises(ValueError, match=f"heads must be at least 1, got {value}"):
            checks.check_positive("heads", value)
    for value in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"rate must be at least 0 and below 1, got {value}"):
            checks.check_fraction("rate", value)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"lr must be a finite number above 0, got {value}"):
            checks.check_positive_number("lr", value)
    with pytest.raises(ValueError, match="norm must be one of post, pre; got 'past'"):
        checks.check_choice("norm", "past", ("post", "pre"))


def test_numbers_that_fit_pass():
    checks.check_positive("heads", 1)
    checks.check_fraction("rate", 0.0)
    checks.check_positive_number("lr", 1e-9)
    checks.check_choice("norm", "pre", ("post", "pre"))


def test_tokens_that_do_not_fit_are_refused():
    x = torch.ones(2, 3, 4)
    with pytest.raises(TypeError, match=r"x must be of a floating dtype, got torch\.int64"):
        checks.check_tokens("x", x.long(), 4)
    for bad in (x[0], x[..., :3], x[:0], x[:, :0]):
        message = f"x must have shape (B, T, 4) with B, T >= 1, got {tuple(bad.shape)}"
        with pytest.raises(ValueError, match=re.escape(message)):
            checks.check_tokens("x", bad, 4)
    with pytest.raises(TypeError, match=r"x_t must be of a floating dtype, got torch\.int64"):
        checks.check_token("x_t", x[0].long(), 4)
    for bad in (x, x[0, :, :3], x[0, :0]):
        message = f"x_t must have shape (B, 4) with B >= 1, got {tuple(bad.shape)}"
        with pytest.raises(ValueError, match=re.escape(message)):
            checks.check_token("x_t", bad, 4)


def test_ids_that_do_not_fit_are_refused():
    ids = torch.tensor([[0, 9]])
    checks.check_ids("pixels", ids, 10)
    checks.check_ids("pixels", ids.to(torch.uint8), 10)
    with pytest.raises(ValueError, match="pixels must lie from 0 to 8, got 9"):
        checks.check_ids("pixels", ids.to(torch.uint8), 9)
    for bad in (ids.float(), ids.bool()):
        with pytest.raises(TypeError, match=f"pixels must be of an integer dtype, got {bad.dtype}"):
            checks.check_ids("pixels", bad, 10)
    with pytest.raises(ValueError, match=r"pixels must have no axis of size 0, got shape \(0, 2\)"):
        checks.check_ids("pixels", ids[:0], 10)
    with pytest.raises(ValueError, match="pixels must lie from 0 to 8, got 9"):
        checks.check_ids("pixels", ids, 9)
    with pytest.raises(ValueError, match="pixels must lie from 0 to 9, got -1"):
        checks.check_ids("pixels", ids - 1, 10)


def test_shapes_that_do_not_fit_are_refused():
    checks.check_shape("byte", Q, (2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"byte must have shape \(2, 3\), got \(2, 3, 4, 5\)"):
        checks.check_shape("byte", Q, (2, 3))
    checks.check_divisible("width", 6, 3)
    with pytest.raises(ValueError, match="width must be divisible by 3, got 7"):
        checks.check_divisible("width", 7, 3)
    checks.check_odd("window", 7)
    with pytest.raises(ValueError, match="window must be odd, got 6"):
        checks.check_odd("window", 6)
    with pytest.raises(ValueError, match="window must be at least 1, got -1"):
        checks.check_odd("window", -1)


def test_a_state_of_another_batch_is_refused():
    checks.check_state_batch(2, 2)
    message = r"state must have the batch size of the tokens \(3\), got 2"
    with pytest.raises(ValueError, match=message):
        checks.check_state_batch(2, 3)


def test_bytes_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(torch, "aminmax", None)
    checks.check_ids("pixels", torch.tensor([0, 255], dtype=torch.uint8), 256)


def test_a_cache_of_another_dtype_is_refused():
    cache = kv_cache(2, 3, 5, 5, like=Q.half())
    message = r"cache\.k must have the dtype of k \(torch\.float32\), got torch\.float16"
    with pytest.raises(TypeError, match=message):
        softmax_attention_cached(Q, Q, Q, cache)
    half_v = cache._replace(k=cache.k.float())
    message = r"cache\.v must have the dtype of v \(torch\.float32\), got torch\.float16"
    with pytest.raises(TypeError, match=message):
        softmax_attention_cached(Q, Q, Q, half_v, in_place=True)


def test_rows_that_do_not_fit_are_refused():
    checks.check_rows("tokens", Q[0, 0])
    checks.check_rows("tokens", Q[0, 0], 5)
    with pytest.raises(ValueError, match=r"tokens must have shape \(B, T\), got \(3, 4, 5\)"):
        checks.check_rows("tokens", Q[0])
    with pytest.raises(ValueError, match=r"tokens must have shape \(B, 3\), got \(4, 5\)"):
        checks.check_rows("tokens", Q[0, 0], 3)
    checks.check_batch_size("context", Q, "x", Q)
    with pytest.raises(ValueError, match=r"context must have the batch size of x \(1\), got 2"):
        checks.check_batch_size("context", Q, "x", ONE)
