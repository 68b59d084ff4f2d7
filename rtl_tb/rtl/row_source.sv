// Requests the rows of every layer, stripe by stripe, as far as the ring behind it has room, and tells which of the lines
// that come back belong to rows: the last stripe of a tensor is padded. Serves input rows and residual rows.
module row_source #(
    parameter int CAPACITY = 64,  // lines of the ring
    parameter int ROW_LINE_BITS = 4
) (
    input  logic                                     clk,
    input  logic                                     rst,
    // Layers
    input  logic                                     layer_valid,
    input  logic                                     layer_skip,  // has no such rows
    input  logic [    engine_pkg::TOKEN_BITS-1:0]    tokens,
    input  logic [             ROW_LINE_BITS-1:0]    row_lines,
    input  logic [                          31:0]    rows,  // arena offset
    input  logic [    engine_pkg::ENTRY_BITS-1:0]    entry,
    input  logic [  engine_pkg::JOB_TAG_BITS-1:0]    job_tag,
    output logic                                     layer_advance,
    // Stripes
    output logic                                     request_valid,
    input  logic                                     request_ready,
    output logic [                          31:0]    request_offset,
    output logic [    engine_pkg::ENTRY_BITS-1:0]    request_entry,
    output logic [  engine_pkg::JOB_TAG_BITS-1:0]    request_job_tag,
    // Lines
    input  logic                                     line_valid,
    input  logic                                     line_last,
    output logic                                     line_keep,
    // Ring: lines that its reader gave back
    input  logic [       $clog2(CAPACITY + 1)-1:0]   freed
);
  localparam int SPACE_BITS = $clog2(CAPACITY + 1);
  localparam int LINES_BITS = engine_pkg::TOKEN_BITS + ROW_LINE_BITS;
  localparam int STRIPE = engine_pkg::STRIPE_LINES;
  localparam int USEFUL_BITS = $clog2(STRIPE + 1);

  typedef enum logic [1:0] {
    IDLE,
    PRODUCT,
    REQUEST
  } state_e;
  state_e state;
  logic [LINES_BITS-1:0] remaining;
  logic [SPACE_BITS-1:0] used;
  logic [USEFUL_BITS-1:0] useful, head;
  logic [engine_pkg::STRIPE_LINE_BITS-1:0] index;
  logic room, tracked, tracking, request;

  assign useful = remaining > LINES_BITS'(STRIPE) ? USEFUL_BITS'(STRIPE) : remaining[USEFUL_BITS-1:0];
  assign room = used <= SPACE_BITS'(CAPACITY) - SPACE_BITS'(useful);
  assign request_valid = state == REQUEST && room && tracked;
  assign request = request_valid && request_ready;
  assign layer_advance = layer_valid
      && ((state == IDLE && layer_skip) || (request && remaining <= LINES_BITS'(STRIPE)));

  always_ff @(posedge clk) begin
    case (state)
      PRODUCT: remaining <= LINES_BITS'(tokens) * LINES_BITS'(row_lines);
      REQUEST: if (request) remaining <= remaining - LINES_BITS'(useful);
      default: ;
    endcase
    if (state == IDLE) begin
      request_offset <= rows;
      request_entry <= entry;
      request_job_tag <= job_tag;
    end else if (request) request_offset <= request_offset + 32'(m3vit_pkg::STRIPE_BYTES);
    if (rst) begin
      state <= IDLE;
      used <= '0;
    end else begin
      case (state)
        IDLE: if (layer_valid && !layer_skip) state <= PRODUCT;
        PRODUCT: state <= REQUEST;
        default: if (layer_advance) state <= IDLE;
      endcase
      used <= used + (request ? SPACE_BITS'(useful) : '0) - freed;
    end
  end

  // How many lines of each stripe on its way are rows.
  fifo #(
      .WIDTH(USEFUL_BITS),
      .DEPTH(32)
  ) u_useful (
      .clk,
      .rst,
      .in_valid (request),
      .in_ready (tracked),
      .in_data  (useful),
      .out_valid(tracking),
      .out_ready(line_valid && line_last),
      .out_data (head)
  );
  assign line_keep = line_valid && USEFUL_BITS'(index) < head;
  always_ff @(posedge clk) begin
    if (rst) index <= '0;
    else if (line_valid) index <= index + 1'b1;
  end

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst) begin
      assert (!line_valid || tracking) else $error("row_source: a line that nobody asked for");
      assert (used <= SPACE_BITS'(CAPACITY)) else $error("row_source: more lines than the ring holds");
      assert (freed <= used) else $error("row_source: lines freed that were never read");
    end
`endif
endmodule
