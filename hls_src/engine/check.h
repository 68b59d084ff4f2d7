// What the engine refuses, and what follows from a shape: the rules of accel/limits.py and accel/layers.py.
#ifndef M3VIT_CHECK_H
#define M3VIT_CHECK_H

#include "types.h"

namespace m3vit {

struct verdict_t {
  ErrorCode error;
  std::uint32_t detail;  // position of the field in accel.commands.FIELDS
};

// Whether word for word this is a command at all: known opcode, known flags, reserved bits zero.
bool is_command(const command_t& command);

// Fills what is in the command and what follows from it; `age`, `starts_crc` and the fields of END are the caller's.
verdict_t check(const command_t& command, layer_t& layer);

}  // namespace m3vit

#endif  // M3VIT_CHECK_H
