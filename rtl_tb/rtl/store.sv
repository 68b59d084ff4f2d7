// Writes output rows. Lines of LINEAR layers (first choice) and of the finish unit are gathered to segments,
// consecutive lines of one stripe, in one of two buffers; every write port then writes its blocks of the segment, at
// its own pace. The layer's final line brings zero lines up to the end of its stripe. Follows each layer until its last
// write is answered.
module store (
    input  logic                                          clk,
    input  logic                                          rst,
    input  logic                                          halt,  // begin no segment; those begun are written
    input  logic [    m3vit_pkg::WRITE_PORTS*64-1:0]      arena,
    // Lines of LINEAR layers
    input  logic                                          linear_valid,
    output logic                                          linear_ready,
    input  logic [        engine_pkg::LINE_BITS-1:0]      linear_data,
    input  logic [32-$clog2(m3vit_pkg::LINE_BYTES)-1:0]   linear_address,
    input  logic                                          linear_cut,
    input  logic                                          linear_final,
    input  logic [       engine_pkg::ENTRY_BITS-1:0]      linear_entry,
    // Lines of the finish unit: consecutive within a layer
    input  logic                                          finish_valid,
    output logic                                          finish_ready,
    input  logic [        engine_pkg::LINE_BITS-1:0]      finish_data,
    input  logic [32-$clog2(m3vit_pkg::LINE_BYTES)-1:0]   finish_address,
    input  logic                                          finish_final,
    input  logic [       engine_pkg::ENTRY_BITS-1:0]      finish_entry,
    // Record: 64 bytes at a time, through port 0
    input  logic                                          rec_valid,
    output logic                                          rec_ready,
    input  logic [                              31:0]     rec_address,
    input  logic [        m3vit_pkg::COMMAND_BITS-1:0]    rec_data,
    output logic                                          rec_done,
    // Layers
    output logic [          engine_pkg::ENTRIES-1:0]      entry_written,  // all its writes are acknowledged
    input  logic                                          entry_retire,
    input  logic [       engine_pkg::ENTRY_BITS-1:0]      entry_retire_entry,
    // Errors: a pulse per layer that failed, with the port that failed first
    output logic                                          error_valid,
    output logic [       engine_pkg::ENTRY_BITS-1:0]      error_entry,
    output logic [                               7:0]     error_port,
    output logic                                          writes_idle,
    // AXI4, write channels of the write ports
    output logic [    m3vit_pkg::WRITE_PORTS*64-1:0]      awaddr,
    output logic [     m3vit_pkg::WRITE_PORTS*8-1:0]      awlen,
    output logic [       m3vit_pkg::WRITE_PORTS-1:0]      awvalid,
    input  logic [       m3vit_pkg::WRITE_PORTS-1:0]      awready,
    output logic [m3vit_pkg::WRITE_PORTS*engine_pkg::PORT_BITS-1:0] wdata,
    output logic [       m3vit_pkg::WRITE_PORTS-1:0]      wlast,
    output logic [       m3vit_pkg::WRITE_PORTS-1:0]      wvalid,
    input  logic [       m3vit_pkg::WRITE_PORTS-1:0]      wready,
    input  logic [     m3vit_pkg::WRITE_PORTS*2-1:0]      bresp,
    input  logic [       m3vit_pkg::WRITE_PORTS-1:0]      bvalid,
    output logic [       m3vit_pkg::WRITE_PORTS-1:0]      bready
);
  localparam int P = m3vit_pkg::PORTS;
  localparam int W = m3vit_pkg::WRITE_PORTS;
  localparam int LINE = engine_pkg::STRIPE_LINE_BITS;
  localparam int EB = engine_pkg::ENTRY_BITS;
  localparam int WORD_BITS = engine_pkg::PORT_BITS;
  localparam int ADDRESS_BITS = 32 - $clog2(m3vit_pkg::LINE_BYTES);
  localparam int STRIPE_BITS = 32 - engine_pkg::STRIPE_BYTE_BITS;

  // ---- fill: one line per cycle
  typedef enum logic [1:0] {
    CHOOSE,
    FILL,
    PAD
  } state_e;
  state_e state;
  logic from_finish, started, take, padding, close, put, fill_buffer;
  logic line_valid, line_cut, line_final;
  logic [ADDRESS_BITS-1:0] line_address;
  logic [EB-1:0] line_entry;
  logic [engine_pkg::LINE_BITS-1:0] line_data;
  logic [LINE-1:0] at, pad_line;
  logic [W-1:0][1:0] pending;  // buffers that a port has not taken yet
  logic [1:0] busy;

  assign line_valid = from_finish ? finish_valid : linear_valid;
  assign line_data = from_finish ? finish_data : linear_data;
  assign line_address = from_finish ? finish_address : linear_address;
  assign line_cut = !from_finish && linear_cut;
  assign line_final = from_finish ? finish_final : linear_final;
  assign line_entry = from_finish ? finish_entry : linear_entry;

  assign take = state == FILL && line_valid && !halt;
  assign linear_ready = state == FILL && !halt && !from_finish;
  assign finish_ready = state == FILL && !halt && from_finish;
  assign padding = state == PAD && !halt;
  assign put = take || padding;
  assign at = padding ? pad_line : line_address[LINE-1:0];
  assign close = put && (at == '1 || (take && line_cut && !line_final));

  // ---- the segment that is being filled, handed to the ports when it is closed
  logic push, push_buffer, filling_final, push_final;
  logic [STRIPE_BITS-1:0] stripe;
  logic [LINE-1:0] first, last;
  logic [EB-1:0] segment_entry;

  always_ff @(posedge clk) begin
    if (state == CHOOSE) from_finish <= !linear_valid;
    if (take) begin
      stripe <= line_address[ADDRESS_BITS-1:LINE];
      if (!started) first <= line_address[LINE-1:0];
      segment_entry <= line_entry;
      filling_final <= line_final;
    end
    if (close) begin
      last <= at;
      push_buffer <= fill_buffer;
      push_final <= take ? line_final : filling_final;
    end
    if (put) pad_line <= at + 1'b1;
    if (rst) begin
      state <= CHOOSE;
      started <= 1'b0;
      fill_buffer <= 1'b0;
      push <= 1'b0;
    end else begin
      case (state)
        CHOOSE: if (!busy[fill_buffer] && !halt && (linear_valid || finish_valid)) state <= FILL;
        FILL: if (close) state <= CHOOSE;
              else if (take && line_final) state <= PAD;
        default: if (close) state <= CHOOSE;
      endcase
      if (close) started <= 1'b0;
      else if (take) started <= 1'b1;
      fill_buffer <= fill_buffer ^ close;
      push <= close;
    end
  end

  // ---- buffers: a bank per block of the stripe, read by the port that writes the block
  logic [W-1:0] port_buffer;
  logic [W-1:0][LINE-1:0] port_line;
  logic [engine_pkg::LINE_BITS-1:0] buffer_data;
  for (genvar b = 0; b < P; b = b + 1) begin : g_bank
    ram_distributed #(
        .WIDTH(WORD_BITS),
        .DEPTH(2 * m3vit_pkg::BURST_BEATS)
    ) u_bank (
        .clk,
        .write        (put),
        .write_address({fill_buffer, at}),
        .write_data   (padding ? '0 : line_data[b*WORD_BITS+:WORD_BITS]),
        .read_address ({port_buffer[b%W], port_line[b%W]}),
        .read_data    (buffer_data[b*WORD_BITS+:WORD_BITS])
    );
  end

  // ---- ports
  logic [W-1:0][1:0] port_read;
  logic [W-1:0] port_done, port_error, port_idle;
  // verilator lint_off UNUSEDSIGNAL
  logic [W-1:0] port_rec_ready, port_rec_done;  // only port 0 writes records
  // verilator lint_on UNUSEDSIGNAL
  logic [W-1:0][EB-1:0] port_entry;
  for (genvar q = 0; q < W; q = q + 1) begin : g_port
    write_port #(
        .PORT(q)
    ) u_port (
        .clk,
        .rst,
        .arena         (arena[q*64+:64]),
        .segment_push  (push),
        .segment_buffer(push_buffer),
        .segment_stripe(stripe),
        .segment_first (first),
        .segment_last  (last),
        .segment_entry (segment_entry),
        .segment_final (push_final),
        .segment_read  (port_read[q]),
        .read_buffer   (port_buffer[q]),
        .read_line     (port_line[q]),
        .read_data     (buffer_data),
        .rec_valid     (rec_valid && q == 0),
        .rec_ready     (port_rec_ready[q]),
        .rec_address,
        .rec_data,
        .rec_done      (port_rec_done[q]),
        .done          (port_done[q]),
        .error         (port_error[q]),
        .answer_entry  (port_entry[q]),
        .idle          (port_idle[q]),
        .awaddr        (awaddr[q*64+:64]),
        .awlen         (awlen[q*8+:8]),
        .awvalid       (awvalid[q]),
        .awready       (awready[q]),
        .wdata         (wdata[q*WORD_BITS+:WORD_BITS]),
        .wlast         (wlast[q]),
        .wvalid        (wvalid[q]),
        .wready        (wready[q]),
        .bresp         (bresp[q*2+:2]),
        .bvalid        (bvalid[q]),
        .bready        (bready[q])
    );
  end
  assign rec_ready = port_rec_ready[0];
  assign rec_done = port_rec_done[0];

  always_comb begin
    busy = 2'b00;
    for (int q = 0; q < W; q = q + 1) busy = busy | pending[q];
  end
  always_ff @(posedge clk)
    for (int q = 0; q < W; q = q + 1)
      if (rst) pending[q] <= '0;
      else pending[q] <= (pending[q] & ~port_read[q]) | (close ? (fill_buffer ? 2'b10 : 2'b01) : 2'b00);

  // After `halt` a segment that is not closed is never begun by a port, so it does not count.
  assign writes_idle = busy == 2'b00 && !push && (&port_idle) && (halt || state == CHOOSE);

  // ---- layers: written when every port has the answer to its last burst. An error keeps a layer open for good.
  logic [W-1:0][engine_pkg::ENTRIES-1:0] finished;
  logic [engine_pkg::ENTRIES-1:0] failed, retire;
  assign retire = entry_retire ? engine_pkg::ENTRIES'(1) << entry_retire_entry : '0;
  always_ff @(posedge clk)
    if (rst) begin
      finished <= '0;
      failed <= '0;
    end else begin
      for (int q = 0; q < W; q = q + 1) begin
        finished[q] <= finished[q] & ~retire;
        if (port_done[q]) finished[q][port_entry[q]] <= 1'b1;
        if (port_error[q]) failed[port_entry[q]] <= 1'b1;
      end
    end
  always_comb begin
    entry_written = ~failed;
    for (int q = 0; q < W; q = q + 1) entry_written = entry_written & finished[q];
  end

  // Several ports may fail in one cycle: each failing layer is kept until it has been reported.
  logic [engine_pkg::ENTRIES-1:0] unreported;
  logic [engine_pkg::ENTRIES-1:0][7:0] failed_port;
  always_ff @(posedge clk) begin
    for (int q = W - 1; q >= 0; q = q - 1)
      if (port_error[q] && !failed[port_entry[q]]) failed_port[port_entry[q]] <= 8'(q);
    if (rst) unreported <= '0;
    else begin
      if (error_valid) unreported[error_entry] <= 1'b0;
      for (int q = 0; q < W; q = q + 1)
        if (port_error[q] && !failed[port_entry[q]]) unreported[port_entry[q]] <= 1'b1;
    end
  end
  assign error_valid = unreported != '0;
  assign error_port = failed_port[error_entry];
  always_comb begin
    error_entry = '0;
    for (int e = engine_pkg::ENTRIES - 1; e >= 0; e = e - 1)
      if (unreported[e]) error_entry = engine_pkg::ENTRY_BITS'(e);
  end

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst && take && started) begin
      assert (line_address[ADDRESS_BITS-1:LINE] == stripe && line_address[LINE-1:0] == pad_line)
      else $error("store: lines of a segment do not follow each other");
      assert (line_entry == segment_entry) else $error("store: a segment of two layers");
    end
`endif
endmodule
