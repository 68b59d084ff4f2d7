// Replays recorded cases (hls_src/cases.py) on the engine and compares every byte of memory with what the golden model
// left: m3vit_bench [--threads] CASE... Also the test bench of Vitis' C simulation and co-simulation.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "simulation/simulation.h"

namespace {

using Bytes = std::vector<std::uint8_t>;

Bytes read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw std::runtime_error(path + ": cannot read");
  }
  return Bytes(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

std::map<std::string, std::uint32_t> read_numbers(const std::string& path) {
  std::ifstream file(path);
  std::map<std::string, std::uint32_t> numbers;
  std::string name;
  std::uint32_t value = 0;
  while (file >> name >> value) {
    numbers[name] = value;
  }
  return numbers;
}

// Bytes that differ.
std::size_t replay(const std::string& folder) {
  auto numbers = read_numbers(folder + "/case.txt");
  for (const char* name : {"program", "commands", "record"}) {
    if (numbers.count(name) == 0) {
      throw std::runtime_error(folder + "/case.txt: expected a line '" + name + " NUMBER'");
    }
  }
  const Bytes before = read_bytes(folder + "/before.bin");
  const Bytes after = read_bytes(folder + "/after.bin");
  if (before.size() != after.size()) {
    throw std::runtime_error(folder + ": before.bin and after.bin: expected the same size");
  }
  // Co-simulation copies COSIM_BEATS beats per argument, whatever the image needs.
  const std::size_t beats = std::max(before.size() / m3vit::PORT_BYTES, std::size_t{m3vit::COSIM_BEATS});
  std::vector<m3vit::beat_t> memory(beats);
  auto* const bytes = reinterpret_cast<std::uint8_t*>(memory.data());
  static_assert(sizeof(m3vit::beat_t) == m3vit::PORT_BYTES, "memory is an array of beats");
  std::copy(before.begin(), before.end(), bytes);

  m3vit_engine(m3vit::Port(memory.data()), m3vit::Port(memory.data()), m3vit::Port(memory.data()),
               m3vit::Port(memory.data()), m3vit::Port(memory.data()), m3vit::Port(memory.data()), 0, 0, 0, 0,
               numbers["program"], numbers["commands"], numbers["record"]);

  std::size_t different = 0;
  for (std::size_t i = 0; i < after.size(); ++i) {
    if (bytes[i] != after[i]) {
      if (different++ == 0) {
        std::printf("%s: byte %zu: expected %u, found %u\n", folder.c_str(), i, unsigned(after[i]), unsigned(bytes[i]));
      }
    }
  }
  std::printf("%s: %zu bytes compared, %zu differ\n", folder.c_str(), after.size(), different);
  return different;
}

}  // namespace

int main(int count, char** arguments) {
  m3vit::sim::options().mode = m3vit::sim::Mode::SEQUENTIAL;
  int cases = 0;
  std::size_t different = 0;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    try {
      if (argument == "--threads") {
        m3vit::sim::options().mode = m3vit::sim::Mode::THREADS;
      } else {
        different += replay(argument);
        ++cases;
      }
    } catch (const std::exception& error) {
      std::printf("%s: %s\n", argument.c_str(), error.what());
      return 1;
    }
  }
  if (cases == 0) {
    std::printf("usage: m3vit_bench [--threads] CASE...\n");
    return 2;
  }
  std::printf("%d cases, %s\n", cases, different == 0 ? "passed" : "FAILED");
  return different == 0 ? 0 : 1;
}
