// The engine: top function of synthesis, one program per call.
#ifndef M3VIT_ENGINE_H
#define M3VIT_ENGINE_H

#include "port.h"

// Arguments after the ports are the registers of docs/reference.md: the arena's address as each port sees it, offsets
// of program and record in the arena, number of commands. read0 … read3 are the four memory ports; write0 and write1
// the same bundles as read0 and read1.
void m3vit_engine(m3vit::Port read0, m3vit::Port read1, m3vit::Port read2, m3vit::Port read3, m3vit::Port write0,
                  m3vit::Port write1, std::uint64_t arena0, std::uint64_t arena1, std::uint64_t arena2,
                  std::uint64_t arena3, std::uint32_t program, std::uint32_t commands, std::uint32_t record);

#endif  // M3VIT_ENGINE_H
