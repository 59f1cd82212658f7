"""Curves for TensorBoard: the numbers of the ledger, drawn while a run is going."""

from __future__ import annotations

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
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ModuleNotFoundError as error:
            raise missing_extra("train", error) from None
        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        self._writer: Any = EventFileWriter(str(folder))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(event_pb2.Event(step=after + 1, session_log=start))

    def add(self, step: int, time: float, values: Mapping[str, float | None]) -> None:
        """Draw one point per name; None draws nothing."""
        points = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items() if value is not None
        ]
        self._writer.add_event(self._event(step=step, wall_time=time, summary=self._summary(value=points)))

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()
