// One AXI4 write master. Segments (lines of one stripe) lie in the store unit's buffers; this port writes those of its
// blocks, PORT, PORT + WRITE_PORTS, ..., one burst per block. Record writes of 64 plain bytes go between bursts.
// Addresses run ahead of data as far as OUTSTANDING bursts; the data of a burst starts when its address is offered,
// never waiting for it to be taken. Answers come in order.
module write_port #(
    parameter int PORT = 0
) (
    input  logic                                        clk,
    input  logic                                        rst,
    input  logic [                              63:0]   arena,
    // Segments: stripe and lines, which buffer holds them
    input  logic                                        segment_push,
    input  logic                                        segment_buffer,
    input  logic [32-engine_pkg::STRIPE_BYTE_BITS-1:0]  segment_stripe,
    input  logic [    engine_pkg::STRIPE_LINE_BITS-1:0] segment_first,
    input  logic [    engine_pkg::STRIPE_LINE_BITS-1:0] segment_last,
    input  logic [          engine_pkg::ENTRY_BITS-1:0] segment_entry,
    input  logic                                        segment_final,  // of the layer
    output logic [                                 1:0] segment_read,  // buffers whose data this port has taken
    // Buffers: word of every port at a line, in the same cycle
    output logic                                        read_buffer,
    output logic [    engine_pkg::STRIPE_LINE_BITS-1:0] read_line,
    // verilator lint_off UNUSEDSIGNAL
    input  logic [           engine_pkg::LINE_BITS-1:0] read_data,  // this port takes its own blocks only
    // verilator lint_on UNUSEDSIGNAL
    // Record
    input  logic                                        rec_valid,
    output logic                                        rec_ready,
    input  logic [                              31:0]   rec_address,
    input  logic [        m3vit_pkg::COMMAND_BITS-1:0]  rec_data,
    output logic                                        rec_done,
    // Answers
    output logic                                        done,  // the layer's last burst on this port
    output logic                                        error,
    output logic [          engine_pkg::ENTRY_BITS-1:0] answer_entry,  // of done and error
    output logic                                        idle,
    // AXI4
    output logic [                              63:0]   awaddr,
    output logic [                               7:0]   awlen,
    output logic                                        awvalid,
    input  logic                                        awready,
    output logic [           engine_pkg::PORT_BITS-1:0] wdata,
    output logic                                        wlast,
    output logic                                        wvalid,
    input  logic                                        wready,
    input  logic [                               1:0]   bresp,
    input  logic                                        bvalid,
    output logic                                        bready
);
  localparam int P = m3vit_pkg::PORTS;
  localparam int W = m3vit_pkg::WRITE_PORTS;
  localparam int BLOCKS = (P - PORT + W - 1) / W;  // of a stripe, of this port
  localparam int BLOCK_BITS = P < 2 ? 1 : $clog2(P);
  localparam int WORD_BITS = engine_pkg::PORT_BITS;
  localparam int LINE = engine_pkg::STRIPE_LINE_BITS;
  localparam int EB = engine_pkg::ENTRY_BITS;
  localparam int STRIPE_BITS = 32 - engine_pkg::STRIPE_BYTE_BITS;
  localparam int OUTSTANDING = m3vit_pkg::OUTSTANDING;
  localparam int FLIGHT_BITS = $clog2(OUTSTANDING + 1);
  localparam int DEPTH = OUTSTANDING < 2 ? 2 : 1 << $clog2(OUTSTANDING);  // nothing behind `launch` can overflow
  localparam int RECORD_BEATS = m3vit_pkg::COMMAND_BYTES / m3vit_pkg::PORT_BYTES;

  // ---- segments waiting for their addresses; the store unit has two buffers, so two at most
  localparam int SEGMENT_BITS = 1 + STRIPE_BITS + 2 * LINE + EB + 1;
  logic head_valid, head_pop, head_buffer, head_final, segment_room;
  logic [STRIPE_BITS-1:0] head_stripe;
  logic [LINE-1:0] head_first, head_last;
  logic [EB-1:0] head_entry;
  fifo #(
      .WIDTH(SEGMENT_BITS),
      .DEPTH(2)
  ) u_segments (
      .clk,
      .rst,
      .in_valid (segment_push),
      .in_ready (segment_room),
      .in_data  ({segment_buffer, segment_stripe, segment_first, segment_last, segment_entry, segment_final}),
      .out_valid(head_valid),
      .out_ready(head_pop),
      .out_data ({head_buffer, head_stripe, head_first, head_last, head_entry, head_final})
  );

  // ---- launch: one burst into the address path, the data path and the answers at once. A record goes first.
  logic launch, launch_record, launch_segment, last_block, landed;
  logic [BLOCK_BITS-1:0] block;  // index in the stripe
  logic [FLIGHT_BITS-1:0] flight;
  logic record_held;

  assign last_block = int'(block) >= P - W;
  assign launch = flight != FLIGHT_BITS'(OUTSTANDING);
  assign launch_record = launch && rec_valid && !record_held;
  assign launch_segment = launch && head_valid && !(rec_valid && !record_held);
  assign rec_ready = launch && !record_held;
  assign head_pop = launch_segment && last_block;
  assign idle = flight == '0 && !head_valid;

  always_ff @(posedge clk)
    if (rst) begin
      flight <= '0;
      block <= BLOCK_BITS'(PORT);
    end else begin
      flight <= flight + FLIGHT_BITS'(launch_record || launch_segment) - FLIGHT_BITS'(landed);
      if (launch_segment) block <= last_block ? BLOCK_BITS'(PORT) : block + BLOCK_BITS'(W);
    end

  // ---- address: low half, then high half with the carry
  logic [1:0] adding;
  logic [31:0] offset, high1;
  logic [32:0] low;
  logic [LINE-1:0] beats0, beats1;  // - 1
  logic address_room;
  assign offset = launch_record ? rec_address
      : {head_stripe, {engine_pkg::STRIPE_BYTE_BITS{1'b0}}}
      | 32'(block) << engine_pkg::BURST_BYTE_BITS | 32'(head_first) << engine_pkg::PORT_BYTE_BITS;

  always_ff @(posedge clk) begin
    if (rst) adding <= '0;
    else adding <= {adding[0], launch_record || launch_segment};
    low <= {1'b0, arena[31:0]} + {1'b0, offset};
    beats0 <= launch_record ? LINE'(RECORD_BEATS - 1) : head_last - head_first;
    high1 <= arena[63:32] + 32'(low[32]);
    beats1 <= beats0;
  end
  logic [31:0] low1;
  always_ff @(posedge clk) low1 <= low[31:0];

  logic [LINE-1:0] aw_beats;
  fifo #(
      .WIDTH(64 + LINE),
      .DEPTH(DEPTH)
  ) u_addresses (
      .clk,
      .rst,
      .in_valid (adding[1]),
      .in_ready (address_room),
      .in_data  ({beats1, high1, low1}),
      .out_valid(awvalid),
      .out_ready(awready),
      .out_data ({aw_beats, awaddr})
  );
  assign awlen = 8'(aw_beats);

  // ---- data: bursts in the order of their addresses
  localparam int BURST_BITS = 3 + BLOCK_BITS + 2 * LINE;
  logic burst_valid, burst_pop, burst_room, burst_record, burst_buffer, burst_last_block;
  logic [BLOCK_BITS-1:0] burst_block;
  logic [LINE-1:0] burst_first, burst_last;
  fifo #(
      .WIDTH(BURST_BITS),
      .DEPTH(DEPTH)
  ) u_bursts (
      .clk,
      .rst,
      .in_valid (launch_record || launch_segment),
      .in_ready (burst_room),
      .in_data  (launch_record ? {3'b100, BLOCK_BITS'(PORT), LINE'(0), LINE'(RECORD_BEATS - 1)}
                               : {1'b0, head_buffer, last_block, block, head_first, head_last}),
      .out_valid(burst_valid),
      .out_ready(burst_pop),
      .out_data ({burst_record, burst_buffer, burst_last_block, burst_block, burst_first, burst_last})
  );

  logic sending, from_record, ends_segment, beat, last_beat, offered;
  logic [BLOCK_BITS-1:0] from_block;
  logic [LINE-1:0] last_line;
  logic beat_room;
  logic signed [FLIGHT_BITS+1:0] lead;  // addresses taken - bursts whose data has started
  logic [m3vit_pkg::COMMAND_BITS-1:0] record;
  logic [WORD_BITS-1:0] word;

  assign offered = lead > 0 || (lead == 0 && awvalid);
  assign beat = sending && beat_room;
  assign last_beat = beat && read_line == last_line;
  assign burst_pop = burst_valid && offered && (!sending || last_beat);

  always_ff @(posedge clk) begin
    if (launch_record) record <= rec_data;
    if (burst_pop) begin
      from_record <= burst_record;
      ends_segment <= burst_last_block && !burst_record;
      from_block <= burst_block;
      read_buffer <= burst_buffer;
      read_line <= burst_first;
      last_line <= burst_last;
    end else if (beat) read_line <= read_line + 1'b1;
    if (rst) begin
      sending <= 1'b0;
      lead <= '0;
      record_held <= 1'b0;
      segment_read <= '0;
    end else begin
      sending <= burst_pop || (sending && !last_beat);
      lead <= lead + $signed({{FLIGHT_BITS + 1{1'b0}}, awvalid && awready})
          - $signed({{FLIGHT_BITS + 1{1'b0}}, burst_pop});
      record_held <= launch_record || (record_held && !(last_beat && from_record));
      segment_read <= last_beat && ends_segment ? (read_buffer ? 2'b10 : 2'b01) : 2'b00;
    end
  end

  // Only this port's blocks can come, so the others do not cost a multiplexer.
  always_comb begin
    word = read_data[PORT*WORD_BITS+:WORD_BITS];
    for (int k = 1; k < BLOCKS; k = k + 1)
      if (from_block == BLOCK_BITS'(PORT + k * W)) word = read_data[(PORT+k*W)*WORD_BITS+:WORD_BITS];
    if (from_record)
      word = record[(int'(read_line)%RECORD_BEATS)*WORD_BITS+:WORD_BITS];
  end

  fifo #(
      .WIDTH(WORD_BITS + 1),
      .DEPTH(4)
  ) u_beats (
      .clk,
      .rst,
      .in_valid (sending),
      .in_ready (beat_room),
      .in_data  ({read_line == last_line, word}),
      .out_valid(wvalid),
      .out_ready(wready),
      .out_data ({wlast, wdata})
  );

  // ---- answers
  logic tag_valid, tag_room, tag_record, tag_final, answered, answer_record, answer_final, answer_bad;
  logic [EB-1:0] tag_entry;
  fifo #(
      .WIDTH(EB + 2),
      .DEPTH(DEPTH)
  ) u_tags (
      .clk,
      .rst,
      .in_valid (launch_record || launch_segment),
      .in_ready (tag_room),
      .in_data  ({launch_record, head_final && last_block, head_entry}),
      .out_valid(tag_valid),
      .out_ready(landed),
      .out_data ({tag_record, tag_final, tag_entry})
  );
  assign bready = 1'b1;
  assign landed = bvalid && bready;

  always_ff @(posedge clk) begin
    if (rst) answered <= 1'b0;
    else answered <= landed;
    if (landed) begin
      answer_record <= tag_record;
      answer_final <= tag_final;
      answer_entry <= tag_entry;
      answer_bad <= bresp != 2'b00;
    end
  end
  assign done = answered && answer_final && !answer_record;
  // Nobody could be told that the record failed; whoever reads it finds no magic.
  assign error = answered && answer_bad && !answer_record;
  assign rec_done = answered && answer_record;

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  logic stalled_aw, stalled_w;
  logic [63:0] former_awaddr;
  logic [WORD_BITS:0] former_w;
  always_ff @(posedge clk) begin
    stalled_aw <= !rst && awvalid && !awready;
    stalled_w <= !rst && wvalid && !wready;
    former_awaddr <= awaddr;
    former_w <= {wlast, wdata};
    if (armed && !rst) begin
      assert (!segment_push || segment_room) else $error("write_port: more segments than buffers");
      assert (!adding[1] || address_room) else $error("write_port: an address without room");
      assert (!(launch_record || launch_segment) || (burst_room && tag_room)) else $error("write_port: no room");
      assert (!bvalid || tag_valid) else $error("write_port: an answer without a burst");
      assert (!stalled_aw || (awvalid && awaddr == former_awaddr)) else $error("write_port: AW not stable");
      assert (!stalled_w || (wvalid && {wlast, wdata} == former_w)) else $error("write_port: W not stable");
    end
  end
`endif
endmodule
