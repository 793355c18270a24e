// A pretend accelerator for Paddle: a plug-in device whose memory is the host's and whose kernels are the CPU's.
//
// It exists so that Paddle's device, half-precision and collective code runs on a machine without an accelerator.
// Nothing here says anything of speed. Kernels, and copies on the stream that Paddle computes on, happen at once. Copies on
// another stream happen as late as they may: when somebody waits for them. So what uses a batch without waiting for its
// copy, or changes the memory it is copied from too early, computes something else.
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "paddle/phi/backends/device_ext.h"
#include "pretend.h"

// A queue of copies; that which Paddle made first on a device is its compute stream, and never holds any.
struct C_Stream_st {
  long id = 0;
  bool computes = false;
  std::deque<std::function<void()>> waiting;
  size_t done = 0, given = 0;
};

// A place in a stream's queue: after the first `after` that were given to it.
struct C_Event_st {
  long id = 0;
  C_Stream stream = nullptr;
  size_t after = 0;
};

namespace {

int current = 0;
std::recursive_mutex streaming;
std::map<C_Stream, int> streams;  // to their devices

void finish(C_Stream stream, size_t count) {
  if (!stream || !streams.count(stream)) return;
  while (stream->done < count) {
    auto copy = stream->waiting.front();
    stream->waiting.pop_front();
    ++stream->done;
    copy();
  }
}

// Do it now, or where the stream is another than the compute stream, later.
void give(C_Stream stream, std::function<void()> copy) {
  std::lock_guard<std::recursive_mutex> lock(streaming);
  if (!stream || stream->computes) return copy();
  stream->waiting.push_back(std::move(copy));
  ++stream->given;
}

std::string name_of(C_Stream stream) {
  return !stream || stream->computes ? "the compute stream" : "stream " + std::to_string(stream->id);
}

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
C_Status copy_to_device(const C_Device device, void* to, const void* from, size_t size) {
  pretend::wait("copy to device");
  return copy(device, to, from, size);
}
C_Status copy_to_host(const C_Device device, void* to, const void* from, size_t size) {
  pretend::wait("copy to host");
  return copy(device, to, from, size);
}
C_Status copy_between(const C_Device, const C_Device, void* to, const void* from, size_t size) {
  return std::memcpy(to, from, size), C_SUCCESS;
}
C_Status queue_copy(const C_Device, C_Stream stream, void* to, const void* from, size_t size) {
  return give(stream, [=] { std::memcpy(to, from, size); }), C_SUCCESS;
}
C_Status queue_copy_to_device(const C_Device device, C_Stream stream, void* to, const void* from, size_t size) {
  pretend::count("queued copy to device");
  pretend::note("copy to device on " + name_of(stream));
  return queue_copy(device, stream, to, from, size);
}
C_Status queue_copy_to_host(const C_Device device, C_Stream stream, void* to, const void* from, size_t size) {
  pretend::count("queued copy to host");
  return queue_copy(device, stream, to, from, size);
}
C_Status queue_copy_between(const C_Device device, const C_Device, C_Stream stream, void* to, const void* from, size_t size) {
  return queue_copy(device, stream, to, from, size);
}

C_Status make_stream(const C_Device device, C_Stream* stream) {
  std::lock_guard<std::recursive_mutex> lock(streaming);
  static long made = 0;
  bool first = true;
  for (auto& [other, of] : streams) first = first && of != device->id;
  *stream = new C_Stream_st;
  (*stream)->id = ++made;
  (*stream)->computes = first;
  streams[*stream] = device->id;
  return C_SUCCESS;
}
C_Status end_stream(const C_Device, C_Stream stream) {
  std::lock_guard<std::recursive_mutex> lock(streaming);
  if (!streams.count(stream)) return C_SUCCESS;
  finish(stream, stream->given);
  streams.erase(stream);
  return delete stream, C_SUCCESS;
}
C_Status ask_stream(const C_Device, C_Stream stream) {
  std::lock_guard<std::recursive_mutex> lock(streaming);
  return !stream || stream->waiting.empty() ? C_SUCCESS : C_FAILED;
}
C_Status wait_for_stream(const C_Device, C_Stream stream) {
  pretend::wait("wait for a stream");
  std::lock_guard<std::recursive_mutex> lock(streaming);
  if (stream) finish(stream, stream->given);
  return C_SUCCESS;
}
C_Status wait_for_device(const C_Device device) {
  pretend::wait("wait for the device");
  std::lock_guard<std::recursive_mutex> lock(streaming);
  for (auto& [stream, of] : streams)
    if (of == device->id) finish(stream, stream->given);
  return C_SUCCESS;
}

C_Status make_event(const C_Device, C_Event* event) {
  std::lock_guard<std::recursive_mutex> lock(streaming);
  static long made = 0;
  *event = new C_Event_st;
  (*event)->id = ++made;
  return C_SUCCESS;
}
C_Status end_event(const C_Device, C_Event event) { return delete event, C_SUCCESS; }
C_Status record(const C_Device, C_Stream stream, C_Event event) {
  std::lock_guard<std::recursive_mutex> lock(streaming);
  pretend::note("event " + std::to_string(event->id) + " on " + name_of(stream));
  event->stream = stream;
  event->after = stream ? stream->given : 0;
  return C_SUCCESS;
}
C_Status ask_event(const C_Device, C_Event event) {
  std::lock_guard<std::recursive_mutex> lock(streaming);
  bool open = event->stream && streams.count(event->stream) && event->stream->done < event->after;
  return open ? C_FAILED : C_SUCCESS;
}
C_Status wait_for_event(const C_Device, C_Event event) {
  pretend::wait("wait for an event");
  std::lock_guard<std::recursive_mutex> lock(streaming);
  return finish(event->stream, event->after), C_SUCCESS;
}
C_Status order_after(const C_Device, C_Stream stream, C_Event event) {
  std::lock_guard<std::recursive_mutex> lock(streaming);
  pretend::note(name_of(stream) + " waits for event " + std::to_string(event->id));
  auto* of = event->stream;
  size_t after = event->after;
  return give(stream, [=] { finish(of, after); }), C_SUCCESS;
}

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
  device->deinit_device = each;
  device->synchronize_device = wait_for_device;
  device->get_device_count = number;
  device->get_device_list = list;

