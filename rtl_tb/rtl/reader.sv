// Reads for everybody. Stripes of weights (W), input rows (X) and residual rows (R) go to all ports in lockstep and come
// back as lines; commands go to port 0. The oldest command in flight is served first, so that what runs ahead never takes
// bandwidth from what is needed now; within a command weights and input rows alternate and residual rows come last.
module reader (
    input  logic                                       clk,
    input  logic                                       rst,
    input  logic                                       halt,  // request nothing new
    input  logic [        m3vit_pkg::PORTS*64-1:0]     arena,
    input  logic [      engine_pkg::ENTRY_BITS-1:0]    oldest,  // entry in flight
    // Stripe requests: source 0 weights, 1 input rows, 2 residual rows
    input  logic [                              2:0]   request_valid,
    output logic [                              2:0]   request_ready,
    input  logic [                         3*32-1:0]   request_offset,
    input  logic [    3*engine_pkg::ENTRY_BITS-1:0]    request_entry,
    input  logic [  3*engine_pkg::JOB_TAG_BITS-1:0]    request_job_tag,
    // Commands: 64 bytes each
    input  logic                                       command_request_valid,
    output logic                                       command_request_ready,
    input  logic [                             31:0]   command_request_offset,
    output logic                                       command_data_valid,
    output logic [  m3vit_pkg::COMMAND_BITS-1:0]       command_data,
    output logic                                       command_data_error,
    // Lines, to one source at a time; only the weight decoder may make them wait
    output logic [                              2:0]   line_valid,
    input  logic                                       line_ready,
    output logic [       engine_pkg::LINE_BITS-1:0]    line_data,
    output logic                                       line_last,  // of its stripe
    // Events
    output logic                                       error_valid,
    output logic [      engine_pkg::ENTRY_BITS-1:0]    error_entry,
    output logic [                              7:0]   error_port,
    output logic                                       stripe_requested,
    output logic                                       stripe_is_weight,
    output logic                                       stripe_done,
    output logic [    engine_pkg::JOB_TAG_BITS-1:0]    stripe_job_tag,
    output logic                                       reading,
    output logic [         engine_pkg::ENTRIES-1:0]    entry_reading,  // stripes of these are on their way
    output logic                                       idle,
    // AXI4, read channels of all ports
    output logic [        m3vit_pkg::PORTS*64-1:0]     araddr,
    output logic [         m3vit_pkg::PORTS*8-1:0]     arlen,
    output logic [           m3vit_pkg::PORTS-1:0]     arvalid,
    input  logic [           m3vit_pkg::PORTS-1:0]     arready,
    input  logic [m3vit_pkg::PORTS*engine_pkg::PORT_BITS-1:0] rdata,
    input  logic [         m3vit_pkg::PORTS*2-1:0]     rresp,
    input  logic [           m3vit_pkg::PORTS-1:0]     rlast,
    input  logic [           m3vit_pkg::PORTS-1:0]     rvalid,
    output logic [           m3vit_pkg::PORTS-1:0]     rready
);
  localparam int P = m3vit_pkg::PORTS;
  localparam int PB = engine_pkg::PORT_BITS;
  localparam int EB = engine_pkg::ENTRY_BITS;
  localparam int JB = engine_pkg::JOB_TAG_BITS;
  localparam int STRIPES = 16;  // in flight or waiting for lines; more than a port accepts
  localparam int COMMAND_BEATS = m3vit_pkg::COMMAND_BYTES / m3vit_pkg::PORT_BYTES;
  localparam int COMMAND_BEAT_BITS = $clog2(COMMAND_BEATS);

  // ---- choice: smallest age; ties alternate between weights and input rows, residual rows last
  logic [EB-1:0] age0, age1, age2;
  logic [2:0] chosen;
  logic favour_input;
  assign age0 = request_entry[0+:EB] - oldest;
  assign age1 = request_entry[EB+:EB] - oldest;
  assign age2 = request_entry[2*EB+:EB] - oldest;
  always_comb begin
    logic weights_first, weights_before_residual, input_before_residual;
    weights_first = !request_valid[1] || age0 < age1 || (age0 == age1 && !favour_input);
    weights_before_residual = !request_valid[2] || age0 <= age2;
    input_before_residual = !request_valid[2] || age1 <= age2;
    chosen = 3'b000;
    if (request_valid[0] && weights_first && weights_before_residual) chosen = 3'b001;
    else if (request_valid[1] && input_before_residual) chosen = 3'b010;
    else if (request_valid[2]) chosen = 3'b100;
    else chosen = request_valid;  // one of the first two alone
  end

  // ---- one stripe at a time on its way to the ports
  logic stripe_valid, stripe_push, tags_ready, command_valid, command_push;
  logic [2:0] stripe_source;
  logic [31:0] stripe_offset, command_offset;
  logic [EB-1:0] stripe_entry, taken_entry;
  logic [JB-1:0] stripe_tag;
  logic take;
  assign taken_entry = chosen[0] ? request_entry[0+:EB] : chosen[1] ? request_entry[EB+:EB] : request_entry[2*EB+:EB];
  assign take = !stripe_valid && !halt && chosen != 3'b000;
  assign request_ready = take ? chosen : 3'b000;

  always_ff @(posedge clk) begin
    if (take) begin
      stripe_source <= chosen;
      stripe_offset <= chosen[0] ? request_offset[0+:32] : chosen[1] ? request_offset[32+:32] : request_offset[64+:32];
      stripe_entry <= taken_entry;
      stripe_tag <= chosen[0] ? request_job_tag[0+:JB]
                  : chosen[1] ? request_job_tag[JB+:JB] : request_job_tag[2*JB+:JB];
    end
    if (rst) begin
      stripe_valid <= 1'b0;
      favour_input <= 1'b0;
    end else begin
      if (take) stripe_valid <= 1'b1;
      else if (stripe_push) stripe_valid <= 1'b0;
      if (take) favour_input <= chosen[0];
      else if (idle) favour_input <= 1'b0;  // every program starts alike
    end
  end
  assign stripe_requested = take;
  assign stripe_is_weight = chosen[0];

  assign command_request_ready = !command_valid && !halt;
  always_ff @(posedge clk) begin
    if (command_request_valid && command_request_ready) command_offset <= command_request_offset;
    if (rst) command_valid <= 1'b0;
    else if (command_request_valid && command_request_ready) command_valid <= 1'b1;
    else if (command_push) command_valid <= 1'b0;
  end

  // ---- ports
  logic [P-1:0] port_ready, beat_valid, beat_ready, beat_error, port_reading;
  // verilator lint_off UNUSEDSIGNAL
  logic [P-1:0] beat_tag;  // commands come through port 0 only
  // verilator lint_on UNUSEDSIGNAL
  logic [P*PB-1:0] beat_data;
  assign stripe_push = stripe_valid && tags_ready && (&port_ready) && !command_valid;
  assign command_push = command_valid && port_ready[0];  // few and urgent: first

  for (genvar p = 0; p < P; p = p + 1) begin : g_port
    logic [63:0] address;
    if (p == 0) begin : g_first
      assign address = arena[63:0] + 64'(command_valid ? command_offset : stripe_offset);
    end else begin : g_other
      assign address = arena[p*64+:64] + 64'(stripe_offset) + 64'(p * m3vit_pkg::BURST_BYTES);
    end
    read_port u_port (
        .clk,
        .rst,
        .request_valid  (p == 0 ? command_push || stripe_push : stripe_push),
        .request_ready  (port_ready[p]),
        .request_address(address),
        .request_length (p == 0 && command_valid ? 8'(COMMAND_BEATS - 1) : 8'(m3vit_pkg::BURST_BEATS - 1)),
        .request_tag    (p == 0 && command_valid),
        .beat_valid     (beat_valid[p]),
        .beat_ready     (beat_ready[p]),
        .beat_data      (beat_data[p*PB+:PB]),
        .beat_tag       (beat_tag[p]),
        .beat_error     (beat_error[p]),
        .reading        (port_reading[p]),
        .araddr         (araddr[p*64+:64]),
        .arlen          (arlen[p*8+:8]),
        .arvalid        (arvalid[p]),
        .arready        (arready[p]),
        .rdata          (rdata[p*PB+:PB]),
        .rresp          (rresp[p*2+:2]),
        .rlast          (rlast[p]),
        .rvalid         (rvalid[p]),
        .rready         (rready[p])
    );
  end
  assign reading = |port_reading;

  // ---- lines
  logic tag_there, tag_pop;
  logic [2:0] tag_source;
  logic [EB-1:0] tag_entry;
  logic [JB-1:0] tag_job;
  fifo #(
      .WIDTH(3 + EB + JB),
      .DEPTH(STRIPES)
  ) u_stripes (
      .clk,
      .rst,
      .in_valid (stripe_push),
      .in_ready (tags_ready),
      .in_data  ({stripe_source, stripe_entry, stripe_tag}),
      .out_valid(tag_there),
      .out_ready(tag_pop),
      .out_data ({tag_source, tag_entry, tag_job})
  );

  logic line_free, fire, command_beat;
  logic [engine_pkg::STRIPE_LINE_BITS-1:0] line_index;
  assign line_free = line_valid == 3'b000 || line_valid != 3'b001 || line_ready;
  assign command_beat = beat_valid[0] && beat_tag[0];
  assign fire = (&beat_valid) && !beat_tag[0] && tag_there && line_free;
  assign tag_pop = fire && line_index == '1;
  for (genvar p = 0; p < P; p = p + 1) begin : g_ready
    assign beat_ready[p] = fire || (p == 0 && command_beat);
  end

  always_ff @(posedge clk) begin
    if (fire) line_data <= beat_data;
    if (fire) line_last <= line_index == '1;
    stripe_job_tag <= tag_job;
    error_entry <= tag_entry;
    error_port <= 8'd0;
    for (int p = P - 1; p >= 0; p = p - 1) if (beat_error[p]) error_port <= 8'(p);
    if (rst) begin
      line_valid <= 3'b000;
      line_index <= '0;
      stripe_done <= 1'b0;
      error_valid <= 1'b0;
    end else begin
      if (fire) line_valid <= tag_source;
      else if (line_free) line_valid <= 3'b000;
      if (fire) line_index <= line_index + 1'b1;
      stripe_done <= tag_pop;
      error_valid <= fire && (|beat_error);
    end
  end

  // ---- commands
  logic [COMMAND_BEAT_BITS-1:0] command_index;
  logic command_bad;
  always_ff @(posedge clk) begin
    if (command_beat) command_data <= {beat_data[PB-1:0], command_data[m3vit_pkg::COMMAND_BITS-1:PB]};
    command_data_error <= beat_error[0] || command_bad;
    if (rst) begin
      command_index <= '0;
      command_bad <= 1'b0;
      command_data_valid <= 1'b0;
    end else begin
      if (command_beat) command_index <= command_index + 1'b1;
      if (command_beat) command_bad <= command_index != '1 && (command_bad || beat_error[0]);
      command_data_valid <= command_beat && command_index == '1;
    end
  end

  // ---- per command: what has been asked for and has not come back
  logic [EB-1:0] done_entry;
  always_ff @(posedge clk) done_entry <= tag_entry;  // beside stripe_done
  for (genvar e = 0; e < engine_pkg::ENTRIES; e = e + 1) begin : g_entry
    logic [4:0] open;
    logic asked, came;
    assign asked = take && taken_entry == EB'(e);
    assign came = stripe_done && done_entry == EB'(e);
    always_ff @(posedge clk) begin
      if (rst) open <= '0;
      else open <= open + 5'(asked) - 5'(came);
    end
    assign entry_reading[e] = open != '0;
  end

  // ---- idle: every request has come back
  logic [4:0] stripes, commands;
  always_ff @(posedge clk) begin
    if (rst) begin
      stripes <= '0;
      commands <= '0;
    end else begin
      stripes <= stripes + 5'(take) - 5'(stripe_done);
      commands <= commands + 5'(command_request_valid && command_request_ready) - 5'(command_data_valid);
    end
  end
  assign idle = stripes == '0 && commands == '0;

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) if (rst) armed <= 1'b1;
  always_ff @(posedge clk)
    if (armed && !rst) begin
      assert ($onehot0(line_valid)) else $error("reader: two sources for one line");
      assert (stripes <= 5'd18) else $error("reader: more stripes in flight than tags");
    end
`endif
endmodule
