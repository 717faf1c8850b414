// Running averages of the machine's rates.
#include "server/core/scheduler/rates.h"

#include <algorithm>

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

void Rates::AddLoad(int64_t from_host, int64_t from_disk, double seconds) {
  MutexLock lock(mu_);
  if (from_disk == 0 && from_host > 0) {
    Add(&values_.load_block_host, seconds / static_cast<double>(from_host));
  } else if (from_disk > 0) {
    const double others = static_cast<double>(from_host);
    const double disk = seconds - others * values_.load_block_host;
    Add(&values_.load_block_disk,
        std::max(disk, 0.0) / static_cast<double>(from_disk));
  }
}

void Rates::AddFetch(int64_t num_blocks, double first_seconds,
                     double last_seconds) {
  if (num_blocks <= 0) return;
  MutexLock lock(mu_);
  Add(&values_.fetch_first, first_seconds);
  if (num_blocks == 1) return;
  Add(&values_.fetch_block,
      (last_seconds - first_seconds) / static_cast<double>(num_blocks - 1));
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

bool Rates::PreferRestore(int64_t from_host, int64_t from_disk) {
  MutexLock lock(mu_);
  const Values& v = values_;
  const auto host = static_cast<double>(from_host);
  const auto disk = static_cast<double>(from_disk);
  return Prefer(host * v.load_block_host + disk * v.load_block_disk,
                host + disk, &num_recomputes_);
}

bool Rates::PreferFetch(int64_t num_blocks) {
  MutexLock lock(mu_);
  const Values& v = values_;
  const auto n = static_cast<double>(num_blocks);
  return Prefer(v.fetch_first + n * (v.fetch_block + v.load_block_host), n,
                &num_not_fetched_);
}

// `load`: until the pages are here, in seconds.
bool Rates::Prefer(double load, double num_blocks, uint64_t* num_refused) {
  const Values& v = values_;
  if (v.prefill_token == 0 || v.remat_block == 0) return true;
  const double restore = load + num_blocks * v.remat_block;
  const double compute = num_blocks * kBlockTokens * v.prefill_token;
  if (restore <= compute) return true;
  return ++*num_refused % 32 == 0;
}

}  // namespace xcache
