"""The learning curve of a network: progress bar, a line each epoch, CSV, TensorBoard's scalars."""

from __future__ import annotations

import csv
import io
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from training.fitting.run import Run, write

Row = dict[str, float]
# Columns of a row that are not figures
_OF_THE_LOOP = ("epoch", "loss", "learning_rate", "images_per_s")


class Curve:
    """A row for each epoch; a last row without a loss is for averaged weights."""

    def __init__(self, run: Run, name: str, rows: list[Row], images: int) -> None:
        """`rows`: from a resumed run. `images`: the number of images in all epochs."""
        self.rows = rows
        self._run = run
        self._name = name

        columns = (
            *(TextColumn(text) for text in ("{task.description}", "epoch {task.fields[epoch]}")),
            *(BarColumn(), TaskProgressColumn(), TimeRemainingColumn()),
            *(TextColumn(f"{{task.fields[{field}]}}") for field in ("now", "figures")),
        )
        self._progress = Progress(
            *columns, console=run.console, disable=not run.console.is_terminal
        )

        self._task = self._progress.add_task(
            name, total=images, epoch=len(rows) + 1, now="", figures=""
        )
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Curve:
        if self._run.first:
            folder = self._run.tensorboard(self._name)
            folder.mkdir(parents=True, exist_ok=True)
            # Drop the rows of epochs that a killed run had not finished.
            self._writer = SummaryWriter(str(folder), purge_step=len(self.rows) + 1)
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if self._writer:
            self._writer.close()

    def show(self, images: int, loss: float, images_per_s: float) -> None:
        """Update the bar within an epoch.

        `images` counts from the first epoch on; `loss` and `images_per_s` are of the latest.
        """
        now = f"loss {loss:.4g}  {images_per_s:.0f} images/s"
        self._progress.update(self._task, completed=images, epoch=len(self.rows) + 1, now=now)

    def add(self, row: Row) -> None:
        """One more epoch is done."""
        self.rows.append(row)
        self._run.console.print(f"{self._name}: {_text(row)}", soft_wrap=True)
        self._progress.update(
            self._task, figures=_text({key: row[key] for key in row if key not in _OF_THE_LOOP})
        )
        if self._writer:
            for key, value in row.items():
                self._writer.add_scalar(key, value, int(row["epoch"]))
            self._writer.flush()
        self.save()

    def save(self) -> None:
        """Rewrite the CSV."""
        if not self._run.first:
            return
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, list(dict.fromkeys(key for row in self.rows for key in row)))
        table.writeheader()
        table.writerows(self.rows)
        write(self._run.curve(self._name), lambda file: file.write(text.getvalue().encode()))


def _text(row: Row) -> str:
    return "  ".join(f"{key} {value:.4g}" for key, value in row.items())
