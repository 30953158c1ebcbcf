import jaxtyping
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tensors are tiny here: a second thread would only wait, and on a busy machine for long."""
    torch.set_num_threads(1)


@pytest.fixture
def unhooked(monkeypatch):
    """Switch the shape checks of the import hook off, to see the errors that users see."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
