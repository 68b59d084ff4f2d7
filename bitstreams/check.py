"""Runs ``overlay.tcl`` without Vivado and verifies the block design that it describes.

::

    python -m bitstreams.check --engine rtl --hardware zcu104

``stubs.tcl`` stands for Vivado and records every call. From the calls this builds the design as Vivado would see it and
checks it against the catalogue of blocks below, the sources of our own blocks, and the configuration. What only Vivado
knows (whether it accepts the design, whether it fits and meets its clock) is beyond it.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accel.config import Formats, Hardware, hardware
from accel.errors import M3vitError
from bitstreams.generate import MEMORY_BYTES, PARAMETERS, ROOT, arguments, parameters, write
from bitstreams.wrapper import MODULE
from host.overlay import ENGINE, ENGINE_VLNV, INTERRUPT_PIN, INTERRUPTS, PS, RESET, SLAVES, memory_port

SCRIPT = ROOT / "bitstreams" / "overlay.tcl"
STUBS = ROOT / "bitstreams" / "stubs.tcl"
INPUT, OUTPUT, MASTER, SLAVE = "input", "output", "master", "slave"

Call = tuple[str, ...]


class CheckError(M3vitError):
    """The script cannot be run: no Tcl, or an error in it."""


@dataclass(frozen=True)
class Block:
    """What a block of the catalogue has.

    Attributes:
        pins: name → input or output.
        interfaces: name → master or slave.
        settings: parameters that it knows, patterns.
        optional: input pins that may stay open.
    """

    pins: Mapping[str, str]
    interfaces: Mapping[str, str] = field(default_factory=dict)
    settings: Sequence[str] = ()
    optional: frozenset[str] = frozenset()


@dataclass
class Design:
    """The block design that the calls describe.

    Attributes:
        cells: name → VLNV, or ``module:NAME`` of a module of ours.
        settings: (cell or object, parameter) → value.
        nets, links: (from, to) pairs of pins and of interfaces.
        addresses: (space, segment, offset, range).
        sources: files added.
        steps: names of all calls, in order.
        looked_up: (command, name) of everything that was looked up.
        copies: (from, to) of files.
    """

    cells: dict[str, str] = field(default_factory=dict)
    settings: dict[tuple[str, str], str] = field(default_factory=dict)
    nets: list[tuple[str, str]] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    addresses: list[tuple[str, str, int, int]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    looked_up: list[tuple[str, str]] = field(default_factory=list)
    copies: list[tuple[str, str]] = field(default_factory=list)

    def setting(self, cell: str, name: str, default: str = "") -> str:
        return self.settings.get((cell, f"CONFIG.{name}"), default)


def run(script: Path, values: Path) -> list[Call]:
    """All calls that a script makes with these parameters."""
    tclsh = shutil.which("tclsh")
    if tclsh is None:
        raise CheckError("tclsh: expected on the PATH, found nothing; install it (Debian: tcl)")
    with tempfile.TemporaryDirectory(prefix="m3vit-tcl-") as folder:
        record = Path(folder) / "calls"
        done = subprocess.run(
            [tclsh, str(STUBS), str(record), str(script), str(values)], capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            where = next((line.strip() for line in lines if "overlay.tcl" in line or str(script) in line), "")
            raise CheckError(f"{script}: {lines[0] if lines else 'no output'} {where}".strip())
        text = record.read_text(encoding="utf-8")
    return [tuple(line.split("\x1f")) for line in text.splitlines()]


def understand(calls: Sequence[Call]) -> Design:
    """The design that calls describe."""
    design = Design()
    for name, *given in calls:
        design.steps.append(name)
        if name == "set_property":
            design.settings[given[0], given[1]] = given[2]
            continue
        if name == "file_copy":
            design.copies.append((given[0], given[1]))
            continue
        if name == "get_property":
            continue
        divider = given.index("--")
        options = dict(zip(given[:divider:2], given[1:divider:2], strict=True))
        rest = given[divider + 1 :]
        if name == "create_bd_cell":
            design.cells[rest[0]] = options.get("-vlnv") or f"module:{options.get('-reference')}"
        elif name == "connect_bd_net":
            design.nets.append((rest[0], rest[1]))
        elif name == "connect_bd_intf_net":
            design.links.append((rest[0], rest[1]))
        elif name == "assign_bd_address":
            place = int(options["-offset"], 0), int(options["-range"], 0)
            design.addresses.append((options["-target_address_space"], rest[0], *place))
        elif name == "add_files":
            design.sources += rest[0].split(" ")
        elif name.startswith("get_bd_"):
            design.looked_up.append((name, rest[0]))
    return design


# ---- the catalogue


def _processor(design: Design) -> Block:
    """PG201; names as in handoffs that Vivado has written."""
    pins = {"pl_clk0": OUTPUT, "pl_resetn0": OUTPUT}
    interfaces = {}
    if design.setting(PS, "PSU__USE__M_AXI_GP0") == "1":
        pins["maxihpm0_fpd_aclk"], interfaces["M_AXI_HPM0_FPD"] = INPUT, MASTER
    for port in range(4):
        if design.setting(PS, f"PSU__USE__S_AXI_GP{port + 2}") == "1":
            pins[f"saxihp{port}_fpd_aclk"], interfaces[f"S_AXI_HP{port}_FPD"] = INPUT, SLAVE
    if design.setting(PS, "PSU__USE__IRQ0") == "1":
        pins["pl_ps_irq0"] = INPUT
    known = ("PSU__USE__M_AXI_GP[0-2]", "PSU__USE__S_AXI_GP[2-5]", "PSU__SAXIGP[2-5]__DATA_WIDTH", "PSU__USE__IRQ0",
             "PSU__USE__FABRIC__RST", "PSU__FPGA_PL0_ENABLE", "PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ")  # fmt: skip
    return Block(pins, interfaces, known)


def _smartconnect(design: Design, cell: str) -> Block:
    """PG247."""
    slaves = {f"S{i:02d}_AXI": SLAVE for i in range(int(design.setting(cell, "NUM_SI", "1")))}
    masters = {f"M{i:02d}_AXI": MASTER for i in range(int(design.setting(cell, "NUM_MI", "1")))}
    return Block({"aclk": INPUT, "aresetn": INPUT}, {**slaves, **masters}, ("NUM_SI", "NUM_MI", "NUM_CLKS"))


_SLAVE_PINS = {"s_axi_aclk": INPUT, "s_axi_aresetn": INPUT}
_RESET = Block(  # PG164
    {
        "slowest_sync_clk": INPUT, "ext_reset_in": INPUT, "aux_reset_in": INPUT, "mb_debug_sys_rst": INPUT,
        "dcm_locked": INPUT, "mb_reset": OUTPUT, "bus_struct_reset": OUTPUT, "peripheral_reset": OUTPUT,
        "interconnect_aresetn": OUTPUT, "peripheral_aresetn": OUTPUT,
    },
    settings=("C_AUX_RESET_HIGH", "C_AUX_RST_WIDTH", "C_EXT_RESET_HIGH", "C_EXT_RST_WIDTH"),
    optional=frozenset({"aux_reset_in", "mb_debug_sys_rst", "dcm_locked"}),
)  # fmt: skip
_GPIO = Block(  # PG144
    {**_SLAVE_PINS, "gpio_io_o": OUTPUT}, {"S_AXI": SLAVE}, ("C_GPIO_WIDTH", "C_ALL_OUTPUTS", "C_DOUT_DEFAULT")
)
_INTERRUPTS = Block(  # PG099; irq is a pin of its own with a single connection only
    {**_SLAVE_PINS, "intr": INPUT, "irq": OUTPUT}, {"s_axi": SLAVE}, ("C_IRQ_CONNECTION", "C_IRQ_IS_LEVEL")
)


_SIGNALS = "addr|len|size|burst|cache|prot|valid|ready|data|strb|last|resp"


def verilog_block(text: str) -> Block:
    """Pins and interfaces of a Verilog module, grouped as Vivado groups them: by the names that AXI gives signals."""
    pins: dict[str, str] = {}
    interfaces: dict[str, str] = {}
    declared = re.findall(r"^\s*(input|output)\s+(?:wire|reg)\s*(?:\[[^\]]*\])?\s*(\w+)", text, re.MULTILINE)
    for direction, name in declared:
        bus = re.fullmatch(rf"(\w+)_(?:ar|aw|r|w|b)(?:{_SIGNALS})", name)
        if bus is None:
            pins[name] = direction
        elif name.endswith("_arvalid"):
            interfaces[bus[1]] = MASTER if direction == "output" else SLAVE
    settings = re.findall(r"parameter\s+integer\s+(\w+)", text)
    return Block(pins, interfaces, settings)


def hls_block(text: str) -> Block:
    """Pins and interfaces that Vitis HLS gives the engine, from its pragmas."""
    bundles = dict.fromkeys(re.findall(r"INTERFACE m_axi port = \w+ bundle = (\w+)", text), MASTER)
    slaves = dict.fromkeys(re.findall(r"INTERFACE s_axilite port = return bundle = (\w+)", text), SLAVE)
    pins = {"ap_clk": INPUT, "ap_rst_n": INPUT, "interrupt": OUTPUT}
    named = {f"m_axi_{name}": kind for name, kind in bundles.items()}
    return Block(pins, {**named, **{f"s_axi_{name}": kind for name, kind in slaves.items()}})


def catalogue(design: Design) -> dict[str, Block | None]:
    """Cell → its block; None for one that the catalogue does not know."""
    sources = {Path(name).stem: Path(name) for name in design.sources}
    found: dict[str, Block | None] = {}
    for cell, kind in design.cells.items():
        name = kind.removeprefix("module:")
        if name != kind:
            path = sources.get(name)
            found[cell] = verilog_block(path.read_text(encoding="utf-8")) if path and path.is_file() else None
        elif kind == ENGINE_VLNV["hls"]:
            found[cell] = hls_block((ROOT / "hls_src" / "engine" / "engine.cpp").read_text(encoding="utf-8"))
        else:
            plain = {"proc_sys_reset": _RESET, "axi_gpio": _GPIO, "axi_intc": _INTERRUPTS}
            kind = kind.split(":")[2] if kind.count(":") >= 2 else kind
            special = {"zynq_ultra_ps_e": _processor(design), "smartconnect": _smartconnect(design, cell)}
            found[cell] = plain.get(kind) or special.get(kind)
    return found


# ---- the checks


def problems(design: Design, engine: str, hardware: Hardware, clock_mhz: int | None = None) -> list[str]:
    """Everything that is wrong with a design, one line each."""
    blocks = catalogue(design)
    values = parameters(engine, hardware, Formats(), ROOT / "build", clock_mhz)
    checks = (
        _names(design, blocks), _wiring(design, blocks), _roles(design, hardware), _addresses(design, hardware),
        _settings(design, blocks, hardware, str(values["clock_mhz"])), _files(design, engine), _flow(design),
    )  # fmt: skip
    return [problem for check in checks for problem in check]


def _names(design: Design, blocks: Mapping[str, Block | None]) -> Iterator[str]:
    """Everything that is looked up exists."""
    for cell, block in blocks.items():
        if block is None:
            yield f"cell {cell}: {design.cells[cell]}: expected a known block, found none"
    for command, name in design.looked_up:
        cell, _, pin = name.partition("/")
        block = blocks.get(cell)
        if cell not in blocks:
            yield f"{command} {name}: expected one of the cells {', '.join(sorted(blocks))}"
        elif block is not None and command == "get_bd_pins" and pin not in block.pins:
            yield f"{command} {name}: expected one of {', '.join(block.pins)}"
        elif block is not None and command == "get_bd_intf_pins" and pin not in block.interfaces:
            yield f"{command} {name}: expected one of {', '.join(block.interfaces)}"


def _wiring(design: Design, blocks: Mapping[str, Block | None]) -> Iterator[str]:
    """Drivers drive, inputs have one driver, and nothing that must be connected is open."""

    def kind(name: str, interfaces: bool) -> str | None:
        cell, _, pin = name.partition("/")
        block = blocks.get(cell)
        if block is None:
            return None
        return (block.interfaces if interfaces else block.pins).get(pin)

    for pairs, interfaces, source, sink in (
        (design.nets, False, OUTPUT, INPUT), (design.links, True, MASTER, SLAVE)
    ):  # fmt: skip
        drivers: dict[str, list[str]] = defaultdict(list)
        for first, second in pairs:
            if kind(first, interfaces) not in (source, None):
                yield f"{first} → {second}: expected {source} {first}, found {kind(first, interfaces)}"
            if kind(second, interfaces) not in (sink, None):
                yield f"{first} → {second}: expected {sink} {second}, found {kind(second, interfaces)}"
            drivers[second].append(first)
        for name, found in drivers.items():
            if len(found) != 1:
                yield f"{name}: expected one driver, found {', '.join(found)}"
        used = set(drivers) | ({first for first, _ in pairs} if interfaces else set())
        for cell, block in blocks.items():
            if block is None:
                continue
            wanted = block.interfaces if interfaces else {
                pin: direction for pin, direction in block.pins.items()
                if direction == INPUT and pin not in block.optional
            }  # fmt: skip
            for pin in wanted:
                if f"{cell}/{pin}" not in used:
                    yield f"{cell}/{pin}: expected a connection, found none"


def _roles(design: Design, hardware: Hardware) -> Iterator[str]:
    """Clocks, resets, interrupt and memory ports come from where they should."""
    driver = {sink: source for source, sink in design.nets}
    master = {slave: source for source, slave in design.links}

    def expect(sink: str, source: str, table: Mapping[str, str] = driver) -> Iterator[str]:
        if table.get(sink) != source:
            yield f"{sink}: expected {source}, found {table.get(sink)}"

    clock = f"{PS}/pl_clk0"
    for sink in driver:
        if sink.endswith(("clk", "aclk")):
            yield from expect(sink, clock)
        elif sink.endswith(("aresetn", "rst_n")) and not sink.startswith(f"{ENGINE.cell}/"):
            yield from expect(sink, "system_reset/peripheral_aresetn")
    released = f"{RESET.cell}/gpio_io_o"
    yield from expect(f"{ENGINE.cell}/ap_rst_n", "engine_reset/peripheral_aresetn")
    yield from expect("engine_reset/aux_reset_in", released)
    for cell in ("system_reset", "engine_reset"):
        yield from expect(f"{cell}/ext_reset_in", f"{PS}/pl_resetn0")
    yield from expect(f"{INTERRUPTS.cell}/intr", f"{ENGINE.cell}/{INTERRUPT_PIN}")
    yield from expect(f"{PS}/pl_ps_irq0", f"{INTERRUPTS.cell}/irq")
    for port in range(hardware.ports):
        yield from expect(f"gate_{port}/run", released)
        yield from expect(f"gate_{port}/s_axi", f"{ENGINE.cell}/{memory_port(port)}", master)
        yield from expect(f"memory_{port}/S00_AXI", f"gate_{port}/m_axi", master)
        yield from expect(f"{PS}/S_AXI_HP{port}_FPD", f"memory_{port}/M00_AXI", master)
    yield from expect("registers/S00_AXI", f"{PS}/M_AXI_HPM0_FPD", master)
    for number, slave in enumerate(SLAVES):
        yield from expect(f"{slave.cell}/{slave.interface}", f"registers/M{number:02d}_AXI", master)


def _addresses(design: Design, hardware: Hardware) -> Iterator[str]:
    """Every register block and every memory port is where the driver and the engine expect it, and nothing else is."""
    wanted: list[tuple[str, str, int, int]] = [
        (f"{PS}/Data", f"{slave.cell}/{slave.interface}/*", slave.address, slave.size) for slave in SLAVES
    ]
    for port in range(hardware.ports):
        wanted.append((f"{ENGINE.cell}/*{memory_port(port)}", f"gate_{port}/s_axi/*", 0, MEMORY_BYTES))
        wanted.append((f"gate_{port}/m_axi", f"{PS}/SAXIGP{port + 2}/HP{port}_DDR_LOW", 0, MEMORY_BYTES))
    for item in design.addresses:
        if item not in wanted:
            yield f"address of {item[1]} in {item[0]}: {item[2]:#x} + {item[3]:#x}: expected none like it"
    for item in wanted:
        if design.addresses.count(item) != 1:
            found = design.addresses.count(item)
            place = f"{item[2]:#x} + {item[3]:#x}"
            yield f"address of {item[1]} in {item[0]}: expected {place} once, found it {found} times"
    for _, segment, offset, size in design.addresses:
        if size & (size - 1) or offset % size:
            yield f"address of {segment}: {offset:#x} + {size:#x}: expected a power of two, aligned to itself"


def _settings(
    design: Design, blocks: Mapping[str, Block | None], hardware: Hardware, clock_mhz: str
) -> Iterator[str]:
    """Parameters exist, and those that matter have the value that they should."""
    for (cell, name), value in design.settings.items():
        block = blocks.get(cell)
        if name.startswith("CONFIG.") and block is not None:
            plain = name.removeprefix("CONFIG.")
            if not any(fnmatch.fnmatchcase(plain, pattern) for pattern in block.settings):
                yield f"{cell}: {plain} = {value}: expected one of {', '.join(block.settings)}"
    width = str(8 * hardware.port_bytes)
    wanted = {
        (PS, "PSU__USE__M_AXI_GP0"): "1", (PS, "PSU__USE__M_AXI_GP1"): "0", (PS, "PSU__USE__IRQ0"): "1",
        (PS, "PSU__FPGA_PL0_ENABLE"): "1", (PS, "PSU__USE__FABRIC__RST"): "1",
        (PS, "PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ"): clock_mhz,
        (RESET.cell, "C_GPIO_WIDTH"): "1", (RESET.cell, "C_ALL_OUTPUTS"): "1",
        (RESET.cell, "C_DOUT_DEFAULT"): "0x00000001", ("engine_reset", "C_AUX_RESET_HIGH"): "0",
        (INTERRUPTS.cell, "C_IRQ_CONNECTION"): "1", (INTERRUPTS.cell, "C_IRQ_IS_LEVEL"): "1",
        ("registers", "NUM_MI"): str(len(SLAVES)),
    }  # fmt: skip
    for port in range(hardware.ports):
        wanted[PS, f"PSU__USE__S_AXI_GP{port + 2}"] = "1"
        wanted[PS, f"PSU__SAXIGP{port + 2}__DATA_WIDTH"] = width
        wanted[f"gate_{port}", "DATA_BITS"] = width
    for (cell, name), value in wanted.items():
        if design.setting(cell, name) != value:
            yield f"{cell}: {name}: expected {value}, found {design.setting(cell, name) or 'nothing'}"


def _files(design: Design, engine: str) -> Iterator[str]:
    """Sources exist, all of the engine's are among them, and the engine is what drivers look for."""
    for name in design.sources:
        if not Path(name).is_file() and not name.endswith("_wrapper.v"):
            yield f"source {name}: expected a file, found none"
    if engine == "rtl":
        missing = {path.name for path in (ROOT / "rtl_tb" / "rtl").glob("*.sv")} - {
            Path(name).name for name in design.sources
        }
        if missing:
            yield f"sources: expected {sorted(missing)[0]} among them"
        found, wanted = design.cells.get(ENGINE.cell), f"module:{MODULE}"
        if not ENGINE_VLNV["rtl"].endswith(f":module_ref:{MODULE}:1.0"):
            yield f"engine: {ENGINE_VLNV['rtl']}: expected the module {MODULE}"
    else:
        found, wanted = design.cells.get(ENGINE.cell), ENGINE_VLNV["hls"]
    if found != wanted:
        yield f"cell {ENGINE.cell}: expected {wanted}, found {found}"


