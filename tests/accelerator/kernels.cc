// The kernels of the pretend accelerator: each one is Paddle's own CPU kernel, called on the device's memory.
//
// Half precision is real in storage and float32 in arithmetic, as on a device with float32 accumulators: inputs are
// widened to float32, the CPU's float32 kernel runs, and its outputs are rounded to nearest, overflow to infinity.
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "paddle/phi/backends/context_pool.h"
#include "paddle/phi/backends/cpu/cpu_context.h"
#include "paddle/phi/backends/custom/custom_context.h"
#include "paddle/phi/core/generator.h"
#include "paddle/phi/core/kernel_registry.h"
#include "kernel_headers.inc"  // written by build.py: the headers that declare what kernels.txt names

#include "pretend.h"

using phi::CPUContext;
using phi::DataType;
using phi::DenseTensor;
using phi::KernelContext;

namespace pretend {

// ---- counting ---------------------------------------------------------------------------

static std::mutex counting;
static std::map<std::string, long> counts;

static bool noting = false;
static std::string notes;

void count(const std::string& what) {
  std::lock_guard<std::mutex> lock(counting);
  ++counts[what];
}

void note(const std::string& what) {
  std::lock_guard<std::mutex> lock(counting);
  if (noting) notes += what + "\n";
}

static void (*told)(const char*) = nullptr;

void wait(const std::string& what) {
  count(what);
  note(what);
  if (told) told(what.c_str());
}

// ---- half precision ---------------------------------------------------------------------

static bool is_half(DataType type) { return type == DataType::FLOAT16 || type == DataType::BFLOAT16; }

// ---- one call of a kernel ---------------------------------------------------------------

struct Entry {
  phi::Kernel cpu;    // the CPU's kernel: of float32 where this one is of half precision
  std::string label;  // "matmul float16", as it is counted
  bool wide = false;  // whether half precision is widened and rounded
  bool updates = false;  // an optimizer's: its last output is the float32 master, where there is one
};

// The CPU's context, but with the device's random generator, whose state Paddle saves and restores.
static CPUContext* cpu_context(const phi::CustomPlace& place) {
  static std::map<int, std::unique_ptr<CPUContext>> contexts;
  static std::mutex making;
  std::lock_guard<std::mutex> lock(making);
  auto& context = contexts[place.GetDeviceId()];
  if (!context) {
    auto* pool = static_cast<CPUContext*>(phi::DeviceContextPool::Instance().Get(phi::CPUPlace()));
    context = std::make_unique<CPUContext>(phi::CPUPlace());
    context->SetAllocator(&pool->GetAllocator());
    context->SetHostAllocator(&pool->GetHostAllocator());
    context->SetZeroAllocator(&pool->GetZeroAllocator());
    context->SetHostZeroAllocator(&pool->GetHostZeroAllocator());
    context->SetGenerator(phi::DefaultCustomDeviceGenerator(place).get());
    context->SetHostGenerator(phi::DefaultCPUGenerator().get());
  }
  return context.get();
}

// A tensor as the CPU's kernel may read it: the same memory, or a float32 copy of half precision.
static DenseTensor readable(const DenseTensor& tensor, bool wide, CPUContext* cpu) {
  bool widened = wide && is_half(tensor.dtype());
  if (tensor.initialized() && !widened) {
    if (tensor.place().GetType() == phi::AllocationType::CPU) return tensor;
    auto memory = std::make_shared<phi::Allocation>(tensor.Holder()->ptr(), tensor.Holder()->size(), phi::CPUPlace());
    return DenseTensor(memory, tensor.meta());
  }
  if (!tensor.Holder() || tensor.numel() <= 0) return tensor;
  auto meta = tensor.meta();
  meta.offset = 0;
  if (widened) meta.dtype = DataType::FLOAT32;
  DenseTensor copy;
  copy.set_meta(meta);
  void* memory = cpu->Alloc(&copy, meta.dtype);
  if (tensor.initialized()) widen(tensor.dtype(), tensor.data(), memory, tensor.numel());
  else std::memset(memory, 0, copy.numel() * phi::SizeOf(meta.dtype));  // only its shape is used
  return copy;
}

// A tensor that the CPU's kernel may write instead of the device's.
static DenseTensor writable(const DenseTensor& real, bool wide) {
  auto meta = real.meta();
  meta.offset = 0;
  if (wide && is_half(meta.dtype)) meta.dtype = DataType::FLOAT32;
  DenseTensor computed;
  if (meta.valid()) computed.set_meta(meta);
  return computed;
}

static void write_back(const phi::CustomContext& device, const DenseTensor& computed, DenseTensor* real, bool wide) {
  if (!computed.initialized()) return;
  bool rounded = wide && is_half(real->dtype()) && computed.dtype() == DataType::FLOAT32;
  DataType type = rounded ? real->dtype() : computed.dtype();
  real->Resize(computed.dims());
  void* memory = device.Alloc(real, type);
  if (rounded) round_to(type, computed.data(), memory, computed.numel());
  else if (computed.numel() && computed.data() != memory) std::memcpy(memory, computed.data(), computed.numel() * phi::SizeOf(type));
}

static void run(const Entry& entry, KernelContext* call) {
  count(entry.label);
  note("kernel " + entry.label);
  auto& device = call->GetDeviceContext<phi::CustomContext>();
  CPUContext* cpu = cpu_context(device.GetPlace());
  KernelContext on_cpu(cpu);
  std::deque<DenseTensor> inputs, outputs;  // whose elements stay where they are
  std::map<const phi::Allocation*, const DenseTensor*> read;  // memory of the device → what the CPU's kernel reads

  auto* master = entry.updates ? call->MutableOutputAt<DenseTensor>(call->OutputsSize() - 1) : nullptr;
  bool has_master = entry.wide && master && master->initialized();

  for (size_t i = 0; i < entry.cpu.args_def().input_defs().size(); ++i) {
    auto range = call->InputRangeAt(i);
    paddle::small_vector<const phi::TensorBase*> group;
    for (int j = range.first; j < range.second; ++j) {
      auto* tensor = static_cast<const DenseTensor*>(call->MutableInputAt(j));
      auto* given = tensor;
      if (j == 0 && has_master) tensor = master;  // what is updated is the master, not its rounded copy
      group.push_back(tensor ? &inputs.emplace_back(readable(*tensor, entry.wide, cpu)) : nullptr);
      if (given && given->initialized()) read[given->Holder().get()] = &inputs.back();
    }
    on_cpu.EmplaceBackInputs(group);
  }
  for (size_t i = 0; i < call->AttrsSize(); ++i) on_cpu.EmplaceBackAttr(call->AttrAt(i));
  std::vector<std::pair<DenseTensor*, DenseTensor*>> written;
  for (size_t i = 0; i < entry.cpu.args_def().output_defs().size(); ++i) {
    auto range = call->OutputRangeAt(i);
    paddle::small_vector<phi::TensorBase*> group;
    for (int j = range.first; j < range.second; ++j) {
      auto* real = call->MutableOutputAt<DenseTensor>(j);
      if (real) {
        auto input = real->initialized() ? read.find(real->Holder().get()) : read.end();
        bool in_place = input != read.end() && input->second->dims() == real->dims();
        outputs.push_back(in_place ? *input->second : writable(*real, entry.wide));
        written.emplace_back(&outputs.back(), real);
      }
      group.push_back(real ? &outputs.back() : nullptr);
    }
    on_cpu.EmplaceBackOutputs(group);
  }

  entry.cpu(&on_cpu);

  for (auto& [computed, real] : written) {
    if (has_master && real == master) computed = written[0].first;  // the parameter, before it is rounded
    write_back(device, *computed, real, entry.wide);
  }
}

// ---- registration -----------------------------------------------------------------------

static void push(KernelContext* call, const DenseTensor& input) { call->EmplaceBackInput(&input); }
static void push(KernelContext* call, const paddle::optional<DenseTensor>& input) {
  call->EmplaceBackInput(input ? input.get_ptr() : nullptr);
}
template <class T>
static void push(KernelContext* call, const std::vector<const T*>& inputs) {
  call->EmplaceBackInputs({inputs.begin(), inputs.end()});
}
template <class T>
static void push(KernelContext* call, const paddle::optional<std::vector<const T*>>& inputs) {
  inputs ? push(call, *inputs) : call->EmplaceBackInput(nullptr);
}
static void push(KernelContext* call, DenseTensor* output) { call->EmplaceBackOutput(output); }
static void push(KernelContext* call, const std::vector<DenseTensor*>& outputs) {
  call->EmplaceBackOutputs({outputs.begin(), outputs.end()});
}
template <class T>
static void push(KernelContext* call, const T& attribute) { call->EmplaceBackAttr(attribute); }

// Paddle calls a kernel in two ways: dygraph by its C++ signature, the executor of compiled graphs by a KernelContext.
template <int ID, class Signature>
struct Registered;

template <int ID, class... Arguments>
struct Registered<ID, void(const CPUContext&, Arguments...)> {
  template <DataType type>
  static inline Entry entry;

