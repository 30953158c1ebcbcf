"""One row of the copy task: train a language model, then measure its loss on new sequences."""

import dataclasses
from pathlib import Path

import torch

from subquad.experiments.options import CopyOptions, train_config
from subquad.experiments.spec import Json, Say
from subquad.experiments.train import training_results
from subquad.files import atomic_write_bytes
from subquad.models.language_model import DecoderLM
from subquad.models.saving import save_model
from subquad.plots import learning_curves, png_bytes, read_curve
from subquad.tasks.copying import CopyTask
from subquad.tasks.estimate import estimate
from subquad.tasks.training import fit


def run_copy(options: CopyOptions, folder: Path, say: Say) -> Json:
    """Train (or go on training) in ``folder``, and return what was measured.

    Raises:
        ValueError: if options and folder do not fit together.
        OSError: if the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    model = copy_model(options)
    task = copy_task(options, model)
    fitted = fit(task, train_config(options), folder)
    if fitted.interrupted:
        raise KeyboardInterrupt
    model.eval()  # on the device where it was trained
    save_model(model, folder / "model")
    say("testing on new sequences")
    measured = task.evaluate(full=True)
    return {
        "unit": task.unit,
        "test": measured["loss"],
        "test_accuracy": measured.get("accuracy"),
        **training_results(fitted, "sequences", model),
        "seq_len": options.max_len,
        "model": dict(model.config),
        "device": next(model.parameters()).device.type,
        "figures": _draw_figures(folder, options, task.unit),
    }


def estimate_copy(options: CopyOptions) -> Json:
    """Return what training would cost here."""
    task = copy_task(options, copy_model(options))
    return dataclasses.asdict(estimate(task, train_config(options)))


def copy_model(options: CopyOptions) -> DecoderLM:
    """Return a new model for these symbols; the seed fixes its weights."""
    torch.manual_seed(options.seed)
    return DecoderLM(
        options.num_symbols + 1,
        mixer=options.mixer,
        max_len=options.max_len,
        **dataclasses.asdict(options.model),
    )


def copy_task(options: CopyOptions, model: DecoderLM) -> CopyTask:
    """Return the task that ``model`` is to learn."""
    return CopyTask(
        model,
        batch_size=options.train.batch_size,
        seed=options.seed,
        max_len=options.max_len,
        num_symbols=options.num_symbols,
    )


def _draw_figures(folder: Path, options: CopyOptions, unit: str) -> dict[str, str]:
    (folder / "figures").mkdir(exist_ok=True)
    curve = read_curve(folder / "metrics.csv", options.mixer)
    figure = learning_curves([curve], unit=unit, log_scale=True)
    atomic_write_bytes(folder / "figures" / "curve.png", png_bytes(figure))
    return {"figures/curve.png": "Loss on the copied symbols while training"}
