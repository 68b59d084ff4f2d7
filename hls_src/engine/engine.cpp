#include "engine.h"

#include "array.h"
#include "depths.h"
#include "dispatch.h"
#include "drain.h"
#include "fetch.h"
#include "load.h"
#include "reader.h"
#include "route.h"
#include "rows.h"
#include "score.h"
#include "store.h"
#include "weigh.h"
#include "writer.h"

using namespace m3vit;

void m3vit_engine(Port read0, Port read1, Port read2, Port read3, Port write0, Port write1, std::uint64_t arena0,
                  std::uint64_t arena1, std::uint64_t arena2, std::uint64_t arena3, std::uint32_t program,
                  std::uint32_t commands, std::uint32_t record) {
  // Bundles begin at address 0: the arena's address is added inside, so that reads and writes share one register.
#pragma HLS INTERFACE m_axi port = read0 bundle = port0 offset = off depth = COSIM_BEATS \
    max_read_burst_length = BURST_BEATS num_read_outstanding = OUTSTANDING
#pragma HLS INTERFACE m_axi port = read1 bundle = port1 offset = off depth = COSIM_BEATS \
    max_read_burst_length = BURST_BEATS num_read_outstanding = OUTSTANDING
#pragma HLS INTERFACE m_axi port = read2 bundle = port2 offset = off depth = COSIM_BEATS \
    max_read_burst_length = BURST_BEATS num_read_outstanding = OUTSTANDING
#pragma HLS INTERFACE m_axi port = read3 bundle = port3 offset = off depth = COSIM_BEATS \
    max_read_burst_length = BURST_BEATS num_read_outstanding = OUTSTANDING
#pragma HLS INTERFACE m_axi port = write0 bundle = port0 offset = off depth = COSIM_BEATS \
    max_write_burst_length = BURST_BEATS num_write_outstanding = OUTSTANDING
#pragma HLS INTERFACE m_axi port = write1 bundle = port1 offset = off depth = COSIM_BEATS \
    max_write_burst_length = BURST_BEATS num_write_outstanding = OUTSTANDING
#pragma HLS INTERFACE s_axilite port = arena0 bundle = control offset = REG_ARENA0_LO
#pragma HLS INTERFACE s_axilite port = arena1 bundle = control offset = REG_ARENA1_LO
#pragma HLS INTERFACE s_axilite port = arena2 bundle = control offset = REG_ARENA2_LO
#pragma HLS INTERFACE s_axilite port = arena3 bundle = control offset = REG_ARENA3_LO
#pragma HLS INTERFACE s_axilite port = program bundle = control offset = REG_PROGRAM
#pragma HLS INTERFACE s_axilite port = commands bundle = control offset = REG_COMMANDS
#pragma HLS INTERFACE s_axilite port = record bundle = control offset = REG_RECORD
#pragma HLS INTERFACE s_axilite port = return bundle = control
#pragma HLS DATAFLOW

  // ---- stores. One process writes and one reads each, at the same time: what orders them are the tokens `filled` and
  // `freed` (weights), `ready` and `freed` (rows), not a ping-pong of the whole array.
  weight_row_t weights[WEIGHT_SLOTS * SLOT_ROWS];
#pragma HLS AGGREGATE variable = weights
#pragma HLS BIND_STORAGE variable = weights type = ram_2p impl = uram
#pragma HLS STREAM variable = weights type = unsync
  group_t groups[WEIGHT_SLOTS * SLOT_GROUPS];
#pragma HLS AGGREGATE variable = groups
#pragma HLS BIND_STORAGE variable = groups type = ram_2p impl = lutram
#pragma HLS STREAM variable = groups type = unsync
  act_t gelu[O][WEIGHT_SLOTS * GELU_BYTES];  // a copy per lane
#pragma HLS ARRAY_PARTITION variable = gelu complete dim = 1
#pragma HLS BIND_STORAGE variable = gelu type = ram_2p impl = bram
#pragma HLS STREAM variable = gelu type = unsync
  line_t inputs[STORE_LINES];
#pragma HLS AGGREGATE variable = inputs
#pragma HLS BIND_STORAGE variable = inputs type = ram_2p impl = bram
#pragma HLS STREAM variable = inputs type = unsync

  // ---- streams
  Channel<layer_t, depth::LOAD_LAYERS.depth> load_layers(depth::LOAD_LAYERS.name);
  Channel<layer_t, depth::ROWS_LAYERS.depth> rows_layers(depth::ROWS_LAYERS.name);
  Channel<layer_t, depth::DISPATCH_LAYERS.depth> dispatch_layers(depth::DISPATCH_LAYERS.name);
  Channel<layer_t, depth::SCORE_LAYERS.depth> score_layers(depth::SCORE_LAYERS.name);
  Channel<layer_t, depth::WEIGH_LAYERS.depth> weigh_layers(depth::WEIGH_LAYERS.name);
  Channel<layer_t, depth::ROUTE_LAYERS.depth> route_layers(depth::ROUTE_LAYERS.name);
  Channel<layer_t, depth::STORE_LAYERS.depth> store_layers(depth::STORE_LAYERS.name);
  Channel<signal_t, depth::RETIRED.depth> retired(depth::RETIRED.name);
  Channel<command_request_t, depth::COMMAND_REQUESTS.depth> command_requests(depth::COMMAND_REQUESTS.name);
  Channel<command_t, depth::COMMANDS.depth> fetched(depth::COMMANDS.name);
  Channel<request_t, depth::WEIGHT_REQUESTS.depth> weight_requests(depth::WEIGHT_REQUESTS.name);
  Channel<request_t, depth::INPUT_REQUESTS.depth> input_requests(depth::INPUT_REQUESTS.name);
  Channel<request_t, depth::RESIDUAL_REQUESTS.depth> residual_requests(depth::RESIDUAL_REQUESTS.name);
  Channel<line_t, depth::WEIGHT_LINES.depth> weight_lines(depth::WEIGHT_LINES.name);
  Channel<line_t, depth::INPUT_LINES.depth> input_lines(depth::INPUT_LINES.name);
  Channel<line_t, depth::RESIDUAL_LINES.depth> residual_lines(depth::RESIDUAL_LINES.name);
  Channel<slot_t, depth::UNITS.depth> units(depth::UNITS.name);
  Channel<row_t, depth::FILLED.depth> filled(depth::FILLED.name);
  Channel<slot_t, depth::FREED.depth> freed(depth::FREED.name);
  Channel<std::uint32_t, depth::LOADED.depth> loaded(depth::LOADED.name);
  Channel<logits_t, depth::LOGITS.depth> logits(depth::LOGITS.name);
  Channel<scored_t, depth::SCORED.depth> scored(depth::SCORED.name);
  Channel<pick_t, depth::PICKS.depth> picks(depth::PICKS.name);
  Channel<resident_t, depth::RESIDENT.depth> resident(depth::RESIDENT.name);
  Channel<order_t, depth::ORDER.depth> order(depth::ORDER.name);
  Channel<entry_t, depth::ENTRIES_OF_QUEUES.depth> entries(depth::ENTRIES_OF_QUEUES.name);
  Channel<routed_t, depth::ROUTED.depth> routed(depth::ROUTED.name);
  Channel<signal_t, depth::ROWS_READY.depth> rows_ready(depth::ROWS_READY.name);
  Channel<std::uint32_t, depth::ROWS_FREED.depth> rows_freed(depth::ROWS_FREED.name);
  Channel<tile_t, depth::TILES.depth> tiles(depth::TILES.name);
  Channel<operand_t, depth::OPERANDS.depth> operands(depth::OPERANDS.name);
  Channel<tile_t, depth::DRAIN_TILES.depth> drain_tiles(depth::DRAIN_TILES.name);
#ifdef __SYNTHESIS__
  constexpr int SUMS_DEPTH = depth::SUMS.depth;
  Stream<pair_sums_t> sums[PAIRS];
#pragma HLS STREAM variable = sums depth = SUMS_DEPTH
#else
  Channels<pair_sums_t, depth::SUMS.depth, PAIRS> sums(depth::SUMS.name);
#endif
  Channel<operand_t, depth::HIDDEN.depth> hidden(depth::HIDDEN.name);
  Channel<tile_t, depth::RESULT_TILES.depth> result_tiles(depth::RESULT_TILES.name);
  Channel<result_t, depth::RESULTS.depth> results(depth::RESULTS.name);
  Channel<outgoing_t, depth::OUTGOING.depth> outgoing(depth::OUTGOING.name);

  // ---- processes
#ifdef __SYNTHESIS__
#define M3VIT_PROCESS(name, ...) name(__VA_ARGS__)
#else
  sim::Simulation simulation;
#define M3VIT_PROCESS(name, ...) simulation.add(#name, [&] { name(__VA_ARGS__); })
#endif
  M3VIT_PROCESS(fetch, program, commands, command_requests, fetched, retired, load_layers, rows_layers,
                dispatch_layers, score_layers, weigh_layers, route_layers, store_layers);
  M3VIT_PROCESS(reader, read0, read1, read2, read3, arena0, arena1, arena2, arena3, command_requests, weight_requests,
                input_requests, residual_requests, fetched, weight_lines, input_lines, residual_lines);
  M3VIT_PROCESS(load, load_layers, order, resident, weight_requests, weight_lines, freed, units, filled, loaded,
                weights, groups, gelu);
  M3VIT_PROCESS(rows, rows_layers, rows_freed, input_requests, input_lines, rows_ready, inputs);
  M3VIT_PROCESS(dispatch, dispatch_layers, units, entries, rows_ready, rows_freed, tiles, operands, inputs);
  M3VIT_PROCESS(array, tiles, operands, hidden, filled, drain_tiles, sums, weights);
  M3VIT_PROCESS(drain, drain_tiles, sums, hidden, logits, result_tiles, results, freed, groups, gelu);
  M3VIT_PROCESS(score, score_layers, logits, scored);
  M3VIT_PROCESS(weigh, weigh_layers, scored, picks);
  M3VIT_PROCESS(route, route_layers, picks, resident, order, entries, routed);
  M3VIT_PROCESS(store, record, store_layers, result_tiles, results, routed, loaded, residual_requests, residual_lines,
                outgoing);
  M3VIT_PROCESS(writer, write0, write1, arena0, arena1, outgoing, retired);
#undef M3VIT_PROCESS
#ifndef __SYNTHESIS__
  sim::watch_all(simulation, load_layers, rows_layers, dispatch_layers, score_layers, weigh_layers, route_layers,
                 store_layers, retired, command_requests, fetched, weight_requests, input_requests, residual_requests,
                 weight_lines, input_lines, residual_lines, units, filled, freed, loaded, logits, scored, picks,
                 resident, order, entries, routed, rows_ready, rows_freed, tiles, operands, drain_tiles, sums, hidden,
                 result_tiles, results, outgoing);
  simulation.run();
#endif
}
