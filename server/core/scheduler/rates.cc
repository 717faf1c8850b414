// Running averages of the machine's rates.
#include "server/core/scheduler/rates.h"

#include "engine/types.h"

namespace xcache {
namespace {

// Half of an average's weight is in its last 7 samples (0.9^7 = 0.48): it
// follows a machine that becomes busy within a second, and not one outlier.
constexpr double kNewWeight = 0.1;

void Add(double* average, double sample) {
  *average =
      *average == 0 ? sample : *average + kNewWeight * (sample - *average);
}

}  // namespace

void Rates::AddPrefill(int64_t num_tokens, double seconds) {
  if (num_tokens <= 0) return;
  MutexLock lock(mu_);
  Add(&values_.prefill_token, seconds / static_cast<double>(num_tokens));
}

void Rates::AddDecode(int64_t num_tokens, double seconds) {
  if (num_tokens <= 0) return;
  MutexLock lock(mu_);
  Add(&values_.decode_token, seconds / static_cast<double>(num_tokens));
}

void Rates::AddRemat(int64_t num_blocks, double seconds) {
  if (num_blocks <= 0) return;
  MutexLock lock(mu_);
  Add(&values_.remat_block, seconds / static_cast<double>(num_blocks));
}

void Rates::AddLoad(int64_t num_blocks, double seconds) {
  if (num_blocks <= 0) return;
  MutexLock lock(mu_);
  Add(&values_.load_block, seconds / static_cast<double>(num_blocks));
}

void Rates::AddService(double seconds) {
  MutexLock lock(mu_);
  Add(&values_.service, seconds);
}

void Rates::AddQueue(double seconds) {
  MutexLock lock(mu_);
  Add(&values_.queue, seconds);
}

Rates::Values Rates::values() const {
  MutexLock lock(mu_);
  return values_;
}

bool Rates::PreferRestore(int64_t num_blocks) {
  MutexLock lock(mu_);
  const Values& v = values_;
  if (v.prefill_token == 0 || v.remat_block == 0) return true;
  const double n = static_cast<double>(num_blocks);
  const double restore = n * (v.load_block + v.remat_block);
  const double compute = n * kBlockTokens * v.prefill_token;
  if (restore <= compute) return true;
  return ++num_recomputes_ % 32 == 0;
}

}  // namespace xcache
