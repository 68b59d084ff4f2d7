// Memory behind the engine's AXI ports, for simulation: one call of the C++ model (memory_model.h) per clock.
// Everything it drives comes from registers. Port p takes bits p·W +: W of each vector.
module m3vit_memory #(
    parameter int PORTS = m3vit_pkg::PORTS,
    parameter int WRITE_PORTS = m3vit_pkg::WRITE_PORTS,
    parameter int PORT_BYTES = m3vit_pkg::PORT_BYTES
) (
    input  logic                            clk,
    input  logic                            rst_n,
    input  logic [            PORTS*64-1:0] s_axi_araddr,
    input  logic [             PORTS*8-1:0] s_axi_arlen,
    input  logic [             PORTS*3-1:0] s_axi_arsize,
    input  logic [             PORTS*2-1:0] s_axi_arburst,
    input  logic [               PORTS-1:0] s_axi_arvalid,
    output logic [               PORTS-1:0] s_axi_arready,
    output logic [  PORTS*PORT_BYTES*8-1:0] s_axi_rdata,
    output logic [             PORTS*2-1:0] s_axi_rresp,
    output logic [               PORTS-1:0] s_axi_rlast,
    output logic [               PORTS-1:0] s_axi_rvalid,
    input  logic [               PORTS-1:0] s_axi_rready,
    input  logic [      WRITE_PORTS*64-1:0] s_axi_awaddr,
    input  logic [       WRITE_PORTS*8-1:0] s_axi_awlen,
    input  logic [       WRITE_PORTS*3-1:0] s_axi_awsize,
    input  logic [       WRITE_PORTS*2-1:0] s_axi_awburst,
    input  logic [         WRITE_PORTS-1:0] s_axi_awvalid,
    output logic [         WRITE_PORTS-1:0] s_axi_awready,
    input  logic [WRITE_PORTS*PORT_BYTES*8-1:0] s_axi_wdata,
    input  logic [WRITE_PORTS*PORT_BYTES-1:0] s_axi_wstrb,
    input  logic [         WRITE_PORTS-1:0] s_axi_wlast,
    input  logic [         WRITE_PORTS-1:0] s_axi_wvalid,
    output logic [         WRITE_PORTS-1:0] s_axi_wready,
    output logic [       WRITE_PORTS*2-1:0] s_axi_bresp,
    output logic [         WRITE_PORTS-1:0] s_axi_bvalid,
    input  logic [         WRITE_PORTS-1:0] s_axi_bready
);
  import "DPI-C" function chandle m3vit_memory_open(
    input int ports,
    input int write_ports,
    input int port_bytes
  );
  import "DPI-C" function void m3vit_memory_tick(
    input chandle handle,
    input bit reset,
    input bit [PORTS*64-1:0] araddr,
    input bit [PORTS*8-1:0] arlen,
    input bit [PORTS*3-1:0] arsize,
    input bit [PORTS*2-1:0] arburst,
    input bit [PORTS-1:0] arvalid,
    input bit [PORTS-1:0] rready,
    input bit [WRITE_PORTS*64-1:0] awaddr,
    input bit [WRITE_PORTS*8-1:0] awlen,
    input bit [WRITE_PORTS*3-1:0] awsize,
    input bit [WRITE_PORTS*2-1:0] awburst,
    input bit [WRITE_PORTS-1:0] awvalid,
    input bit [WRITE_PORTS*PORT_BYTES*8-1:0] wdata,
    input bit [WRITE_PORTS*PORT_BYTES-1:0] wstrb,
    input bit [WRITE_PORTS-1:0] wlast,
    input bit [WRITE_PORTS-1:0] wvalid,
    input bit [WRITE_PORTS-1:0] bready,
    output bit [PORTS-1:0] arready,
    output bit [PORTS*PORT_BYTES*8-1:0] rdata,
    output bit [PORTS*2-1:0] rresp,
    output bit [PORTS-1:0] rlast,
    output bit [PORTS-1:0] rvalid,
    output bit [WRITE_PORTS-1:0] awready,
    output bit [WRITE_PORTS-1:0] wready,
    output bit [WRITE_PORTS*2-1:0] bresp,
    output bit [WRITE_PORTS-1:0] bvalid
  );

  chandle handle;
  initial handle = m3vit_memory_open(PORTS, WRITE_PORTS, PORT_BYTES);

  bit [PORTS-1:0] arready, rlast, rvalid;
  bit [PORTS*PORT_BYTES*8-1:0] rdata;
  bit [PORTS*2-1:0] rresp;
  bit [WRITE_PORTS-1:0] awready, wready, bvalid;
  bit [WRITE_PORTS*2-1:0] bresp;

  always_ff @(posedge clk) begin
    m3vit_memory_tick(handle, !rst_n, s_axi_araddr, s_axi_arlen, s_axi_arsize, s_axi_arburst, s_axi_arvalid,
                      s_axi_rready, s_axi_awaddr, s_axi_awlen, s_axi_awsize, s_axi_awburst, s_axi_awvalid, s_axi_wdata,
                      s_axi_wstrb, s_axi_wlast, s_axi_wvalid, s_axi_bready, arready, rdata, rresp, rlast, rvalid,
                      awready, wready, bresp, bvalid);
    s_axi_arready <= arready;
    s_axi_rdata <= rdata;
    s_axi_rresp <= rresp;
    s_axi_rlast <= rlast;
    s_axi_rvalid <= rvalid;
    s_axi_awready <= awready;
    s_axi_wready <= wready;
    s_axi_bresp <= bresp;
    s_axi_bvalid <= bvalid;
  end
endmodule
