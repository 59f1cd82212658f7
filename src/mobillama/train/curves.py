"""Curves for TensorBoard: the numbers of the ledger, drawn while a run is going.

TensorBoard reads event files in the order of their names. Its own writer names them by the clock: after a jump a
restart's file would come before the earlier ones, or take the name of one. Here they are numbered.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobillama.errors import missing_extra


class Curves:
    """Event files in `RUN/tensorboard`; a restart hides what an earlier process drew beyond `after` steps."""

    def __init__(self, folder: Path, *, after: int) -> None:
        # torch.utils.tensorboard takes seconds to import; TensorBoard's own writer does not.
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ModuleNotFoundError as error:
            raise missing_extra("train", error) from None
        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._writer: Any = RecordWriter(next_file(folder).open("xb"))
        self._since = time.time() - time.monotonic()  # so that the axis of time does not jump with the clock
        self._write(file_version="brain.Event:2")
        self._write(step=after + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """Draw one point per name; None draws nothing."""
        points = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items() if value is not None
        ]
        self._write(step=step, summary=self._summary(value=points))

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        event = self._event(wall_time=self._since + time.monotonic(), **fields)
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def next_file(folder: Path) -> Path:
    """The event file to write: its name comes after those that are there, whatever the clock said when they were made.

    >>> next_file(Path("nowhere")).name
    'events.out.tfevents.0000000001.mobillama'
    """
    numbers = [
        int(found[1]) for path in folder.glob("*") if (found := re.match(r"events\.out\.tfevents\.(\d+)", path.name))
    ]
    return folder / f"events.out.tfevents.{max(numbers, default=0) + 1:010d}.mobillama"
