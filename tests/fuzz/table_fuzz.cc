// Table files of RocksDB, and the ledger, from bytes on disk. The check must
// not read beyond the file, and a record that is taken must mean exactly these
// bytes.
#include <cstring>
#include <string_view>

#include "cachestore/rocksdb/sync_ledger.h"
#include "cachestore/rocksdb/table_check.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"
#include "tests/fuzz/fuzz.h"

namespace {

using xcache::FieldWriter;

constexpr size_t kDataBytes = 100;

void AppendVarint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) {
    out.push_back(static_cast<char>(value | 0x80));
  }
  out.push_back(static_cast<char>(value));
}

// A block with its trailer; its handle goes to `handle`.
void AppendBlock(std::string& table, std::string_view block,
                 std::string& handle) {
  AppendVarint(handle, table.size());
  AppendVarint(handle, block.size());
  table.append(block);
  table.push_back('\0');
  const uint32_t crc = xcache::Crc32c(
      std::string_view(table).substr(table.size() - block.size() - 1));
  FieldWriter(table).Int(((crc >> 15) | (crc << 17)) + 0xa282ead8u);
}

// A table with these blocks, all its checksums right.
std::string TableWith(std::string_view metaindex, std::string_view index) {
  std::string table(kDataBytes, 'd');
  std::string footer("\x01");
  std::string index_handle;
  AppendBlock(table, metaindex, footer);
  AppendBlock(table, index, index_handle);
  footer += index_handle;
  footer.resize(41, '\0');
  FieldWriter w(footer);
  w.Int(uint32_t{5});
  w.Int(uint64_t{0x88e241b785f4cff7});
  return table + footer;
}

// Blocks that are found lie within the table, in order.
bool Check(std::string_view table) {
  const auto blocks = xcache::CheckTable(
      table.size(), [&](uint64_t offset, size_t num_bytes, char* out) {
        XCACHE_FUZZ_CHECK(offset <= table.size() &&
                          num_bytes <= table.size() - offset);
        std::memcpy(out, table.data() + offset, num_bytes);
        return absl::OkStatus();
      });
  if (!blocks.ok()) return false;
  uint64_t last = 0;
  for (const xcache::TableBlock& block : *blocks) {
    XCACHE_FUZZ_CHECK(block.offset >= last && block.offset <= table.size());
    last = block.offset;
    xcache::CheckTableRead(
        *blocks, block.offset,
        table.substr(block.offset,
                     block.num_bytes + xcache::TableBlock::kTrailerBytes));
  }
  return true;
}

// `entries`, and one restart at their beginning.
std::string Block(std::string_view entries) {
  std::string block(entries);
  FieldWriter w(block);
  w.Int(uint32_t{0});
  w.Int(uint32_t{1});
  return block;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  Check(bytes);
  Check(TableWith(bytes, Block("")));
  Check(TableWith(Block(""), bytes));
  const auto record = xcache::DecodeLedger(bytes);
  if (record) XCACHE_FUZZ_CHECK(xcache::EncodeLedger(*record) == bytes);
  const auto number = xcache::ParseManifestName(bytes);
  if (number) XCACHE_FUZZ_CHECK(bytes.starts_with("MANIFEST-"));
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  const std::string empty = Block("");
  // Right in all, so that what is found wrong is the mutation.
  XCACHE_FUZZ_CHECK(Check(TableWith(empty, empty)));
  // "name" and the handle of the first 10 bytes, as a meta and as a data block.
  const std::string_view meta("\0\4\2name\0\x0a", 9);
  const std::string data = Block(std::string_view("\0\4name\0\x0a", 8));
  XCACHE_FUZZ_CHECK(Check(TableWith(empty, data)));
  return {TableWith(empty, data),
          Block(meta),
          data,
          empty,
          xcache::EncodeLedger({7, {1, 2, 3}, {4, 5, 6}}),
          "MANIFEST-000007"};
}
