// The memory behind the engine's AXI ports, one step per clock. What it does and what its parameters mean is said once,
// in accel/memory_model.py; names and order of the parameters are those of the dataclass there.
#pragma once
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

namespace m3vit {

constexpr int kMaxPorts = 4;
constexpr int kMaxPortBytes = 128;

struct Parameters {
    int64_t latency = 100;
    int64_t bytes_per_cycle = 48;
    int64_t bucket_bytes = 256;
    int64_t refresh_period = 2340;
    int64_t refresh_cycles = 78;
    int64_t turnaround = 16;
    int64_t write_batch = 8;
    int64_t write_wait = 256;
    int64_t write_latency = 60;
    int64_t outstanding = 8;
    int64_t burst_beats = 16;
};
constexpr int kParameters = sizeof(Parameters) / sizeof(int64_t);

struct Range {
    uint64_t first, end;
};

// What happened on the ports, if somebody wants to know. Layout shared with host/backends/rtl_library.py.
// Kinds from 4 on are noted by m3vit_board.sv: beats of the array, with the command's table entry as port.
enum EventKind : uint32_t { kReadAddress = 0, kReadLast = 1, kWriteAddress = 2, kWriteResponse = 3 };
struct Event {
    uint64_t cycle, address;
    uint32_t kind, port, beats, response;
};

// Pins as the engine drives them in the cycle that ends, and as it will see them in the next one.
struct AddressPins {
    bool valid;
    uint64_t address;
    uint32_t length, size, burst;
};
struct ReadPins {
    AddressPins address;
    bool data_ready;
};
struct WritePins {
    AddressPins address;
    bool data_valid, last, response_ready;
    const uint32_t* data;  // port_bytes / 4 words
    uint8_t strobe[kMaxPortBytes / 8];
};
struct ReadState {
    bool address_ready = false, valid = false, last = false;
    uint8_t response = 0;
    uint32_t data[kMaxPortBytes / 4] = {};
};
struct WriteState {
    bool address_ready = false, data_ready = false, valid = false;
    uint8_t response = 0;
};

class Memory {
public:
    Memory();
    ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    // Bytes at `data` (owned by the caller; null: allocated here) answer from address `base` on.
    void attach(uint8_t* data, uint64_t base, uint64_t size);
    void set_shape(int ports, int write_ports, int port_bytes);
    void set_parameters(const Parameters& parameters);
    void set_stalls(const uint32_t* pattern, uint64_t period);
    void set_errors(bool write, const Range* ranges, uint64_t count);
    bool idle() const;     // nothing is in flight
    void restart_clock();  // phases of refresh and stalls begin anew, the bucket is full; only when idle
    void drop();           // forgets everything in flight, as a reset of the ports does

    void tick(const ReadPins* reads, const WritePins* writes);

    uint8_t* data() const { return data_; }
    uint64_t size() const { return size_; }
    int ports() const { return ports_; }
    int write_ports() const { return write_ports_; }
    int port_bytes() const { return port_bytes_; }

    ReadState read_state[kMaxPorts];
    WriteState write_state[kMaxPorts];
    bool frozen = false;  // no handshake completes any more
    void note(uint32_t kind, uint32_t port, uint64_t value);  // an event from outside, if logging
    bool logging = false;
    std::vector<Event> events;
    std::string violation;  // first breach of AXI4 by the engine, or empty
    uint64_t read_beats[kMaxPorts] = {}, written_beats[kMaxPorts] = {};

private:
    struct Burst {
        uint64_t address, due;  // due: cycle of the first beat, of the response, or since when it is complete
        uint32_t beats, moved;
        uint8_t response;
    };
    struct Beat {
        uint32_t data[kMaxPortBytes / 4];
        uint8_t strobe[kMaxPortBytes / 8];
        bool last;
    };
    struct ReadPort {
        std::deque<Burst> bursts;
        AddressPins held{};
    };
    struct WritePort {
        std::deque<Burst> addressed;  // burst complete or not, oldest first
        std::deque<Burst> responses;
        std::deque<Beat> beats;
        uint64_t complete_beats = 0;  // beats of bursts that are known to be complete
        uint64_t complete = 0;        // bursts of `addressed` that are complete
        AddressPins held{};
        bool data_held = false, last_held = false;
        uint32_t data_before[kMaxPortBytes / 4];
    };

    uint32_t stalls_at(uint64_t cycle) const { return stalls_.empty() ? 0 : stalls_[cycle % stalls_.size()]; }
    bool stalled(int channel, int port) const { return stall_now_ >> (kMaxPorts * channel + port) & 1; }
    void check_address(const char* channel, int port, const AddressPins& pins, AddressPins& held, bool ready);
    void check_data(int port, const WritePins& pins, bool ready);
    void accept_reads(const ReadPins* pins);
    void accept_writes(const WritePins* pins);
    void complete_bursts(int port);
    void move();
    bool read_waits(int port) const;
    bool write_waits(int port) const { return writers_[port].complete != 0; }
    void move_reads();
    void move_writes();
    void move_read(int port);
    void move_write(int port);
    void turn(bool reads_wait);
    void respond();
    uint8_t check(uint64_t address, const std::vector<Range>& ranges) const;
    void log(EventKind kind, int port, const Burst& burst);
    void complain(const char* channel, int port, const std::string& what);

    Parameters p_;
    std::vector<uint32_t> stalls_;
    std::vector<Range> read_errors_, write_errors_;
    uint8_t* data_ = nullptr;
    bool owned_ = false;
    uint64_t base_ = 0, size_ = 0;
    int ports_ = kMaxPorts, write_ports_ = 2, port_bytes_ = 16;

    ReadPort readers_[kMaxPorts];
    WritePort writers_[kMaxPorts];
    uint64_t total_ = 0;     // cycles since creation, for the log
    uint64_t cycle_ = 0;     // cycles since the clock was restarted
    uint64_t phase_ = 0;     // within the refresh period
    int64_t bucket_ = 0;     // bytes, times refresh_period - refresh_cycles
    uint32_t stall_now_ = 0;
    bool writing_ = false;
    int64_t turning_ = 0;    // cycles until the bus has turned
    int64_t batch_ = 0;      // bursts written since it turned
    int first_reader_ = 0, first_writer_ = 0;
};

}  // namespace m3vit
