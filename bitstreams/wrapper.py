"""The RTL engine as Vivado's block designs want it: Verilog-2001, one AXI4 interface per memory port.

``m3vit_engine`` has one packed vector per signal, with a slice per port; block designs connect interfaces, and take no
SystemVerilog at the top of a module reference. So this writes a module of wires around it, from the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator

from accel.config import Hardware
from accel.registers import SPAN
from host.overlay import ENGINE, INTERRUPT_PIN, memory_port

MODULE = "m3vit_engine_axi"

Pins = list[tuple[str, int]]


def read_pins(hardware: Hardware) -> tuple[Pins, Pins]:
    """Signals of a port's read channels, driven and taken by the engine, with their bits."""
    address: Pins = [("addr", 64), ("len", 8), ("size", 3), ("burst", 2), ("cache", 4), ("prot", 3), ("valid", 1)]
    data: Pins = [("rdata", 8 * hardware.port_bytes), ("rresp", 2), ("rlast", 1), ("rvalid", 1)]
    return [*((f"ar{name}", bits) for name, bits in address), ("rready", 1)], [("arready", 1), *data]


def write_pins(hardware: Hardware) -> tuple[Pins, Pins]:
    """The same for write channels."""
    address = [(f"aw{name[2:]}", bits) for name, bits in read_pins(hardware)[0][:-1]]
    data: Pins = [("wdata", 8 * hardware.port_bytes), ("wstrb", hardware.port_bytes), ("wlast", 1), ("wvalid", 1)]
    return [*address, *data, ("bready", 1)], [("awready", 1), ("wready", 1), ("bresp", 2), ("bvalid", 1)]


def _control_pins() -> tuple[Pins, Pins]:
    bits = (SPAN - 1).bit_length()
    taken: Pins = [
        ("awaddr", bits), ("awvalid", 1), ("wdata", 32), ("wstrb", 4), ("wvalid", 1), ("bready", 1), ("araddr", bits),
        ("arvalid", 1), ("rready", 1),
    ]  # fmt: skip
    driven: Pins = [
        ("awready", 1), ("wready", 1), ("bresp", 2), ("bvalid", 1), ("arready", 1), ("rdata", 32), ("rresp", 2),
        ("rvalid", 1),
    ]  # fmt: skip
    return driven, taken


def _channels(hardware: Hardware) -> Iterator[tuple[int, Pins, Pins]]:
    """(ports, driven, taken) for the channels of reading and of writing."""
    yield hardware.ports, *read_pins(hardware)
    yield hardware.write_ports, *write_pins(hardware)


def interfaces(hardware: Hardware) -> dict[str, str]:
    """AXI interface → mode as Vivado names it."""
    masters = {memory_port(port): "Master" for port in range(hardware.ports)}
    return {ENGINE.interface: "Slave", **masters}


def wrapper(hardware: Hardware) -> str:
    """Text of the module."""
    declared: list[str] = []

    def declare(direction: str, name: str, bits: int, *attributes: str) -> None:
        declared.extend(f"    (* {text} *)" for text in attributes)
        width = f" [{bits - 1}:0]" if bits > 1 else ""
        declared.append(f"    {direction} wire{width} {name},")

    def information(kind: str, name: str, pin: str) -> str:
        return f'X_INTERFACE_INFO = "xilinx.com:signal:{kind}:1.0 {name} {pin}"'

    busses = ":".join(interfaces(hardware))
    declare(
        "input", "ap_clk", 1, information("clock", "ap_clk", "CLK"),
        f'X_INTERFACE_PARAMETER = "ASSOCIATED_BUSIF {busses}, ASSOCIATED_RESET ap_rst_n"',
    )  # fmt: skip
    declare(
        "input", "ap_rst_n", 1, information("reset", "ap_rst_n", "RST"),
        'X_INTERFACE_PARAMETER = "POLARITY ACTIVE_LOW"',
    )  # fmt: skip
    declare(
        "output", INTERRUPT_PIN, 1, information("interrupt", INTERRUPT_PIN, "INTERRUPT"),
        'X_INTERFACE_PARAMETER = "SENSITIVITY LEVEL_HIGH"',
    )  # fmt: skip
    driven, taken = _control_pins()
    for direction, pins in (("output", driven), ("input", taken)):
        for name, bits in pins:
            declare(direction, f"{ENGINE.interface}_{name}", bits)
    for port in range(hardware.ports):
        writes = port < hardware.write_ports
        mode = "READ_WRITE" if writes else "READ_ONLY"
        limits = f"MAX_BURST_LENGTH {hardware.burst_beats}, NUM_READ_OUTSTANDING {hardware.outstanding}"
        limits += f", NUM_WRITE_OUTSTANDING {hardware.outstanding}" if writes else ""
        name = memory_port(port)
        first = (
            f'X_INTERFACE_INFO = "xilinx.com:interface:aximm:1.0 {name} ARADDR"',
            f'X_INTERFACE_PARAMETER = "PROTOCOL AXI4, READ_WRITE_MODE {mode}, SUPPORTS_NARROW_BURST 0, {limits}"',
        )
        for count, outputs, inputs in _channels(hardware):
            if port < count:
                for direction, pins in (("output", outputs), ("input", inputs)):
                    for pin, bits in pins:
                        declare(direction, f"{name}_{pin}", bits, *(first if pin == "araddr" else ()))
    declared[-1] = declared[-1].rstrip(",")
    same = ["ap_clk", "ap_rst_n", INTERRUPT_PIN, *(f"{ENGINE.interface}_{name}" for name, _ in (*driven, *taken))]
    connected = [f"    .{name}({name})" for name in same]
    for count, outputs, inputs in _channels(hardware):
        for pin, _ in (*outputs, *inputs):
            slices = ", ".join(f"{memory_port(port)}_{pin}" for port in reversed(range(count)))
            connected.append(f"    .m_axi_{pin}({{{slices}}})")
    return "\n".join([
        f"// Generated by bitstreams/generate.py for hardware {hardware.name!r}; wires only.",
        "`default_nettype none",
        f"module {MODULE} (",
        *declared,
        ");",
        "  m3vit_engine u_engine (",
        ",\n".join(connected),
        "  );",
        "endmodule",
        "`default_nettype wire",
        "",
    ])  # fmt: skip
