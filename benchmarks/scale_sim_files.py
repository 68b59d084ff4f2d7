"""SCALE-Sim's files: configuration and list of products out, its report in, and the process that runs it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accel.config import Hardware
from accel.errors import ConfigError, DataError, DeviceError
from accel.memory_model import MemoryModel
from accel.numerics import COMBINE_BITS

VERSION = "3.0.0"
COMPUTE_REPORT = "COMPUTE_REPORT.csv"
COLUMNS = ("LayerID", "Total Cycles (incl. prefetch)", "Total Cycles", "Stall Cycles")
_RUN = """
import sys, time
from scalesim.scale_sim import scalesim
config, topology, layout, out = sys.argv[1:]
begin = time.perf_counter()
run = scalesim(save_disk_space=True, verbose=False, config=config, topology=topology, layout=layout,
               input_type_gemm=True)
run.run_scale(top_path=out)
print("seconds", time.perf_counter() - begin)
"""
"""What runs in SCALE-Sim's environment. ``save_disk_space`` leaves out the traces."""


@dataclass(frozen=True)
class Gemm:
    """A product of M × K by K × N."""

    name: str
    m: int
    n: int
    k: int

    @property
    def macs(self) -> int:
        return self.m * self.n * self.k


def bandwidths(gemm: Gemm, bytes_per_cycle: int) -> tuple[int, int, int]:
    """Bytes per cycle for input, weights and output: whole numbers of at least 1 that add up, by size."""
    sizes = (gemm.m * gemm.k, gemm.k * gemm.n, gemm.m * gemm.n)
    total = sum(sizes)
    first, second = (min(max(1, round(bytes_per_cycle * size / total)), bytes_per_cycle - 2) for size in sizes[:2])
    second = min(second, bytes_per_cycle - first - 1)
    if second < 1:
        raise ConfigError(f"bytes_per_cycle = {bytes_per_cycle}: expected at least one for each of three operands")
    return first, second, bytes_per_cycle - first - second


def config_text(name: str, engine: Hardware, dataflow: str, rates: tuple[int, int, int]) -> str:
    """SCALE-Sim's configuration: an array as large as the engine's, its rates, and its stores (in KiB) twice, because
    SCALE-Sim computes from one half of a buffer while the other is filled."""
    half_kib = 512
    sections: dict[str, dict[str, object]] = {
        "general": {"run_name": name},
        "architecture_presets": {
            "ArrayHeight": engine.tile_tokens * engine.tile_inputs,
            "ArrayWidth": engine.tile_outputs,
            "IfmapSramSzkB": engine.max_tokens * engine.max_width // half_kib,
            "FilterSramSzkB": engine.weight_slots * engine.slot_rows * engine.row_bytes // half_kib,
            "OfmapSramSzkB": engine.max_tokens * engine.max_width * COMBINE_BITS // 8 // half_kib,
            "IfmapOffset": 0,
            "FilterOffset": 10_000_000,
            "OfmapOffset": 20_000_000,
            "Dataflow": dataflow,
            "Bandwidth": rates[2],
            "ReadRequestBuffer": engine.ports * engine.outstanding,
            "WriteRequestBuffer": engine.write_ports * engine.outstanding,
        },
        "layout": {  # in version 3 the rates of reading are those of these banks
            "IfmapCustomLayout": False,
            "FilterCustomLayout": False,
            "IfmapSRAMBankBandwidth": rates[0],
            "IfmapSRAMBankNum": 1,
            "IfmapSRAMBankPort": 2,
            "FilterSRAMBankBandwidth": rates[1],
            "FilterSRAMBankNum": 1,
            "FilterSRAMBankPort": 2,
        },
        "sparsity": {"SparsitySupport": False},
        "run_presets": {"InterfaceBandwidth": "USER", "UseRamulatorTrace": False},
    }
    lines: list[str] = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in values.items()), ""]
    return "\n".join(lines)


def topology_text(products: Sequence[Gemm]) -> str:
    """SCALE-Sim's list of products; it wants a comma behind the last field."""
    return "".join(["Layer, M, N, K,\n", *(f"{gemm.name}, {gemm.m}, {gemm.n}, {gemm.k},\n" for gemm in products)])


def parse_report(text: str, where: str) -> list[dict[str, float]]:
    """Cycles per product out of ``COMPUTE_REPORT.csv``: ``cycles`` (prefetch and last writes included), ``compute``
    (from the first cycle of the array to its last, stalls included) and ``stalls``.

    Raises:
        DataError: another header, no rows, or a field that is no number.
    """
    lines = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    if not lines or tuple(lines[0][: len(COLUMNS)]) != COLUMNS:
        found = ", ".join(lines[0][: len(COLUMNS)]) if lines else "nothing"
        raise DataError(f"{where}: header: expected {', '.join(COLUMNS)} …, found {found}")
    if len(lines) == 1:
        raise DataError(f"{where}: expected a row per product, found none")
    rows = []
    for number, line in enumerate(lines[1:]):
        try:
            total, compute, stalls = (float(cell) for cell in line[1 : len(COLUMNS)])
        except ValueError:
            raise DataError(f"{where}: row {number}: expected three numbers, found {', '.join(line[1:4])}") from None
        rows.append({"cycles": total, "compute": compute, "stalls": stalls})
    return rows


def run_scale_sim(python: str, gemm: Gemm, engine: Hardware, dataflow: str, memory: MemoryModel) -> dict[str, float]:
    """One product in SCALE-Sim, in a process of ``python``: its cycles and its seconds, start of Python not included.

    Raises:
        DeviceError: the process cannot be started, fails, or leaves no report.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        texts = {
            "run.cfg": config_text("run", engine, dataflow, bandwidths(gemm, memory.bytes_per_cycle)),
            "topology.csv": topology_text([gemm]),
            "layout.csv": "Layer,\n",
        }
        for name, text in texts.items():
            (root / name).write_text(text, encoding="utf-8")
        command = [python, "-c", _RUN, *(str(root / name) for name in (*texts, "out"))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        except OSError as error:
            raise DeviceError(f"SCALE-Sim: {python}: expected a Python with scalesim {VERSION}, found none "
                              f"({error.strerror}); see python -m benchmarks.scale_sim --help") from error  # fmt: skip
        written = root / "out" / "run" / COMPUTE_REPORT
        said = [line for line in done.stdout.splitlines() if line.startswith("seconds ")]
        if done.returncode or not written.is_file() or not said:
            last = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise DeviceError(f"SCALE-Sim: {gemm.name}: expected {COMPUTE_REPORT}, found exit code {done.returncode}: "
                              f"{last}")  # fmt: skip
        row = parse_report(written.read_text(encoding="utf-8"), COMPUTE_REPORT)[0]
        return {**row, "seconds": float(said[-1].split()[1])}
