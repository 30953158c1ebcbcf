import importlib.util
import math
import re
import subprocess
import sys

import pytest

from subquad.tasks import config


def without_the_type_hook():
    """Load the module anew, so that values of a wrong type get as far as they do for a user."""
    spec = importlib.util.spec_from_file_location("plain_config", config.__file__)
    module = importlib.util.module_from_spec(spec)
    sys.modules["plain_config"] = module
    spec.loader.exec_module(module)
    return module


TrainConfig = without_the_type_hook().TrainConfig
GIVEN = {"max_steps": 10, "batch_size": 4, "lr": 0.1}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"max_steps": -5}, "max_steps must be at least 1, got -5"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"grad_accumulation": 0}, "grad_accumulation must be at least 1, got 0"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"eval_every": -1}, "eval_every must be at least 1, got -1"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1, got 0"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"warmup_steps": 10}, "warmup_steps must be less than max_steps = 10, got 10"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"lr": 0.0}, "lr must be a finite number above 0, got 0.0"),
        ({"lr": -1e-3}, "lr must be a finite number above 0, got -0.001"),
        ({"lr": math.nan}, "lr must be a finite number above 0, got nan"),
        ({"clip_norm": math.inf}, "clip_norm must be a finite number above 0, got inf"),
        ({"max_steps": None, "minutes": 0.0}, "minutes must be a finite number above 0, got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number >= 0, got -0.1"),
        ({"weight_decay": math.nan}, "weight_decay must be a finite number >= 0, got nan"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio must be a number from 0 to 1, got 1.5"),
        ({"drop_at": -0.1}, "drop_at must be a number from 0 to 1, got -0.1"),
        ({"betas": (0.9, 1.0)}, "betas[1] must be at least 0 and below 1, got 1.0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"ema_decay": 1.0}, "ema_decay must be above 0 and below 1, got 1.0"),
        ({"ema_decay": 0.0}, "ema_decay must be above 0 and below 1, got 0.0"),
        (
            {"minutes": 1.0},
            "exactly one of max_steps and minutes must be given, got max_steps=10 and minutes=1.0",
        ),
        (
            {"max_steps": None},
            "exactly one of max_steps and minutes must be given, "
            "got max_steps=None and minutes=None",
        ),
        (
            {"optimizer": "radma"},
            "optimizer must be one of 'radam', 'adamw', 'adam', 'sgd', got 'radma' "
            "(did you mean 'radam'?)",
        ),
        (
            {"schedule": "cosinus"},
            "schedule must be one of 'constant', 'cosine', 'linear', 'step', got 'cosinus' "
            "(did you mean 'cosine'?)",
        ),
        (
            {"precision": "bf15"},
            "precision must be one of 'fp32', 'bf16', 'fp16', got 'bf15' (did you mean 'bf16'?)",
        ),
        ({"device": "tpu"}, "device must be one of 'auto', 'cpu', 'cuda', got 'tpu'"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        TrainConfig(**{**GIVEN, **options})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"lr": "fast"}, "lr must be a finite number above 0, got 'fast'"),
    ],
)
def test_a_bad_type_is_refused_in_one_sentence(options, sentence):
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}"):
        TrainConfig(**{**GIVEN, **options})


def test_an_update_sees_all_its_micro_batches():
    assert TrainConfig(**GIVEN, grad_accumulation=3).samples_per_update == 12


def test_options_need_no_torch():
    code = (
        "import sys, subquad.tasks.config, subquad.tasks.memory; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_that_came_later_count_only_where_they_are_used():
    plain = TrainConfig(**GIVEN).fixed_settings()
    assert not {"momentum", "ema_decay", "device", "eval_every"} & set(plain)
    assert plain["lr"] == GIVEN["lr"]
    used = TrainConfig(**GIVEN, momentum=0.5, ema_decay=0.9).fixed_settings()
    assert used == {**plain, "momentum": 0.5, "ema_decay": 0.9}
