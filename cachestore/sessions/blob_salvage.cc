#include "cachestore/sessions/blob_salvage.h"

#include "cachestore/rocksdb/store_records.h"
#include "engine/base/coding.h"

namespace xcache {
namespace {

// A record: key length u64, value length u64, expiration u64, two CRCs u32,
// key, value (RocksDB 7.8, db/blob/blob_log_format.h).
constexpr size_t kRecordHeaderBytes = 32;

}  // namespace

int64_t SalvageBlobFile(
    std::string_view file,
    const std::function<void(const PageKey& key, const PageKey& parent,
                             std::string_view page)>& fn) {
  // All keys are as long, so their length marks where a record may start; our
  // own checksum says whether one does.
  std::string mark;
  FieldWriter(mark).Int(uint64_t{sizeof(PageKey)});
  int64_t num_found = 0;
  size_t at = 0;
  while ((at = file.find(mark, at)) != std::string_view::npos) {
    FieldReader r(file.substr(at + mark.size()));
    const auto value_bytes = r.Int<uint64_t>();
    r.Raw(kRecordHeaderBytes - 16);
    const PageKey key = r.Hash();
    const std::string_view value = r.Raw(value_bytes);
    const auto trailer =
        r.ok() ? CheckPageValue(key, value) : absl::DataLossError("no record");
    if (trailer.ok()) {
      fn(key, trailer->parent, value.substr(0, trailer->page_bytes));
      ++num_found;
      at += kRecordHeaderBytes + sizeof(PageKey) + value_bytes;
    } else {
      ++at;
    }
  }
  return num_found;
}

}  // namespace xcache
