#include "cachestore/rocksdb/table_sums.h"

#include <algorithm>

#include "engine/base/coding.h"
#include "engine/base/crc32c.h"

namespace xcache {
namespace {

constexpr uint32_t kMagic = 0x42415458;  // "XTAB"
constexpr uint64_t kSumBytes = 4;
constexpr uint64_t kEndBytes = 8;  // the magic, and a CRC of the trailer

uint64_t NumChunks(uint64_t num_bytes, uint64_t chunk_bytes) {
  return (num_bytes + chunk_bytes - 1) / chunk_bytes;
}

}  // namespace

uint64_t TableSums::TableBytes(uint64_t file_bytes) {
  if (file_bytes < kEndBytes) return 0;
  // Each chunk has a sum of its own.
  const uint64_t both = file_bytes - kEndBytes;
  const uint64_t sums = kSumBytes * NumChunks(both, kChunkBytes + kSumBytes);
  return both - std::min(both, sums);
}

std::optional<TableSums> TableSums::Parse(uint64_t table_bytes,
                                          std::string_view trailer) {
  TableSums out;
  out.table_bytes_ = table_bytes;
  const uint64_t num_chunks = NumChunks(table_bytes, kChunkBytes);
  if (trailer.size() != num_chunks * kSumBytes + kEndBytes) return std::nullopt;
  FieldReader r(trailer);
  out.sums_.resize(static_cast<size_t>(num_chunks));
  for (uint32_t& sum : out.sums_) sum = r.Int<uint32_t>();
  if (r.Int<uint32_t>() != kMagic) return std::nullopt;
  const uint32_t crc = Crc32c(trailer.substr(0, r.offset()));
  if (r.Int<uint32_t>() != crc) return std::nullopt;
  return out;
}

void TableSums::Append(std::string_view bytes) {
  while (!bytes.empty()) {
    const uint64_t in_chunk = table_bytes_ % kChunkBytes;
    if (in_chunk == 0) sums_.push_back(0);
    const std::string_view part =
        bytes.substr(0, static_cast<size_t>(kChunkBytes - in_chunk));
    sums_.back() = Crc32c(part, sums_.back());
    table_bytes_ += part.size();
    bytes.remove_prefix(part.size());
  }
}

std::string TableSums::Trailer() const {
  std::string out;
  FieldWriter w(out);
  for (const uint32_t sum : sums_) w.Int(sum);
  w.Int(kMagic);
  w.Int(Crc32c(out));
  return out;
}

bool TableSums::Check(uint64_t offset, std::string_view bytes) const {
  for (auto chunk = static_cast<size_t>(offset / kChunkBytes); !bytes.empty();
       ++chunk) {
    const std::string_view part = bytes.substr(0, kChunkBytes);
    if (chunk >= sums_.size() || Crc32c(part) != sums_[chunk]) return false;
    bytes.remove_prefix(part.size());
  }
  return true;
}

}  // namespace xcache
