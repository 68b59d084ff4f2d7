// The engine with its memory: what is left are clock, reset, control registers and interrupt, as the processor sees them.
// The same top serves cocotb and the library behind the driver's "rtl" back end.
module m3vit_board (
    input  logic        ap_clk,
    input  logic        ap_rst_n,
    input  logic [11:0] s_axi_control_awaddr,
    input  logic        s_axi_control_awvalid,
    output logic        s_axi_control_awready,
    input  logic [31:0] s_axi_control_wdata,
    input  logic [ 3:0] s_axi_control_wstrb,
    input  logic        s_axi_control_wvalid,
    output logic        s_axi_control_wready,
    output logic [ 1:0] s_axi_control_bresp,
    output logic        s_axi_control_bvalid,
    input  logic        s_axi_control_bready,
    input  logic [11:0] s_axi_control_araddr,
    input  logic        s_axi_control_arvalid,
    output logic        s_axi_control_arready,
    output logic [31:0] s_axi_control_rdata,
    output logic [ 1:0] s_axi_control_rresp,
    output logic        s_axi_control_rvalid,
    input  logic        s_axi_control_rready,
    output logic        interrupt
);
  localparam int PORTS = m3vit_pkg::PORTS;
  localparam int WRITE_PORTS = m3vit_pkg::WRITE_PORTS;
  localparam int PORT_BYTES = m3vit_pkg::PORT_BYTES;

  logic [PORTS*64-1:0] araddr;
  logic [PORTS*8-1:0] arlen;
  logic [PORTS*3-1:0] arsize;
  logic [PORTS*2-1:0] arburst, rresp;
  logic [PORTS-1:0] arvalid, arready, rlast, rvalid, rready;
  logic [PORTS*PORT_BYTES*8-1:0] rdata;
  logic [WRITE_PORTS*64-1:0] awaddr;
  logic [WRITE_PORTS*8-1:0] awlen;
  logic [WRITE_PORTS*3-1:0] awsize;
  logic [WRITE_PORTS*2-1:0] awburst, bresp;
  logic [WRITE_PORTS-1:0] awvalid, awready, wlast, wvalid, wready, bvalid, bready;
  logic [WRITE_PORTS*PORT_BYTES*8-1:0] wdata;
  logic [WRITE_PORTS*PORT_BYTES-1:0] wstrb;

  m3vit_engine engine (
      .ap_clk,
      .ap_rst_n,
      .s_axi_control_awaddr,
      .s_axi_control_awvalid,
      .s_axi_control_awready,
      .s_axi_control_wdata,
      .s_axi_control_wstrb,
      .s_axi_control_wvalid,
      .s_axi_control_wready,
      .s_axi_control_bresp,
      .s_axi_control_bvalid,
      .s_axi_control_bready,
      .s_axi_control_araddr,
      .s_axi_control_arvalid,
      .s_axi_control_arready,
      .s_axi_control_rdata,
      .s_axi_control_rresp,
      .s_axi_control_rvalid,
      .s_axi_control_rready,
      .interrupt,
      .m_axi_araddr(araddr),
      .m_axi_arlen(arlen),
      .m_axi_arsize(arsize),
      .m_axi_arburst(arburst),
      // Cache and protection attributes mean nothing to this memory.
      /* verilator lint_off PINCONNECTEMPTY */
      .m_axi_arcache(),
      .m_axi_arprot(),
      /* verilator lint_on PINCONNECTEMPTY */
      .m_axi_arvalid(arvalid),
      .m_axi_arready(arready),
      .m_axi_rdata(rdata),
      .m_axi_rresp(rresp),
      .m_axi_rlast(rlast),
      .m_axi_rvalid(rvalid),
      .m_axi_rready(rready),
      .m_axi_awaddr(awaddr),
      .m_axi_awlen(awlen),
      .m_axi_awsize(awsize),
      .m_axi_awburst(awburst),
      /* verilator lint_off PINCONNECTEMPTY */
      .m_axi_awcache(),
      .m_axi_awprot(),
      /* verilator lint_on PINCONNECTEMPTY */
      .m_axi_awvalid(awvalid),
      .m_axi_awready(awready),
      .m_axi_wdata(wdata),
      .m_axi_wstrb(wstrb),
      .m_axi_wlast(wlast),
      .m_axi_wvalid(wvalid),
      .m_axi_wready(wready),
      .m_axi_bresp(bresp),
      .m_axi_bvalid(bvalid),
      .m_axi_bready(bready)
  );

  m3vit_memory #(
      .PORTS(PORTS),
      .WRITE_PORTS(WRITE_PORTS),
      .PORT_BYTES(PORT_BYTES)
  ) memory (
      .clk(ap_clk),
      .rst_n(ap_rst_n),
      .s_axi_araddr(araddr),
      .s_axi_arlen(arlen),
      .s_axi_arsize(arsize),
      .s_axi_arburst(arburst),
      .s_axi_arvalid(arvalid),
      .s_axi_arready(arready),
      .s_axi_rdata(rdata),
      .s_axi_rresp(rresp),
      .s_axi_rlast(rlast),
      .s_axi_rvalid(rvalid),
      .s_axi_rready(rready),
      .s_axi_awaddr(awaddr),
      .s_axi_awlen(awlen),
      .s_axi_awsize(awsize),
      .s_axi_awburst(awburst),
      .s_axi_awvalid(awvalid),
      .s_axi_awready(awready),
      .s_axi_wdata(wdata),
      .s_axi_wstrb(wstrb),
      .s_axi_wlast(wlast),
      .s_axi_wvalid(wvalid),
      .s_axi_wready(wready),
      .s_axi_bresp(bresp),
      .s_axi_bvalid(bvalid),
      .s_axi_bready(bready)
  );

  // Beats of the array for the memory's log (kinds after those of memory_model.h): first and last beat of a layer, first
  // and last beat of a unit. The value is the weight slot.
  import "DPI-C" function void m3vit_memory_note(
    input chandle handle,
    input int kind,
    input int entry,
    input int value
  );
  localparam int LAYER_FIRST = 4;
  localparam int LAYER_LAST = 5;
  localparam int UNIT_FIRST = 6;
  localparam int UNIT_LAST = 7;
  logic between_units;  // the next beat is a unit's first
  logic first_beat, last_beat;
  assign first_beat = engine.drain_valid;
  assign last_beat = engine.issue_valid && engine.issue_ready;
  always_ff @(posedge ap_clk) begin
    if (!ap_rst_n) between_units <= 1'b1;
    else if (last_beat) between_units <= engine.issue_tile.last_in_unit;
    else if (first_beat) between_units <= 1'b0;
    if (ap_rst_n && (first_beat || last_beat)) begin
      if (first_beat && engine.issue_tile.first_in_layer)
        m3vit_memory_note(memory.handle, LAYER_FIRST, int'(engine.issue_tile.entry), int'(engine.issue_tile.slot));
      if (first_beat && between_units)
        m3vit_memory_note(memory.handle, UNIT_FIRST, int'(engine.issue_tile.entry), int'(engine.issue_tile.slot));
      if (last_beat && engine.issue_tile.last_in_unit)
        m3vit_memory_note(memory.handle, UNIT_LAST, int'(engine.issue_tile.entry), int'(engine.issue_tile.slot));
      if (last_beat && engine.issue_tile.last_in_layer)
        m3vit_memory_note(memory.handle, LAYER_LAST, int'(engine.issue_tile.entry), int'(engine.issue_tile.slot));
    end
  end
endmodule