def _flow(design: Design) -> Iterator[str]:
    """The design is validated before it is built, its timing read before it is used, its results put in place."""
    order = ["create_project", "create_bd_design", "validate_bd_design", "save_bd_design", "make_wrapper",
             "generate_target", "launch_runs", "wait_on_run", "open_run", "get_timing_paths", "file_copy"]  # fmt: skip
    places = [design.steps.index(step) if step in design.steps else -1 for step in order]
    for step, place in zip(order, places, strict=True):
        if place < 0:
            yield f"{step}: expected a call, found none"
    if places != sorted(places):
        yield f"steps: expected {', '.join(order)}, in this order"
    building = ("create_bd_cell", "connect_bd_net", "connect_bd_intf_net", "assign_bd_address")
    validated = design.steps.index("validate_bd_design") if "validate_bd_design" in design.steps else 0
    if set(building) & set(design.steps[validated:]):
        yield "steps: expected no change of the design after its validation"
    targets = {Path(target).name for _, target in design.copies}
    if targets != {"m3vit.bit", "m3vit.hwh"}:
        yield f"results: expected m3vit.bit and m3vit.hwh, found {', '.join(sorted(targets)) or 'nothing'}"


def _unknown_parameters(script: Path, known: Mapping[str, object]) -> list[str]:
    """Uses of parameters that are not generated, on paths that were not taken too."""
    used = set(re.findall(r"m3vit\((\w+)\)", script.read_text(encoding="utf-8")))
    return [f"$m3vit({name}): expected one of {', '.join(known)}" for name in sorted(used - set(known))]


def check(
    engine: str, hardware: Hardware, script: Path = SCRIPT, clock_mhz: int | None = None
) -> tuple[Design, list[str]]:
    """Run the script for an engine, with freshly generated parameters: its design, and what is wrong with it."""
    with tempfile.TemporaryDirectory(prefix="m3vit-overlay-") as folder:
        target = write(engine, hardware, Formats(), Path(folder) / "overlay", clock_mhz)
        unknown = _unknown_parameters(script, parameters(engine, hardware, Formats(), target))
        design = understand(run(script, target / PARAMETERS))
        return design, [*unknown, *problems(design, engine, hardware, clock_mhz)]


def main(given: Sequence[str] | None = None) -> int:
    """Command line; prints what is wrong, returns 1 if anything is."""
    options = arguments(str(__doc__).partition("\n")[0]).parse_args(given)
    try:
        design, found = check(options.engine, hardware(options.hardware), clock_mhz=options.clock)
    except M3vitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print(
            f"overlay.tcl, {options.engine}, {options.hardware}: {len(design.cells)} cells, {len(design.nets)} nets, "
            f"{len(design.links)} interfaces, {len(design.addresses)} addresses: as configured"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
