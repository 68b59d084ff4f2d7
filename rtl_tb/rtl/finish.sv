// Turns complete accumulator rows into output rows, layer by layer and token by token: adds residual << 16, rounds half
// to even, saturates to s16 and packs the values into lines. Works CHUNK lanes at a time, half a line per cycle where O
// allows, which is what two write ports take. Rows are fetched ahead whenever the combine unit leaves the read port
// free.
module finish (
    input  logic                                      clk,
    input  logic                                      rst,
    // Entry table: LINEAR layers and JOB_ENDs are passed over
    input  logic                                      layer_valid,
    // verilator lint_off UNUSEDSIGNAL
    input  engine_pkg::layer_t                        layer,  // most of it concerns others
    // verilator lint_on UNUSEDSIGNAL
    input  logic [     engine_pkg::ENTRY_BITS-1:0]    entry,
    output logic                                      layer_advance,
    // Residual rows, without the padding of their last stripe. The FIFO holds engine_pkg::RESIDUAL_LINES; whoever requests lines
    // counts those that it gives back.
    input  logic                                      residual_valid,
    output logic                                      residual_ready,
    input  logic [      engine_pkg::LINE_BITS-1:0]    residual_line,
    output logic                                      residual_popped,
    // Accumulator rows, in the order of their addresses
    input  logic [engine_pkg::WIDE_COUNT_BITS-1:0]    completed,
    output logic                                      wide_read,
    input  logic                                      wide_read_ready,
    output logic [engine_pkg::WIDE_ADDRESS_BITS-1:0]  wide_read_address,
    input  logic [  engine_pkg::WIDE_ROW_BITS-1:0]    wide_read_data,
    output logic                                      wide_freed,  // one row
    // Output lines
    output logic                                      line_valid,
    input  logic                                      line_ready,
    output logic [      engine_pkg::LINE_BITS-1:0]    line_data,
    output logic [          32-$clog2(m3vit_pkg::LINE_BYTES)-1:0] line_address,  // in the arena, before interleaving
    output logic                                      line_final,  // of the layer
    output logic [     engine_pkg::ENTRY_BITS-1:0]    line_entry
);
  localparam int O = engine_pkg::O;
  localparam int WIDE = engine_pkg::WIDE_BITS;
  localparam int FRACTION = m3vit_pkg::COMBINE_FRACTION;
  localparam int LINE_BITS = engine_pkg::LINE_BITS;
  localparam int ADDRESS_BITS = 32 - $clog2(m3vit_pkg::LINE_BYTES);
  localparam int VALUES = m3vit_pkg::LINE_BYTES / 2;  // of a line
  localparam int VALUE_BITS = $clog2(VALUES);
  localparam int ALIGNED = O & -O;  // largest power of two that divides a row
  localparam int CHUNK = ALIGNED < VALUES / 2 ? ALIGNED : VALUES / 2;
  localparam int STEPS = VALUES / CHUNK;  // chunks of a line
  localparam int STEP_BITS = $clog2(STEPS);
  localparam int PARTS = O / CHUNK;  // chunks of a row
  localparam int PART_BITS = PARTS < 2 ? 1 : $clog2(PARTS);
  localparam int ROWS = 8;  // fetched ahead
  localparam int ROW_COUNT_BITS = $clog2(ROWS + 1);
  localparam int LINES = 32;  // finished, waiting for the store unit
  localparam int LINE_COUNT_BITS = $clog2(LINES + 1);

  // ---- rows: fetched in ring order whatever layer they belong to
  logic [engine_pkg::WIDE_COUNT_BITS-1:0] complete;  // written and not read
  logic [ROW_COUNT_BITS-1:0] held;  // in the FIFO or on their way to it
  logic [1:0] fetching;
  logic fetch, row_valid, row_pop;
  logic [O*WIDE-1:0] row_data;

  assign wide_read = complete != '0 && held != ROW_COUNT_BITS'(ROWS);
  assign fetch = wide_read && wide_read_ready;

  always_ff @(posedge clk) begin
    if (rst) begin
      complete <= '0;
      held <= '0;
      fetching <= '0;
      wide_freed <= 1'b0;
      wide_read_address <= '0;
    end else begin
      complete <= complete + completed - engine_pkg::WIDE_COUNT_BITS'(fetch);
      held <= held + ROW_COUNT_BITS'(fetch) - ROW_COUNT_BITS'(row_pop);
      fetching <= {fetching[0], fetch};
      wide_freed <= fetch;
      if (fetch)
        wide_read_address <= int'(wide_read_address) == engine_pkg::WIDE_ROWS - 1 ? '0 : wide_read_address + 1'b1;
    end
  end

  logic rows_room;
  fifo #(
      .WIDTH(O * WIDE),
      .DEPTH(ROWS)
  ) u_rows (
      .clk,
      .rst,
      .in_valid (fetching[1]),
      .in_ready (rows_room),
      .in_data  (wide_read_data),
      .out_valid(row_valid),
      .out_ready(row_pop),
      .out_data (row_data)
  );

  // ---- residual lines
  logic residual_there, residual_pop;
  logic [LINE_BITS-1:0] residual_head;
  fifo #(
      .WIDTH(LINE_BITS),
      .DEPTH(engine_pkg::RESIDUAL_LINES)
  ) u_residual (
      .clk,
      .rst,
      .in_valid (residual_valid),
      .in_ready (residual_ready),
      .in_data  (residual_line),
      .out_valid(residual_there),
      .out_ready(residual_pop),
      .out_data (residual_head)
  );
  always_ff @(posedge clk) residual_popped <= residual_pop && !rst;

  // ---- walk over the layer: token, line, step
  logic running, wanted, step_now, last_step, last_line, last_token, token_end;
  logic [engine_pkg::TOKEN_BITS-1:0] tokens_left;
  logic [engine_pkg::OUTPUT_LINE_BITS-1:0] lines_left;  // of the token
  logic [engine_pkg::OUTPUT_TILE_BITS-1:0] rows_left;  // of the token; 0 where the last line reaches past its rows
  logic [STEP_BITS-1:0] step;
  logic [PART_BITS-1:0] part;  // of the row
  logic [ADDRESS_BITS-1:0] address;
  logic [VALUES-1:0] tail;  // values of a token's last line that are outputs
  logic [LINE_COUNT_BITS-1:0] lines_held;
  logic line_start, line_pop;

  assign wanted = layer_valid && !layer.job_end && layer.kind != engine_pkg::KIND_LINEAR;
  assign last_step = step == STEP_BITS'(STEPS - 1);
  assign last_line = lines_left == engine_pkg::OUTPUT_LINE_BITS'(1);
  assign last_token = tokens_left == engine_pkg::TOKEN_BITS'(1);
  assign token_end = last_step && last_line;
  assign step_now = running && residual_there && (row_valid || rows_left == '0)
      && (step != '0 || lines_held != LINE_COUNT_BITS'(LINES));
  assign row_pop = step_now && rows_left != '0 && (token_end || part == PART_BITS'(PARTS - 1));
  assign residual_pop = step_now && last_step;
  assign line_start = step_now && step == '0;
  assign layer_advance = layer_valid && (running ? step_now && token_end && last_token : !wanted);

  always_ff @(posedge clk) begin
    if (!running) begin
      tokens_left <= layer.tokens;
      lines_left <= layer.output_lines;
      rows_left <= layer.output_tiles;
      address <= layer.output_rows[31-:ADDRESS_BITS];
      tail <= layer.outputs[VALUE_BITS-1:0] == '0 ? '1 : ~({VALUES{1'b1}} << layer.outputs[VALUE_BITS-1:0]);
    end else if (step_now) begin
      if (row_pop) rows_left <= rows_left - 1'b1;
      if (last_step) begin
        address <= address + 1'b1;
        lines_left <= lines_left - 1'b1;
      end
      if (token_end) begin
        tokens_left <= tokens_left - 1'b1;
        lines_left <= layer.output_lines;
        rows_left <= layer.output_tiles;
      end
    end
    if (rst) begin
      running <= 1'b0;
      step <= '0;
      part <= '0;
    end else begin
      if (!running) running <= wanted;
      else if (layer_advance) running <= 1'b0;
      if (step_now) begin
        step <= last_step ? '0 : step + 1'b1;
        part <= row_pop || rows_left == '0 ? '0 : part + 1'b1;
      end
    end
  end

  // ---- pipeline: choose, round, add, saturate, assemble
  localparam int STAGES = 5;
  localparam int INFO_BITS = ADDRESS_BITS + 1 + engine_pkg::ENTRY_BITS;
  logic [STAGES-1:0] valid, ends;  // a chunk; the last of its line
  logic [STAGES-1:0][INFO_BITS-1:0] info;
  always_ff @(posedge clk) begin
    if (rst) valid <= '0;
    else valid <= {valid[STAGES-2:0], step_now};
    ends <= {ends[STAGES-2:0], last_step};
    if (residual_pop) info[0] <= {address, token_end && last_token, entry};
    for (int s = 1; s < STAGES; s = s + 1) if (valid[s-1] && ends[s-1]) info[s] <= info[s-1];
  end

  logic [CHUNK*WIDE-1:0] chunk;
  logic [CHUNK*16-1:0] residual, saturated;
  logic [CHUNK-1:0] keep;
  always_ff @(posedge clk)
    if (step_now) begin
      chunk <= row_data[int'(part)*CHUNK*WIDE+:CHUNK*WIDE];
      residual <= residual_head[int'(step)*CHUNK*16+:CHUNK*16];
      keep <= last_line ? tail[int'(step)*CHUNK+:CHUNK] : '1;
    end

  for (genvar c = 0; c < CHUNK; c = c + 1) begin : g_lane
    finish_lane #(
        .WIDE(WIDE),
        .FRACTION(FRACTION)
    ) u_lane (
        .clk,
        .enable  (valid[2:0]),
        .value   (chunk[c*WIDE+:WIDE]),
        .residual(residual[c*16+:16]),
        .keep    (keep[c]),
        .result  (saturated[c*16+:16])
    );
  end

  logic [LINE_BITS-1:0] assembled;
  always_ff @(posedge clk) if (valid[3]) assembled <= {saturated, assembled[LINE_BITS-1:CHUNK*16]};

  logic lines_room;
  fifo #(
      .WIDTH(LINE_BITS + INFO_BITS),
      .DEPTH(LINES)
  ) u_lines (
      .clk,
      .rst,
      .in_valid (valid[4] && ends[4]),
      .in_ready (lines_room),
      .in_data  ({info[4], assembled}),
      .out_valid(line_valid),
      .out_ready(line_ready),
      .out_data ({line_address, line_final, line_entry, line_data})
  );
  assign line_pop = line_valid && line_ready;
  always_ff @(posedge clk)
    if (rst) lines_held <= '0;
    else lines_held <= lines_held + LINE_COUNT_BITS'(line_start) - LINE_COUNT_BITS'(line_pop);

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst) begin
      assert (!fetching[1] || rows_room) else $error("finish: a row without room");
      assert (!residual_valid || residual_ready) else $error("finish: a residual line without room");
      assert (!(valid[4] && ends[4]) || lines_room) else $error("finish: a line without room");
      assert (!(step_now && token_end) || rows_left == '0 || (rows_left == 1 && row_pop))
      else $error("finish: a token ends before its rows do");
      assert (int'(complete) + int'(completed) <= engine_pkg::WIDE_ROWS) else $error("finish: more rows than exist");
    end
`endif
endmodule
