#include "cachestore/rocksdb/table_check.h"

#include <algorithm>
#include <fstream>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

// A table of RocksDB 7.8 (table/format.h there): data blocks, then meta blocks,
// then the index block and the metaindex block, which names the meta blocks,
// then the footer:
//   u8 checksum type, two handles (metaindex, index), zeros up to 41 bytes,
//   u32 format version, u64 magic
// A handle is two varints: offset and size. Each block is followed by a byte
// that says how it is compressed and a u32 checksum of the block and that byte.
// Index, metaindex and other blocks of entries end with u32 offsets of some
// entries, and their number.
constexpr size_t kFooterBytes = 53;
constexpr size_t kHandlesAt = 1;
constexpr size_t kVersionAt = 41;
constexpr uint64_t kMagic = 0x88e241b785f4cff7;
constexpr uint32_t kFormatVersion = 5;
constexpr uint8_t kChecksumCrc32c = 1;
constexpr size_t kOffsetBytes = 4;
constexpr uint8_t kNotCompressed = 0;
// The names and handles of a few blocks.
constexpr uint64_t kMaxMetaindexBytes = 64 << 10;
constexpr size_t kChunk = 64 << 10;

// LEB128. Fails `r` where there is none.
uint64_t Varint(FieldReader& r) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const auto byte = r.Int<uint8_t>();
    value |= uint64_t{byte & 0x7fu} << shift;
    if ((byte & 0x80) == 0) return value;
  }
  r.Fail();
  return 0;
}

TableBlock ReadHandle(FieldReader& r) {
  TableBlock block;
  block.offset = Varint(r);
  block.num_bytes = Varint(r);
  return block;
}

absl::Status Damaged(const std::string& what) {
  return absl::DataLossError(what);
}

