"""Clock: the time that pieces of work take while a model trains, without waiting for its device."""

import statistics
import time
from types import TracebackType

import torch


class Clock:
    """Measures pieces of work in seconds, each between `start` and `stop` or in a `with` block.

    A piece counts with the host's time or, on CUDA, with the time between two events in the stream
    if that is longer. Nothing waits for the device until a result is read.

    Args:
        device: the device that does the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._pieces: list[tuple[float, tuple[torch.cuda.Event, torch.cuda.Event] | None]] = []
        self._started: tuple[float, torch.cuda.Event | None] | None = None

    def start(self) -> None:
        """Start a piece. A piece that was started before and never stopped does not count."""
        self._started = time.perf_counter(), self._event()

    def stop(self) -> None:
        """Stop the piece, if one was started."""
        if self._started is None:
            return
        (moment, first), self._started = self._started, None
        last = self._event()
        events = None if first is None or last is None else (first, last)
        self._pieces.append((time.perf_counter() - moment, events))

    def _event(self) -> torch.cuda.Event | None:
        if not self._cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def __enter__(self) -> "Clock":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pieces(self) -> list[float]:
        """The seconds of each piece. Waits for the device."""
        if self._cuda and self._pieces:
            torch.cuda.synchronize(self._device)
        return [
            host if events is None else max(host, events[0].elapsed_time(events[1]) / 1000)
            for host, events in self._pieces
        ]

    @property
    def seconds(self) -> float:
        """The sum. Waits for the device."""
        return sum(self.pieces)

    @property
    def median(self) -> float:
        """The median of the pieces, 0 if there are none. Waits for the device."""
        return statistics.median(self.pieces or [0.0])
