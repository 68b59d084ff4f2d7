"""Programs submitted ahead: the engine goes from one to the next while the host prepares others.

The driver runs one program at a time, and its caller waits. With a queue callers go on at once: a thread of its own
starts every program as soon as the one before it has ended, woken by the interrupt. So frames and tasks flow: inputs of
the next are placed, in the memory of another resident bundle, while this one is computed; or several threads each run
frames of their own, and the host's share of one overlaps the engine's share of another. Between two programs in
different memories the engine waits only until the host has read the one's record and written the other's registers:
the rest of a start (:meth:`host.driver.Driver.place`) is done when a program is submitted::

    with ProgramQueue(driver) as queue:
        runners = [EncoderRunner(queue.attach(loaded)) for loaded in bundles]  # one per thread
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from numpy.typing import NDArray

from accel.compiler import Program
from accel.errors import DeviceError, DeviceTimeout
from accel.record import Record
from host.device import Closing
from host.driver import DEFAULT_TIMEOUT, Driver, LoadedBundle, Placed

Array = NDArray[Any]


class Submission:
    """A program in a queue. Its memory must stay open, and its operands as they are, until it is done."""

    def __init__(self, loaded: LoadedBundle, program: Program, timeout: float | None) -> None:
        self.loaded, self.program, self.timeout = loaded, program, timeout
        self._done, self._ready = threading.Event(), threading.Event()
        self._placed: Placed | None = None
        self._launched = False
        self._record: Record | None = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> Record:
        """The record, once the program has ended.

        Args:
            timeout: seconds to wait here; the program's own time-out goes on without it.

        Raises:
            DeviceTimeout: not ended within ``timeout`` seconds, or the program took longer than its own.
            DeviceError: the engine stopped with an error, or the queue was closed before its turn.
        """
        if not self._done.wait(timeout):
            raise DeviceTimeout(f"queue: expected the program's end within {timeout:g} s, found it waiting or running")
        if self._error is not None:
            raise self._error
        assert self._record is not None
        return self._record

    def _place(self) -> None:
        """Check the program and write it to its memory. What is wrong with it is said when its turn comes."""
        try:
            self._placed = self.loaded.place(self.program)
        except Exception as error:  # it belongs to whoever waits for this submission
            self._error = error

    def _run(self) -> Record:
        """Run the program, in the queue's thread; those before it have ended."""
        self._ready.wait()
        if self._error is not None:
            raise self._error
        if self._placed is None:
            self._placed = self.loaded.place(self.program)
        self.loaded._check(0, 0)
        self._launched = True
        return self.loaded.launch(self._placed).wait(self.timeout)

    def _end(self, record: Record | None, error: BaseException | None = None) -> None:
        self._record, self._error = record, error
        self._done.set()


class ProgramQueue(Closing):
    """Runs programs in the order of their submission. While it is open, nobody else may start any on its driver.

    A program that fails once launched is followed by a reset of the engine, one that was refused before is not. The
    next one runs in either case.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._waiting: deque[Submission] = deque()
        self._current: list[Submission] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="program queue", daemon=True)
        self._thread.start()

    def submit(
        self, loaded: LoadedBundle, program: Program, timeout: float | None = DEFAULT_TIMEOUT
    ) -> Submission:
        """Put a program, compiled for this bundle and arena, at the end of the queue; returns at once.

        Args:
            timeout: seconds that the program may take once it has started.
        """
        submission = Submission(loaded, program, timeout)
        try:
            with self._changed:
                if self._closed:
                    raise DeviceError("queue: expected an open queue, found a closed one")
                ahead = all(other.loaded.memory is not loaded.memory for other in (*self._waiting, *self._current))
                self._waiting.append(submission)
                self._changed.notify_all()
            if ahead:  # else its memory is in use until those before it have ended
                submission._place()
        except BaseException as error:  # an interrupted caller gets no submission, so the program must not run
            submission._error = error
            raise
        finally:
            submission._ready.set()
        return submission

    def attach(self, loaded: LoadedBundle) -> QueuedBundle:
        """The bundle, for callers that run programs and wait: several of them in several threads."""
        return QueuedBundle(self, loaded)

    def __len__(self) -> int:
        """Programs that have not been started."""
        return len(self._waiting)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                submission = self._waiting.popleft()
                self._current = [submission]
            record, failure = None, None
            try:
                record = submission._run()
            except BaseException as error:  # it belongs to whoever waits for this submission
                failure = self._recover(error) if submission._launched else error
            with self._changed:
                self._current = []
            submission._end(record, failure)

    def _recover(self, error: BaseException) -> BaseException:
        """A clean engine for the next program, before anybody hears of the failure."""
        try:
            self.driver.reset()
        except DeviceError as problem:
            error.__context__ = problem
        return error

    def close(self) -> None:
        """Wait for the program that runs, and until none is written to its memory any more; those that were not started
        fail. Closing twice is harmless."""
        with self._changed:
            self._closed = True
            dropped = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for submission in dropped:
            submission._ready.wait()
            submission._end(None, DeviceError("queue: closed before the program's turn"))
        self._thread.join()


class QueuedBundle(LoadedBundle):
    """A resident bundle whose programs go through a queue. Closing it leaves the bundle resident."""

    def __init__(self, queue: ProgramQueue, loaded: LoadedBundle) -> None:
        super().__init__(loaded.driver, loaded.bundle, loaded.arena, loaded.memory)
        self.queue, self.loaded = queue, loaded

    def run(self, program: Program, timeout: float | None = DEFAULT_TIMEOUT) -> Record:
        self._check(0, 0)
        return self.queue.submit(self.loaded, program, timeout).wait()

    def close(self) -> None:
        self._closed = True