// A CRC of data that holds CRCs itself (RocksDB's util/crc32c.h).
uint32_t Masked(uint32_t crc) {
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

class Checker {
 public:
  Checker(uint64_t file_bytes, const TableReader& read)
      : file_bytes_(file_bytes), read_(read) {}

  absl::StatusOr<TableBlocks> Run() {
    if (file_bytes_ < kFooterBytes) {
      return Damaged(absl::StrCat(file_bytes_, " bytes are no table"));
    }
    std::string footer(kFooterBytes, '\0');
    XC_RETURN_IF_ERROR(
        read_(file_bytes_ - kFooterBytes, footer.size(), footer.data()));
    const std::string_view view = footer;
    FieldReader end(view.substr(kVersionAt));
    const auto version = end.Int<uint32_t>();
    const auto magic = end.Int<uint64_t>();
    const auto checksum = static_cast<uint8_t>(footer[0]);
    if (magic != kMagic || version != kFormatVersion ||
        checksum != kChecksumCrc32c) {
      return Damaged(absl::StrCat("footer: magic ", absl::Hex(magic),
                                  ", format version ", version,
                                  ", checksum type ", checksum));
    }
    FieldReader handles(view.substr(kHandlesAt, kVersionAt - kHandlesAt));
    const TableBlock metaindex = ReadHandle(handles);
    const TableBlock index = ReadHandle(handles);
    if (!handles.ok()) return Damaged("footer: no handles");
    XC_RETURN_IF_ERROR(ReadIndex(index));
    XC_RETURN_IF_ERROR(CheckMetaBlocks(metaindex));
    std::sort(blocks_.begin(), blocks_.end(),
              [](const TableBlock& a, const TableBlock& b) {
                return a.offset < b.offset;
              });
    return std::move(blocks_);
  }

 private:
  // The block lies before the footer.
  absl::Status AddBlock(std::string_view name, const TableBlock& block) {
    const uint64_t end = file_bytes_ - kFooterBytes;
    if (block.offset > end || block.num_bytes > end - block.offset ||
        end - block.offset - block.num_bytes < TableBlock::kTrailerBytes) {
      return DamagedBlock(name, block, "beyond the end");
    }
    blocks_.push_back(block);
    return absl::OkStatus();
  }

  // It has its checksum, too. `content`, if given, gets its bytes and the one
  // that says how they are compressed.
  absl::Status CheckBlock(std::string_view name, const TableBlock& block,
                          std::string* content = nullptr) {
    XC_RETURN_IF_ERROR(AddBlock(name, block));
    // With the byte that says how it is compressed.
    uint64_t left = block.num_bytes + 1;
    uint64_t at = block.offset;
    uint32_t crc = 0;
    std::string chunk;
    while (left > 0) {
      chunk.resize(static_cast<size_t>(std::min<uint64_t>(left, kChunk)));
      XC_RETURN_IF_ERROR(read_(at, chunk.size(), chunk.data()));
      crc = Crc32c(chunk, crc);
      if (content != nullptr) content->append(chunk);
      at += chunk.size();
      left -= chunk.size();
    }
    std::string stored(sizeof(crc), '\0');
    XC_RETURN_IF_ERROR(read_(at, stored.size(), stored.data()));
    const auto expected = FieldReader(stored).Int<uint32_t>();
    if (expected != Masked(crc)) {
      return DamagedBlock(name, block,
                          absl::StrCat("expected CRC-32C ", absl::Hex(expected),
                                       ", found ", absl::Hex(Masked(crc))));
    }
    return absl::OkStatus();
  }

  // The index: entries of two varints (bytes shared with the key before: none;
  // further bytes), the key and the handle of a data block. That of a
  // compressed family may be compressed: then its data blocks are not listed.
  absl::Status ReadIndex(const TableBlock& index) {
    std::string block;
    XC_RETURN_IF_ERROR(CheckBlock("index", index, &block));
    if (IsCompressed(block)) return absl::OkStatus();
    XC_ASSIGN_OR_RETURN(const std::string_view entries,
                        Entries("index", block));
    FieldReader r(entries);
    while (r.remaining() > 0) {
      const uint64_t shared = Varint(r);
      r.Raw(static_cast<size_t>(Varint(r)));
      const TableBlock data = ReadHandle(r);
      if (!r.ok() || shared != 0) return Damaged("index: malformed");
      XC_RETURN_IF_ERROR(AddBlock("data", data));
    }
    return absl::OkStatus();
  }

  // The metaindex: entries of three varints (bytes shared with the key before,
  // further bytes, length of the value), the further bytes and the value.
  absl::Status CheckMetaBlocks(const TableBlock& metaindex) {
    if (metaindex.num_bytes > kMaxMetaindexBytes) {
      return Damaged(
          absl::StrCat("metaindex of ", metaindex.num_bytes, " bytes"));
    }
    std::string block;
    XC_RETURN_IF_ERROR(CheckBlock("metaindex", metaindex, &block));
    if (IsCompressed(block)) {
      return DamagedBlock("metaindex", metaindex, "compressed");
    }
    XC_ASSIGN_OR_RETURN(const std::string_view entries,
                        Entries("metaindex", block));
    const auto malformed = [] { return Damaged("metaindex: malformed"); };
    FieldReader r(entries);
    std::string name;
    while (r.remaining() > 0) {
      const uint64_t shared = Varint(r);
      const uint64_t further = Varint(r);
      const uint64_t value_bytes = Varint(r);
      if (!r.ok() || shared > name.size()) return malformed();
      name.resize(static_cast<size_t>(shared));
      name.append(r.Raw(static_cast<size_t>(further)));
      FieldReader value(r.Raw(static_cast<size_t>(value_bytes)));
      const TableBlock meta = ReadHandle(value);
      if (!r.ok() || !value.ok()) return malformed();
      XC_RETURN_IF_ERROR(CheckBlock(name, meta));
    }
    return absl::OkStatus();
  }

  // Of what CheckBlock() yields.
  static bool IsCompressed(std::string_view block) {
    return static_cast<uint8_t>(block.back()) != kNotCompressed;
  }
  // A block's entries: not the offsets that follow them.
  static absl::StatusOr<std::string_view> Entries(std::string_view name,
                                                  std::string_view block) {
    block.remove_suffix(1);
    const size_t body = block.size() - std::min(block.size(), kOffsetBytes);
    FieldReader end(block.substr(body));
    const auto num_offsets = end.Int<uint32_t>();
    if (!end.ok() || num_offsets > body / kOffsetBytes) {
      return Damaged(absl::StrCat(absl::string_view(name.data(), name.size()),
                                  ": malformed"));
    }
    return block.substr(0, body - num_offsets * kOffsetBytes);
  }

  static absl::Status DamagedBlock(std::string_view name,
                                   const TableBlock& block,
                                   const std::string& what) {
    return Damaged(absl::StrCat(absl::string_view(name.data(), name.size()),
                                " block at ", block.offset, ", ",
                                block.num_bytes, " bytes: ", what));
  }

  const uint64_t file_bytes_;
  const TableReader& read_;
  TableBlocks blocks_;
};

}  // namespace

absl::StatusOr<TableBlocks> CheckTable(uint64_t file_bytes,
                                       const TableReader& read) {
  return Checker(file_bytes, read).Run();
}

bool CheckTableRead(const TableBlocks& blocks, uint64_t offset,
                    std::string_view bytes) {
  const auto block = std::lower_bound(
      blocks.begin(), blocks.end(), offset,
      [](const TableBlock& b, uint64_t at) { return b.offset < at; });
  if (block == blocks.end() || block->offset != offset ||
      block->num_bytes + TableBlock::kTrailerBytes != bytes.size()) {
    return true;
  }
  const size_t checked = bytes.size() - sizeof(uint32_t);
  return FieldReader(bytes.substr(checked)).Int<uint32_t>() ==
         Masked(Crc32c(bytes.substr(0, checked)));
}

absl::Status CheckTableFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return absl::UnavailableError(absl::StrCat("cannot read ", path));
  const auto file_bytes = static_cast<uint64_t>(in.tellg());
  return CheckTable(file_bytes,
                    [&](uint64_t offset, size_t num_bytes, char* out) {
                      in.seekg(static_cast<std::streamoff>(offset));
                      in.read(out, static_cast<std::streamsize>(num_bytes));
                      if (in) return absl::OkStatus();
                      return absl::UnavailableError(
                          absl::StrCat("cannot read ", path));
                    })
      .status();
}

}  // namespace xcache
