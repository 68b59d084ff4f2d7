"""A hardware handoff (``.hwh``) of the overlay, as far as PYNQ reads one, for the simulated board.

Vivado writes the real file when it builds the overlay. This one holds the same blocks, addresses, registers, interrupt
wiring and clock, made from the facts that the Vivado scripts get (:mod:`host.overlay`); a test compares it with what
those scripts build.
"""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from accel.config import Hardware
from accel.registers import REGISTERS, Access
from host.overlay import (
    ENGINE,
    ENGINE_VLNV,
    INTERRUPT_PIN,
    INTERRUPTS,
    NAME,
    PS,
    RESET,
    RESET_VLNV,
    SLAVES,
    Slave,
    memory_port,
)

PS_VLNV = "xilinx.com:ip:zynq_ultra_ps_e:3.4"
INTC_VLNV = "xilinx.com:ip:axi_intc:4.1"
_AXI = "xilinx.com:interface:aximm:1.0"
_PLL_MHZ = 1500
_ACCESS = {
    Access.READ: "read-only",
    Access.READ_WRITE: "read-write",
    Access.CLEAR_ON_READ: "read-only",
    Access.TOGGLE_ON_WRITE: "read-write",
    Access.SELF_CLEARING: "read-write",
}


def handoff(hardware: Hardware, engine: str = "rtl", interrupts: bool = True) -> str:
    """Text of the ``.hwh``.

    Args:
        hardware: of the engine: ports, their width, clock.
        engine: implementation, ``rtl`` or ``hls``.
        interrupts: whether the engine's interrupt is wired.
    """
    root = Element("EDKSYSTEM", EDWVERSION="1.2", TIMESTAMP="simulated", VIVADOVERSION="simulated")
    SubElement(
        root, "SYSTEMINFO", ARCH="zynquplus", BOARD="xilinx.com:zcu104:part0:1.1", DEVICE="xczu7ev", NAME=NAME,
        PACKAGE="ffvc1156", SPEEDGRADE="-2",
    )  # fmt: skip
    SubElement(root, "EXTERNALPORTS")
    SubElement(root, "EXTERNALINTERFACES")
    modules = SubElement(root, "MODULES")
    _engine(modules, hardware, engine, interrupts)
    _gpio(modules)
    _controller(modules, interrupts)
    _processor(modules, hardware)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8" standalone="no" ?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _module(parent: Element, cell: str, vlnv: str, parameters: dict[str, object]) -> tuple[Element, Element, Element]:
    """A block: the element, and those that hold its pins and its interfaces."""
    _, _, kind, version = vlnv.split(":")
    module = SubElement(
        parent, "MODULE", COREREVISION="0", FULLNAME=f"/{cell}", HWVERSION=version, INSTANCE=cell, IPTYPE="PERIPHERAL",
        IS_ENABLE="1", MODCLASS="PERIPHERAL", MODTYPE=kind, VLNV=vlnv,
    )  # fmt: skip
    SubElement(module, "DOCUMENTS")
    if cell == ENGINE.cell:
        _registers(module)
    table = SubElement(module, "PARAMETERS")
    for name, value in parameters.items():
        SubElement(table, "PARAMETER", NAME=name, VALUE=str(value))
    return module, SubElement(module, "PORTS"), SubElement(module, "BUSINTERFACES")


def _registers(module: Element) -> None:
    blocks = SubElement(module, "ADDRESSBLOCKS")
    block = SubElement(
        blocks, "ADDRESSBLOCK", ACCESS="read-write", INTERFACE=ENGINE.interface, NAME="Reg", RANGE=str(ENGINE.size),
        USAGE="register",
    )  # fmt: skip
    table = SubElement(block, "REGISTERS")

    def properties(element: Element, values: dict[str, object]) -> None:
        for name, value in values.items():
            SubElement(element, "PROPERTY", NAME=name, VALUE=str(value))

    for item in REGISTERS:
        register = SubElement(table, "REGISTER", NAME=item.name)
        properties(register, {
            "DESCRIPTION": item.meaning, "ADDRESS_OFFSET": item.offset, "SIZE": 32, "ACCESS": _ACCESS[item.access],
            "IS_ENABLED": "true", "RESET_VALUE": 0,
        })  # fmt: skip
        fields = SubElement(register, "FIELDS")
        for bit in item.bits:
            properties(SubElement(fields, "FIELD", NAME=bit.name.upper()), {
                "DESCRIPTION": bit.meaning, "ADDRESS_OFFSET": bit.bit, "ACCESS": _ACCESS[bit.access],
                "BIT_OFFSET": bit.bit, "BIT_WIDTH": 1,
            })  # fmt: skip


def _pin(ports: Element, name: str, direction: str, kind: str = "undef", to: tuple[str, str] | None = None) -> None:
    pin = SubElement(ports, "PORT", DIR=direction, NAME=name, SIGIS=kind)
    connections = SubElement(pin, "CONNECTIONS")
    if to is not None:
        SubElement(connections, "CONNECTION", INSTANCE=to[0], PORT=to[1])


