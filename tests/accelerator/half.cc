// Half precision ⇄ float32.
#include "paddle/phi/common/bfloat16.h"
#include "paddle/phi/common/float16.h"
#include "pretend.h"

namespace {

template <class From, class To>
void convert(const void* from, void* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) static_cast<To*>(to)[i] = static_cast<To>(static_cast<const From*>(from)[i]);
}

}  // namespace

void pretend::widen(phi::DataType half, const void* from, void* to, int64_t n) {
  if (half == phi::DataType::FLOAT16) convert<phi::dtype::float16, float>(from, to, n);
  else convert<phi::dtype::bfloat16, float>(from, to, n);
}

void pretend::round_to(phi::DataType half, const void* from, void* to, int64_t n) {
  if (half == phi::DataType::FLOAT16) convert<float, phi::dtype::float16>(from, to, n);
  else convert<float, phi::dtype::bfloat16>(from, to, n);
}
