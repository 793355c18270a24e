// What the parts of the pretend accelerator share.
#pragma once
#include <string>

#include "paddle/phi/common/data_type.h"

struct C_DeviceInterface;

namespace pretend {

// The device's name for Paddle: npu, or PRETEND_NAME of the environment. Under a name that Paddle does not know it
// refuses bfloat16.
const char* device_type();                        // device.cc
void count(const std::string& what);              // kernels.cc
void note(const std::string& what);               // kernels.cc: in the order that the host does things
void wait(const std::string& what);               // kernels.cc: counts, notes and tells that the host waits
void register_kernels();                          // kernels.cc
void add_collectives(C_DeviceInterface* device);  // collectives.cc

// half.cc; rounds to nearest, half to even, overflow to infinity
void widen(phi::DataType half, const void* from, void* to, int64_t n);
void round_to(phi::DataType half, const void* from, void* to, int64_t n);

}  // namespace pretend