  static void packed(const Entry& entry, const phi::DeviceContext& device, Arguments... arguments) {
    KernelContext call(const_cast<phi::DeviceContext*>(&device));
    (push(&call, arguments), ...);
    run(entry, &call);
  }
  template <DataType type>
  static void by_signature(const phi::DeviceContext& device, Arguments... arguments) {
    packed(entry<type>, device, std::forward<Arguments>(arguments)...);
  }
  template <DataType type>
  static void by_context(KernelContext* call) { run(entry<type>, call); }

  template <DataType type>
  static void add(const std::string& name, phi::KernelKeyMap* kernels) {
    bool wide = is_half(type) && name != "cast";  // the CPU can cast half precision itself
    phi::KernelKey on_cpu(phi::Backend::CPU, phi::DataLayout::ALL_LAYOUT, wide ? DataType::FLOAT32 : type);
    if (!kernels->count(on_cpu)) return;
    static const std::set<std::string> optimizers{"adamw", "adam", "momentum", "sgd", "lamb"};
    entry<type> = {(*kernels)[on_cpu], name + " " + phi::DataTypeToString(type), wide, optimizers.count(name) > 0};
    auto backend = phi::TransToPhiBackend(phi::CustomPlace(device_type(), 0));
    phi::Kernel kernel(&by_context<type>, reinterpret_cast<void*>(&by_signature<type>));
    auto definition = entry<type>.cpu.args_def();
    auto adapt = [&](phi::TensorArgDef& argument) {
      if (argument.backend == phi::Backend::CPU) argument.backend = backend;
      if (argument.dtype == on_cpu.dtype()) argument.dtype = type;
    };
    // numbers for which Paddle's GPU kernel takes the host's memory
    if (name == "arange_tensor")
      for (auto& argument : definition.input_defs()) argument.backend = phi::Backend::ALL_BACKEND;
    for (auto& argument : definition.input_defs()) adapt(argument);
    for (auto& argument : definition.output_defs()) adapt(argument);
    *kernel.mutable_args_def() = definition;
    (*kernels)[phi::KernelKey(backend, phi::DataLayout::ALL_LAYOUT, type)] = kernel;
  }

