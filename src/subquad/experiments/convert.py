"""Exchange the attention of a pretrained model, fine-tune it, and say what each step cost."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from subquad.data.antibodies import load_antibodies
from subquad.data.fetch import cache_dir
from subquad.environment import environment
from subquad.experiments import markup
from subquad.experiments.attention_transfer import (
    ANTIBERTY,
    ANTIBERTY_IDS,
    MatchTask,
    TransferTask,
    antiberty_rows,
    language_model,
)
from subquad.experiments.corpus import Corpus, read_corpus
from subquad.experiments.report import number, setting
from subquad.experiments.run_folder import RESULTS, as_json, open_folder
from subquad.experiments.spec import Json, Say
from subquad.files import atomic_write_bytes, atomic_write_json
from subquad.plots import png_bytes
from subquad.plots.recovery import read_accuracy, recovery_figure
from subquad.pretrained.saving import SwapOptions, load_folder, save_converted
from subquad.pretrained.weights import fetch_antiberty, fetch_minilm, load_tokenizer
from subquad.tasks.config import TrainConfig
from subquad.tasks.training import fit

TRAINING = "training"  # the folder of the run below the model's
REPORT = "conversion.json"
PACKAGED = ("antiberty", "minilm")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What to convert, and how: see ``subquad convert --help``, whose options these are."""

    model: str
    out: Path
    data: Path | None
    swap: SwapOptions
    transfer_steps: int
    seq_len: int
    train: TrainConfig


def convert(conversion: Conversion, *, command: list[str], say: Say) -> Json:
    """Convert, write the model and its report to ``conversion.out``, and return what was measured.

    The weights are made float32, as ``load_folder`` does.
    A conversion that was stopped goes on; one that is finished is read.

    Raises:
        FileNotFoundError: if the model or the data is missing.
        ValueError: if they do not fit, or the folder holds something else.
        FloatingPointError: if the training went bad.
        KeyboardInterrupt: if Ctrl-C stopped it; its checkpoint is saved.
        OSError: if the folder cannot be written.
    """
    folder, training = conversion.out, conversion.out / TRAINING
    _check_out(folder)
    done = open_folder(training, "convert", conversion)
    if done is not None:
        return done
    source = source_folder(conversion.model)
    pretrained = load_folder(source)
    _check_model(pretrained, conversion.seq_len)
    corpus = _corpus(conversion, pretrained, source)
    say(corpus.source)
    results: Json = {"model": type(pretrained).__name__, "data": corpus.source}
    before = _task(conversion, pretrained, corpus, None)
    results["before"] = before.evaluate(full=True)
    before.evaluate(full=False)  # refuses a part without a token to guess before any training
    say(f"before the swap: {_words(results['before'])}")
    task = _task(conversion, pretrained, corpus, conversion.swap)
    results["swapped"] = task.evaluate(full=True)
    say(f"after the swap: {_words(results['swapped'])}")
    fitted = fit(task, conversion.train, training)
    if fitted.interrupted:
        raise KeyboardInterrupt
    results["trained"] = task.evaluate(full=True)
    say(f"after {fitted.step} steps: {_words(results['trained'])}")
    results |= {"steps": fitted.step, "minutes": fitted.seconds / 60, "device": fitted.device}
    model: Any = task.model
    save_converted(model.pretrained.cpu(), folder, conversion.swap, tokenizer_from=source)
    _report(conversion, results, command)
    atomic_write_json(folder / REPORT, results)
    atomic_write_json(training / RESULTS, results)
    return results


def _check_out(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TRAINING).is_dir():
        raise ValueError(f"out must be a new folder or one that convert began, got {folder}")


def _check_model(model: Any, seq_len: int) -> None:
    name, config = type(model).__name__, model.config
    if not _has_logits(model) and model.base_model is not model:
        raise ValueError(
            f"MODEL must be a causal or masked language model or a base model, got a {name}"
        )
    if getattr(config, "vocab_size", None) is None:
        raise ValueError(f"MODEL must be a model of tokens, got a {name}")
    positions = getattr(config, "max_position_embeddings", None) or 0
    if 0 < positions < seq_len:
        raise ValueError(
            f"seq_len must be at most the model's {positions} positions, got {seq_len}"
        )


