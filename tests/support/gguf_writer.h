// Writes GGUF files for tests, correct ones and, byte by byte, wrong ones.
#ifndef XCACHE_TESTS_SUPPORT_GGUF_WRITER_H_
#define XCACHE_TESTS_SUPPORT_GGUF_WRITER_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/gguf.h"

namespace xcache::testing {

class GgufWriter {
 public:
  explicit GgufWriter(uint32_t version = 3) : version_(version) {}

  // Setting a key again replaces its value.
  void SetUint32(std::string_view key, uint32_t value);
  void SetFloat(std::string_view key, float value);
  void SetBool(std::string_view key, bool value);
  void SetString(std::string_view key, std::string_view value);
  void SetStrings(std::string_view key, std::span<const std::string> values);
  void SetInts(std::string_view key, std::span<const int32_t> values);
  void SetFloats(std::string_view key, std::span<const float> values);
  // A value of any type, its bytes as they stand in the file.
  void SetRaw(std::string_view key, uint32_t type, std::string bytes);
  void Remove(std::string_view key);

  // Replaces a tensor of that name. `dims`: ne[0] first.
  void SetTensor(std::string_view name, std::vector<int64_t> dims,
                 GgufType type, std::string bytes);
  void RemoveTensor(std::string_view name);

  // The file's bytes, tensors aligned to 32.
  std::string Finish() const;

 private:
  struct Entry {
    std::string key;
    uint32_t type;
    std::string bytes;
  };
  struct Tensor {
    std::string name;
    std::vector<int64_t> dims;
    GgufType type;
    std::string bytes;
  };

  uint32_t version_;
  std::vector<Entry> entries_;
  std::vector<Tensor> tensors_;
};

// `values` in the blocks of `type`, by plain rounding.
// REQUIRES: a multiple of the type's block.
std::string Quantize(GgufType type, std::span<const float> values);

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_SUPPORT_GGUF_WRITER_H_
