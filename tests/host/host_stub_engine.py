"""An engine in SystemVerilog that does everything wrong on demand, for tests of the board around it."""

from __future__ import annotations

from pathlib import Path

SILENT, REFUSED, FATAL, ASSERTION, BREACH = 0x30, 0x34, 0x20, 0x24, 0x40
"""Offsets: never answers; answers SLVERR; a write stops the simulation by $fatal, by an assertion, or breaks AXI4."""

_VECTORS = {
    "P": {"araddr": 64, "arlen": 8, "arsize": 3, "arburst": 2, "arcache": 4, "arprot": 3, "arvalid": 1, "rready": 1},
    "W": {"awaddr": 64, "awlen": 8, "awsize": 3, "awburst": 2, "awcache": 4, "awprot": 3, "awvalid": 1, "wdata": 128,
          "wstrb": 16, "wlast": 1, "wvalid": 1, "bready": 1},
}  # fmt: skip
_ANSWERS = {
    "P": {"arready": 1, "rdata": 128, "rresp": 2, "rlast": 1, "rvalid": 1},
    "W": {"awready": 1, "wready": 1, "bresp": 2, "bvalid": 1},
}

_BODY = """
  // What the board notes of the array's beats; there are none.
  typedef struct packed {
    logic [2:0] entry, slot;
    logic first_in_layer, last_in_unit, last_in_layer;
  } tile_t;
  logic drain_valid, issue_valid, issue_ready;
  tile_t issue_tile;
  assign {drain_valid, issue_valid, issue_ready} = 3'b000;
  assign issue_tile = '0;
  logic breach;
  assign s_axi_control_awready = s_axi_control_awvalid && s_axi_control_wvalid && !s_axi_control_bvalid;
  assign s_axi_control_wready = s_axi_control_awready;
  assign s_axi_control_arready = s_axi_control_arvalid && !s_axi_control_rvalid && s_axi_control_araddr != 12'h030;
  always_ff @(posedge ap_clk) begin
    if (s_axi_control_awready) begin
      s_axi_control_bvalid <= 1'b1;
      if (s_axi_control_awaddr == 12'h020) $fatal(1, "asked for it");
      if (s_axi_control_awaddr == 12'h024) assert (0) else $error("asked for it");
      breach <= s_axi_control_awaddr == 12'h040;
    end else if (s_axi_control_bready) s_axi_control_bvalid <= 1'b0;
    if (s_axi_control_arready) begin
      s_axi_control_rvalid <= 1'b1;
      s_axi_control_rresp <= s_axi_control_araddr == 12'h034 ? 2'd2 : 2'd0;
      s_axi_control_rdata <= 32'h12345678;
    end else if (s_axi_control_rready) s_axi_control_rvalid <= 1'b0;
    if (!ap_rst_n) begin
      s_axi_control_bvalid <= 1'b0;
      s_axi_control_rvalid <= 1'b0;
      breach <= 1'b0;
    end
  end
  assign m_axi_arvalid[0] = breach;
  assign m_axi_arlen[7:0] = 8'd200;
"""


def stub_engine() -> str:
    """Text of ``m3vit_engine.sv``."""
    ports = ["input logic ap_clk", "input logic ap_rst_n", "output logic interrupt"]
    control = {
        "input": {"awaddr": 12, "awvalid": 1, "wdata": 32, "wstrb": 4, "wvalid": 1, "bready": 1, "araddr": 12,
                  "arvalid": 1, "rready": 1},
        "output": {"awready": 1, "wready": 1, "bresp": 2, "bvalid": 1, "arready": 1, "rdata": 32, "rresp": 2,
                   "rvalid": 1},
    }  # fmt: skip
    for direction, pins in control.items():
        ports += [f"{direction} logic [{bits}-1:0] s_axi_control_{name}" for name, bits in pins.items()]
    for direction, vectors in (("output", _VECTORS), ("input", _ANSWERS)):
        for count, pins in vectors.items():
            ports += [f"{direction} logic [{count}*{bits}-1:0] m_axi_{name}" for name, bits in pins.items()]
    parameters = "localparam int P = m3vit_pkg::PORTS, W = m3vit_pkg::WRITE_PORTS"
    return f"module m3vit_engine #({parameters}) (\n  " + ",\n  ".join(ports) + f");{_BODY}endmodule\n"


def write_stub(folder: Path, board: Path, text: str | None = None) -> Path:
    """A folder of sources like ``rtl_tb``, with this engine in the place of the real one."""
    (folder / "rtl").mkdir(parents=True)
    (folder / "rtl" / "m3vit_engine.sv").write_text(stub_engine() if text is None else text)
    (folder / "board").symlink_to(board)
    return folder
