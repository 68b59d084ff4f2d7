// Reads commands ahead, looks at one after the other, and pushes layers and JOB_ENDs into the table of commands in
// flight. Ends the program at END, at the first command that is refused (both after everything before is complete), or
// when the oldest command in flight has met a bus error; then has the record written and reports done.
module fetch (
    input  logic                                 clk,
    input  logic                                 rst,
    // Start; the arguments are valid from the cycle after start_taken
    input  logic                                 start_valid,
    output logic                                 start_taken,
    output logic                                 clear,       // the cycle after: counters and residency start afresh
    input  logic [31:0]                          program_offset,
    input  logic [31:0]                          commands,
    // Commands from memory, in order
    output logic                                 command_request_valid,
    input  logic                                 command_request_ready,
    output logic [31:0]                          command_request_offset,
    input  logic                                 command_data_valid,
    input  logic [m3vit_pkg::COMMAND_BITS-1:0]   command_data,
    input  logic                                 command_data_error,
    // Check of a layer
    output logic                                 check_start,
    output m3vit_pkg::command_t                  check_command,
    output logic [31:0]                          check_index,
    output logic [engine_pkg::JOB_TAG_BITS-1:0]  check_job_tag,
    input  logic                                 check_done,
    input  logic [engine_pkg::ERROR_BITS-1:0]    check_code,
    input  logic [7:0]                           check_detail,
    input  engine_pkg::layer_t                   check_layer,
    // Table
    output logic                                 push_valid,
    input  logic                                 push_ready,
    output engine_pkg::layer_t                   push_layer,
    input  logic                                 table_empty,
    input  logic                                 jobs_room,   // the counters can follow one more job
    output logic                                 job_pushed,
    // Bus error of the oldest entry
    input  logic                                 failed,
    input  logic                                 failed_write,
    input  logic [7:0]                           failed_port,
    input  logic [31:0]                          failed_index,
    output logic                                 halt,        // start nothing new
    input  logic                                 reads_idle,
    input  logic                                 writes_idle,
    // Record and counters
    output logic                                 running,     // from the start to the end of the last command
    output logic                                 command_executed,
    output logic                                 record_start,
    input  logic                                 record_done,
    output logic [engine_pkg::ERROR_BITS-1:0]    error,
    output logic [31:0]                          error_command,
    output logic [7:0]                           error_detail,
    output logic [31:0]                          commands_done,
    output logic                                 done
);
  localparam int AHEAD = 4;  // commands asked for and not yet looked at
  localparam int AHEAD_BITS = $clog2(AHEAD + 1);
  localparam logic [7:0] FLAGS = m3vit_pkg::FLAG_NARROW | m3vit_pkg::FLAG_NO_PREFETCH;

  localparam int EC = engine_pkg::ERROR_BITS;
  localparam logic [EC-1:0] NONE = EC'(m3vit_pkg::ERROR_NONE);
  localparam logic [EC-1:0] OPCODE = EC'(m3vit_pkg::ERROR_OPCODE);
  localparam logic [EC-1:0] ADDRESS = EC'(m3vit_pkg::ERROR_ADDRESS);
  localparam logic [EC-1:0] READ = EC'(m3vit_pkg::ERROR_READ);
  localparam logic [EC-1:0] WRITE = EC'(m3vit_pkg::ERROR_WRITE);
  localparam logic [EC-1:0] PROGRAM = EC'(m3vit_pkg::ERROR_PROGRAM);

  typedef enum logic [3:0] {
    IDLE,
    NEXT,     // wait for the command at `index`
    DECODE,
    CHECK,
    PUSH,
    BARRIER,  // wait until everything before is complete
    DRAIN,    // the same, then end
    HALT,     // wait until the memory ports are quiet, then end
    RECORD
  } state_e;
  state_e state;

  logic aligned;
  assign aligned = program_offset[$clog2(m3vit_pkg::COMMAND_BYTES)-1:0] == '0;

  // ---- commands ahead
  logic [31:0] request_index;
  logic [32:0] next_offset;  // of request_index; past 32 bits nothing can be read
  logic [AHEAD_BITS-1:0] ahead, outstanding;
  logic reading_ahead, ask, request, pop;
  logic ahead_valid, ahead_error;
  logic [m3vit_pkg::COMMAND_BITS-1:0] ahead_data;
  logic queue_ready;

  assign reading_ahead = !clear && aligned && (state == NEXT || state == DECODE || state == CHECK
      || state == PUSH || state == BARRIER);
  assign ask = reading_ahead && !command_request_valid && request_index != commands && !next_offset[32]
      && ahead != AHEAD_BITS'(AHEAD);
  assign request = command_request_valid && command_request_ready;
  assign pop = state == NEXT && !failed && ahead_valid;

  fifo #(
      .WIDTH(m3vit_pkg::COMMAND_BITS + 1),
      .DEPTH(AHEAD)
  ) u_ahead (
      .clk,
      .rst      (rst || start_taken),
      .in_valid (command_data_valid),
      .in_ready (queue_ready),
      .in_data  ({command_data_error, command_data}),
      .out_valid(ahead_valid),
      .out_ready(pop),
      .out_data ({ahead_error, ahead_data})
  );

  always_ff @(posedge clk) begin
    if (ask) command_request_offset <= next_offset[31:0];
    if (clear) begin
      request_index <= '0;
      next_offset <= {1'b0, program_offset};
    end else if (ask) begin
      request_index <= request_index + 1'b1;
      next_offset <= next_offset + 33'(m3vit_pkg::COMMAND_BYTES);
    end
    if (rst || start_taken) begin
      ahead <= '0;
      outstanding <= '0;
      command_request_valid <= 1'b0;
    end else begin
      ahead <= ahead + AHEAD_BITS'(ask) - AHEAD_BITS'(pop);
      outstanding <= outstanding + AHEAD_BITS'(request) - AHEAD_BITS'(command_data_valid);
      if (ask) command_request_valid <= 1'b1;
      else if (command_request_ready || state == HALT) command_request_valid <= 1'b0;  // nobody listens in HALT
    end
  end

  // ---- the command at hand
  m3vit_pkg::command_t word;
  logic word_error;
  logic [31:0] index;
  logic [engine_pkg::JOB_TAG_BITS-1:0] job_tag;
  logic known, layer_kind, readable, job_end;

  always_comb begin
    case (word.opcode)
      m3vit_pkg::OP_END, m3vit_pkg::OP_JOB_END, m3vit_pkg::OP_BARRIER: {known, layer_kind} = 2'b10;
      m3vit_pkg::OP_LINEAR, m3vit_pkg::OP_ACCUMULATE, m3vit_pkg::OP_MLP, m3vit_pkg::OP_MOE:
      {known, layer_kind} = 2'b11;
      default: {known, layer_kind} = 2'b00;
    endcase
  end
  assign readable = known && (word.flags & ~FLAGS) == 8'd0 && word.reserved_356 == '0;
  assign job_end = word.opcode == m3vit_pkg::OP_JOB_END;

  assign check_command = word;
  assign check_index = index;
  assign check_job_tag = job_tag;
  assign check_start = state == DECODE && !word_error && readable && layer_kind;
  assign command_executed = state == DECODE && !word_error && readable;

  always_comb begin
    push_layer = check_layer;
    if (job_end) begin
      push_layer = '0;
      push_layer.job_end = 1'b1;
      push_layer.index = index;
      push_layer.job = word.job;
      push_layer.job_tag = job_tag;
    end
  end
  assign push_valid = state == PUSH && !failed && (!job_end || jobs_room);
  assign job_pushed = push_valid && push_ready && job_end;

  // ---- order of events
  logic stopped_by_bus;
  assign start_taken = state == IDLE && start_valid && !clear && !done && !stopped_by_bus;
  assign record_start = state == RECORD;
  assign halt = stopped_by_bus;  // until the reset: what was under way must not go on behind the host's back

  always_ff @(posedge clk) begin
    done <= 1'b0;
    clear <= start_taken;
    if (pop) {word_error, word} <= {ahead_error, m3vit_pkg::command_t'(ahead_data)};
    if (rst) begin
      state <= IDLE;
      running <= 1'b0;
      clear <= 1'b0;
      stopped_by_bus <= 1'b0;
    end else begin
      if (start_taken) running <= 1'b1;
      case (state)
        IDLE:
        if (clear) begin
          state <= NEXT;
          index <= '0;
          job_tag <= '0;
          error <= NONE;
          error_command <= '0;
          error_detail <= '0;
        end
        NEXT:
        if (index == commands) begin
          state <= DRAIN;
          error <= PROGRAM;
        end else if (!aligned) begin
          state <= DRAIN;
          error <= ADDRESS;
        end else if (ahead_valid) begin
          state <= DECODE;
        end else if (next_offset[32] && ahead == '0) begin
          state <= DRAIN;
          error <= READ;
        end
        DECODE:
        if (word_error || !readable) begin
          state <= DRAIN;
          error <= word_error ? READ : OPCODE;
        end else if (layer_kind) begin
          state <= CHECK;
        end else if (job_end) begin
          state <= PUSH;
        end else if (word.opcode == m3vit_pkg::OP_BARRIER) begin
          state <= BARRIER;
        end else begin
          state <= DRAIN;
          index <= index + 1'b1;
        end
        CHECK:
        if (check_done) begin
          state <= check_code == NONE ? PUSH : DRAIN;
          error <= check_code;
          error_detail <= check_detail;
        end
        PUSH:
        if (push_valid && push_ready) begin
          state <= NEXT;
          index <= index + 1'b1;
          if (job_end) job_tag <= job_tag + 1'b1;
        end
        BARRIER:
        if (table_empty) begin
          state <= NEXT;
          index <= index + 1'b1;
        end
        DRAIN:
        if (table_empty && outstanding == '0 && !command_request_valid) begin
          state <= RECORD;
          running <= 1'b0;
        end
        HALT:
        if (outstanding == '0 && reads_idle && writes_idle) begin
          state <= RECORD;
          running <= 1'b0;
        end
        RECORD:
        if (record_done) begin
          state <= IDLE;
          done <= 1'b1;
        end
        default: state <= IDLE;
      endcase
      // The oldest command cannot complete: whatever else was about to happen comes after it.
      if (failed && state != IDLE && state != HALT && state != RECORD) begin
        state <= HALT;
        error <= failed_write ? WRITE : READ;
        error_detail <= failed_port;
        index <= failed_index;
        stopped_by_bus <= 1'b1;
      end
      if (state == DRAIN || state == HALT) error_command <= error == NONE ? '0 : index;
    end
  end
  assign commands_done = index;

`ifndef SYNTHESIS
  logic armed;  // before the first reset, values mean nothing
  initial armed = 1'b0;
  always_ff @(posedge clk) begin
    if (rst) armed <= 1'b1;
    if (armed && !rst && command_data_valid && (!queue_ready || outstanding == '0)) begin
      $error("fetch: a command not asked for");
    end
  end
`else
  logic unused;
  assign unused = queue_ready;
`endif
endmodule
