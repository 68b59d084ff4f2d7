// The simulated board as a library: the verilated engine with its memory, clocked from here, for host/backends/rtl.py.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "Vm3vit_board.h"
#include "memory_model.h"
#include "verilated.h"
#if VM_COVERAGE
#include "verilated_cov.h"
#endif
#if VM_TRACE_FST
#include "verilated_fst_c.h"
using Trace = VerilatedFstC;
#elif VM_TRACE
#include "verilated_vcd_c.h"
using Trace = VerilatedVcdC;
#endif

extern "C" void m3vit_memory_select(void* handle);

namespace {

// Where the simulation stopped itself: a failed assertion, $fatal or $finish. By default that ends the whole process.
std::string& stopped() {
    static thread_local std::string text;
    return text;
}

void stop(const char* file, int line, const char* what) {
    Verilated::threadContextp()->gotFinish(true);
    char where[32];
    snprintf(where, sizeof where, ":%d: ", line);
    stopped() = (file ? file : "") + std::string(where) + what;
}

}  // namespace

// The library is built with VL_USER_STOP, VL_USER_FATAL and VL_USER_FINISH, which leave these to us.
void vl_stop(const char* file, int line, const char*) VL_MT_UNSAFE { stop(file, line, "assertion failed"); }
void vl_fatal(const char* file, int line, const char*, const char* text) VL_MT_UNSAFE { stop(file, line, text); }
void vl_finish(const char* file, int line, const char*) VL_MT_UNSAFE { stop(file, line, "$finish"); }

namespace {

constexpr int kResetCycles = 16;
constexpr int kRegisterCycles = 1000;  // an engine that has not answered by then never will

struct Board {
    VerilatedContext context;
    std::unique_ptr<Vm3vit_board> top;
    m3vit::Memory* memory;
    uint64_t cycles = 0;
#if VM_TRACE
    std::unique_ptr<Trace> trace;
#endif

    explicit Board(m3vit::Memory* memory_) : memory(memory_) {
        context.threads(1);
#if VM_TRACE
        context.traceEverOn(true);
#endif
        m3vit_memory_select(memory);
        top = std::make_unique<Vm3vit_board>(&context);
        top->ap_clk = 0;
        top->ap_rst_n = 0;
        top->eval();
        m3vit_memory_select(nullptr);
    }

    ~Board() {
        top->final();
#if VM_TRACE
        if (trace) trace->close();
#endif
    }

    // Inputs have been set: the falling half of the clock lets them settle, then comes the edge.
    void tick() {
        top->ap_clk = 0;
        top->eval();
        dump(0);
        top->ap_clk = 1;
        top->eval();
        dump(1);
        ++cycles;
    }

    void dump(int half) {
#if VM_TRACE
        if (trace) trace->dump(2 * cycles + uint64_t(half));
#else
        (void)half;
#endif
    }

    // Verilator's name for the pin: plain "interrupt" is a reserved word to it.
    bool interrupt() const { return top->__SYM__interrupt; }

    void settle() {
        top->ap_clk = 0;
        top->eval();
    }
};

}  // namespace

