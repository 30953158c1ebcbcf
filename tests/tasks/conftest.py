import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TINY = Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Return the module with the tiny task that most of these tests train."""
    spec = importlib.util.spec_from_file_location("tiny_task", TINY)
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_task"] = module
    spec.loader.exec_module(module)
    return module
