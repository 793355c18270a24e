// Collectives of the pretend accelerator: processes of one machine meet in shared memory.
//
// Every collective is an exchange: each rank puts a piece into its slot, all wait, each takes what it needs, all wait.
// Half precision is summed in float32 and rounded once.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "paddle/phi/backends/device_ext.h"
#include "paddle/phi/common/bfloat16.h"
#include "paddle/phi/common/float16.h"
#include "pretend.h"

namespace {

constexpr size_t SLOT = 1 << 22;  // bytes that a rank exchanges at a time
constexpr std::chrono::seconds PATIENCE(120);
constexpr size_t NAME_SIZE = 64;

struct Meeting {  // begins as zeros
  std::atomic<uint32_t> arrived, times;
};

struct Group {
  size_t rank, size;
  std::string name;
  Meeting* meeting;
  char* slots;

  char* slot(size_t of) const { return slots + of * SLOT; }

  // Wait for all ranks; false where one does not come.
  bool meet() const {
    uint32_t before = meeting->times;
    if (++meeting->arrived == size) {
      meeting->arrived = 0;
      ++meeting->times;
      return true;
    }
    auto until = std::chrono::steady_clock::now() + PATIENCE;
    while (meeting->times == before) {
      if (std::chrono::steady_clock::now() > until) return false;
      usleep(50);
    }
    return true;
  }

