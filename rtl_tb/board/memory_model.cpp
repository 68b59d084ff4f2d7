#include "memory_model.h"

#include <sys/mman.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>

namespace m3vit {
namespace {
constexpr uint8_t kOkay = 0, kSlaveError = 2, kDecodeError = 3;
constexpr uint8_t kPoison = 0xEE;  // what an access that failed reads
constexpr size_t kMaxEvents = 1 << 24;
enum Channel { kAr, kR, kAw, kW, kB };
}  // namespace

Memory::Memory() { set_parameters(Parameters()); }

Memory::~Memory() {
    if (owned_) munmap(data_, size_);
}

void Memory::attach(uint8_t* data, uint64_t base, uint64_t size) {
    if (owned_) munmap(data_, size_);
    owned_ = data == nullptr;
    if (owned_) {
        void* fresh =
            mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        data = fresh == MAP_FAILED ? nullptr : static_cast<uint8_t*>(fresh);
        if (!data) owned_ = false, size = 0;
    }
    data_ = data;
    base_ = base;
    size_ = size;
}

void Memory::set_shape(int ports, int write_ports, int port_bytes) {
    ports_ = ports;
    write_ports_ = write_ports;
    port_bytes_ = port_bytes;
}

void Memory::set_parameters(const Parameters& parameters) {
    p_ = parameters;
    restart_clock();
}

void Memory::set_stalls(const uint32_t* pattern, uint64_t period) { stalls_.assign(pattern, pattern + period); }

void Memory::set_errors(bool write, const Range* ranges, uint64_t count) {
    (write ? write_errors_ : read_errors_).assign(ranges, ranges + count);
}

bool Memory::idle() const {
    for (const ReadPort& port : readers_)
        if (!port.bursts.empty()) return false;
    for (const WritePort& port : writers_)
        if (!port.addressed.empty() || !port.responses.empty() || !port.beats.empty()) return false;
    return true;
}

void Memory::restart_clock() {
    if (!idle()) return;  // cycles at which bursts are due would mean nothing any more
    cycle_ = phase_ = 0;
    bucket_ = p_.bucket_bytes * (p_.refresh_period - p_.refresh_cycles);
    writing_ = false;
    turning_ = batch_ = 0;
    first_reader_ = first_writer_ = 0;
}

void Memory::drop() {
    for (int port = 0; port < kMaxPorts; ++port) {
        readers_[port] = ReadPort();
        writers_[port] = WritePort();
        read_state[port] = ReadState();
        write_state[port] = WriteState();
    }
    writing_ = false;
    turning_ = batch_ = 0;
}

void Memory::complain(const char* channel, int port, const std::string& what) {
    if (!violation.empty()) return;
    char where[64];
    snprintf(where, sizeof where, "port %d, %s, cycle %" PRIu64 ": ", port, channel, total_);
    violation = where + what;
}

void Memory::log(EventKind kind, int port, const Burst& burst) {
    if (logging && events.size() < kMaxEvents)
        events.push_back({total_, burst.address, kind, uint32_t(port), burst.beats, burst.response});
}

void Memory::note(uint32_t kind, uint32_t port, uint64_t value) {
    if (logging && events.size() < kMaxEvents) events.push_back({total_, value, kind, port, 0, 0});
}

void Memory::check_address(const char* channel, int port, const AddressPins& pins, AddressPins& held, bool ready) {
    if (held.valid) {
        if (!pins.valid) complain(channel, port, "valid fell before ready");
        else if (pins.address != held.address || pins.length != held.length)
            complain(channel, port, "address or length changed before ready");
    }
    held = pins;
    if (ready) held.valid = false;
    if (!pins.valid || !ready) return;
    char text[96];
    const uint64_t bytes = uint64_t(pins.length + 1) * port_bytes_;
    if (pins.length + 1 > p_.burst_beats) {
        snprintf(text, sizeof text, "%u beats: expected at most %d", pins.length + 1, int(p_.burst_beats));
        complain(channel, port, text);
    }
    if (uint64_t(1) << pins.size != uint64_t(port_bytes_) || pins.burst != 1)
        complain(channel, port, "expected an INCR burst of full beats");
    if (pins.address % port_bytes_ || pins.address / 4096 != (pins.address + bytes - 1) / 4096) {
        snprintf(text, sizeof text, "address %#" PRIx64 ", %" PRIu64 " bytes: not aligned, or beyond 4 KiB",
                 pins.address, bytes);
        complain(channel, port, text);
    }
}

void Memory::check_data(int port, const WritePins& pins, bool ready) {
    WritePort& w = writers_[port];
    const size_t bytes = size_t(port_bytes_);
    if (w.data_held && (!pins.data_valid || pins.last != w.last_held || memcmp(w.data_before, pins.data, bytes)))
        complain("w", port, "valid fell, or data or last changed, before ready");
    w.data_held = pins.data_valid && !ready;
    if (w.data_held) {
        w.last_held = pins.last;
        memcpy(w.data_before, pins.data, bytes);
    }
}

void Memory::accept_reads(const ReadPins* pins) {
    for (int port = 0; port < ports_; ++port) {
        ReadPort& r = readers_[port];
        ReadState& state = read_state[port];
        if (state.valid && pins[port].data_ready) {
            state.valid = false;
            if (state.last) {
                log(kReadLast, port, r.bursts.front());
                r.bursts.pop_front();
            }
        }
        const AddressPins& address = pins[port].address;
        if (address.valid || r.held.valid) check_address("ar", port, address, r.held, state.address_ready);
        if (address.valid && state.address_ready) {
            r.bursts.push_back({address.address, cycle_ + uint64_t(p_.latency) - 1, address.length + 1, 0, kOkay});
            log(kReadAddress, port, r.bursts.back());
        }
    }
}

void Memory::accept_writes(const WritePins* pins) {
    for (int port = 0; port < write_ports_; ++port) {
        WritePort& w = writers_[port];
        WriteState& state = write_state[port];
        const WritePins& in = pins[port];
        if (state.valid && in.response_ready) {
            state.valid = false;
            log(kWriteResponse, port, w.responses.front());
            w.responses.pop_front();
        }
        if (in.address.valid || w.held.valid) check_address("aw", port, in.address, w.held, state.address_ready);
        if (in.data_valid || w.data_held) check_data(port, in, state.data_ready);
        bool more = false;
        if (in.address.valid && state.address_ready) {
            w.addressed.push_back({in.address.address, 0, in.address.length + 1, 0, kOkay});
            log(kWriteAddress, port, w.addressed.back());
            more = true;
        }
        if (in.data_valid && state.data_ready) {
            w.beats.emplace_back();
            Beat& beat = w.beats.back();
            memcpy(beat.data, in.data, size_t(port_bytes_));
            memcpy(beat.strobe, in.strobe, sizeof beat.strobe);
            beat.last = in.last;
            more = true;
        }
        if (more) complete_bursts(port);
    }
}

void Memory::complete_bursts(int port) {
    WritePort& w = writers_[port];
    while (w.complete < w.addressed.size()) {
        Burst& burst = w.addressed[w.complete];
        if (w.beats.size() < w.complete_beats + burst.beats) return;
        for (uint32_t i = 0; i < burst.beats; ++i)
            if (w.beats[w.complete_beats + i].last != (i + 1 == burst.beats))
                complain("w", port, "last does not mark the last beat of the burst");
        w.complete_beats += burst.beats;
        burst.due = cycle_;
        ++w.complete;
    }
}

uint8_t Memory::check(uint64_t address, const std::vector<Range>& ranges) const {
    if (address < base_ || address - base_ + uint64_t(port_bytes_) > size_) return kDecodeError;
    for (const Range& range : ranges)
        if (address < range.end && address + uint64_t(port_bytes_) > range.first) return kSlaveError;
    return kOkay;
}

bool Memory::read_waits(int port) const {
    const ReadPort& r = readers_[port];
    return !r.bursts.empty() && r.bursts.front().due <= cycle_ && !read_state[port].valid && !stalled(kR, port);
}

void Memory::move_read(int port) {
    Burst& burst = readers_[port].bursts.front();
    ReadState& state = read_state[port];
    const uint64_t address = burst.address + uint64_t(burst.moved) * port_bytes_;
    state.response = check(address, read_errors_);
    if (state.response == kOkay) memcpy(state.data, data_ + (address - base_), size_t(port_bytes_));
    else memset(state.data, kPoison, size_t(port_bytes_));
    if (state.response > burst.response) burst.response = state.response;
    state.valid = true;
    state.last = ++burst.moved == burst.beats;
    ++read_beats[port];
}

void Memory::move_write(int port) {
    WritePort& w = writers_[port];
    Burst& burst = w.addressed.front();
    const Beat& beat = w.beats.front();
    const uint64_t address = burst.address + uint64_t(burst.moved) * port_bytes_;
    const uint8_t response = check(address, write_errors_);
    if (response == kOkay) {
        const uint8_t* bytes = reinterpret_cast<const uint8_t*>(beat.data);
        for (int i = 0; i < port_bytes_; ++i)
            if (beat.strobe[i / 8] >> (i % 8) & 1) data_[address - base_ + i] = bytes[i];
    }
    if (response > burst.response) burst.response = response;
    w.beats.pop_front();
    --w.complete_beats;
    ++written_beats[port];
    if (++burst.moved == burst.beats) {
        burst.due = cycle_ + uint64_t(p_.write_latency) - 1;
        w.responses.push_back(burst);
        w.addressed.pop_front();
        --w.complete;
        ++batch_;
    }
}

void Memory::move_reads() {
    const int64_t cost = port_bytes_ * (p_.refresh_period - p_.refresh_cycles);
    const int first = first_reader_;
    for (int i = 0; i < ports_ && bucket_ >= cost; ++i) {
        const int port = (first + i) % ports_;
        if (!read_waits(port)) continue;
        move_read(port);
        bucket_ -= cost;
        first_reader_ = (port + 1) % ports_;
    }
}

void Memory::move_writes() {
    const int64_t cost = port_bytes_ * (p_.refresh_period - p_.refresh_cycles);
    const int first = first_writer_;
    for (int i = 0; i < write_ports_ && bucket_ >= cost; ++i) {
        const int port = (first + i) % write_ports_;
        if (!write_waits(port)) continue;
        move_write(port);
        bucket_ -= cost;
        first_writer_ = (port + 1) % write_ports_;
    }
}

// Decides whether the bus turns round now.
void Memory::turn(bool reads_wait) {
    uint64_t complete = 0, oldest = cycle_;
    for (int port = 0; port < write_ports_; ++port) {
        const WritePort& w = writers_[port];
        complete += w.complete;
        if (w.complete && w.addressed.front().due < oldest) oldest = w.addressed.front().due;
    }
    bool other;
    if (writing_) {
        other = reads_wait && (!complete || batch_ >= p_.write_batch);
    } else {
        const bool worth = int64_t(complete) >= p_.write_batch || int64_t(cycle_ - oldest) >= p_.write_wait;
        other = complete && (!reads_wait || worth);
    }
    if (other) {
        writing_ = !writing_;
        batch_ = 0;
        turning_ = p_.turnaround;
    }
}

void Memory::move() {
    if (p_.refresh_cycles && phase_ >= uint64_t(p_.refresh_period - p_.refresh_cycles)) return;
    const int64_t full = p_.bucket_bytes * (p_.refresh_period - p_.refresh_cycles);
    bucket_ += p_.bytes_per_cycle * p_.refresh_period;
    if (bucket_ > full) bucket_ = full;
    bool reads_wait = false;
    for (int port = 0; port < ports_; ++port) reads_wait |= read_waits(port);
    if (!p_.turnaround) {
        if (reads_wait) move_reads();
        move_writes();
        return;
    }
    if (!turning_) turn(reads_wait);
    if (turning_) --turning_;
    else if (writing_) move_writes();
    else if (reads_wait) move_reads();
}

void Memory::respond() {
    for (int port = 0; port < ports_; ++port)
        read_state[port].address_ready =
            !frozen && int64_t(readers_[port].bursts.size()) < p_.outstanding && !stalled(kAr, port);
    for (int port = 0; port < write_ports_; ++port) {
        const WritePort& w = writers_[port];
        WriteState& state = write_state[port];
        const int64_t accepted = int64_t(w.addressed.size() + w.responses.size());
        state.address_ready = !frozen && accepted < p_.outstanding && !stalled(kAw, port);
        state.data_ready =
            !frozen && int64_t(w.beats.size()) < p_.outstanding * p_.burst_beats && !stalled(kW, port);
        if (!state.valid && !frozen && !w.responses.empty() && w.responses.front().due <= cycle_ &&
            !stalled(kB, port)) {
            state.valid = true;
            state.response = w.responses.front().response;
        }
    }
}

void Memory::tick(const ReadPins* reads, const WritePins* writes) {
    accept_reads(reads);
    accept_writes(writes);
    stall_now_ = stalls_at(cycle_ + 1);
    if (!frozen) move();
    respond();
    ++total_;
    ++cycle_;
    if (++phase_ == uint64_t(p_.refresh_period)) phase_ = 0;
}

}  // namespace m3vit
