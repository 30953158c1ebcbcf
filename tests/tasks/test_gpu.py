"""A run in half precision on a GPU goes on from its checkpoint as if never stopped."""

import pytest
import torch
from torch.testing import assert_close

from subquad.tasks.config import TrainConfig
from subquad.tasks.training import fit


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_an_fp16_run_resumes_with_its_loss_scale(tiny, tmp_path, monkeypatch):
    options = TrainConfig(
        max_steps=12, batch_size=4, lr=1e-2, checkpoint_every=5, precision="fp16", device="cuda"
    )
    whole = tiny.TinyTask()
    fit(whole, options, tmp_path / "whole", quiet=True)
    cut = tiny.TinyTask()
    original = cut.batch

    def batch(step):
        if step == 8:
            raise RuntimeError("cut")
        return original(step)

    monkeypatch.setattr(cut, "batch", batch)
    with pytest.raises(RuntimeError, match="cut"):
        fit(cut, options, tmp_path / "cut", quiet=True)
    second = tiny.TinyTask()
    result = fit(second, options, tmp_path / "cut", quiet=True)
    assert result.resumed_from == 5
    assert_close(second.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
