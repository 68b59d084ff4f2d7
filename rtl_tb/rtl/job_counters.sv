// Counters per job. The array may already work on later jobs while an earlier one waits for its last writes, so what
// the array counts for a job is put aside when the next job's first beat comes. A closed job is handed out (`valid`)
// when its boundary is known: at that beat, at the end of the program, or when a later job closes without a beat.
module job_counters (
    input  logic                                clk,
    input  logic                                rst,
    input  logic                                clear,
    input  logic                                ending,
    input  logic                                running,
    // Beats in order; first and last of a layer
    input  logic                                beat,
    input  logic                                gate,
    input  logic                                first,
    input  logic                                last,
    input  logic [engine_pkg::JOB_TAG_BITS-1:0] tag,
    // Stripes received
    input  logic                                stripe,
    input  logic [engine_pkg::JOB_TAG_BITS-1:0] stripe_tag,
    // Jobs that the program has begun to close; so few at a time that tags tell them apart
    input  logic                                pushed,
    output logic                                room,
    // A job closes
    input  logic                                close,
    input  logic [engine_pkg::JOB_TAG_BITS-1:0] closed_tag,
    input  logic [15:0]                         closed_job,
    input  logic [47:0]                         closed_cycles,
    input  logic [31:0]                         closed_pairs,
    input  logic [31:0]                         closed_experts,
    input  logic [47:0]                         closed_macs,
    input  logic [31:0]                         closed_crc,
    // The oldest closed job, word by word
    output logic                                valid,
    input  logic                                pop,
    output logic                                empty,
    input  logic [3:0]                          select,
    output logic [63:0]                         value
);
  localparam int TB = engine_pkg::JOB_TAG_BITS;
  localparam int TAGS = 1 << TB;
  localparam int BITS = 40;  // cycles of a job: an hour at 300 MHz
  localparam int STRIPES = 22;
  localparam int CLOSED_BITS = TB + 16 + 48 + 32 + 32 + 48 + 32;
  localparam int ASIDE_BITS = 5 * BITS + STRIPES;

  // ---- closed jobs
  logic [TB-1:0] head_tag;
  logic [15:0] head_job;
  logic [47:0] head_cycles, head_macs;
  logic [31:0] head_pairs, head_experts, head_crc;
  logic head_valid, queue_ready;
  logic [TB:0] closed, begun;  // closed: in the queue; begun: pushed and not handed out
  fifo #(
      .WIDTH(CLOSED_BITS),
      .DEPTH(TAGS)
  ) u_closed (
      .clk,
      .rst      (rst || clear),
      .in_valid (close),
      .in_ready (queue_ready),
      .in_data  ({closed_tag, closed_job, closed_cycles, closed_pairs, closed_experts, closed_macs, closed_crc}),
      .out_valid(head_valid),
      .out_ready(pop),
      .out_data ({head_tag, head_job, head_cycles, head_pairs, head_experts, head_macs, head_crc})
  );
  assign empty = !head_valid;
  assign room = begun < (TB + 1)'(TAGS - 2);
  always_ff @(posedge clk) begin
    if (rst || clear) begin
      closed <= '0;
      begun <= '0;
    end else begin
      closed <= closed + (TB + 1)'(close) - (TB + 1)'(pop);
      begun <= begun + (TB + 1)'(pushed) - (TB + 1)'(pop);
    end
  end

  // ---- stripes received per job
  logic [TAGS*STRIPES-1:0] received;
  for (genvar t = 0; t < TAGS; t = t + 1) begin : g_tag
    always_ff @(posedge clk) begin
      if (clear || (pop && head_tag == TB'(t))) received[t*STRIPES+:STRIPES] <= '0;
      else if (stripe && stripe_tag == TB'(t)) begin
        received[t*STRIPES+:STRIPES] <= received[t*STRIPES+:STRIPES] + 1'b1;
      end
    end
  end

  // ---- the job whose beat was last
  logic live;  // there is one
  logic [TB-1:0] live_tag, next_tag;
  logic [BITS-1:0] array_cycles, gate_cycles, layer_idle, layer_idle_max, gap;
  logic [STRIPES-1:0] bytes_ahead;  // in stripes
  logic other, put_aside, give_up;
  assign next_tag = tag + 1'b1;
  assign other = beat && (!live || tag != live_tag);
  // The next job has no beat that could end the boundary
  assign give_up = head_valid && live && live_tag == head_tag && (ending || closed > (TB + 1)'(1));
  assign put_aside = live && (other || give_up);

  logic [ASIDE_BITS-1:0] aside;
  logic [TAGS-1:0] aside_valid;
  logic [BITS-1:0] boundary;
  assign boundary = other && tag == live_tag + 1'b1 ? gap : '0;
  ram_distributed #(
      .WIDTH(ASIDE_BITS),
      .DEPTH(TAGS)
  ) u_aside (
      .clk,
      .write        (put_aside),
      .write_address(live_tag),
      .write_data   ({boundary, bytes_ahead, layer_idle, layer_idle_max, array_cycles, gate_cycles}),
      .read_address (head_tag),
      .read_data    (aside)
  );

  always_ff @(posedge clk) begin
    if (beat) begin
      if (other) begin
        array_cycles <= BITS'(1);
        gate_cycles <= BITS'(gate);
        layer_idle <= '0;
        layer_idle_max <= '0;
        bytes_ahead <= '0;
        live_tag <= tag;
      end else begin
        array_cycles <= array_cycles + 1'b1;
        if (gate) gate_cycles <= gate_cycles + 1'b1;
        if (first) begin
          layer_idle <= layer_idle + gap;
          if (gap > layer_idle_max) layer_idle_max <= gap;
        end
      end
      if (last) bytes_ahead <= received[next_tag*STRIPES+:STRIPES];
    end
    if (beat) gap <= '0;
    else if (running) gap <= gap + 1'b1;
    if (rst || clear) begin
      live <= 1'b0;
      aside_valid <= '0;
    end else begin
      if (beat) live <= 1'b1;
      else if (give_up) live <= 1'b0;
      if (pop) aside_valid[head_tag] <= 1'b0;
      if (put_aside) aside_valid[live_tag] <= 1'b1;
    end
  end

  // Neither aside nor live: a job without a beat
  logic has_counts;
  assign has_counts = aside_valid[head_tag];
  assign valid = head_valid && (has_counts || !live || live_tag != head_tag);

  logic [BITS-1:0] out_boundary, out_idle, out_idle_max, out_array, out_gate;
  logic [STRIPES-1:0] out_ahead;
  assign {out_boundary, out_ahead, out_idle, out_idle_max, out_array, out_gate} = has_counts ? aside : '0;

  always_comb begin
    case (select)
      4'd0: value = 64'(head_job);
      4'd1: value = 64'(head_cycles);
      4'd2: value = 64'(out_boundary);
      4'd3: value = 64'(out_ahead) << engine_pkg::STRIPE_BYTE_BITS;
      4'd4: value = 64'(out_idle);
      4'd5: value = 64'(out_idle_max);
      4'd6: value = 64'(out_array);
      4'd7: value = 64'(out_gate);
      4'd8: value = 64'(head_pairs);
      4'd9: value = 64'(head_experts);
      4'd10: value = 64'(head_macs);
      4'd11: value = 64'(head_crc);
      default: value = '0;
    endcase
  end

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) begin
    if (rst) armed <= 1'b1;
    if (armed && !rst && !clear && close && !queue_ready) $error("job_counters: more closed jobs than tags");
    if (armed && !rst && !clear && pop && !valid) $error("job_counters: nothing to hand out");
    if (armed && !rst && beat && (first || !live) && other && !first) $error("job_counters: job begins within a layer");
  end
`else
  logic unused;
  assign unused = queue_ready;
`endif
endmodule
