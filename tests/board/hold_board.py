"""Opens a simulated board, starts a program that never ends, says so, and waits to be killed. Argument: lock file."""

from __future__ import annotations

import sys
import time

from accel.compiler import identify_program
from accel.config import Formats, hardware
from host.backends.golden import Faults, GoldenDevice
from host.backends.sim_board import SimulatedBoard
from host.driver import Driver

if __name__ == "__main__":
    chosen = hardware("ci")
    engine = GoldenDevice(chosen, Formats(), faults=Faults(hangs=1))
    with SimulatedBoard(chosen, Formats(), backend=engine) as board, board.open(lock=sys.argv[1]) as device:
        program = identify_program()
        with device.allocate(program.arena.bytes) as memory:
            Driver(device).start(program, memory)
            print("running", flush=True)
            time.sleep(120)
