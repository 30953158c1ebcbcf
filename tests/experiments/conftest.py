import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """These tensors are tiny: a second thread would only wait, and on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
