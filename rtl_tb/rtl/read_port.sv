// One AXI4 read master: bursts of one request each, at most OUTSTANDING in flight, answers in order.
// Beats wait in a FIFO, because the ports answer at different times but lines need all of them.
module read_port (
    input  logic                              clk,
    input  logic                              rst,
    // Requests: length is beats - 1; the tag comes back with every beat.
    input  logic                              request_valid,
    output logic                              request_ready,
    input  logic [                      63:0] request_address,
    input  logic [                       7:0] request_length,
    input  logic                              request_tag,
    // Beats
    output logic                              beat_valid,
    input  logic                              beat_ready,
    output logic [engine_pkg::PORT_BITS-1:0]  beat_data,
    output logic                              beat_tag,
    output logic                              beat_error,
    output logic                              reading,  // a burst is in flight
    // AXI4
    output logic [                      63:0] araddr,
    output logic [                       7:0] arlen,
    output logic                              arvalid,
    input  logic                              arready,
    input  logic [engine_pkg::PORT_BITS-1:0]  rdata,
    input  logic [                       1:0] rresp,
    input  logic                              rlast,
    input  logic                              rvalid,
    output logic                              rready
);
  localparam int FLIGHT_BITS = $clog2(m3vit_pkg::OUTSTANDING + 1);
  localparam int TAGS = 1 << $clog2(m3vit_pkg::OUTSTANDING);
  // Four bursts fit, so that a port which is ahead of the others keeps its bursts moving.
  localparam int BEATS = 1 << $clog2(4 * m3vit_pkg::BURST_BEATS);

  logic [FLIGHT_BITS-1:0] flight;
  logic queued, queue_tag, issue, landed;
  logic tag_room, tag_there, tag_head;

  fifo #(
      .WIDTH(73),
      .DEPTH(4)
  ) u_requests (
      .clk,
      .rst,
      .in_valid (request_valid),
      .in_ready (request_ready),
      .in_data  ({request_tag, request_length, request_address}),
      .out_valid(queued),
      .out_ready(issue),
      .out_data ({queue_tag, arlen, araddr})
  );

  assign arvalid = queued && tag_room && flight != FLIGHT_BITS'(m3vit_pkg::OUTSTANDING);
  assign issue = arvalid && arready;
  assign landed = rvalid && rready && rlast;
  assign reading = flight != '0;

  always_ff @(posedge clk) begin
    if (rst) flight <= '0;
    else if (issue && !landed) flight <= flight + 1'b1;
    else if (landed && !issue) flight <= flight - 1'b1;
  end

  fifo #(
      .WIDTH(1),
      .DEPTH(TAGS)
  ) u_tags (
      .clk,
      .rst,
      .in_valid (issue),
      .in_ready (tag_room),
      .in_data  (queue_tag),
      .out_valid(tag_there),
      .out_ready(landed),
      .out_data (tag_head)
  );

  fifo #(
      .WIDTH(engine_pkg::PORT_BITS + 2),
      .DEPTH(BEATS)
  ) u_beats (
      .clk,
      .rst,
      .in_valid (rvalid),
      .in_ready (rready),
      .in_data  ({rresp != 2'b00, tag_head, rdata}),
      .out_valid(beat_valid),
      .out_ready(beat_ready),
      .out_data ({beat_error, beat_tag, beat_data})
  );

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst) assert (!rvalid || tag_there) else $error("read_port: a beat without a request");
`endif
endmodule
