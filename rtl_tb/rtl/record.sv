// Writes the record (docs/reference.md, "Record") in pieces of 64 bytes: the entry of a job as soon as it is complete,
// and at the end of the program the counters, then the header, so that a record with a magic is complete. One piece at
// a time.
module record (
    input  logic                clk,
    input  logic                rst,
    input  logic                clear,         // start of a program
    input  logic [31:0]         record_offset,
    // End of the program: level until record_done
    input  logic                record_start,
    output logic                record_done,
    input  logic [engine_pkg::ERROR_BITS-1:0] error,
    input  logic [31:0]         error_command,
    input  logic [7:0]          error_detail,
    input  logic [31:0]         commands_done,
    // Counters: value one cycle after select
    input  logic                job_valid,
    output logic                job_pop,
    input  logic                jobs_empty,
    output logic [5:0]          select,
    input  logic [63:0]         value,
    // Pieces
    output logic                rec_valid,
    input  logic                rec_ready,
    output logic [31:0]         rec_address,
    output logic [511:0]        rec_data,
    input  logic                rec_done
);
  localparam int PIECE = 64;
  localparam int WORDS = PIECE / 8;
  // Time for the last retirement to pass through the counters
  localparam int SETTLE = 7;

  typedef enum logic [2:0] {
    IDLE,
    COLLECT,  // eight words
    WRITE,
    WAIT      // for the acknowledgement
  } state_e;
  typedef enum logic [1:0] {
    JOB,
    COUNTERS,
    HEADER
  } part_e;
  state_e state;
  part_e part;
  logic [1:0] piece;  // of the part
  logic [3:0] word;
  logic [2:0] settle;
  logic [31:0] jobs;
  logic [32:0] next_job, address;  // a piece past 32 bits is not in the arena and is left out
  logic writable;  // pieces lie at multiples of 64

  assign writable = record_offset[5:0] == 6'd0;
  assign select = {part == JOB, 5'({piece, 3'b000}) | 5'(word)};

  logic [63:0] header, collected;
  always_comb begin
    case (word)
      4'd1: header = {32'(m3vit_pkg::RECORD_VERSION), m3vit_pkg::RECORD_MAGIC};
      4'd2: header = {32'(error), m3vit_pkg::ENGINE_HASH};
      4'd3: header = {24'd0, error_detail, error_command};
      4'd4: header = {jobs, commands_done};
      4'd5: header = {32'd0, m3vit_pkg::BUILD_HASH};
      default: header = '0;
    endcase
  end
  assign collected = part == HEADER ? header : value;

  assign rec_valid = state == WRITE && writable && !address[32];
  assign rec_address = address[31:0];

  always_ff @(posedge clk) begin
    job_pop <= 1'b0;
    record_done <= 1'b0;
    if (state == COLLECT && word != 4'd0) rec_data <= {collected, rec_data[511:64]};
    if (rst || clear) begin
      state <= IDLE;
      jobs <= '0;
      settle <= '0;
      next_job <= {1'b0, record_offset} + 33'(m3vit_pkg::RECORD_JOBS_START);
    end else begin
      if (!record_start) settle <= '0;
      else if (settle != 3'(SETTLE)) settle <= settle + 1'b1;
      case (state)
        IDLE: begin
          word <= '0;
          piece <= '0;
          if (job_valid && !job_pop) begin
            state <= COLLECT;
            part <= JOB;
            address <= next_job;
          end else if (record_start && settle == 3'(SETTLE) && jobs_empty && !record_done) begin
            state <= COLLECT;
            part <= COUNTERS;
            address <= {1'b0, record_offset} + 33'(m3vit_pkg::COUNTER_CYCLES_OFFSET);
          end
        end
        COLLECT: begin
          word <= word + 1'b1;
          if (word == 4'(WORDS)) state <= WRITE;
        end
        WRITE: if (rec_ready || !rec_valid) state <= WAIT;
        WAIT:
        if (rec_done || !writable || address[32]) begin
          state <= COLLECT;
          word <= '0;
          piece <= piece + 1'b1;
          address <= address + 33'(PIECE);
          if (part == JOB && piece == 2'd1) begin
            state <= IDLE;
            job_pop <= 1'b1;
            jobs <= jobs + 1'b1;
            next_job <= next_job + 33'(m3vit_pkg::RECORD_JOB_BYTES);
          end else if (part == COUNTERS && piece == 2'd2) begin
            part <= HEADER;
            piece <= '0;
            address <= {1'b0, record_offset};
          end else if (part == HEADER) begin
            state <= IDLE;
            record_done <= 1'b1;
          end
        end
        default: state <= IDLE;
      endcase
    end
  end
endmodule
