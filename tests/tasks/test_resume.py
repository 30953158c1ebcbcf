"""A run that was killed, whenever, ends with the very weights of one that was not."""

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from subquad.tasks.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the server of runs forks")

TINY = Path(__file__).with_name("tiny.py")
CONFIG = {"max_steps": 90, "schedule": "cosine", "warmup_steps": 3, "clip_norm": 1.0}
REPEATABLE = ("step", "samples", "train", "test", "learning_rate", "gradient_norm", "test_accuracy")


class Server:
    """Runs the tiny task in processes of their own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(TINY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, run_dir, **order) -> int:
        """Start a run and return the id of its process."""
        order = {"config": CONFIG, **order, "run_dir": str(run_dir)}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """Return how the run ended: its exit status, or minus the signal that ended it."""
        return int(self.process.stdout.readline())

    def run(self, run_dir, **order) -> int:
        self.start(run_dir, **order)
        return self.wait()


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.stdin.close()
    server.process.wait()
    server.process.stdout.close()


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    assert server.run(folder) == 0
    return folder


def assert_same_run(folder, reference):
    ours, theirs = (read_checkpoint(f / "checkpoint.safetensors") for f in (folder, reference))
    assert ours.step == theirs.step == CONFIG["max_steps"]
    assert_close(ours.tensors, theirs.tensors, rtol=0, atol=0)
    assert repeatable_rows(folder) == repeatable_rows(reference)
    assert list(folder.glob(".*.part")) == []


def repeatable_rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [[row[name] for name in REPEATABLE] for row in csv.DictReader(file)]


def test_the_rows_of_an_undisturbed_run(reference):
    steps = [int(row[0]) for row in repeatable_rows(reference)]
    assert steps == list(range(0, 91, 5))


def test_killed_at_random_moments(server, reference, tmp_path):
    rng, kills = random.Random(0), 0
    for _ in range(6):
        process = server.start(tmp_path, delay=0.002, sync_seconds=0.01)
        time.sleep(rng.uniform(0.1, 0.5))
        with contextlib.suppress(ProcessLookupError):  # a quick machine may be at the end already
            os.kill(process, signal.SIGKILL)
        kills += server.wait() == -signal.SIGKILL
        if (tmp_path / "checkpoint.safetensors").exists():
            read_checkpoint(tmp_path / "checkpoint.safetensors")
    assert kills > 0
    assert server.run(tmp_path) == 0
    assert_same_run(tmp_path, reference)


@pytest.mark.parametrize("where", ["half", "before rename", "after rename"])
@pytest.mark.parametrize("number", [1, 4])
def test_killed_while_a_checkpoint_is_written(server, reference, tmp_path, where, number):
    assert server.run(tmp_path, die=[where, number]) == -signal.SIGKILL
    assert server.run(tmp_path) == 0
    assert_same_run(tmp_path, reference)


def test_ctrl_c_saves_and_the_run_goes_on(server, reference, tiny, tmp_path):
    process = server.start(tmp_path, delay=0.005)
    while not (tmp_path / "checkpoint.safetensors").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(process, signal.SIGINT)
    assert server.wait() == tiny.INTERRUPTED
    assert read_checkpoint(tmp_path / "checkpoint.safetensors").step < CONFIG["max_steps"]
    assert server.run(tmp_path) == 0
    assert_same_run(tmp_path, reference)


AVERAGED = {**CONFIG, "optimizer": "sgd", "schedule": "linear", "ema_decay": 0.9}


@pytest.mark.parametrize("config", [AVERAGED, {**AVERAGED, "momentum": 0.0}])
def test_the_averaged_weights_go_on_too(server, tmp_path, config):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert server.run(whole, config=config) == 0
    assert server.run(killed, config=config, die=["after rename", 5]) == -signal.SIGKILL
    assert server.run(killed, config=config) == 0
    assert_same_run(killed, whole)
    found = read_checkpoint(whole / "checkpoint.safetensors").tensors
    assert int(found["average_updates"]) == CONFIG["max_steps"]
    for name in ("layers.0.weight", "layers.1.running_mean"):
        assert not torch.equal(found[f"average.{name}"], found[f"model.{name}"])
    counted = "layers.1.num_batches_tracked"
    assert torch.equal(found[f"average.{counted}"], found[f"model.{counted}"])


@pytest.mark.parametrize("more", [{}, {"optimizer": "sgd", "ema_decay": 0.9}])
def test_minutes_become_steps_once(server, tmp_path, more):
    config = {**CONFIG, **more, "max_steps": None, "minutes": 0.02}
    process = server.start(tmp_path, config=config, delay=0.01)
    while not (tmp_path / "checkpoint.safetensors").exists():
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    steps = read_checkpoint(tmp_path / "checkpoint.safetensors").progress["max_steps"]
    assert json.loads((tmp_path / "config.json").read_text())["training"]["max_steps"] == steps

    assert server.run(tmp_path, config=config) == 0  # faster now, yet not longer
    resumed = read_checkpoint(tmp_path / "checkpoint.safetensors")
    assert resumed.step == steps

    # Timing has left no trace: a run told that number of steps ends the same.
    told = tmp_path / "told"
    assert server.run(told, config={**CONFIG, **more, "max_steps": steps}) == 0
    other = read_checkpoint(told / "checkpoint.safetensors")
    assert_close(resumed.tensors, other.tensors, rtol=0, atol=0)
