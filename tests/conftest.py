import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tensors are tiny here: a second thread would only wait, and on a busy machine for long."""
    torch.set_num_threads(1)