  template <class Take>
  C_Status exchange(const void* mine, size_t bytes, Take take) const {
    for (size_t at = 0; at < bytes; at += SLOT) {
      size_t n = std::min(SLOT, bytes - at);
      if (mine) std::memcpy(slot(rank), static_cast<const char*>(mine) + at, n);
      if (!meet()) return C_FAILED;
      take(at, n);
      if (!meet()) return C_FAILED;
    }
    return C_SUCCESS;
  }
};

Group* of(C_CCLComm communicator) { return reinterpret_cast<Group*>(communicator); }

size_t width(C_DataType type) {
  switch (type) {
    case BOOL: case UINT8: case INT8: return 1;
    case FLOAT16: case BFLOAT16: case UINT16: case INT16: return 2;
    case FLOAT32: case INT32: case UINT32: return 4;
    default: return 8;
  }
}

template <class Stored, class Summed>
void combine_as(const Group& group, char* out, size_t bytes, C_CCLReduceOp op) {
  for (size_t i = 0; i < bytes / sizeof(Stored); ++i) {
    auto value = [&](size_t rank) { return static_cast<Summed>(reinterpret_cast<Stored*>(group.slot(rank))[i]); };
    Summed total = value(0);
    for (size_t rank = 1; rank < group.size; ++rank) {
      Summed next = value(rank);
      if (op == MAX) total = std::max(total, next);
      else if (op == MIN) total = std::min(total, next);
      else if (op == PRODUCT) total *= next;
      else total += next;
    }
    if (op == AVG) total /= static_cast<Summed>(group.size);
    reinterpret_cast<Stored*>(out)[i] = static_cast<Stored>(total);
  }
}

bool combine(const Group& group, void* out, size_t bytes, C_DataType type, C_CCLReduceOp op) {
  auto* to = static_cast<char*>(out);
  switch (type) {
    case FLOAT32: return combine_as<float, float>(group, to, bytes, op), true;
    case FLOAT64: return combine_as<double, double>(group, to, bytes, op), true;
    case FLOAT16: return combine_as<phi::dtype::float16, float>(group, to, bytes, op), true;
    case BFLOAT16: return combine_as<phi::dtype::bfloat16, float>(group, to, bytes, op), true;
    case INT32: return combine_as<int32_t, int32_t>(group, to, bytes, op), true;
    case INT64: return combine_as<int64_t, int64_t>(group, to, bytes, op), true;
    case UINT8: case BOOL: return combine_as<uint8_t, int>(group, to, bytes, op), true;
    default: return std::fprintf(stderr, "pretend accelerator: no reduction of type %d\n", type), false;
  }
}

C_Status reduce_to(size_t root, bool everywhere, void* in, void* out, size_t n, C_DataType type, C_CCLReduceOp op,
                   const Group& group) {
  bool fine = true;
  auto status = group.exchange(in, n * width(type), [&](size_t at, size_t bytes) {
    if (everywhere || group.rank == root) fine &= combine(group, static_cast<char*>(out) + at, bytes, type, op);
  });
  return fine ? status : C_FAILED;
}

C_Status all_reduce(void* in, void* out, size_t n, C_DataType type, C_CCLReduceOp op, C_CCLComm group, C_Stream) {
  pretend::count("all_reduce");
  return reduce_to(0, true, in, out, n, type, op, *of(group));
}

C_Status reduce(void* in, void* out, size_t n, C_DataType type, C_CCLReduceOp op, size_t root, C_CCLComm group,
                C_Stream) {
  pretend::count("reduce");
  return reduce_to(root, false, in, out, n, type, op, *of(group));
}

C_Status broadcast(void* data, size_t n, C_DataType type, size_t root, C_CCLComm communicator, C_Stream) {
  pretend::count("broadcast");
  Group& group = *of(communicator);
  return group.exchange(group.rank == root ? data : nullptr, n * width(type), [&](size_t at, size_t bytes) {
    if (group.rank != root) std::memcpy(static_cast<char*>(data) + at, group.slot(root), bytes);
  });
}

C_Status all_gather(void* in, void* out, size_t n, C_DataType type, C_CCLComm communicator, C_Stream) {
  pretend::count("all_gather");
  Group& group = *of(communicator);
  size_t each = n * width(type);
  return group.exchange(in, each, [&](size_t at, size_t bytes) {
    for (size_t rank = 0; rank < group.size; ++rank)
      std::memcpy(static_cast<char*>(out) + rank * each + at, group.slot(rank), bytes);
  });
}

C_Status reduce_scatter(void* in, void* out, size_t n, C_DataType type, C_CCLReduceOp op, C_CCLComm communicator,
                        C_Stream) {
  pretend::count("reduce_scatter");
  Group& group = *of(communicator);
  size_t each = n * width(type);
  std::vector<char> whole(each * group.size);
  auto status = reduce_to(0, true, in, whole.data(), n * group.size, type, op, group);
  if (status == C_SUCCESS) std::memcpy(out, whole.data() + group.rank * each, each);
  return status;
}

C_Status id_size(size_t* size) { return *size = NAME_SIZE, C_SUCCESS; }

C_Status make_id(C_CCLRootId* id) {
  std::random_device random;
  std::snprintf(static_cast<char*>(id->data), NAME_SIZE, "/pretend_%d_%08x%08x", getpid(), random(), random());
  return C_SUCCESS;
}

C_Status join(size_t size, C_CCLRootId* id, size_t rank, C_CCLComm* communicator) {
  std::string name(static_cast<char*>(id->data));
  size_t head = 64, bytes = head + size * SLOT;
  int file = shm_open(name.c_str(), O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, bytes)) return C_FAILED;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return C_FAILED;
  auto* start = static_cast<char*>(memory);
  auto* group = new Group{rank, size, name, reinterpret_cast<Meeting*>(start), start + head};
  bool together = group->meet();
  if (rank == 0) shm_unlink(name.c_str());  // all have it, or some never will
  *communicator = reinterpret_cast<C_CCLComm>(group);
  return together ? C_SUCCESS : C_FAILED;
}

C_Status leave(C_CCLComm communicator) {
  Group* group = of(communicator);
  munmap(group->meeting, group->slots - reinterpret_cast<char*>(group->meeting) + group->size * SLOT);
  delete group;
  return C_SUCCESS;
}

C_Status group_name(C_CCLComm group, char* name) {
  return std::snprintf(name, NAME_SIZE, "%s", of(group)->name.c_str()), C_SUCCESS;
}

C_Status nothing() { return C_SUCCESS; }

}  // namespace

void pretend::add_collectives(C_DeviceInterface* device) {
  device->xccl_get_comm_name = group_name;
  device->xccl_get_unique_id_size = id_size;
  device->xccl_get_unique_id = make_id;
  device->xccl_comm_init_rank = join;
  device->xccl_destroy_comm = leave;
  device->xccl_all_reduce = all_reduce;
  device->xccl_reduce = reduce;
  device->xccl_broadcast = broadcast;
  device->xccl_all_gather = all_gather;
  device->xccl_reduce_scatter = reduce_scatter;
  device->xccl_group_start = device->xccl_group_end = nothing;
}
