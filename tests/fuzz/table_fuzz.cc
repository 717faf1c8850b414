// The checksums of a table file, and the ledger, from bytes on disk. What is
// taken must mean exactly these bytes.
#include <string_view>

#include "cachestore/rocksdb/sync_ledger.h"
#include "cachestore/rocksdb/table_sums.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"
#include "tests/fuzz/fuzz.h"

namespace {

using xcache::TableSums;

// `file`: a table and its trailer.
void Check(std::string_view file) {
  const uint64_t table_bytes = TableSums::TableBytes(file.size());
  XCACHE_FUZZ_CHECK(table_bytes <= file.size());
  const std::string_view table =
      file.substr(0, static_cast<size_t>(table_bytes));
  const std::string_view trailer = file.substr(table.size());
  const auto sums = TableSums::Parse(table_bytes, trailer);
  if (!sums) return;
  XCACHE_FUZZ_CHECK(sums->Trailer() == trailer);
  TableSums written;
  written.Append(table);
  XCACHE_FUZZ_CHECK(sums->Check(0, table) == (written.Trailer() == trailer));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  Check(bytes);
  // Behind a checksum of the trailer that is right.
  if (const uint64_t at = TableSums::TableBytes(size); size >= at + 4) {
    std::string file(bytes.substr(0, size - 4));
    xcache::FieldWriter(file).Int(
        xcache::Crc32c(std::string_view(file).substr(at)));
    Check(file);
  }
  const auto record = xcache::DecodeLedger(bytes);
  if (record) XCACHE_FUZZ_CHECK(xcache::EncodeLedger(*record) == bytes);
  const auto number = xcache::ParseManifestName(bytes);
  if (number) XCACHE_FUZZ_CHECK(bytes.starts_with("MANIFEST-"));
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  std::vector<std::string> seeds = {
      xcache::EncodeLedger({7, {1, 2, 3}, {4, 5, 6}}), "MANIFEST-000007"};
  for (const size_t size : {0u, 10u, 1024u, 1500u}) {
    const std::string table(size, 't');
    TableSums sums;
    sums.Append(table);
    seeds.push_back(table + sums.Trailer());
  }
  return seeds;
}