extern "C" {

void* m3vit_board_new(void* memory) { return new Board(static_cast<m3vit::Memory*>(memory)); }

void m3vit_board_delete(void* handle) { delete static_cast<Board*>(handle); }

uint64_t m3vit_board_cycles(void* handle) { return static_cast<Board*>(handle)->cycles; }

int m3vit_board_interrupt(void* handle) {
    Board& board = *static_cast<Board*>(handle);
    board.settle();
    return board.interrupt();
}

void m3vit_board_reset(void* handle) {
    Board& board = *static_cast<Board*>(handle);
    board.top->s_axi_control_awvalid = 0;
    board.top->s_axi_control_wvalid = 0;
    board.top->s_axi_control_arvalid = 0;
    board.top->s_axi_control_bready = 0;
    board.top->s_axi_control_rready = 0;
    board.top->ap_rst_n = 0;
    for (int i = 0; i < kResetCycles; ++i) board.tick();
    board.top->ap_rst_n = 1;
    board.tick();
}

// Runs until the interrupt line is high, or for `cycles`; returns how many it ran.
uint64_t m3vit_board_run(void* handle, uint64_t cycles) {
    Board& board = *static_cast<Board*>(handle);
    uint64_t ran = 0;
    while (ran < cycles && !board.interrupt() && !board.context.gotFinish()) {
        board.tick();
        ++ran;
    }
    return ran;
}

// Runs for `cycles` whatever the interrupt line does.
void m3vit_board_idle(void* handle, uint64_t cycles) {
    for (Board& board = *static_cast<Board*>(handle); cycles; --cycles) board.tick();
}

// AXI4-Lite access; returns the response (0 OKAY), or -1 if the engine does not answer.
int m3vit_board_write(void* handle, uint32_t offset, uint32_t value) {
    Board& board = *static_cast<Board*>(handle);
    Vm3vit_board& pins = *board.top;
    pins.s_axi_control_awaddr = offset & 0xFFF;
    pins.s_axi_control_wdata = value;
    pins.s_axi_control_wstrb = 0xF;
    pins.s_axi_control_awvalid = pins.s_axi_control_wvalid = pins.s_axi_control_bready = 1;
    int response = -1;
    for (int i = 0; i < kRegisterCycles && response < 0; ++i) {
        board.settle();
        const bool address = pins.s_axi_control_awready, data = pins.s_axi_control_wready;
        if (pins.s_axi_control_bvalid) response = pins.s_axi_control_bresp;
        board.tick();
        if (address) pins.s_axi_control_awvalid = 0;
        if (data) pins.s_axi_control_wvalid = 0;
    }
    pins.s_axi_control_awvalid = pins.s_axi_control_wvalid = pins.s_axi_control_bready = 0;
    return response;
}

int m3vit_board_read(void* handle, uint32_t offset, uint32_t* value) {
    Board& board = *static_cast<Board*>(handle);
    Vm3vit_board& pins = *board.top;
    pins.s_axi_control_araddr = offset & 0xFFF;
    pins.s_axi_control_arvalid = pins.s_axi_control_rready = 1;
    int response = -1;
    for (int i = 0; i < kRegisterCycles && response < 0; ++i) {
        board.settle();
        const bool address = pins.s_axi_control_arready;
        if (pins.s_axi_control_rvalid) {
            response = pins.s_axi_control_rresp;
            *value = pins.s_axi_control_rdata;
        }
        board.tick();
        if (address) pins.s_axi_control_arvalid = 0;
    }
    pins.s_axi_control_arvalid = pins.s_axi_control_rready = 0;
    return response;
}

// Why the simulation stopped itself, or null. Its board is good for nothing any more.
const char* m3vit_board_stopped(void* handle) {
    return static_cast<Board*>(handle)->context.gotFinish() ? stopped().c_str() : nullptr;
}

// Records everything to a file; a null path ends that. Returns 0, or -1 if this library cannot or the file cannot be
// written.
int m3vit_board_trace(void* handle, const char* path) {
#if VM_TRACE
    Board& board = *static_cast<Board*>(handle);
    if (board.trace) board.trace->close();
    board.trace.reset();
    if (!path) return 0;
    board.trace = std::make_unique<Trace>();
    board.top->trace(board.trace.get(), 99);
    board.trace->open(path);
    return board.trace->isOpen() ? 0 : -1;
#else
    (void)handle;
    return path ? -1 : 0;
#endif
}

// Writes what was recorded of line coverage since the board was made. Returns 0, or -1 if this library records none.
int m3vit_board_coverage(void* handle, const char* path) {
#if VM_COVERAGE
    static_cast<Board*>(handle)->context.coveragep()->write(path);
    return 0;
#else
    (void)handle;
    (void)path;
    return -1;
#endif
}

}  // extern "C"
