// Counters of a program (docs/reference.md, "Record"). Cycles are counted from registered events while the program
// runs; pairs, experts, units, MACs and bytes of a layer when it retires. job_counters keeps the same per job.
module counters (
    input  logic                                 clk,
    input  logic                                 rst,
    input  logic                                 clear,  // start of a program
    input  logic                                 running,
    input  logic                                 ending,  // no beat, stripe or retirement will follow
    // Array
    input  logic                                 beat,
    input  logic                                 beat_gate,
    input  logic [engine_pkg::JOB_TAG_BITS-1:0]  beat_job_tag,
    input  logic                                 layer_first_beat,
    input  logic                                 layer_last_beat,
    input  logic [4:0]                           stall,  // weights, input, route, drain, store from bit 0; one at most
    // Reads
    input  logic                                 reading,  // at least one burst in flight
    input  logic                                 stripe_requested,
    input  logic                                 stripe_is_weight,
    input  logic                                 stripe_done,
    input  logic [engine_pkg::JOB_TAG_BITS-1:0]  stripe_job_tag,
    input  logic                                 command_executed,
    // Layers and jobs
    input  logic                                 retire,
    /* verilator lint_off UNUSEDSIGNAL */  // most of a layer is not counted
    input  engine_pkg::layer_t                   retire_layer,
    /* verilator lint_on UNUSEDSIGNAL */
    input  logic [engine_pkg::ENTRY_BITS-1:0]    retire_entry,
    input  logic                                 layer_experts_valid,
    input  logic [engine_pkg::ENTRY_BITS-1:0]    layer_experts_entry,
    input  logic [engine_pkg::EXPERT_BITS-1:0]   layer_experts,
    input  logic                                 job_crc_valid,
    input  logic [engine_pkg::ENTRY_BITS-1:0]    job_crc_entry,
    input  logic [31:0]                          job_crc,
    input  logic                                 job_pushed,
    output logic                                 jobs_room,
    // Record: the oldest closed job, and any counter one cycle after it is selected
    output logic                                 job_valid,
    input  logic                                 job_pop,
    output logic                                 jobs_empty,
    input  logic [5:0]                           select,  // 0…18 counters, 32…43 words of the job
    output logic [63:0]                          value
);
  localparam int TB = engine_pkg::JOB_TAG_BITS;
  localparam int EXPERT_BITS = engine_pkg::EXPERT_BITS;
  localparam int BITS = 48;

  // ---- events in registers
  logic on, array_busy, gate_busy, first_beat, last_beat, burst;
  logic [4:0] stalled;
  logic [TB-1:0] beat_tag, stripe_tag;
  logic stripe_asked, weight_asked, command_seen, stripe_came;
  always_ff @(posedge clk) begin
    on <= running && !rst;
    array_busy <= running && beat;
    gate_busy <= running && beat && beat_gate;
    first_beat <= running && layer_first_beat;
    last_beat <= running && layer_last_beat;
    burst <= reading;
    stalled <= running && !beat ? stall : 5'd0;
    stripe_asked <= running && stripe_requested;
    weight_asked <= running && stripe_requested && stripe_is_weight;
    stripe_came <= running && stripe_done;
    command_seen <= running && command_executed;
    if (beat) beat_tag <= beat_job_tag;
    if (stripe_done) stripe_tag <= stripe_job_tag;
  end

  // ---- cycles and reads
  logic [BITS-1:0] cycles, load_only, compute_only, overlap, neither;
  logic [BITS-1:0] array_cycles, gate_cycles;
  logic [BITS-1:0] stall_weights, stall_input, stall_route, stall_drain, stall_store;
  logic [BITS-1:0] weight_stripes, command_words;  // bytes read: in units of a command
  localparam int STRIPE_COMMANDS = m3vit_pkg::STRIPE_BYTES / m3vit_pkg::COMMAND_BYTES;
  always_ff @(posedge clk) begin
    if (clear) begin
      {cycles, load_only, compute_only, overlap, neither, array_cycles, gate_cycles} <= '0;
      {stall_weights, stall_input, stall_route, stall_drain, stall_store, weight_stripes, command_words} <= '0;
    end else begin
      if (on) cycles <= cycles + 1'b1;
      if (on && burst && !array_busy) load_only <= load_only + 1'b1;
      if (on && array_busy && !burst) compute_only <= compute_only + 1'b1;
      if (on && array_busy && burst) overlap <= overlap + 1'b1;
      if (on && !array_busy && !burst) neither <= neither + 1'b1;
      if (array_busy) array_cycles <= array_cycles + 1'b1;
      if (gate_busy) gate_cycles <= gate_cycles + 1'b1;
      if (stalled[0]) stall_weights <= stall_weights + 1'b1;
      if (stalled[1]) stall_input <= stall_input + 1'b1;
      if (stalled[2]) stall_route <= stall_route + 1'b1;
      if (stalled[3]) stall_drain <= stall_drain + 1'b1;
      if (stalled[4]) stall_store <= stall_store + 1'b1;
      if (weight_asked) weight_stripes <= weight_stripes + 1'b1;
      if (stripe_asked || command_seen) begin
        command_words <= command_words + (stripe_asked ? BITS'(STRIPE_COMMANDS) : BITS'(0)) + BITS'(command_seen);
      end
    end
  end

  // ---- retirement: experts of the entry, then units, then the sums
  logic [EXPERT_BITS-1:0] experts_of_entry;
  logic [31:0] crc_of_entry;
  ram_distributed #(
      .WIDTH(EXPERT_BITS),
      .DEPTH(engine_pkg::ENTRIES)
  ) u_experts (
      .clk,
      .write        (layer_experts_valid),
      .write_address(layer_experts_entry),
      .write_data   (layer_experts),
      .read_address (retire_entry),
      .read_data    (experts_of_entry)
  );
  ram_distributed #(
      .WIDTH(32),
      .DEPTH(engine_pkg::ENTRIES)
  ) u_crc (
      .clk,
      .write        (job_crc_valid),
      .write_address(job_crc_entry),
      .write_data   (job_crc),
      .read_address (retire_entry),
      .read_data    (crc_of_entry)
  );

  logic [1:0] layer_step, job_step;  // one bit per stage
  logic [EXPERT_BITS-1:0] layer_experts_used;
  logic [31:0] layer_pairs, closed_crc;
  logic [47:0] layer_macs;
  logic [7:0] layer_units;
  logic [EXPERT_BITS+7:0] layer_all_units;
  logic [engine_pkg::STRIPE_COUNT_BITS-1:0] layer_output_stripes;
  logic [15:0] closed_job;
  logic [TB-1:0] closed_tag;
  logic [BITS-1:0] closed_at, closed_before;
  always_ff @(posedge clk) begin
    layer_step <= {layer_step[0], retire && !retire_layer.job_end} & {2{!rst}};
    job_step <= {job_step[0], retire && retire_layer.job_end} & {2{!rst}};
    if (retire) begin
      layer_experts_used <= retire_layer.kind == engine_pkg::KIND_MOE ? experts_of_entry : EXPERT_BITS'(1);
      layer_units <= retire_layer.units;
      layer_pairs <= retire_layer.pairs;
      layer_macs <= retire_layer.macs;
      layer_output_stripes <= retire_layer.output_stripes;
      closed_job <= retire_layer.job;
      closed_tag <= retire_layer.job_tag;
      closed_crc <= crc_of_entry;
    end
    if (layer_step[0]) layer_all_units <= layer_units * layer_experts_used;
  end

  logic [BITS-1:0] pairs, experts, units, written_stripes;
  logic [31:0] macs_low, macs_high;
  logic macs_carry;
  logic [31:0] job_pairs, job_experts;
  logic [47:0] job_macs, job_cycles;
  logic job_close;
  assign job_close = job_step[1];
  always_ff @(posedge clk) begin
    if (clear) begin
      {pairs, experts, units, written_stripes, macs_low, macs_high, macs_carry} <= '0;
      {job_pairs, job_experts, job_macs, closed_before} <= '0;
    end else begin
      macs_carry <= 1'b0;
      macs_high <= macs_high + (layer_step[1] ? 32'(layer_macs[47:32]) : 32'd0) + 32'(macs_carry);
      if (layer_step[1]) begin
        pairs <= pairs + BITS'(layer_pairs);
        experts <= experts + BITS'(layer_experts_used);
        units <= units + BITS'(layer_all_units);
        written_stripes <= written_stripes + BITS'(layer_output_stripes);
        {macs_carry, macs_low} <= {1'b0, macs_low} + {1'b0, layer_macs[31:0]};
        job_pairs <= job_pairs + layer_pairs;
        job_experts <= job_experts + 32'(layer_experts_used);
        job_macs <= job_macs + layer_macs;
      end
      if (job_step[0]) begin
        closed_at <= cycles;
        job_cycles <= cycles - closed_before;
      end
      if (job_step[1]) begin
        closed_before <= closed_at;
        job_pairs <= '0;
        job_experts <= '0;
        job_macs <= '0;
      end
    end
  end

  logic [63:0] job_value;
  job_counters u_jobs (
      .clk,
      .rst,
      .clear,
      .ending,
      .running(on),
      .beat   (array_busy),
      .gate   (gate_busy),
      .first  (first_beat),
      .last   (last_beat),
      .tag    (beat_tag),
      .stripe (stripe_came),
      .stripe_tag,
      .pushed (job_pushed),
      .room   (jobs_room),
      .close  (job_close),
      .closed_tag,
      .closed_job,
      .closed_cycles (job_cycles),
      .closed_pairs  (job_pairs),
      .closed_experts(job_experts),
      .closed_macs   (job_macs),
      .closed_crc,
      .valid  (job_valid),
      .pop    (job_pop),
      .empty  (jobs_empty),
      .select (select[3:0]),
      .value  (job_value)
  );

  // ---- record
  always_ff @(posedge clk) begin
    case (select)
      6'd0: value <= 64'(cycles);
      6'd1: value <= 64'(load_only);
      6'd2: value <= 64'(compute_only);
      6'd3: value <= 64'(overlap);
      6'd4: value <= 64'(neither);
      6'd5: value <= 64'(stall_weights);
      6'd6: value <= 64'(stall_input);
      6'd7: value <= 64'(stall_route);
      6'd8: value <= 64'(stall_drain);
      6'd9: value <= 64'(stall_store);
      6'd10: value <= 64'(array_cycles);
      6'd11: value <= 64'(gate_cycles);
      6'd12: value <= 64'(command_words) << $clog2(m3vit_pkg::COMMAND_BYTES);
      6'd13: value <= 64'(written_stripes) << engine_pkg::STRIPE_BYTE_BITS;
      6'd14: value <= 64'(weight_stripes) << engine_pkg::STRIPE_BYTE_BITS;
      6'd15: value <= 64'(pairs);
      6'd16: value <= 64'(experts);
      6'd17: value <= 64'(units);
      6'd18: value <= {macs_high, macs_low};
      default: value <= select[5] ? job_value : 64'd0;
    endcase
  end
endmodule
