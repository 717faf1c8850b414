// Checksums of all bytes of a table file of RocksDB, which our file system
// writes behind them and checks with every read (FORMAT.md). RocksDB's own
// cover its blocks, where a read asks for that, and not what leads to them; a
// build with assertions stops the process where its trust in that is misplaced.
#ifndef XCACHE_CACHESTORE_ROCKSDB_TABLE_SUMS_H_
#define XCACHE_CACHESTORE_ROCKSDB_TABLE_SUMS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace xcache {

class TableSums {
 public:
  // Small, so that damage spoils little around it.
  static constexpr uint64_t kChunkBytes = 1024;

  // How many bytes of a file of that size, trailer and all, are the table; the
  // rest is the trailer.
  static uint64_t TableBytes(uint64_t file_bytes);
  // Nothing: the trailer of a table of so many bytes is damaged.
  static std::optional<TableSums> Parse(uint64_t table_bytes,
                                        std::string_view trailer);

  TableSums() = default;

  // The next bytes of a table that is being written.
  void Append(std::string_view bytes);
  std::string Trailer() const;

  uint64_t table_bytes() const { return table_bytes_; }
  // Whether `bytes` are what was written at `offset`. REQUIRES: whole chunks,
  // up to the table's end.
  bool Check(uint64_t offset, std::string_view bytes) const;

 private:
  uint64_t table_bytes_ = 0;
  std::vector<uint32_t> sums_;  // CRC-32C of each chunk; the last may be short
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_TABLE_SUMS_H_
