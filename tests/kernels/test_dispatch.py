import pytest
import torch

from helpers import as_users_have_it
from subquad.kernels.dispatch import Impl, resolve
from subquad.layers import LinearAttention
from subquad.ops.linear_attention import linear_attention, linear_attention_chunked
from subquad.ops.linear_state import linear_state

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_auto_goes_by_the_device():
    forms = {x: (x.name, list) for x in (Impl.CPU, Impl.TRITON, Impl.TORCH)}
    assert resolve("op", Impl.AUTO, forms, CPU) == "CPU"
    assert resolve("op", Impl.AUTO, forms, GPU) == "TRITON"


def test_auto_takes_torch_where_there_is_a_reason_against_the_native_form():
    forms = {Impl.CPU: ("native", lambda: ["a reason"]), Impl.TORCH: ("torch", list)}
    assert resolve("op", Impl.AUTO, forms, CPU) == "torch"
    assert resolve("op", Impl.AUTO, {Impl.TORCH: ("torch", list)}, GPU) == "torch"


def test_an_explicit_form_never_falls_back_and_says_every_reason():
    forms = {Impl.CPU: ("native", lambda: ["first", "second"]), Impl.TORCH: ("torch", list)}
    assert resolve("op", Impl.TORCH, forms, CPU) == "torch"
    with pytest.raises(ValueError, match=r"impl must .* op here, got Impl.CPU: first; second"):
        resolve("op", Impl.CPU, forms, CPU)
    with pytest.raises(ValueError, match=r"got Impl.TRITON: op has no such form"):
        resolve("op", Impl.TRITON, forms, CPU)


def test_a_string_is_no_impl():
    with pytest.raises(TypeError, match="impl must be an Impl, got str 'torch'"):
        as_users_have_it(resolve)("op", "torch", {Impl.TORCH: ("torch", list)}, CPU)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "it does not take q of torch.float64"),
        ({"dtype": torch.float16}, "it does not take v of torch.float16"),
        ({"log_decay": (1, 2, 5, 4)}, "one log_decay a token"),
    ],
)
def test_an_explicit_native_form_refuses_what_it_cannot_do(change, reason):
    q = torch.randn(1, 2, 5, 4, dtype=change.get("dtype", torch.float32))
    decay = -torch.ones(change["log_decay"]) if "log_decay" in change else None
    with pytest.raises(ValueError, match=reason):
        linear_attention(q, q, q, is_causal=True, log_decay=decay, impl=Impl.CPU)
    linear_attention(q, q, q, is_causal=True, log_decay=decay)  # AUTO finds a form


def test_a_chunk_size_belongs_to_the_torch_form():
    q = torch.rand(1, 2, 5, 4)
    with pytest.raises(ValueError, match="it chooses chunks itself, but chunk_size=2 is given"):
        linear_attention_chunked(q, q, q, linear_state(1, 2, 4, 4, q), chunk_size=2, impl=Impl.CPU)


def test_triton_refuses_tensors_on_the_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q = torch.randn(1, 2, 5, 16)
    with pytest.raises(ValueError, match="it takes tensors on a GPU, not on cpu"):
        linear_attention(q, q, q, is_causal=True, impl=Impl.TRITON)


def test_a_layer_hands_its_impl_down():
    layer = LinearAttention(16, 2, is_causal=True, impl=Impl.CPU).double()
    with pytest.raises(ValueError, match=r"it does not take q of torch\.float64"):
        layer(torch.randn(1, 3, 16, dtype=torch.float64))
