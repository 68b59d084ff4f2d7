#include "fetch.h"

#include "check.h"

namespace m3vit {

void fetch(std::uint32_t program, std::uint32_t commands, Stream<command_request_t>& requests,
           Stream<command_t>& fetched, Stream<signal_t>& retired, Stream<layer_t>& load_layers,
           Stream<layer_t>& rows_layers, Stream<layer_t>& dispatch_layers, Stream<layer_t>& score_layers,
           Stream<layer_t>& weigh_layers, Stream<layer_t>& route_layers, Stream<layer_t>& store_layers) {
  int open = 0;  // layers handed out and not stored
  std::uint32_t index = 0;
  std::uint32_t commands_read = 0;
  bool starts_crc = true;
  bool running = true;
  verdict_t verdict = {ErrorCode::NONE, 0};

COMMANDS:
  while (running) {
    if (index >= commands) {
      verdict = {ErrorCode::PROGRAM, 0};
      break;
    }
    command_request_t request;
    request.offset = program + index * COMMAND_BYTES;
    request.last = false;
    requests.write(request);
    const command_t command = fetched.read();
    if (!is_command(command)) {
      verdict = {ErrorCode::OPCODE, 0};
      break;
    }
    ++commands_read;
    const auto opcode = Opcode(field_value(command.word[FIELD_OPCODE.word], FIELD_OPCODE));
    if (opcode == Opcode::END) {
      running = false;
    } else if (opcode == Opcode::JOB_END) {
      layer_t layer = {};
      layer.kind = Kind::JOB_END;
      layer.job = std::uint16_t(field_value(command.word[FIELD_JOB.word], FIELD_JOB));
      store_layers.write(layer);
      starts_crc = true;
    } else if (opcode == Opcode::BARRIER) {
    BARRIER:
      for (; open != 0; --open) {
        retired.read();
      }
    } else {
      layer_t layer = {};
      verdict = check(command, layer);
      if (verdict.error != ErrorCode::NONE) {
        break;
      }
      layer.age = index;
      layer.starts_crc = starts_crc && layer.kind == Kind::MOE;
      if (layer.kind == Kind::MOE) {
        starts_crc = false;
      }
      if (open == ENTRIES) {
        retired.read();
        --open;
      }
      ++open;
      load_layers.write(layer);
      rows_layers.write(layer);
      dispatch_layers.write(layer);
      if (layer.kind == Kind::MOE) {
        score_layers.write(layer);
        weigh_layers.write(layer);
        route_layers.write(layer);
      }
      store_layers.write(layer);
    }
    ++index;
  }

  layer_t end = {};
  end.kind = Kind::END;
  end.error = std::uint32_t(verdict.error);
  end.detail = verdict.detail;
  end.commands = index;
  end.commands_read = commands_read;
  load_layers.write(end);
  rows_layers.write(end);
  dispatch_layers.write(end);
  score_layers.write(end);
  weigh_layers.write(end);
  route_layers.write(end);
  store_layers.write(end);
  command_request_t last;
  last.offset = 0;
  last.last = true;
  requests.write(last);
LEFT:
  for (; open != 0; --open) {
    retired.read();
  }
}

}  // namespace m3vit
