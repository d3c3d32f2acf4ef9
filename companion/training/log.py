"""The rows of a run's `log.csv`, checked when a run goes on with them, and the means they hold."""

import contextlib
import csv
import hashlib
import io
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion.files import write_atomically
from companion.training.state import RunError
from companion.training.trainer import Trainer

FIXED = ("step", "seconds", "samples_per_second", "learning_rate")


class Log:
    """The rows of `log.csv`, on disk as soon as they are made.

    Args:
        path: of the file.
        step: the last step whose rows are kept, when a run goes on from there.
        digest: `digest` of those rows when the state of that step was saved; None where there is no state.

    Raises:
        RunError: if the file is no log, or its rows are not those of the digest.
    """

    def __init__(self, path: Path, step: int, digest: str | None = None) -> None:
        self.path = path
        self.columns: list[str] = list(FIXED)
        self.rows: list[Mapping[str, Any]] = []
        self._hash = hashlib.sha256()
        if not path.exists():
            if digest not in (None, self.digest):
                warnings.warn(f"{str(path)!r} is not there; the log begins anew.", stacklevel=2)
            return
        try:
            self.columns, self.rows = _read(path, step)
        except (ValueError, csv.Error, IsADirectoryError) as error:
            raise self._error(str(error)) from error
        for row in self.rows:
            self._count(row)
        if digest is not None and self.digest != digest:
            raise self._error(f"its rows up to step {step} are not those that the run has written")
        self._write_all()

    def _error(self, why: str) -> RunError:
        return RunError(
            f"the log {str(self.path)!r} is damaged: {why}. Restore it, or remove it to go on without the rows so "
            "far; the training itself does not depend on them."
        )

    def _count(self, row: Mapping[str, Any]) -> None:
        # A column that is new leaves empty places in the rows before, which are no news.
        filled = [[name, str(value)] for name, value in row.items() if value != ""]
        self._hash.update(json.dumps(sorted(filled)).encode() + b"\n")

    @property
    def digest(self) -> str:
        """The SHA-256 of what the rows say."""
        return self._hash.hexdigest()

    def _format(self, rows: Sequence[Mapping[str, Any]], header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _write_all(self) -> None:
        write_atomically(self.path, self._format(self.rows, header=True).encode())

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row; terms that were not there before get a column."""
        self.rows.append(row)
        self._count(row)
        new = [name for name in row if name not in self.columns]
        if new or len(self.rows) == 1:
            self.columns += new
            self._write_all()
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._format([row], header=False))

    def sync(self) -> None:
        """Waits until all rows are on the disk."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def losses(self) -> dict[str, float]:
        """Returns the loss terms of the last row."""
        if not self.rows:
            return {}
        row = self.rows[-1]
        return {k: float(v) for k, v in row.items() if k not in FIXED and v != ""}


def _read(path: Path, step: int) -> tuple[list[str], list[Mapping[str, Any]]]:
    """Returns the columns of a log, and its rows up to a step.

    A killed process can leave a last row that is cut off, even within the number of its step. But such a row is later
    than the state: rows reach the disk before it does. So reading ends at the first row that cannot count, and the
    digest says whether that was too early.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        columns = next(reader, [])
        if tuple(columns[: len(FIXED)]) != FIXED or len(set(columns)) < len(columns):
            raise ValueError(f"its first line is not {','.join(FIXED)} and the terms of the losses")
        rows: list[Mapping[str, Any]] = []
        last = 0
        with contextlib.suppress(ValueError, csv.Error):  # of a row that cannot be read
            for fields in reader:
                if len(fields) != len(columns) or not last < int(fields[0]) <= step:
                    break
                last = int(fields[0])
                rows.append(dict(zip(columns, fields, strict=True)))
    return columns, rows


class Averages:
    """Means of the loss terms since the last row, kept on the device, as reading them there would make it wait."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, trainer: Trainer) -> dict[str, float]:
        """Returns the means over processes and steps, and begins anew."""
        sums, counts = trainer.mean(self.sums), self.counts
        self.sums, self.counts = {}, {}
        return {name: value / counts[name] for name, value in sums.items()}

    def state(self, trainer: Trainer) -> dict[str, Any]:
        return {"sums": trainer.mean(self.sums), "counts": dict(self.counts)}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.sums = {k: torch.tensor(v, device=device) for k, v in state["sums"].items()}
        self.counts = dict(state["counts"])

    @staticmethod
    def fits(state: Any) -> bool:
        """Whether something is what `state` returns."""
        if not isinstance(state, Mapping) or set(state) != {"sums", "counts"}:
            return False
        sums, counts = state["sums"], state["counts"]
        return (
            isinstance(sums, Mapping)
            and isinstance(counts, Mapping)
            and set(sums) == set(counts)
            and all(type(v) is float for v in sums.values())
            and all(type(v) is int and v > 0 for v in counts.values())
        )