def source_folder(model: str) -> Path:
    """Return the folder of a model: the one named, or of a packaged one, which is brought.

    Raises:
        FileNotFoundError: if there is none.
        OSError: if it cannot be brought.
    """
    if model in PACKAGED and not Path(model).exists():
        (fetch_antiberty if model == "antiberty" else fetch_minilm)()
        return cache_dir() / model
    folder = Path(model)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"MODEL must be a folder in transformers' layout, or one of {', '.join(PACKAGED)}; "
            f"got {model}"
        )
    return folder


def _corpus(conversion: Conversion, pretrained: Any, source: Path) -> Corpus:
    if conversion.data is None:
        if conversion.model != "antiberty":
            raise ValueError("data must be a text or FASTA file for this model, got none")
        chains = load_antibodies()
        return Corpus(
            train=antiberty_rows(chains.train),
            validation=antiberty_rows(chains.validation),
            test=antiberty_rows(chains.test),
            vocabulary=ANTIBERTY,
            ids=ANTIBERTY_IDS,
            source=chains.source,
        )
    return read_corpus(
        conversion.data,
        load_tokenizer(source),
        vocab_size=pretrained.config.vocab_size,
        masked=not _is_causal(pretrained),
        seq_len=conversion.seq_len,
    )


def _is_causal(model: Any) -> bool:
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def _has_logits(model: Any) -> bool:
    return _is_causal(model) or type(model).__name__.endswith("ForMaskedLM")


def _task(conversion: Conversion, pretrained: Any, corpus: Corpus, swap: SwapOptions | None) -> Any:
    train, causal = conversion.train, _is_causal(pretrained)
    torch.manual_seed(train.seed)
    model, teacher = language_model(pretrained, swap, corpus.ids, transfers=True)
    options: Any = {
        "train": corpus.train,
        "validation": corpus.validation,
        "test": corpus.test,
        "vocabulary": corpus.vocabulary,
        "objective": "causal" if causal else "masked",
        "seq_len": conversion.seq_len,
        "batch_size": train.batch_size,
        "seed": train.seed,
    }
    if not _has_logits(pretrained):
        return MatchTask(model, original=copy.deepcopy(pretrained), teacher=teacher, **options)
    steps = conversion.transfer_steps if swap is not None else 0
    return TransferTask(model, teacher=teacher, transfer_steps=steps, **options)


def _words(measured: Json) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in measured.items())


def _report(conversion: Conversion, results: Json, command: list[str]) -> None:
    head = ("held-out data", *results["before"])
    stages = (
        ("before, with softmax", "before"),
        ("after the swap", "swapped"),
        (f"after {results['steps']} steps", "trained"),
    )
    lines = [[words, *map(number, results[key].values())] for words, key in stages]
    title = f"{results['model']} with {conversion.swap.mixer} attention"
    parts = [
        f"<h1>{markup.text(title)}</h1>",
        markup.paragraph(f"Converted from {Path(conversion.model).name}.", "lead"),
        markup.heading("What the exchange cost, and what training gave back"),
        markup.table(head, lines),
        markup.paragraph(f"Data: {results['data']}."),
        markup.paragraph(
            f"{conversion.transfer_steps} steps in which each layer's attention was matched with "
            f"softmax's, then the model's own loss; {results['minutes']:.1f} minutes in all."
        ),
    ]
    if "accuracy" in results["before"]:
        figure = conversion.out / "recovery.png"
        curve = {"swapped": read_accuracy(conversion.out / TRAINING / "metrics.csv")}
        drawn = recovery_figure(
            curve,
            before=results["before"]["accuracy"],
            transfer_steps=conversion.transfer_steps,
            ylabel="tokens right",
        )
        atomic_write_bytes(figure, png_bytes(drawn))
        parts += [markup.heading("Recovery"), markup.picture(figure, "accuracy against steps")]
    parts += setting(environment(command), as_json(conversion))
    atomic_write_bytes(conversion.out / "report.html", markup.page(title, parts).encode())
