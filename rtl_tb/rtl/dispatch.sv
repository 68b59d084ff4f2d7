// Cuts every layer into tiles: up to T tokens through one unit. Per layer: the gate over all tokens (MOE), then every unit
// over every token, or over the queue of its expert. Addresses of input lines and accumulator rows are worked out here, one
// token per cycle; a tile leaves when its weights have a slot, its input rows have arrived and its accumulator rows are free.
module dispatch (
    input  logic                                          clk,
    input  logic                                          rst,
    // Layers
    input  logic                                          layer_valid,
    // verilator lint_off UNUSEDSIGNAL
    input  engine_pkg::layer_t                            layer,  // most of it concerns others
    // verilator lint_on UNUSEDSIGNAL
    input  logic [engine_pkg::ENTRY_BITS-1:0]             entry,
    output logic                                          layer_advance,
    // Weight slots, order of experts, queues
    input  logic                                          slot_valid,
    output logic                                          slot_ready,
    input  logic [engine_pkg::SLOT_BITS-1:0]              slot,
    input  logic                                          order_valid,
    output logic                                          order_ready,
    // verilator lint_off UNUSEDSIGNAL
    input  engine_pkg::order_t                            order,  // which expert it is matters to the load unit
    // verilator lint_on UNUSEDSIGNAL
    output logic                                          walk_start,
    output logic [engine_pkg::NODE_BITS-1:0]              walk_head,
    output logic [engine_pkg::TOKEN_BITS-1:0]             walk_count,
    input  logic                                          walk_valid,
    output logic                                          walk_ready,
    input  logic [engine_pkg::TOKEN_BITS-1:0]             walk_token,
    input  logic [engine_pkg::WEIGHT17-1:0]               walk_weight,
    input  logic                                          append_valid,  // a token was routed: nothing added to it yet
    input  logic [engine_pkg::TOKEN_BITS-1:0]             append_token,
    // Rings
    input  logic                                          line_written,  // an input line has arrived
    input  logic                                          wide_freed_valid,  // accumulator rows have been stored
    input  logic [engine_pkg::WIDE_COUNT_BITS-1:0]        wide_freed,
    // Tiles
    output logic                                          tile_valid,
    input  logic                                          tile_ready,
    output engine_pkg::tile_t                             tile,
    output logic [engine_pkg::INPUT_LINE_BITS-1:0]        tile_lines,  // per token
    output logic [engine_pkg::T*engine_pkg::STORE_LINE_BITS-1:0] tile_address,  // line 0 of every lane in the ring
    output logic [engine_pkg::STORE_COUNT_BITS-1:0]       tile_frees,  // input lines that nobody needs after this tile
    input  logic                                          tile_done,  // its last beat was sent
    // What it waits for: {store, route, input, weights}
    output logic [3:0]                                    waits,
    // Whether everything before the entry that the load unit is at has been computed
    input  logic [engine_pkg::ENTRY_BITS-1:0]             load_entry,
    output logic                                          computed
);
  localparam int T = engine_pkg::T;
  localparam int TB = engine_pkg::TOKEN_BITS;
  localparam int SB = engine_pkg::STORE_LINE_BITS;
  localparam int WB = engine_pkg::WIDE_ADDRESS_BITS;
  localparam int LB = engine_pkg::LANE_BITS;
  localparam int ABS_BITS = 16;  // running counts, compared by difference
  localparam int CB = engine_pkg::STORE_COUNT_BITS;
  localparam int RB = engine_pkg::WIDE_COUNT_BITS;

  typedef enum logic [2:0] {
    IDLE,
    ITEM,  // wait for weights (and the expert) of the next unit
    COLLECT,  // tokens of a tile
    FLUSH,  // address arithmetic
    EMIT,
    NEXT  // unit, expert or layer
  } state_e;
  state_e state;

  // ---- the unit at hand
  logic gate, moe, last_expert, last_unit, last_item, first_pass, fresh_layer;
  logic [7:0] unit;
  logic [engine_pkg::OUTPUT_TILE_BITS-1:0] first_tile;
  logic [TB-1:0] left;  // tokens of the queue not yet in a tile
  logic [TB-1:0] position;  // next token of a dense queue
  logic queued;  // tokens come from a linked list
  assign moe = layer.kind == engine_pkg::KIND_MOE;
  assign queued = moe && !gate;
  assign last_unit = gate || unit == layer.units - 8'd1;
  assign last_item = !gate && last_expert && last_unit;

  // ---- rings: where this layer's input lines and accumulator rows begin
  logic [SB-1:0] input_base, run_base, next_base;  // run: of the tile at hand in a dense pass
  logic [ABS_BITS-1:0] run_lines, written;  // lines up to the end of the tile, lines arrived
  logic [WB-1:0] wide_base;
  logic [RB:0] wide_used, wide_claim;  // rows of earlier layers not yet stored; claimed here
  logic [CB-1:0] total_lines;  // of a layer that is held whole

  // ---- collecting
  logic [engine_pkg::COUNT_BITS-1:0] count;
  logic accept, full;
  logic [TB-1:0] token;
  logic [engine_pkg::WEIGHT17-1:0] weight;
  assign token = queued ? walk_token : position;
  assign weight = queued ? walk_weight : engine_pkg::WEIGHT17'(m3vit_pkg::COMBINE_ONE);
  assign full = count == engine_pkg::COUNT_BITS'(T) || left == '0;
  assign walk_ready = state == COLLECT && queued && !full;
  assign accept = state == COLLECT && !full && (!queued || walk_valid);

  // Visited bits: which tokens of the layer some expert has already added to.
  logic visited, visited_write, visited_value;
  logic [TB-1:0] visited_address;
  assign visited_write = append_valid || (accept && queued && unit == 8'd0);
  assign visited_address = append_valid ? append_token : token;
  assign visited_value = !append_valid;
  ram_distributed #(
      .WIDTH(1),
      .DEPTH(1 << TB)
  ) u_visited (
      .clk,
      .write        (visited_write),
      .write_address(visited_address),
      .write_data   (visited_value),
      .read_address (token),
      .read_data    (visited)
  );

  // ---- address pipeline: products, then base and ring
  logic s1_valid, s2_valid;
  logic [LB-1:0] s1_lane, s2_lane;
  logic [SB:0] s1_line;
  logic [WB:0] s1_row;
  logic [SB-1:0] s2_line;
  logic [WB-1:0] s2_row;
  logic [SB:0] line_sum;
  logic [WB:0] row_sum;
  assign line_sum = {1'b0, queued ? input_base : run_base} + s1_line;
  assign row_sum = {1'b0, wide_base} + s1_row + (WB + 1)'(first_tile);
  always_ff @(posedge clk) begin
    s1_valid <= !rst && accept;
    s1_lane <= count[LB-1:0];
    if (accept) begin
      s1_line <= (SB + 1)'(queued ? token : TB'(count)) * (SB + 1)'(layer.input_lines);
      s1_row <= (WB + 1)'(token) * (WB + 1)'(layer.output_tiles);
    end
    s2_valid <= !rst && s1_valid;
    s2_lane <= s1_lane;
    s2_line <= SB'(line_sum >= (SB + 1)'(engine_pkg::STORE_LINES) ? line_sum - (SB + 1)'(engine_pkg::STORE_LINES)
                                                                  : line_sum);
    s2_row <= WB'(row_sum >= (WB + 1)'(engine_pkg::WIDE_ROWS) ? row_sum - (WB + 1)'(engine_pkg::WIDE_ROWS) : row_sum);
  end

  for (genvar t = 0; t < T; t = t + 1) begin : g_lane
    always_ff @(posedge clk) begin
      if (accept && count == engine_pkg::COUNT_BITS'(t)) begin
        tile.token[t*TB+:TB] <= token;
        tile.weight[t*engine_pkg::WEIGHT17+:engine_pkg::WEIGHT17] <= weight;
        tile.fresh[t] <= layer.kind == engine_pkg::KIND_ACCUMULATE || (unit == 8'd0 && !(moe && visited));
      end
      if (s2_valid && s2_lane == LB'(t)) begin
        tile_address[t*SB+:SB] <= s2_line;
        tile.wide_row[t*WB+:WB] <= s2_row;
      end
    end
  end

  // ---- what a tile needs before it may leave
  logic input_there, wide_there, last_tile;
  logic [ABS_BITS-1:0] missing;
  assign missing = written - run_lines;  // negative: lines still on their way
  assign input_there = queued || !missing[ABS_BITS-1];
  assign wide_there = tile.sink != engine_pkg::SINK_COMBINE
      || wide_used + wide_claim <= (RB + 1)'(engine_pkg::WIDE_ROWS);
  assign last_tile = left == '0;
  assign tile_valid = state == EMIT && input_there && wide_there;

  logic [CB-1:0] tile_lines_all;
  logic [RB-1:0] tile_rows_all;
  logic [SB:0] run_sum;
  logic [WB:0] wide_sum;
  assign tile_lines = layer.input_lines;
  assign run_sum = {1'b0, run_base} + (SB + 1)'(tile_lines_all);
  assign wide_sum = {1'b0, wide_base} + (WB + 1)'(layer.wide_rows);

  assign slot_ready = state == NEXT;
  assign order_ready = state == ITEM && queued && unit == 8'd0 && slot_valid;
  assign layer_advance = layer_valid && ((state == IDLE && layer.job_end) || (state == NEXT && last_item));

  logic begin_item;
  assign begin_item = state == ITEM && slot_valid && (!queued || unit != 8'd0 || order_valid);
  logic [engine_pkg::NODE_BITS-1:0] head;
  logic [TB-1:0] queue_length;
  assign walk_start = begin_item && queued;
  assign walk_head = unit == 8'd0 ? order.head : head;
  assign walk_count = unit == 8'd0 ? order.count : queue_length;

  always_ff @(posedge clk) begin
    case (state)
      IDLE: begin
        gate <= moe;
        last_expert <= !moe;
        unit <= 8'd0;
        first_tile <= '0;
        first_pass <= 1'b1;
        fresh_layer <= 1'b1;
        run_base <= input_base;
        total_lines <= CB'(layer.tokens) * CB'(layer.input_lines);
      end
      ITEM:
      if (begin_item) begin
        position <= '0;
        left <= queued ? walk_count : layer.tokens;
        count <= '0;
        if (queued && unit == 8'd0) begin
          head <= order.head;
          queue_length <= order.count;
          last_expert <= order.last;
        end
        tile.sink <= gate ? engine_pkg::SINK_GATE
                   : layer.kind == engine_pkg::KIND_LINEAR ? engine_pkg::SINK_LINEAR : engine_pkg::SINK_COMBINE;
        tile.narrow <= layer.narrow;
        tile.entry <= entry;
        tile.job_tag <= layer.job_tag;
        tile.slot <= slot;
        tile.input_beats <= layer.input_beats;
        tile.hidden_beats <= layer.hidden_beats;
        tile.hidden_tiles <= gate ? '0 : layer.hidden_tiles;
        tile.tiles <= gate ? layer.gate_tiles : last_unit ? layer.last_tiles : layer.unit_tiles;
        tile.first_tile <= first_tile;
      end
      COLLECT: begin
        if (accept) begin
          count <= count + 1'b1;
          position <= position + 1'b1;
          left <= left - 1'b1;
        end
        tile_lines_all <= CB'(count) * CB'(layer.input_lines);
        tile_rows_all <= RB'(count) * RB'(layer.output_tiles);
      end
      FLUSH: begin
        tile.count <= count;
        tile.first_in_layer <= fresh_layer;
        tile.last_in_unit <= last_tile;
        tile.last_in_layer <= last_tile && last_item;
        tile.completes <= layer.kind == engine_pkg::KIND_LINEAR || gate ? '0
                        : moe ? (last_tile && last_item ? layer.wide_rows : '0)
                        : last_unit ? tile_rows_all : '0;
        tile_frees <= moe ? (last_tile && last_item ? total_lines : '0)
                    : last_unit ? tile_lines_all : '0;
        // Rows that this tile may write: those of a dense layer arrive in order, an expert's anywhere.
        wide_claim <= moe ? (RB + 1)'(layer.wide_rows)
                    : !first_pass ? wide_claim
                    : (fresh_layer ? '0 : wide_claim) + (RB + 1)'(tile_rows_all);
      end
      EMIT:
      if (tile_valid && tile_ready) begin
        count <= '0;
        fresh_layer <= 1'b0;
        run_base <= SB'(run_sum >= (SB + 1)'(engine_pkg::STORE_LINES) ? run_sum - (SB + 1)'(engine_pkg::STORE_LINES)
                                                                      : run_sum);
      end
      NEXT: begin
        gate <= 1'b0;
        first_pass <= 1'b0;
        if (first_pass) next_base <= run_base;
        if (!queued) run_base <= input_base;
        unit <= last_unit ? 8'd0 : unit + 8'd1;
        first_tile <= gate || layer.hidden_tiles != '0 ? '0
                    : first_tile + engine_pkg::OUTPUT_TILE_BITS'(layer.unit_tiles);
      end
      default: ;
    endcase

    // The ring moves on when a layer is dispatched.
    if (rst) begin
      input_base <= '0;
      wide_base <= '0;
    end else if (state == NEXT && last_item) begin
      input_base <= first_pass ? run_base : next_base;
      wide_base <= WB'(wide_sum >= (WB + 1)'(engine_pkg::WIDE_ROWS) ? wide_sum - (WB + 1)'(engine_pkg::WIDE_ROWS)
                                                                    : wide_sum);
    end
    if (rst) written <= '0;
    else if (line_written) written <= written + 1'b1;
    if (rst) run_lines <= '0;
    else if (state == COLLECT && full && first_pass)
      run_lines <= run_lines + ABS_BITS'(ABS_BITS'(count) * ABS_BITS'(layer.input_lines));
    // Layers before this one still hold wide_used rows; this one joins them when it has been dispatched.
    if (rst) wide_used <= '0;
    else
      wide_used <= wide_used + (state == NEXT && last_item ? (RB + 1)'(layer.wide_rows) : '0)
                 - (wide_freed_valid ? (RB + 1)'(wide_freed) : '0);

    if (rst) state <= IDLE;
    else
      case (state)
        IDLE: if (layer_valid && !layer.job_end) state <= ITEM;
        ITEM: if (begin_item) state <= COLLECT;
        COLLECT: if (full) state <= FLUSH;
        FLUSH: state <= EMIT;
        EMIT: if (tile_valid && tile_ready) state <= last_tile ? NEXT : COLLECT;
        default: state <= last_item ? IDLE : ITEM;
      endcase
  end

  assign waits[0] = state == ITEM && !slot_valid && !(queued && unit == 8'd0 && !order_valid);
  assign waits[2] = (state == ITEM && queued && unit == 8'd0 && !order_valid) || (state == COLLECT && queued);
  assign waits[3] = state == EMIT && input_there && !wide_there;
  assign waits[1] = state != IDLE && !waits[0] && !waits[2] && !waits[3];  // rows on their way, or being addressed

  // ---- for loads that must not run ahead
  logic [3:0] outstanding;
  always_ff @(posedge clk) begin
    if (rst) outstanding <= '0;
    else outstanding <= outstanding + 4'(tile_valid && tile_ready) - 4'(tile_done);
  end
  assign computed = entry == load_entry && outstanding == '0 && (state == IDLE || state == ITEM);
endmodule
