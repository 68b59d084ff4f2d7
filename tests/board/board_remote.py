"""A simulated board that outlives the processes that use it, as a real one does: they reach it through a socket.

The test serves its board (:func:`serve`). This file run as a program is a process that uses it, with PYNQ's library and
the unmodified driver; see :func:`main`.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
import pynq.interrupt
from board_programs import CI, FORMATS, runs_correctly
from pynq.buffer import PynqBuffer
from pynq.pl_server import embedded_device

from accel.bundle import open_bundle
from accel.compiler import RecordedFrame, compile_replay
from accel.errors import M3vitError
from accel.golden import GoldenEngine, run_frame
from host.backends.board import BoardDevice
from host.backends.sim_board import SimulatedBoard
from host.driver import Driver

FRAMES = 64
"""In the long program: some ten seconds of simulation."""


# ---- the side of the board


@contextlib.contextmanager
def serve(board: SimulatedBoard, path: Path) -> Iterator[None]:
    """Let processes reach ``board`` through a socket at ``path``."""
    listener = Listener(str(path), "AF_UNIX")

    def accept() -> None:
        while True:
            try:
                connection = listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=_answer, args=(board, connection), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listener.close()


def _answer(board: SimulatedBoard, connection: Connection) -> None:
    """Serve one process. When it is gone, however it went, its memory is free for others, as under Linux."""
    owned: dict[int, tuple[Any, Any]] = {}
    answers = {
        "interrupt": lambda: board._controller.path,
        "read": board._read,
        "write": board._write,
        "configure": board._configure,
        "allocate": lambda size: _allocate(board, owned, size),
        "free": lambda key: board._free(owned.pop(key)[0]),
        "flush": lambda key, offset, data: _flush(board, owned[key], offset, data),
        "invalidate": lambda key, offset, size: _invalidate(board, owned[key], offset, size),
    }
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            name, *arguments = connection.recv()
            try:
                connection.send(answers[name](*arguments))
            except (OSError, RuntimeError) as error:
                connection.send(error)
    for memory, _ in owned.values():
        board._free(memory)


def _allocate(board: SimulatedBoard, owned: dict[int, tuple[Any, Any]], size: int) -> tuple[int, int]:
    memory, cache = board._allocate(size)
    owned[id(memory)] = memory, cache
    return id(memory), memory.device_address


def _flush(board: SimulatedBoard, piece: tuple[Any, Any], offset: int, data: bytes) -> None:
    memory, cache = piece
    cache[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
    board._flush(memory, offset, len(data))


def _invalidate(board: SimulatedBoard, piece: tuple[Any, Any], offset: int, size: int) -> bytes:
    memory, cache = piece
    board._invalidate(memory, offset, size)
    return cache[offset : offset + size].tobytes()


# ---- the side of a process


class RemoteDevice(pynq.Device):
    """What PYNQ needs to know of a device, asked of the process that has the board."""

    def __init__(self, path: str) -> None:
        super().__init__("m3vit-remote")
        self.name, self.arch, self.simulated, self.timestamp = "m3vit-remote", "aarch64", True, ""
        self.capabilities = {"REGISTER_RW": True, "MEMORY_MAPPED": False, "CALLABLE": False}
        self._connection, self._turn = Client(path, "AF_UNIX"), threading.Lock()
        self._caches: dict[int, np.ndarray] = {}

    def ask(self, *question: Any) -> Any:
        with self._turn:
            self._connection.send(question)
            answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def read_registers(self, address, length):
        return self.ask("read", address).to_bytes(4, "little")[:length]

    def write_registers(self, address, data):
        self.ask("write", address, int.from_bytes(bytes(data)[:4], "little"))

    def get_bitfile_metadata(self, name, partial=False):
        metadata = embedded_device.Metadata(input=str(Path(name).with_suffix(".hwh")))
        return embedded_device.RuntimeMetadataParser(metadata)

    def download(self, bitstream, parser=None):
        self.ask("configure")
        self.post_download(bitstream, parser, self.name)

    def allocate(self, shape, dtype, **options):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        key, address = self.ask("allocate", size)
        cache = self._caches[key] = np.empty(size, np.uint8)
        buffer = PynqBuffer(
            shape=shape, dtype=dtype, buffer=cache, device_address=address, coherent=False, bo=key, device=self
        )
        buffer.memory, buffer.pointer, buffer.return_to, buffer.freed = self, key, self, True
        return buffer

    def return_pointer(self, key):
        del self._caches[key]
        self.ask("free", key)

    def flush(self, key, offset, pointer, size):
        self.ask("flush", key, offset, self._caches[key][offset : offset + size].tobytes())

    def invalidate(self, key, offset, pointer, size):
        data = self.ask("invalidate", key, offset, size)
        self._caches[key][offset : offset + size] = np.frombuffer(data, np.uint8)


def main(what: str, socket: str, bit: str, lock: str, bundle: str) -> int:
    """Use the board: ``run`` starts a long program, says ``running`` and waits to be killed; ``check`` runs a layer
    and says ``correct``. Whatever is refused is said on stderr, exit code 1."""
    remote = RemoteDevice(socket)
    pynq.Device.active_device = remote
    pynq.interrupt.get_uio_irq = lambda irq: remote.ask("interrupt")
    opened = open_bundle(bundle)
    encoder, net = opened.encoder, opened.config.network
    try:
        with BoardDevice(CI, FORMATS, bit, download=False, device=remote, lock=lock) as device:
            with Driver(device) as driver, driver.load(opened) as loaded:
                assert device.interrupts
                if what == "check":
                    print("correct" if runs_correctly(loaded) else "wrong", flush=True)
                    return 0
                image = np.zeros((net.image_height, net.image_width, 3), np.uint8)
                task = net.task_names[0]
                trace = run_frame(encoder, image, task, GoldenEngine(encoder), record=True).trace
                program = compile_replay(opened, [RecordedFrame(task, image, trace)] * FRAMES)
                with driver.load(opened, program.arena) as arena:
                    for offset, data in program.placements:
                        arena.write(offset, data)
                    arena.start(program)
                    print("running", flush=True)
                    time.sleep(120)
    except M3vitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
