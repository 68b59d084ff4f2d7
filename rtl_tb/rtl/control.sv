// Control registers behind AXI4-Lite, as Vitis HLS lays out ap_ctrl_hs (docs/reference.md, "Registers"). `start` is
// taken by the engine, which samples the arguments then; `done` and `ready` are set when a program has ended and clear
// on read.
module control (
    input  logic                          clk,
    input  logic                          rst,
    // AXI4-Lite
    input  logic [                  11:0] awaddr,
    input  logic                          awvalid,
    output logic                          awready,
    input  logic [                  31:0] wdata,
    input  logic [                   3:0] wstrb,
    input  logic                          wvalid,
    output logic                          wready,
    output logic [                   1:0] bresp,
    output logic                          bvalid,
    input  logic                          bready,
    input  logic [                  11:0] araddr,
    input  logic                          arvalid,
    output logic                          arready,
    output logic [                  31:0] rdata,
    output logic [                   1:0] rresp,
    output logic                          rvalid,
    input  logic                          rready,
    output logic                          interrupt_line,
    // Program
    output logic                          start_valid,
    input  logic                          start_taken,  // pulse: the arguments are sampled
    input  logic                          done,         // pulse: the record is in memory
    output logic [m3vit_pkg::PORTS*64-1:0] arena,
    output logic [                  31:0] program_offset,
    output logic [                  31:0] commands,
    output logic [                  31:0] record_offset
);
  localparam int ARGUMENTS = 11;  // words: low and high of four arenas, program, commands, record

  // Number of an argument; ARGUMENTS for every other address
  function automatic logic [3:0] argument_of(input logic [9:0] word);
    case ({word, 2'b00})
      m3vit_pkg::REG_ARENA0_LO: argument_of = 4'd0;
      m3vit_pkg::REG_ARENA0_HI: argument_of = 4'd1;
      m3vit_pkg::REG_ARENA1_LO: argument_of = 4'd2;
      m3vit_pkg::REG_ARENA1_HI: argument_of = 4'd3;
      m3vit_pkg::REG_ARENA2_LO: argument_of = 4'd4;
      m3vit_pkg::REG_ARENA2_HI: argument_of = 4'd5;
      m3vit_pkg::REG_ARENA3_LO: argument_of = 4'd6;
      m3vit_pkg::REG_ARENA3_HI: argument_of = 4'd7;
      m3vit_pkg::REG_PROGRAM: argument_of = 4'd8;
      m3vit_pkg::REG_COMMANDS: argument_of = 4'd9;
      m3vit_pkg::REG_RECORD: argument_of = 4'd10;
      default: argument_of = 4'(ARGUMENTS);
    endcase
  endfunction

  // ---- writes: address and data come in any order
  logic address_held, data_held, write;
  logic [9:0] write_word;
  logic [31:0] write_data;
  logic [3:0] write_strobe;
  assign awready = !address_held;
  assign wready = !data_held;
  assign write = address_held && data_held && !bvalid;
  assign bresp = 2'b00;

  always_ff @(posedge clk) begin
    if (awvalid && awready) write_word <= awaddr[11:2];
    if (wvalid && wready) {write_data, write_strobe} <= {wdata, wstrb};
    if (rst) begin
      address_held <= 1'b0;
      data_held <= 1'b0;
      bvalid <= 1'b0;
    end else begin
      if (awvalid && awready) address_held <= 1'b1;
      else if (write) address_held <= 1'b0;
      if (wvalid && wready) data_held <= 1'b1;
      else if (write) data_held <= 1'b0;
      if (write) bvalid <= 1'b1;
      else if (bready) bvalid <= 1'b0;
    end
  end

  // ---- reads
  logic read, read_control;
  logic [31:0] read_value;
  assign arready = !rvalid;
  assign rresp = 2'b00;
  assign read = arvalid && arready;
  assign read_control = read && araddr[11:2] == m3vit_pkg::REG_AP_CTRL[11:2];

  always_ff @(posedge clk) begin
    if (read) rdata <= read_value;
    if (rst) rvalid <= 1'b0;
    else if (read) rvalid <= 1'b1;
    else if (rready) rvalid <= 1'b0;
  end

  // ---- block control and interrupt
  logic start, idle, done_flag, ready_flag, auto_restart, interrupt_enable;
  logic [1:0] enable, status;
  logic [1:0] toggled;
  logic write_low, write_control;
  assign write_low = write && write_strobe[0];  // all their bits that can be written are in the lowest byte
  assign write_control = write_low && write_word == m3vit_pkg::REG_AP_CTRL[11:2];
  assign toggled = write_low && write_word == m3vit_pkg::REG_ISR[11:2] ? write_data[1:0] : 2'b00;
  assign start_valid = start;
  assign interrupt_line = interrupt_enable && status != 2'b00;

  always_ff @(posedge clk) begin
    if (rst) begin
      start <= 1'b0;
      idle <= 1'b1;
      done_flag <= 1'b0;
      ready_flag <= 1'b0;
      auto_restart <= 1'b0;
      interrupt_enable <= 1'b0;
      enable <= 2'b00;
      status <= 2'b00;
    end else begin
      if (write_control) auto_restart <= (write_data & m3vit_pkg::MASK_AP_CTRL_AUTO_RESTART) != '0;
      if (write_control && (write_data & m3vit_pkg::MASK_AP_CTRL_START) != '0) begin
        start <= 1'b1;
        idle <= 1'b0;
      end else if (done) begin
        start <= start || auto_restart;
        idle <= !(start || auto_restart);
      end else if (start_taken) begin
        start <= 1'b0;
      end
      if (read_control) begin
        done_flag <= 1'b0;
        ready_flag <= 1'b0;
      end
      if (done) begin
        done_flag <= 1'b1;
        ready_flag <= 1'b1;
      end
      if (write_low && write_word == m3vit_pkg::REG_GIER[11:2]) interrupt_enable <= write_data[0];
      if (write_low && write_word == m3vit_pkg::REG_IER[11:2]) enable <= write_data[1:0];
      status <= (status ^ toggled) | (done ? enable : 2'b00);
    end
  end

  // ---- arguments, and the copy that the running program works with
  logic [32*ARGUMENTS-1:0] arguments, sampled;
  logic [3:0] written, asked;
  assign written = argument_of(write_word);
  assign asked = argument_of(araddr[11:2]);

  for (genvar i = 0; i < ARGUMENTS; i = i + 1) begin : g_argument
    for (genvar k = 0; k < 4; k = k + 1) begin : g_byte
      always_ff @(posedge clk) begin
        if (rst) arguments[32*i+8*k+:8] <= '0;
        else if (write && written == 4'(i) && write_strobe[k]) arguments[32*i+8*k+:8] <= write_data[8*k+:8];
      end
    end
  end
  always_ff @(posedge clk) if (start_taken) sampled <= arguments;
  assign arena = sampled[64*m3vit_pkg::PORTS-1:0];
  assign {record_offset, commands, program_offset} = sampled[32*ARGUMENTS-1:256];

  logic [31:0] block_control;
  assign block_control = (start ? m3vit_pkg::MASK_AP_CTRL_START : '0) | (done_flag ? m3vit_pkg::MASK_AP_CTRL_DONE : '0)
      | (idle ? m3vit_pkg::MASK_AP_CTRL_IDLE : '0) | (ready_flag ? m3vit_pkg::MASK_AP_CTRL_READY : '0)
      | (auto_restart ? m3vit_pkg::MASK_AP_CTRL_AUTO_RESTART : '0)
      | (interrupt_line ? m3vit_pkg::MASK_AP_CTRL_INTERRUPT : '0);
  always_comb begin
    case ({araddr[11:2], 2'b00})
      m3vit_pkg::REG_AP_CTRL: read_value = block_control;
      m3vit_pkg::REG_GIER: read_value = 32'(interrupt_enable);
      m3vit_pkg::REG_IER: read_value = 32'(enable);
      m3vit_pkg::REG_ISR: read_value = 32'(status);
      default: read_value = asked == 4'(ARGUMENTS) ? m3vit_pkg::UNMAPPED : arguments[32*asked+:32];
    endcase
  end

  logic unused;
  assign unused = &{1'b0, awaddr[1:0], araddr[1:0], write_data[31:8], sampled[255:0]};
endmodule
