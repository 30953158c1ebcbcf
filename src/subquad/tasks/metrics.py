"""metrics.csv and the TensorBoard log of a run.

A row is a pure function of the run's settings and its step (times apart), so that a run which was
killed and went on leaves the same rows as one that was not.
"""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from subquad.files import atomic_write_bytes

Row = Mapping[str, float | int | None]


class MetricsLog:
    """Appends rows to metrics.csv and the same numbers to TensorBoard.

    Args:
        run_dir: folder of the run.
        columns: names of the columns; the first is "step".
        last_step: rows after this step are dropped: the run goes on from there. -1 keeps none.

    Raises:
        ValueError: if metrics.csv has other columns.
        OSError: if it cannot be written.
    """

    def __init__(self, run_dir: Path, columns: list[str], *, last_step: int) -> None:
        self.path = run_dir / "metrics.csv"
        self.columns = columns
        kept = [row for row in self._rows() if int(row[0]) <= last_step]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *kept])
        atomic_write_bytes(self.path, text.getvalue().encode())
        self._file = self.path.open("a", encoding="utf-8", newline="")
        self._board = TensorBoardLogger(
            run_dir, name="tensorboard", version="", purge_step=last_step + 1
        )

    def write(self, row: Row) -> None:
        """Append one row; a column that is missing or None stays empty."""
        values = ["" if row.get(c) is None else repr(row[c]) for c in self.columns]
        try:
            self._file.write(",".join(values) + "\n")
            self._file.flush()
            numbers = {c: v for c, v in row.items() if c != "step" and v is not None}
            self._board.log_metrics(numbers, step=int(row["step"] or 0))
        except OSError as error:
            raise self._failure(error) from error

    def sync(self) -> None:
        """Bring all rows to the disk; called before a checkpoint that counts on them."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close both logs."""
        self._file.close()
        self._board.finalize("success")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _rows(self) -> list[list[str]]:
        """Return the whole rows of the file that is there; a torn last line is none."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        header, *rows = list(csv.reader(lines)) or [[]]
        if header != self.columns:
            raise ValueError(
                f"{self.path} must have the columns {', '.join(self.columns)}, "
                f"got {', '.join(header)}"
            )
        return [row for row in rows if len(row) == len(header) and row[0].isdecimal()]

    def _failure(self, error: OSError) -> OSError:
        reason = error.strerror or str(error)
        return OSError(error.errno, f"{self.path} cannot be written: {reason}")


def columns_of(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the columns of a run whose ``evaluate`` gives these keys ("loss" becomes "test")."""
    fixed = ["step", "samples", "seconds", "train", "test"]
    rates = ["learning_rate", "gradient_norm", "samples_per_second"]
    return fixed + rates + [f"test_{key}" for key in evaluation if key != "loss"]


def evaluation_columns(evaluation: Mapping[str, float]) -> dict[str, float]:
    """Return an evaluation under the names of its columns."""
    return {"test" if key == "loss" else f"test_{key}": v for key, v in evaluation.items()}
