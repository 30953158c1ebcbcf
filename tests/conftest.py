import jaxtyping
import pytest
import torch

from subquad.kernels.cpu import library

SETS = library.instruction_sets() if library.library() else ()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tensors are tiny here: a second thread would only wait, and on a busy machine for long."""
    torch.set_num_threads(1)


@pytest.fixture
def unhooked(monkeypatch):
    """Switch the shape checks of the import hook off, to see the errors that users see."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(params=SETS)
def instruction_set(request):
    """Run a test with the build for each instruction set that this machine has."""
    before = library.instruction_set()
    library.use_instruction_set(request.param)
    yield request.param
    library.use_instruction_set(before)
