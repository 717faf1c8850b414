// Quantizers of every tensor type, by plain rounding: simpler and less accurate
// than ggml's, which is of no matter in tests.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "tests/support/gguf_writer.h"

namespace xcache::testing {
namespace {

// Round to nearest, ties to even; values here are never near overflow.
uint16_t FloatToHalf(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::fabs(f);
  if (magnitude < 0x1p-14f) {  // subnormal halves are multiples of 2^-24
    return static_cast<uint16_t>(
        sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  if (magnitude >= 65520.0f) return static_cast<uint16_t>(sign | 0x7c00u);
  const uint32_t m = std::bit_cast<uint32_t>(magnitude);
  const uint32_t rounded = m + 0xfffu + ((m >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

float HalfToFloat(uint16_t h) {
  const int exponent = (h >> 10) & 31;
  const int mantissa = h & 1023;
  const float magnitude =
      exponent == 0
          ? std::ldexp(static_cast<float>(mantissa), -24)
          : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return (h & 0x8000) != 0 ? -magnitude : magnitude;
}

template <typename T>
void Append(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(T));
}

// Appends `f` as a half and returns what the half says.
float AppendHalf(std::string* out, float f) {
  const uint16_t half = FloatToHalf(f);
  Append(out, half);
  return HalfToFloat(half);
}

int Code(float x, float step, int low, int high) {
  if (step == 0.0f) return std::clamp(0, low, high);
  return std::clamp(static_cast<int>(std::lrint(x / step)), low, high);
}

float MaxAbs(std::span<const float> x) {
  float most = 0.0f;
  for (float v : x) most = std::max(most, std::fabs(v));
  return most;
}

// Q4_0, Q4_1, Q5_0, Q5_1: `bits` a code, with a minimum or around the middle.
void AppendNibbleBlock(std::string* out, std::span<const float> x, int bits,
                       bool with_min) {
  const int top = (1 << bits) - 1;
  float d = 0.0f, m = 0.0f;
  if (with_min) {
    const auto [low, high] = std::ranges::minmax(x);
    d = AppendHalf(out, (high - low) / static_cast<float>(top));
    m = AppendHalf(out, low);
  } else {
    d = AppendHalf(out, MaxAbs(x) / static_cast<float>(top / 2));
  }
  int codes[32];
  uint32_t fifth_bits = 0;
  for (size_t j = 0; j < 32; ++j) {
    const int middle = with_min ? 0 : (top + 1) / 2;
    codes[j] = Code(x[j] - m, d, -middle, top - middle) + middle;
    fifth_bits |= static_cast<uint32_t>(codes[j] >> 4) << j;
  }
  if (bits == 5) Append(out, fifth_bits);
  for (size_t j = 0; j < 16; ++j) {
    Append(out,
           static_cast<uint8_t>((codes[j] & 15) | ((codes[j + 16] & 15) << 4)));
  }
}

void AppendQ8_0(std::string* out, std::span<const float> x) {
  const float d = AppendHalf(out, MaxAbs(x) / 127.0f);
  for (float v : x) Append(out, static_cast<int8_t>(Code(v, d, -127, 127)));
}

// Q4_K, Q5_K: 8 sub-blocks with 6-bit scales and minima.
void AppendKPairs(std::string* out, std::span<const float> x, int bits) {
  const int top = (1 << bits) - 1;
  float scales[8], mins[8];
  for (size_t s = 0; s < 8; ++s) {
    const auto [low, high] = std::ranges::minmax(x.subspan(32 * s, 32));
    mins[s] = std::max(0.0f, -low);
    scales[s] = std::max(0.0f, high + mins[s]) / static_cast<float>(top);
  }
  const float d = AppendHalf(out, MaxAbs(scales) / 63.0f);
  const float dmin = AppendHalf(out, MaxAbs(mins) / 63.0f);
  int scale_codes[8], min_codes[8];
  for (size_t s = 0; s < 8; ++s) {
    scale_codes[s] = Code(scales[s], d, 0, 63);
    min_codes[s] = Code(mins[s], dmin, 0, 63);
  }
  uint8_t packed[12] = {};
  for (size_t s = 0; s < 4; ++s) {
    packed[s] =
        static_cast<uint8_t>(scale_codes[s] | ((scale_codes[s + 4] >> 4) << 6));
    packed[s + 4] =
        static_cast<uint8_t>(min_codes[s] | ((min_codes[s + 4] >> 4) << 6));
    packed[s + 8] = static_cast<uint8_t>((scale_codes[s + 4] & 15) |
                                         ((min_codes[s + 4] & 15) << 4));
  }
  out->append(reinterpret_cast<const char*>(packed), sizeof(packed));
  uint8_t high[32] = {}, nibbles[128] = {};
  for (size_t i = 0; i < 256; ++i) {
    const size_t s = i / 32, j = i % 32;
    const int code = Code(x[i] + dmin * static_cast<float>(min_codes[s]),
                          d * static_cast<float>(scale_codes[s]), 0, top);
    nibbles[32 * (s / 2) + j] |=
        static_cast<uint8_t>((code & 15) << (s % 2 == 0 ? 0 : 4));
    high[j] |= static_cast<uint8_t>((code >> 4) << s);
  }
  if (bits == 5) out->append(reinterpret_cast<const char*>(high), 32);
  out->append(reinterpret_cast<const char*>(nibbles), 128);
}

void AppendQ6_K(std::string* out, std::span<const float> x) {
  float scales[16];
  for (size_t s = 0; s < 16; ++s) {
    scales[s] = MaxAbs(x.subspan(16 * s, 16)) / 31.0f;
  }
  std::string d_bytes;
  const float d = AppendHalf(&d_bytes, MaxAbs(scales) / 127.0f);
  uint8_t low[128] = {}, high[64] = {};
  int8_t codes[16];
  for (size_t s = 0; s < 16; ++s) {
    codes[s] = static_cast<int8_t>(Code(scales[s], d, -127, 127));
  }
  for (size_t i = 0; i < 256; ++i) {
    const int code =
        32 + Code(x[i], d * static_cast<float>(codes[i / 16]), -32, 31);
    const size_t half = i / 128, quarter = i % 128 / 32, j = i % 32;
    low[64 * half + 32 * (quarter % 2) + j] |=
        static_cast<uint8_t>((code & 15) << (quarter < 2 ? 0 : 4));
    high[32 * half + j] |= static_cast<uint8_t>((code >> 4) << (2 * quarter));
  }
  out->append(reinterpret_cast<const char*>(low), sizeof(low));
  out->append(reinterpret_cast<const char*>(high), sizeof(high));
  out->append(reinterpret_cast<const char*>(codes), sizeof(codes));
  *out += d_bytes;
}

// Q2_K: 16 sub-blocks with 4-bit scales and minima.
void AppendQ2_K(std::string* out, std::span<const float> x) {
  float scales[16], mins[16];
  for (size_t s = 0; s < 16; ++s) {
    const auto [low, high] = std::ranges::minmax(x.subspan(16 * s, 16));
    mins[s] = std::max(0.0f, -low);
    scales[s] = std::max(0.0f, high + mins[s]) / 3.0f;
  }
  std::string halves;
  const float d = AppendHalf(&halves, MaxAbs(scales) / 15.0f);
  const float dmin = AppendHalf(&halves, MaxAbs(mins) / 15.0f);
  uint8_t factors[16], pairs[64] = {};
  for (size_t s = 0; s < 16; ++s) {
    factors[s] = static_cast<uint8_t>(Code(scales[s], d, 0, 15) |
                                      Code(mins[s], dmin, 0, 15) << 4);
  }
  for (size_t i = 0; i < 256; ++i) {
    const int by = factors[i / 16];
    const int code = Code(x[i] + dmin * static_cast<float>(by >> 4),
                          d * static_cast<float>(by & 15), 0, 3);
    pairs[32 * (i / 128) + i % 32] |=
        static_cast<uint8_t>(code << (2 * (i / 32 % 4)));
  }
  out->append(reinterpret_cast<const char*>(factors), sizeof(factors));
  out->append(reinterpret_cast<const char*>(pairs), sizeof(pairs));
  *out += halves;
}

// Q3_K: 16 sub-blocks with 6-bit scales, kept 32 higher.
void AppendQ3_K(std::string* out, std::span<const float> x) {
  float scales[16];
  for (size_t s = 0; s < 16; ++s) {
    scales[s] = MaxAbs(x.subspan(16 * s, 16)) / 3.5f;
  }
  std::string d_bytes;
  const float d = AppendHalf(&d_bytes, MaxAbs(scales) / 31.0f);
  uint8_t third[32] = {}, pairs[64] = {}, factors[12] = {};
  for (size_t i = 0; i < 256; ++i) {
    const size_t s = i / 16;
    const int factor = Code(scales[s], d, -32, 31);
    const int code = 4 + Code(x[i], d * static_cast<float>(factor), -4, 3);
    third[i % 32] |= static_cast<uint8_t>((code >> 2) << (i / 32));
    pairs[32 * (i / 128) + i % 32] |=
        static_cast<uint8_t>((code & 3) << (2 * (i / 32 % 4)));
    if (i % 16 != 0) continue;
    const int stored = factor + 32;
    factors[s % 8] |= static_cast<uint8_t>((stored & 15) << (s / 8 * 4));
    factors[8 + s % 4] |= static_cast<uint8_t>((stored >> 4) << (2 * (s / 4)));
  }
  out->append(reinterpret_cast<const char*>(third), sizeof(third));
  out->append(reinterpret_cast<const char*>(pairs), sizeof(pairs));
  out->append(reinterpret_cast<const char*>(factors), sizeof(factors));
  *out += d_bytes;
}

int NearestIq4(float x) {
  constexpr float kValues[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};
  int best = 0;
  for (int i = 1; i < 16; ++i) {
    if (std::fabs(x - kValues[i]) < std::fabs(x - kValues[best])) best = i;
  }
  return best;
}

// 32 codes of IQ4_NL or of a sub-block of IQ4_XS; `step` is its scale.
void AppendIq4Codes(std::string* out, std::span<const float> x, float step) {
  const float inverse = step == 0.0f ? 0.0f : 1.0f / step;
  for (size_t j = 0; j < 16; ++j) {
    Append(out, static_cast<uint8_t>(NearestIq4(x[j] * inverse) |
                                     NearestIq4(x[j + 16] * inverse) << 4));
  }
}

void AppendIQ4_NL(std::string* out, std::span<const float> x) {
  AppendIq4Codes(out, x, AppendHalf(out, MaxAbs(x) / 120.0f));
}

// IQ4_XS: 8 sub-blocks with 6-bit scales, kept 32 higher.
void AppendIQ4_XS(std::string* out, std::span<const float> x) {
  const float d = AppendHalf(out, MaxAbs(x) / 120.0f / 31.0f);
  int factors[8];
  uint16_t high = 0;
  uint8_t low[4] = {};
  for (size_t s = 0; s < 8; ++s) {
    factors[s] = Code(MaxAbs(x.subspan(32 * s, 32)) / 120.0f, d, -32, 31);
    const int stored = factors[s] + 32;
    high = static_cast<uint16_t>(high | (stored >> 4) << (2 * s));
    low[s / 2] |= static_cast<uint8_t>((stored & 15) << (s % 2 * 4));
  }
  Append(out, high);
  out->append(reinterpret_cast<const char*>(low), sizeof(low));
  for (size_t s = 0; s < 8; ++s) {
    AppendIq4Codes(out, x.subspan(32 * s, 32),
                   d * static_cast<float>(factors[s]));
  }
}

}  // namespace

std::string Quantize(GgufType type, std::span<const float> values) {
  const auto block = static_cast<size_t>(InfoOf(type).value().block_elements);
  if (values.size() % block != 0) std::abort();
  std::string out;
  for (size_t i = 0; i < values.size(); i += block) {
    const std::span<const float> x = values.subspan(i, block);
    switch (type) {
      case GgufType::kF32:
        Append(&out, x[0]);
        break;
      case GgufType::kF16:
        AppendHalf(&out, x[0]);
        break;
      case GgufType::kBF16: {
        const uint32_t bits = std::bit_cast<uint32_t>(x[0]);
        Append(&out, static_cast<uint16_t>(
                         (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16));
        break;
      }
      case GgufType::kQ4_0:
        AppendNibbleBlock(&out, x, 4, false);
        break;
      case GgufType::kQ4_1:
        AppendNibbleBlock(&out, x, 4, true);
        break;
      case GgufType::kQ5_0:
        AppendNibbleBlock(&out, x, 5, false);
        break;
      case GgufType::kQ5_1:
        AppendNibbleBlock(&out, x, 5, true);
        break;
      case GgufType::kQ8_0:
        AppendQ8_0(&out, x);
        break;
      case GgufType::kQ2_K:
        AppendQ2_K(&out, x);
        break;
      case GgufType::kQ3_K:
        AppendQ3_K(&out, x);
        break;
      case GgufType::kIQ4_NL:
        AppendIQ4_NL(&out, x);
        break;
      case GgufType::kIQ4_XS:
        AppendIQ4_XS(&out, x);
        break;
      case GgufType::kQ4_K:
        AppendKPairs(&out, x, 4);
        break;
      case GgufType::kQ5_K:
        AppendKPairs(&out, x, 5);
        break;
      case GgufType::kQ6_K:
        AppendQ6_K(&out, x);
        break;
    }
  }
  return out;
}

}  // namespace xcache::testing