def _axi(interfaces: Element, name: str, kind: str, bits: int) -> None:
    bus = SubElement(interfaces, "BUSINTERFACE", DATAWIDTH=str(bits), NAME=name, TYPE=kind, VLNV=_AXI)
    SubElement(bus, "PARAMETER", NAME="DATA_WIDTH", VALUE=str(bits))
    SubElement(bus, "PORTMAPS")


def _engine(modules: Element, hardware: Hardware, engine: str, interrupts: bool) -> None:
    module, ports, interfaces = _module(modules, ENGINE.cell, ENGINE_VLNV[engine], {})
    _axi(interfaces, ENGINE.interface, "SLAVE", 32)
    memory = SubElement(module, "MEMORYMAP")
    for port in range(hardware.ports):
        _axi(interfaces, memory_port(port), "MASTER", 8 * hardware.port_bytes)
        _range(memory, f"HP{port}_DDR_LOW", 0, 1 << 31, PS, memory_port(port), f"S_AXI_HP{port}_FPD", "MEMORY")
    _pin(ports, "ap_clk", "I", "clk", (PS, "pl_clk0"))
    _pin(ports, INTERRUPT_PIN, "O", "INTERRUPT", (INTERRUPTS.cell, "intr") if interrupts else None)


def _gpio(modules: Element) -> None:
    parameters: dict[str, object] = {"C_GPIO_WIDTH": 1, "C_ALL_OUTPUTS": 1, "C_DOUT_DEFAULT": "0x00000001"}
    _, ports, interfaces = _module(modules, RESET.cell, RESET_VLNV, parameters)
    _axi(interfaces, RESET.interface, "SLAVE", 32)
    _pin(ports, "s_axi_aclk", "I", "clk", (PS, "pl_clk0"))
    _pin(ports, "gpio_io_o", "O")


def _controller(modules: Element, interrupts: bool) -> None:
    _, ports, interfaces = _module(modules, INTERRUPTS.cell, INTC_VLNV, {"C_NUM_INTR_INPUTS": 1})
    _axi(interfaces, INTERRUPTS.interface, "SLAVE", 32)
    _pin(ports, "s_axi_aclk", "I", "clk", (PS, "pl_clk0"))
    _pin(ports, "intr", "I", "INTERRUPT", (ENGINE.cell, INTERRUPT_PIN) if interrupts else None)
    _pin(ports, "irq", "O", "INTERRUPT", (PS, "pl_ps_irq0"))


def _processor(modules: Element, hardware: Hardware) -> None:
    parameters: dict[str, object] = {"PSU__USE__IRQ0": 1, "C_MAXIGP0_DATA_WIDTH": 128}
    for port in range(hardware.ports):
        parameters[f"C_SAXIGP{port + 2}_DATA_WIDTH"] = 8 * hardware.port_bytes
    for clock in range(4):
        parameters |= {
            f"PSU__FPGA_PL{clock}_ENABLE": int(clock == 0),
            f"PSU__CRL_APB__PL{clock}_REF_CTRL__DIVISOR0": max(1, round(_PLL_MHZ / hardware.clock_mhz)),
            f"PSU__CRL_APB__PL{clock}_REF_CTRL__DIVISOR1": 1,
            f"PSU__CRL_APB__PL{clock}_REF_CTRL__SRCSEL": "IOPLL",
            f"PSU__CRL_APB__PL{clock}_REF_CTRL__FREQMHZ": hardware.clock_mhz,
            f"PSU__CRL_APB__PL{clock}_REF_CTRL__ACT_FREQMHZ": hardware.clock_mhz,
        }
    module, ports, interfaces = _module(modules, PS, PS_VLNV, parameters)
    module.set("IS_PL", "FALSE")
    _axi(interfaces, "M_AXI_HPM0_FPD", "MASTER", 128)
    for port in range(hardware.ports):
        _axi(interfaces, f"S_AXI_HP{port}_FPD", "SLAVE", 8 * hardware.port_bytes)
    _pin(ports, "pl_clk0", "O", "clk")
    _pin(ports, "pl_resetn0", "O", "rst")
    _pin(ports, "pl_ps_irq0", "I", "INTERRUPT", (INTERRUPTS.cell, "irq"))
    memory = SubElement(module, "MEMORYMAP")
    for slave in SLAVES:
        _slave_range(memory, slave)


def _slave_range(memory: Element, slave: Slave) -> None:
    _range(memory, "Reg", slave.address, slave.size, slave.cell, "M_AXI_HPM0_FPD", slave.interface, "REGISTER")


def _range(
    memory: Element, block: str, address: int, size: int, cell: str, master: str, slave: str, kind: str
) -> None:
    SubElement(
        memory, "MEMRANGE", ADDRESSBLOCK=block, BASENAME="C_BASEADDR", BASEVALUE=f"0x{address:08X}",
        HIGHNAME="C_HIGHADDR", HIGHVALUE=f"0x{address + size - 1:08X}", INSTANCE=cell, IS_DATA="TRUE",
        IS_INSTRUCTION="TRUE", MASTERBUSINTERFACE=master, MEMTYPE=kind, SLAVEBUSINTERFACE=slave,
    )  # fmt: skip
