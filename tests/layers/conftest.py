import jaxtyping
import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def shapes_checked_in_float64(dtype, monkeypatch):
    """Leave the import hook's checks to one dtype: half of a contract's time is theirs."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", dtype != torch.float64)
