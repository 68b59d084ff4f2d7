// A gate between one AXI4 master of the engine and the memory, so that the engine can be reset whatever it is doing.
//
// With run high it passes everything. When run falls it takes nothing more from the engine and ends alone what is under
// way: it swallows read data, sends write beats that are owed with no byte enabled, and takes responses. The memory never
// sees half a burst, and a burst that belongs to a dead engine never reaches a fresh one. It opens again when run is high
// and nothing is under way any more. Address and write channels are registered, so nothing changes while it waits.
//
// Verilog-2001, because Vivado takes nothing newer at the top of a module reference.
`default_nettype none
module m3vit_axi_gate #(
    parameter integer DATA_BITS = 128,
    parameter integer QUEUE_BITS = 5  // bursts under way, logarithm
) (
    (* X_INTERFACE_INFO = "xilinx.com:signal:clock:1.0 ap_clk CLK" *)
    (* X_INTERFACE_PARAMETER = "ASSOCIATED_BUSIF s_axi:m_axi, ASSOCIATED_RESET ap_rst_n" *)
    input  wire                   ap_clk,
    (* X_INTERFACE_INFO = "xilinx.com:signal:reset:1.0 ap_rst_n RST" *)
    (* X_INTERFACE_PARAMETER = "POLARITY ACTIVE_LOW" *)
    input  wire                   ap_rst_n,
    input  wire                   run,
    // from the engine
    input  wire [           63:0] s_axi_araddr,
    input  wire [            7:0] s_axi_arlen,
    input  wire [            2:0] s_axi_arsize,
    input  wire [            1:0] s_axi_arburst,
    input  wire [            3:0] s_axi_arcache,
    input  wire [            2:0] s_axi_arprot,
    input  wire                   s_axi_arvalid,
    output wire                   s_axi_arready,
    output wire [  DATA_BITS-1:0] s_axi_rdata,
    output wire [            1:0] s_axi_rresp,
    output wire                   s_axi_rlast,
    output wire                   s_axi_rvalid,
    input  wire                   s_axi_rready,
    input  wire [           63:0] s_axi_awaddr,
    input  wire [            7:0] s_axi_awlen,
    input  wire [            2:0] s_axi_awsize,
    input  wire [            1:0] s_axi_awburst,
    input  wire [            3:0] s_axi_awcache,
    input  wire [            2:0] s_axi_awprot,
    input  wire                   s_axi_awvalid,
    output wire                   s_axi_awready,
    input  wire [  DATA_BITS-1:0] s_axi_wdata,
    input  wire [DATA_BITS/8-1:0] s_axi_wstrb,
    input  wire                   s_axi_wlast,
    input  wire                   s_axi_wvalid,
    output wire                   s_axi_wready,
    output wire [            1:0] s_axi_bresp,
    output wire                   s_axi_bvalid,
    input  wire                   s_axi_bready,
    // to the memory
    output reg  [           63:0] m_axi_araddr,
    output reg  [            7:0] m_axi_arlen,
    output reg  [            2:0] m_axi_arsize,
    output reg  [            1:0] m_axi_arburst,
    output reg  [            3:0] m_axi_arcache,
    output reg  [            2:0] m_axi_arprot,
    output reg                    m_axi_arvalid,
    input  wire                   m_axi_arready,
    input  wire [  DATA_BITS-1:0] m_axi_rdata,
    input  wire [            1:0] m_axi_rresp,
    input  wire                   m_axi_rlast,
    input  wire                   m_axi_rvalid,
    output wire                   m_axi_rready,
    output reg  [           63:0] m_axi_awaddr,
    output reg  [            7:0] m_axi_awlen,
    output reg  [            2:0] m_axi_awsize,
    output reg  [            1:0] m_axi_awburst,
    output reg  [            3:0] m_axi_awcache,
    output reg  [            2:0] m_axi_awprot,
    output reg                    m_axi_awvalid,
    input  wire                   m_axi_awready,
    output reg  [  DATA_BITS-1:0] m_axi_wdata,
    output reg  [DATA_BITS/8-1:0] m_axi_wstrb,
    output reg                    m_axi_wlast,
    output reg                    m_axi_wvalid,
    input  wire                   m_axi_wready,
    input  wire [            1:0] m_axi_bresp,
    input  wire                   m_axi_bvalid,
    output wire                   m_axi_bready
);
  localparam [QUEUE_BITS:0] QUEUE = 1 << QUEUE_BITS;

  // Bursts taken from the engine and not yet answered in full; lengths of those whose data is still owed.
  reg                   open;
  reg  [  QUEUE_BITS:0] reads, writes;
  reg  [           7:0] lengths[0:(1<<QUEUE_BITS)-1];
  reg  [  QUEUE_BITS:0] head, tail;
  reg  [           7:0] beat;
  wire [           7:0] length = lengths[head[QUEUE_BITS-1:0]];
  wire                  owed = head != tail;

  wire take_read = s_axi_arvalid && s_axi_arready;
  wire take_write = s_axi_awvalid && s_axi_awready;
  wire end_read = m_axi_rvalid && m_axi_rready && m_axi_rlast;
  wire end_write = m_axi_bvalid && m_axi_bready;
  wire last = beat == length;
  wire room = !m_axi_wvalid || m_axi_wready;
  wire send = owed && room && (!open || s_axi_wvalid);

  assign s_axi_arready = open && !m_axi_arvalid && reads != QUEUE;
  assign s_axi_awready = open && !m_axi_awvalid && writes != QUEUE;
  assign s_axi_wready = open && owed && room;
  assign s_axi_rdata = m_axi_rdata;
  assign s_axi_rresp = m_axi_rresp;
  assign s_axi_rlast = m_axi_rlast;
  assign s_axi_rvalid = open && m_axi_rvalid;
  assign m_axi_rready = !open || s_axi_rready;
  assign s_axi_bresp = m_axi_bresp;
  assign s_axi_bvalid = open && m_axi_bvalid;
  assign m_axi_bready = !open || s_axi_bready;

  always @(posedge ap_clk) begin
    if (!run) open <= 1'b0;
    else if (reads == 0 && writes == 0) open <= 1'b1;

    if (m_axi_arready) m_axi_arvalid <= 1'b0;
    if (take_read) begin
      m_axi_arvalid <= 1'b1;
      m_axi_araddr <= s_axi_araddr;
      m_axi_arlen <= s_axi_arlen;
      m_axi_arsize <= s_axi_arsize;
      m_axi_arburst <= s_axi_arburst;
      m_axi_arcache <= s_axi_arcache;
      m_axi_arprot <= s_axi_arprot;
    end
    reads <= reads + {{QUEUE_BITS{1'b0}}, take_read} - {{QUEUE_BITS{1'b0}}, end_read};

    if (m_axi_awready) m_axi_awvalid <= 1'b0;
    if (take_write) begin
      m_axi_awvalid <= 1'b1;
      m_axi_awaddr <= s_axi_awaddr;
      m_axi_awlen <= s_axi_awlen;
      m_axi_awsize <= s_axi_awsize;
      m_axi_awburst <= s_axi_awburst;
      m_axi_awcache <= s_axi_awcache;
      m_axi_awprot <= s_axi_awprot;
      lengths[tail[QUEUE_BITS-1:0]] <= s_axi_awlen;
      tail <= tail + 1'b1;
    end
    writes <= writes + {{QUEUE_BITS{1'b0}}, take_write} - {{QUEUE_BITS{1'b0}}, end_write};

    if (m_axi_wready) m_axi_wvalid <= 1'b0;
    if (send) begin
      m_axi_wvalid <= 1'b1;
      m_axi_wdata <= s_axi_wdata;
      m_axi_wstrb <= open ? s_axi_wstrb : {(DATA_BITS / 8) {1'b0}};
      m_axi_wlast <= open ? s_axi_wlast : last;
      beat <= last ? 8'd0 : beat + 8'd1;
      if (last) head <= head + 1'b1;
    end

    if (!ap_rst_n) begin
      open <= 1'b0;
      reads <= 0;
      writes <= 0;
      head <= 0;
      tail <= 0;
      beat <= 8'd0;
      m_axi_arvalid <= 1'b0;
      m_axi_awvalid <= 1'b0;
      m_axi_wvalid <= 1'b0;
    end
  end
endmodule
`default_nettype wire
