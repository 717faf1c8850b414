// Whether a table file of RocksDB may be given to it, and the blocks of it that
// reads are checked by. RocksDB checks a block's checksum where a read asks for
// that; what leads to the data blocks (the footer, which has no checksum, and
// the blocks that it names) it trusts, and a build with assertions stops the
// process where that trust is misplaced. Here all of it is checked when a table
// is opened, and any block when it is read.
#ifndef XCACHE_CACHESTORE_ROCKSDB_TABLE_CHECK_H_
#define XCACHE_CACHESTORE_ROCKSDB_TABLE_CHECK_H_

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace xcache {

// Reads exactly `num_bytes` at `offset`, both within the file, into `out`.
using TableReader =
    std::function<absl::Status(uint64_t offset, size_t num_bytes, char* out)>;

// A block: its bytes, one that says how it is compressed, a u32 checksum.
struct TableBlock {
  static constexpr uint64_t kTrailerBytes = 5;

  uint64_t offset = 0;
  uint64_t num_bytes = 0;  // without what follows
};

// The blocks of a table, in order of their offsets: all of them, but for data
// blocks of families that are compressed.
using TableBlocks = std::vector<TableBlock>;

// DATA_LOSS: not a table as this program has RocksDB write it (format version
// 5, checksums by CRC-32C), or damaged in what leads to its data; the message
// says where. No data block is read. Other errors are the reader's.
absl::StatusOr<TableBlocks> CheckTable(uint64_t file_bytes,
                                       const TableReader& read);

// Whether `bytes`, read at `offset`, are as they were written: where they are a
// block and what follows it. Anything else passes: it is not known.
bool CheckTableRead(const TableBlocks& blocks, uint64_t offset,
                    std::string_view bytes);

// The same of a file.
absl::Status CheckTableFile(const std::string& path);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_ROCKSDB_TABLE_CHECK_H_
