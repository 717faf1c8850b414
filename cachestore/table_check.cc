#include "cachestore/table_check.h"

#include <algorithm>
#include <fstream>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "cachestore/coding.h"
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
constexpr size_t kFooterBytes = 53;
constexpr size_t kHandlesAt = 1;
constexpr size_t kVersionAt = 41;
constexpr uint64_t kMagic = 0x88e241b785f4cff7;
constexpr uint32_t kFormatVersion = 5;
constexpr uint8_t kChecksumCrc32c = 1;
constexpr size_t kTrailerBytes = 5;
constexpr uint8_t kNotCompressed = 0;
// The names and handles of a few blocks.
constexpr uint64_t kMaxMetaindexBytes = 64 << 10;
constexpr size_t kChunk = 64 << 10;

struct Handle {
  uint64_t offset = 0;
  uint64_t size = 0;
};

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

Handle ReadHandle(FieldReader& r) {
  Handle handle;
  handle.offset = Varint(r);
  handle.size = Varint(r);
  return handle;
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

  absl::Status Run() {
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
    const Handle metaindex = ReadHandle(handles);
    const Handle index = ReadHandle(handles);
    if (!handles.ok()) return Damaged("footer: no handles");
    XC_RETURN_IF_ERROR(CheckBlock("index", index));
    return CheckMetaBlocks(metaindex);
  }

 private:
  // The block lies before the footer and has its checksum. `content`, if given,
  // gets its bytes, and they must not be compressed.
  absl::Status CheckBlock(std::string_view name, const Handle& handle,
                          std::string* content = nullptr) {
    const auto damaged = [&](const std::string& what) {
      return Damaged(absl::StrCat(absl::string_view(name.data(), name.size()),
                                  " block at ", handle.offset, ", ",
                                  handle.size, " bytes: ", what));
    };
    const uint64_t end = file_bytes_ - kFooterBytes;
    if (handle.offset > end || handle.size > end - handle.offset ||
        end - handle.offset - handle.size < kTrailerBytes) {
      return damaged("beyond the end");
    }
    // With the byte that says how it is compressed.
    uint64_t left = handle.size + 1;
    uint64_t at = handle.offset;
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
    if (content != nullptr) {
      if (static_cast<uint8_t>(content->back()) != kNotCompressed) {
        return damaged("compressed");
      }
      content->pop_back();
    }
    std::string stored(sizeof(crc), '\0');
    XC_RETURN_IF_ERROR(read_(at, stored.size(), stored.data()));
    const auto expected = FieldReader(stored).Int<uint32_t>();
    if (expected != Masked(crc)) {
      return damaged(absl::StrCat("expected CRC-32C ", absl::Hex(expected),
                                  ", found ", absl::Hex(Masked(crc))));
    }
    return absl::OkStatus();
  }

  // The metaindex: entries of three varints (bytes shared with the key before,
  // further bytes, length of the value), the further bytes and the value; then
  // u32 offsets of entries, and their number.
  absl::Status CheckMetaBlocks(const Handle& metaindex) {
    if (metaindex.size > kMaxMetaindexBytes) {
      return Damaged(absl::StrCat("metaindex of ", metaindex.size, " bytes"));
    }
    std::string block;
    XC_RETURN_IF_ERROR(CheckBlock("metaindex", metaindex, &block));
    const std::string_view view = block;
    const auto malformed = [] { return Damaged("metaindex: malformed"); };
    constexpr size_t kOffsetBytes = 4;
    if (view.size() < kOffsetBytes) return malformed();
    const size_t body = view.size() - kOffsetBytes;
    const auto num_offsets = FieldReader(view.substr(body)).Int<uint32_t>();
    if (num_offsets > body / kOffsetBytes) return malformed();
    FieldReader r(view.substr(0, body - num_offsets * kOffsetBytes));
    std::string name;
    while (r.remaining() > 0) {
      const uint64_t shared = Varint(r);
      const uint64_t further = Varint(r);
      const uint64_t value_bytes = Varint(r);
      if (!r.ok() || shared > name.size()) return malformed();
      name.resize(static_cast<size_t>(shared));
      name.append(r.Raw(static_cast<size_t>(further)));
      FieldReader value(r.Raw(static_cast<size_t>(value_bytes)));
      const Handle handle = ReadHandle(value);
      if (!r.ok() || !value.ok()) return malformed();
      XC_RETURN_IF_ERROR(CheckBlock(name, handle));
    }
    return absl::OkStatus();
  }

  const uint64_t file_bytes_;
  const TableReader& read_;
};

}  // namespace

absl::Status CheckTable(uint64_t file_bytes, const TableReader& read) {
  return Checker(file_bytes, read).Run();
}

absl::Status CheckTableFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return absl::UnavailableError(absl::StrCat("cannot read ", path));
  const auto file_bytes = static_cast<uint64_t>(in.tellg());
  return CheckTable(
      file_bytes, [&](uint64_t offset, size_t num_bytes, char* out) {
        in.seekg(static_cast<std::streamoff>(offset));
        in.read(out, static_cast<std::streamsize>(num_bytes));
        if (in) return absl::OkStatus();
        return absl::UnavailableError(absl::StrCat("cannot read ", path));
      });
}

}  // namespace xcache
