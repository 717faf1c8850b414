// Whether a table file of RocksDB may be given to it. A table's data blocks
// carry checksums that RocksDB checks with every read; what leads to them (the
// footer, which has no checksum, and the blocks that it names) it trusts, and a
// build with assertions stops the process where that trust is misplaced. Here
// all of it is checked; no data block is read.
#ifndef XCACHE_CACHESTORE_TABLE_CHECK_H_
#define XCACHE_CACHESTORE_TABLE_CHECK_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"

namespace xcache {

// Reads exactly `num_bytes` at `offset`, both within the file, into `out`.
using TableReader =
    std::function<absl::Status(uint64_t offset, size_t num_bytes, char* out)>;

// DATA_LOSS: not a table as this program has RocksDB write it (format version
// 5, checksums by CRC-32C), or damaged in what leads to its data; the message
// says where. Other errors are the reader's.
absl::Status CheckTable(uint64_t file_bytes, const TableReader& read);

// The same of a file.
absl::Status CheckTableFile(const std::string& path);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_TABLE_CHECK_H_