  device->device_memory_allocate = device->host_memory_allocate = device->unified_memory_allocate = allocate;
  device->device_memory_deallocate = device->host_memory_deallocate = device->unified_memory_deallocate = release;
  device->device_memory_set = fill;
  device->device_memory_stats = memory_stats;
  device->device_min_chunk_size = smallest_chunk;
  device->memory_copy_h2d = copy_to_device;
  device->memory_copy_d2d = copy;
  device->memory_copy_d2h = copy_to_host;
  device->memory_copy_p2p = copy_between;
  device->async_memory_copy_h2d = queue_copy_to_device;
  device->async_memory_copy_d2d = queue_copy;
  device->async_memory_copy_d2h = queue_copy_to_host;
  device->async_memory_copy_p2p = queue_copy_between;

  device->create_stream = make_stream;
  device->destroy_stream = end_stream;
  device->query_stream = ask_stream;
  device->synchronize_stream = wait_for_stream;
  device->create_event = make_event;
  device->destroy_event = end_event;
  device->query_event = ask_event;
  device->synchronize_event = wait_for_event;
  device->record_event = record;
  device->stream_wait_event = order_after;

  device->is_float16_supported = device->is_bfloat16_supported = yes;
  device->get_runtime_version = device->get_driver_version = version;
  device->profiler_initialize = start_profiler;
  device->profiler_finalize = device->profiler_prepare_tracing = profile;
  device->profiler_start_tracing = device->profiler_stop_tracing = profile;
  device->profiler_collect_trace_data = collect_profile;

  pretend::add_collectives(device);
  pretend::register_kernels();
}
