#include "engine/base/utf8.h"

namespace xcache {
namespace {

// How a character's first byte limits the rest (Unicode 15, table 3-7).
struct LeadByte {
  size_t length;  // 0: not a lead byte
  uint8_t second_min, second_max;
};

LeadByte LeadOf(uint8_t b) {
  if (b < 0x80) return {1, 0, 0};
  if (b < 0xc2) return {0, 0, 0};
  if (b < 0xe0) return {2, 0x80, 0xbf};
  if (b == 0xe0) return {3, 0xa0, 0xbf};
  if (b == 0xed) return {3, 0x80, 0x9f};
  if (b < 0xf0) return {3, 0x80, 0xbf};
  if (b == 0xf0) return {4, 0x90, 0xbf};
  if (b < 0xf4) return {4, 0x80, 0xbf};
  if (b == 0xf4) return {4, 0x80, 0x8f};
  return {0, 0, 0};
}

// How many bytes at the start of `text` belong to one well-formed, perhaps
// unfinished character; `*whole` says whether it is finished.
size_t Scan(std::string_view text, bool* whole) {
  const auto byte = [text](size_t i) { return static_cast<uint8_t>(text[i]); };
  const LeadByte lead = LeadOf(byte(0));
  *whole = lead.length == 1;
  if (lead.length < 2) return lead.length;
  size_t n = 1;
  for (; n < lead.length && n < text.size(); ++n) {
    const uint8_t low = n == 1 ? lead.second_min : 0x80;
    const uint8_t high = n == 1 ? lead.second_max : 0xbf;
    if (byte(n) < low || byte(n) > high) return 0;
  }
  *whole = n == lead.length;
  return n;
}

}  // namespace

size_t FindInvalidUtf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    bool whole = false;
    const size_t n = Scan(text.substr(at), &whole);
    if (!whole) return at;
    at += n;
  }
  return std::string_view::npos;
}

size_t Utf8Length(std::string_view text) {
  bool whole = false;
  const size_t n = Scan(text, &whole);
  return whole ? n : 1;
}

uint32_t DecodeUtf8(std::string_view text) {
  const auto byte = [text](size_t i) {
    return static_cast<uint32_t>(static_cast<uint8_t>(text[i]));
  };
  const size_t n = Utf8Length(text);
  if (n == 1) return byte(0);
  uint32_t code = byte(0) & (0xffu >> (n + 1));
  for (size_t i = 1; i < n; ++i) code = (code << 6) | (byte(i) & 0x3f);
  return code;
}

void AppendUtf8(uint32_t code, std::string* out) {
  const auto tail = [&](int shift) {
    out->push_back(static_cast<char>(0x80 | ((code >> shift) & 0x3f)));
  };
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out->push_back(static_cast<char>(0xc0 | (code >> 6)));
    tail(0);
  } else if (code < 0x10000) {
    out->push_back(static_cast<char>(0xe0 | (code >> 12)));
    tail(6);
    tail(0);
  } else {
    out->push_back(static_cast<char>(0xf0 | (code >> 18)));
    tail(12);
    tail(6);
    tail(0);
  }
}

std::string ToUtf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    bool whole = false;
    const size_t n = Scan(bytes, &whole);
    if (whole) {
      out += bytes.substr(0, n);
    } else {
      AppendUtf8(0xfffd, &out);
    }
    bytes.remove_prefix(whole ? n : 1);
  }
  return out;
}

size_t CompleteUtf8Prefix(std::string_view bytes) {
  // Only the last 3 bytes can begin a character that is not yet whole.
  for (size_t back = 1; back <= 3 && back <= bytes.size(); ++back) {
    const size_t at = bytes.size() - back;
    bool whole = false;
    if (Scan(bytes.substr(at), &whole) == back && !whole) return at;
  }
  return bytes.size();
}

}  // namespace xcache
