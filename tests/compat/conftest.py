import jaxtyping
import pytest
import torch


@pytest.fixture
def unhooked(monkeypatch):
    """Switch the shape checks of the import hook off, to see the errors that users see."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