  static void add_all(const std::string& name) {
    auto found = phi::KernelFactory::Instance().kernels().find(name);
    if (found == phi::KernelFactory::Instance().kernels().end())
      PADDLE_THROW(common::errors::NotFound("tests/accelerator/kernels.txt: this Paddle has no kernel %s", name));
    auto* kernels = &found->second;
    add<DataType::BOOL>(name, kernels), add<DataType::UINT8>(name, kernels);
    add<DataType::INT16>(name, kernels);
    add<DataType::INT32>(name, kernels), add<DataType::INT64>(name, kernels);
    add<DataType::FLOAT32>(name, kernels), add<DataType::FLOAT64>(name, kernels);
    add<DataType::FLOAT16>(name, kernels), add<DataType::BFLOAT16>(name, kernels);
  }
};

void register_kernels() {
#define KERNEL(name, ...) Registered<__COUNTER__, decltype(phi::__VA_ARGS__)>::add_all(name);
#include "kernel_list.inc"  // written by build.py: KERNEL("add", AddKernel<float, CPUContext>) …
}

}  // namespace pretend

// ---- for the tests, by ctypes -----------------------------------------------------------

// What ran since the last call: a line "how many, kernel, type" each.
extern "C" const char* pretend_counts() {
  static std::string text;
  std::lock_guard<std::mutex> lock(pretend::counting);
  text.clear();
  for (auto& [what, n] : pretend::counts) text += std::to_string(n) + " " + what + "\n";
  pretend::counts.clear();
  return text.c_str();
}

// What happened since the last call, in order, a line each. From the first call on it is kept.
extern "C" const char* pretend_notes() {
  static std::string text;
  std::lock_guard<std::mutex> lock(pretend::counting);
  text.swap(pretend::notes);
  pretend::notes.clear();
  pretend::noting = true;
  return text.c_str();
}

// Whom to tell of everything that the host waits for, at once and in its thread; null for nobody.
extern "C" void pretend_on_wait(void (*function)(const char*)) { pretend::told = function; }
