// A pretend accelerator for Paddle: a plug-in device whose memory is the host's and whose kernels are the CPU's.
//
// It exists so that Paddle's device, half-precision and collective code runs on a machine without an accelerator.
// Everything is synchronous: there are no streams, and nothing here says anything of speed.
#include <cstdlib>
#include <cstring>

#include "paddle/phi/backends/device_ext.h"
#include "pretend.h"

namespace {

int current = 0;

size_t device_count() {
  const char* asked = std::getenv("PRETEND_DEVICES");
  return asked ? std::strtoul(asked, nullptr, 10) : 2;
}

C_Status nothing() { return C_SUCCESS; }
C_Status select(const C_Device device) { return current = device->id, C_SUCCESS; }
C_Status selected(const C_Device device) { return device->id = current, C_SUCCESS; }
C_Status each(const C_Device) { return C_SUCCESS; }
C_Status number(size_t* n) { return *n = device_count(), C_SUCCESS; }
C_Status list(size_t* ids) {
  for (size_t i = 0; i < device_count(); ++i) ids[i] = i;
  return C_SUCCESS;
}

C_Status allocate(const C_Device, void** memory, size_t size) {
  return posix_memalign(memory, 64, size ? size : 64) ? C_FAILED : C_SUCCESS;
}
C_Status release(const C_Device, void* memory, size_t) { return std::free(memory), C_SUCCESS; }
C_Status fill(const C_Device, void* memory, unsigned char value, size_t size) {
  return std::memset(memory, value, size), C_SUCCESS;
}
C_Status memory_stats(const C_Device, size_t* total, size_t* free) {
  return *total = size_t(16) << 30, *free = size_t(15) << 30, C_SUCCESS;
}

C_Status copy(const C_Device, void* to, const void* from, size_t size) { return std::memcpy(to, from, size), C_SUCCESS; }
C_Status copy_to_host(const C_Device device, void* to, const void* from, size_t size) {
  pretend::count("copy to host");
  return copy(device, to, from, size);
}
C_Status copy_between(const C_Device, const C_Device, void* to, const void* from, size_t size) {
  return std::memcpy(to, from, size), C_SUCCESS;
}
C_Status queue_copy(const C_Device device, C_Stream, void* to, const void* from, size_t size) {
  return copy(device, to, from, size);
}
C_Status queue_copy_to_host(const C_Device device, C_Stream, void* to, const void* from, size_t size) {
  return copy_to_host(device, to, from, size);
}
C_Status queue_copy_between(const C_Device, const C_Device, C_Stream, void* to, const void* from, size_t size) {
  return std::memcpy(to, from, size), C_SUCCESS;
}

C_Status make_stream(const C_Device, C_Stream* stream) { return *stream = nullptr, C_SUCCESS; }
C_Status on_stream(const C_Device, C_Stream) { return C_SUCCESS; }
C_Status make_event(const C_Device, C_Event* event) { return *event = nullptr, C_SUCCESS; }
C_Status on_event(const C_Device, C_Event) { return C_SUCCESS; }
C_Status event_on_stream(const C_Device, C_Stream, C_Event) { return C_SUCCESS; }

C_Status yes(const C_Device, bool* supported) { return *supported = true, C_SUCCESS; }
C_Status version(const C_Device, size_t* version) { return *version = 1, C_SUCCESS; }
C_Status smallest_chunk(const C_Device, size_t* bytes) { return *bytes = 64, C_SUCCESS; }

C_Status start_profiler(C_Profiler, void**) { return C_SUCCESS; }
C_Status profile(C_Profiler, void*) { return C_SUCCESS; }
C_Status collect_profile(C_Profiler, uint64_t, void*) { return C_SUCCESS; }

}  // namespace

const char* pretend::device_type() {
  const char* asked = std::getenv("PRETEND_NAME");
  return asked ? asked : "npu";
}

extern "C" void InitPlugin(CustomRuntimeParams* parameters) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(parameters);
  parameters->device_type = const_cast<char*>(pretend::device_type());
  parameters->sub_device_type = const_cast<char*>("pretend");
  C_DeviceInterface* device = parameters->interface;

  device->initialize = device->finalize = nothing;
  device->init_device = device->set_device = select;
  device->get_device = selected;
  device->deinit_device = device->synchronize_device = each;
  device->get_device_count = number;
  device->get_device_list = list;

  device->device_memory_allocate = device->host_memory_allocate = device->unified_memory_allocate = allocate;
  device->device_memory_deallocate = device->host_memory_deallocate = device->unified_memory_deallocate = release;
  device->device_memory_set = fill;
  device->device_memory_stats = memory_stats;
  device->device_min_chunk_size = smallest_chunk;
  device->memory_copy_h2d = device->memory_copy_d2d = copy;
  device->memory_copy_d2h = copy_to_host;
  device->memory_copy_p2p = copy_between;
  device->async_memory_copy_h2d = device->async_memory_copy_d2d = queue_copy;
  device->async_memory_copy_d2h = queue_copy_to_host;
  device->async_memory_copy_p2p = queue_copy_between;

  device->create_stream = make_stream;
  device->destroy_stream = device->query_stream = device->synchronize_stream = on_stream;
  device->create_event = make_event;
  device->destroy_event = device->query_event = device->synchronize_event = on_event;
  device->record_event = device->stream_wait_event = event_on_stream;

  device->is_float16_supported = device->is_bfloat16_supported = yes;
  device->get_runtime_version = device->get_driver_version = version;
  device->profiler_initialize = start_profiler;
  device->profiler_finalize = device->profiler_prepare_tracing = profile;
  device->profiler_start_tracing = device->profiler_stop_tracing = profile;
  device->profiler_collect_trace_data = collect_profile;

  pretend::add_collectives(device);
  pretend::register_kernels();
}
