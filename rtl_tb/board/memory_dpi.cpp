// The memory model as SystemVerilog (DPI) and Python (ctypes) call it.
#include <svdpi.h>

#include <cstring>
#include <mutex>

#include "memory_model.h"

using m3vit::kMaxPorts;
using m3vit::Memory;

namespace {

// The memory that the next model opens: set by whoever makes a model, or made on demand (cocotb).
thread_local Memory* next_memory = nullptr;

Memory* default_memory() {
    static Memory memory;
    static std::once_flag once;
    std::call_once(once, [] { memory.attach(nullptr, 0x10000000, uint64_t(64) << 20); });
    return &memory;
}

uint32_t field(const svBitVecVal* words, int position, int bits) {
    const uint64_t pair = words[position / 32] | (position % 32 + bits > 32 ? uint64_t(words[position / 32 + 1]) << 32 : 0);
    return uint32_t(pair >> (position % 32)) & (bits == 32 ? ~0u : (1u << bits) - 1);
}

void put(svBitVecVal* words, int position, int bits, uint32_t value) {
    const uint32_t mask = ((1u << bits) - 1) << (position % 32);
    words[position / 32] = (words[position / 32] & ~mask) | (value << (position % 32) & mask);
}

}  // namespace

extern "C" {

// ---- SystemVerilog: see m3vit_memory.sv --------------------------------------------

void* m3vit_memory_open(int ports, int write_ports, int port_bytes) {
    Memory* memory = next_memory ? next_memory : default_memory();
    memory->set_shape(ports, write_ports, port_bytes);
    return memory;
}

void m3vit_memory_tick(void* handle, svBit reset,
                       const svBitVecVal* araddr, const svBitVecVal* arlen, const svBitVecVal* arsize,
                       const svBitVecVal* arburst, const svBitVecVal* arvalid, const svBitVecVal* rready,
                       const svBitVecVal* awaddr, const svBitVecVal* awlen, const svBitVecVal* awsize,
                       const svBitVecVal* awburst, const svBitVecVal* awvalid, const svBitVecVal* wdata,
                       const svBitVecVal* wstrb, const svBitVecVal* wlast, const svBitVecVal* wvalid,
                       const svBitVecVal* bready,
                       svBitVecVal* arready, svBitVecVal* rdata, svBitVecVal* rresp, svBitVecVal* rlast,
                       svBitVecVal* rvalid, svBitVecVal* awready, svBitVecVal* wready, svBitVecVal* bresp,
                       svBitVecVal* bvalid) {
    Memory& memory = *static_cast<Memory*>(handle);
    const int ports = memory.ports(), write_ports = memory.write_ports(), words = memory.port_bytes() / 4;
    if (reset) {
        memory.drop();
    } else {
        m3vit::ReadPins reads[kMaxPorts];
        m3vit::WritePins writes[kMaxPorts];
        for (int p = 0; p < ports; ++p) {
            reads[p].data_ready = *rready >> p & 1;
            m3vit::AddressPins& pins = reads[p].address;
            pins.valid = *arvalid >> p & 1;
            pins.address = araddr[2 * p] | uint64_t(araddr[2 * p + 1]) << 32;
            pins.length = field(arlen, 8 * p, 8);
            pins.size = field(arsize, 3 * p, 3);
            pins.burst = field(arburst, 2 * p, 2);
        }
        for (int p = 0; p < write_ports; ++p) {
            m3vit::AddressPins& pins = writes[p].address;
            pins.valid = *awvalid >> p & 1;
            pins.address = awaddr[2 * p] | uint64_t(awaddr[2 * p + 1]) << 32;
            pins.length = field(awlen, 8 * p, 8);
            pins.size = field(awsize, 3 * p, 3);
            pins.burst = field(awburst, 2 * p, 2);
            writes[p].data_valid = *wvalid >> p & 1;
            writes[p].last = *wlast >> p & 1;
            writes[p].response_ready = *bready >> p & 1;
            writes[p].data = wdata + words * p;
            for (int i = 0; i < words; ++i) {
                const uint32_t four = field(wstrb, 4 * (words * p + i), 4);
                writes[p].strobe[i / 2] = uint8_t(i % 2 ? writes[p].strobe[i / 2] | four << 4 : four);
            }
        }
        memory.tick(reads, writes);
    }
    *arready = *rvalid = *rlast = *rresp = *awready = *wready = *bvalid = *bresp = 0;
    for (int p = 0; p < ports; ++p) {
        const m3vit::ReadState& state = memory.read_state[p];
        put(arready, p, 1, state.address_ready);
        put(rvalid, p, 1, state.valid);
        put(rlast, p, 1, state.last);
        put(rresp, 2 * p, 2, state.response);
        memcpy(rdata + words * p, state.data, 4 * size_t(words));
    }
    for (int p = 0; p < write_ports; ++p) {
        const m3vit::WriteState& state = memory.write_state[p];
        put(awready, p, 1, state.address_ready);
        put(wready, p, 1, state.data_ready);
        put(bvalid, p, 1, state.valid);
        put(bresp, 2 * p, 2, state.response);
    }
}

// Something of the engine's own for the log; see m3vit_board.sv.
void m3vit_memory_note(void* handle, int kind, int entry, int value) {
    static_cast<Memory*>(handle)->note(uint32_t(kind), uint32_t(entry), uint64_t(value));
}

// ---- Python: see host/backends/rtl_library.py ---------------------------------------

void* m3vit_memory_new() { return new Memory; }

void m3vit_memory_delete(void* handle) { delete static_cast<Memory*>(handle); }

// The memory that a model opened where nobody made one for it.
void* m3vit_memory_default() { return default_memory(); }

void m3vit_memory_select(void* handle) { next_memory = static_cast<Memory*>(handle); }

void m3vit_memory_attach(void* handle, uint8_t* data, uint64_t base, uint64_t size) {
    static_cast<Memory*>(handle)->attach(data, base, size);
}

// Returns 0, or how many parameters were expected.
int m3vit_memory_configure(void* handle, const int64_t* values, int count, const uint32_t* stalls, uint64_t period) {
    if (count != m3vit::kParameters) return m3vit::kParameters;
    m3vit::Parameters parameters;
    memcpy(&parameters, values, sizeof parameters);
    Memory& memory = *static_cast<Memory*>(handle);
    memory.set_parameters(parameters);
    memory.set_stalls(stalls, period);
    return 0;
}

void m3vit_memory_errors(void* handle, int write, const uint64_t* ends, uint64_t count) {
    static_cast<Memory*>(handle)->set_errors(write != 0, reinterpret_cast<const m3vit::Range*>(ends), count);
}

void m3vit_memory_restart_clock(void* handle) { static_cast<Memory*>(handle)->restart_clock(); }

void m3vit_memory_freeze(void* handle, int on) { static_cast<Memory*>(handle)->frozen = on != 0; }

void m3vit_memory_log(void* handle, int on) {
    Memory& memory = *static_cast<Memory*>(handle);
    memory.logging = on != 0;
    memory.events.clear();
}

uint64_t m3vit_memory_events(void* handle, const m3vit::Event** events) {
    Memory& memory = *static_cast<Memory*>(handle);
    *events = memory.events.data();
    return memory.events.size();
}

const char* m3vit_memory_violation(void* handle) { return static_cast<Memory*>(handle)->violation.c_str(); }

void m3vit_memory_clear_violation(void* handle) { static_cast<Memory*>(handle)->violation.clear(); }

// Bytes that the port has moved since creation.
uint64_t m3vit_memory_moved(void* handle, int write, int port) {
    const Memory& memory = *static_cast<Memory*>(handle);
    return (write ? memory.written_beats : memory.read_beats)[port] * uint64_t(memory.port_bytes());
}

}  // extern "C"
