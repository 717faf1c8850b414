#include "engine/model/gguf.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

using ::testing::ElementsAre;
using testing::GgufWriter;
using ::testing::HasSubstr;

absl::StatusOr<std::unique_ptr<const GgufFile>> Parse(
    const std::string& bytes) {
  return GgufFile::Parse(
      {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
      "test.gguf");
}

// Expects INVALID_ARGUMENT with all of `parts` in its message.
void ExpectInvalid(const std::string& bytes,
                   const std::vector<std::string>& parts) {
  const absl::Status status = Parse(bytes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  for (const std::string& part : parts) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
}

template <typename T>
std::string Bytes(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}
std::string Text(std::string_view text) {
  return Bytes<uint64_t>(text.size()) + std::string(text);
}
std::string Header(uint64_t tensors, uint64_t entries) {
  return "GGUF" + Bytes<uint32_t>(3) + Bytes(tensors) + Bytes(entries);
}
// An info of a tensor, 1-dimensional.
std::string Info(std::string_view name, uint64_t size, uint32_t type,
                 uint64_t offset) {
  return Text(name) + Bytes<uint32_t>(1) + Bytes(size) + Bytes(type) +
         Bytes(offset);
}
std::string Padded(std::string bytes, size_t data) {
  bytes.resize((bytes.size() + 31) / 32 * 32 + data);
  return bytes;
}

TEST(GgufTest, ReadsValuesOfEveryType) {
  GgufWriter w;
  w.SetRaw("u8", 0, Bytes<uint8_t>(200));
  w.SetRaw("i8", 1, Bytes<int8_t>(-3));
  w.SetRaw("u16", 2, Bytes<uint16_t>(60000));
  w.SetRaw("i16", 3, Bytes<int16_t>(-300));
  w.SetUint32("u32", 4000000000u);
  w.SetRaw("i32", 5, Bytes<int32_t>(-70000));
  w.SetFloat("f32", 0.5f);
  w.SetBool("bool", true);
  w.SetString("string", "text");
  w.SetRaw("u64", 10, Bytes<uint64_t>(~0ull));
  w.SetRaw("i64", 11, Bytes<int64_t>(-5));
  w.SetRaw("f64", 12, Bytes(0.25));
  w.SetStrings("strings", std::vector<std::string>{"a", "", "c"});
  w.SetInts("ints", std::vector<int32_t>{1, -2});
  w.SetFloats("floats", std::vector<float>{1.5f});
  w.SetRaw(
      "bools", 9,
      Bytes<uint32_t>(7) + Bytes<uint64_t>(2) + "\1" + std::string(1, '\0'));
  for (uint32_t version : {2u, 3u}) {
    std::string bytes = w.Finish();
    std::memcpy(bytes.data() + 4, &version, 4);
    const auto file = Parse(bytes);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((*file)->version(), version);
    EXPECT_EQ(*(*file)->GetInt("u8"), 200);
    EXPECT_EQ(*(*file)->GetInt("i8"), -3);
    EXPECT_EQ(*(*file)->GetInt("u16"), 60000);
    EXPECT_EQ(*(*file)->GetInt("i16"), -300);
    EXPECT_EQ(*(*file)->GetInt("u32"), 4000000000);
    EXPECT_EQ(*(*file)->GetInt("i32"), -70000);
    EXPECT_EQ(*(*file)->GetFloat("f32"), 0.5);
    EXPECT_TRUE(*(*file)->GetBool("bool"));
    EXPECT_EQ(*(*file)->GetString("string"), "text");
    EXPECT_FALSE((*file)->GetInt("u64").ok());  // above 2^63
    EXPECT_EQ(*(*file)->GetInt("i64"), -5);
    EXPECT_EQ(*(*file)->GetFloat("f64"), 0.25);
    EXPECT_THAT(*(*file)->GetStrings("strings"), ElementsAre("a", "", "c"));
    EXPECT_THAT(*(*file)->GetInts("ints"), ElementsAre(1, -2));
    EXPECT_THAT(*(*file)->GetFloats("floats"), ElementsAre(1.5));
    EXPECT_EQ((*file)->metadata().size(), 16u);
  }
}

TEST(GgufTest, GettersTellAbsentFromWrong) {
  GgufWriter w;
  w.SetString("s", "x");
  const std::string bytes = w.Finish();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->GetInt("none").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ((*file)->GetInt("s").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*file)->GetFloat("s").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*file)->GetBool("s").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*file)->GetStrings("s").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*file)->GetInts("s").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(GgufTest, FindsTensorsByName) {
  GgufWriter w;
  w.SetTensor("a", {4}, GgufType::kF32, std::string(16, 'a'));
  w.SetTensor("b", {32, 2}, GgufType::kQ8_0, std::string(68, 'b'));
  const std::string bytes = w.Finish();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_NE((*file)->FindTensor("b"), nullptr);
  EXPECT_THAT((*file)->FindTensor("b")->dims, ElementsAre(32, 2));
  EXPECT_EQ((*file)->FindTensor("b")->bytes.size(), 68u);
  EXPECT_EQ((*file)->FindTensor("b")->bytes[0], 'b');
  EXPECT_EQ((*file)->FindTensor("c"), nullptr);
}

TEST(GgufTest, OtherFilesAreInvalid) {
  ExpectInvalid("", {"byte 0", "magic", "end of the file"});
  ExpectInvalid("GGU", {"byte 0", "magic"});
  ExpectInvalid("ggml" + std::string(20, '\0'),
                {"byte 0", "expected \"GGUF\"", "found \"ggml\""});
  ExpectInvalid("GGUF" + Bytes<uint32_t>(1) + std::string(16, '\0'),
                {"byte 4", "expected 2 or 3", "found 1"});
  ExpectInvalid("GGUF" + Bytes<uint32_t>(0x03000000) + std::string(16, '\0'),
                {"big-endian"});
}

TEST(GgufTest, CountsThatCannotFitAreInvalid) {
  ExpectInvalid(Header(~0ull, 0), {"byte 8", "tensor count"});
  ExpectInvalid(Header(0, ~0ull), {"byte 16", "metadata count"});
  ExpectInvalid(Header(1, 0), {"tensor count"});
  ExpectInvalid(Header(0, 1) + Bytes<uint64_t>(~0ull) + std::string(8, 'x'),
                {"byte 24", "metadata key"});
  ExpectInvalid(Header(0, 1) + Text("k") + Bytes<uint32_t>(8) +
                    Bytes<uint64_t>(1ull << 62),
                {"byte 37", "metadata value"});
  ExpectInvalid(Header(0, 1) + Text("k") + Bytes<uint32_t>(9) +
                    Bytes<uint32_t>(10) + Bytes<uint64_t>(1ull << 61),
                {"byte 41", "array length"});
}

TEST(GgufTest, MetadataOutOfOrderIsInvalid) {
  const std::string entry = Text("k") + Bytes<uint32_t>(4) + Bytes<uint32_t>(1);
  ExpectInvalid(Header(0, 2) + entry + entry,
                {"byte 41", "metadata key k", "found again"});
  ExpectInvalid(Header(0, 1) + Text("k") + Bytes<uint32_t>(13) + "12345678",
                {"byte 33", "expected 0 to 12, found 13"});
  ExpectInvalid(Header(0, 1) + Text("k") + Bytes<uint32_t>(7) + "\2",
                {"byte 37", "bool", "found 2"});
  ExpectInvalid(Header(0, 1) + Text("k") + Bytes<uint32_t>(9) +
                    Bytes<uint32_t>(9) + Bytes<uint64_t>(0),
                {"byte 37", "array of arrays"});
  ExpectInvalid(Header(0, 1) + Text("") + Bytes<uint32_t>(4) + "12345",
                {"expected a name"});
}

TEST(GgufTest, TensorsOutOfOrderAreInvalid) {
  const uint32_t f32 = 0, q8 = 8;
  ExpectInvalid(Padded(Header(1, 0) + Info("t", 0, f32, 0), 64),
                {"tensor t", "dimension 0"});
  ExpectInvalid(Padded(Header(1, 0) + Info("t", ~0ull, f32, 0), 64),
                {"tensor t", "dimension 0"});
  ExpectInvalid(
      Padded(Header(1, 0) + Text("t") + Bytes<uint32_t>(2) +
                 Bytes<uint64_t>(1ull << 40) + Bytes<uint64_t>(1ull << 40) +
                 Bytes(f32) + Bytes<uint64_t>(0),
             64),
      {"tensor t", "dimension 1"});
  ExpectInvalid(Padded(Header(1, 0) + Text("t") + Bytes<uint32_t>(5) +
                           std::string(60, '\1'),
                       64),
                {"1 to 4 dimensions, found 5"});
  ExpectInvalid(Padded(Header(1, 0) + Info("t", 33, q8, 0), 64),
                {"multiple of 32", "Q8_0", "found 33"});
  ExpectInvalid(Padded(Header(1, 0) + Info("t", 1ull << 50, f32, 0), 64),
                {"tensor t", "expected at most"});
  ExpectInvalid(Padded(Header(1, 0) + Info("t", 16, f32, 8), 128),
                {"multiple of 32", "found 8"});
  ExpectInvalid(Padded(Header(1, 0) + Info("t", 16, f32, 32), 64),
                {"expected 64 bytes at offset 32", "only 64"});
  ExpectInvalid(Padded(Header(1, 0) + Info("t", 16, f32, ~0ull - 31), 64),
                {"tensor t"});
  ExpectInvalid(
      Padded(Header(2, 0) + Info("t", 16, f32, 0) + Info("t", 16, f32, 64),
             128),
      {"tensor t", "found again"});
  ExpectInvalid(
      Padded(Header(2, 0) + Info("t", 16, f32, 0) + Info("u", 16, f32, 32),
             128),
      {"tensor u", "64 or more", "tensor t", "found 32"});
}

TEST(GgufTest, UnknownTensorTypesAreUnimplemented) {
  const std::string bytes = Padded(Header(1, 0) + Info("t", 256, 16, 0), 512);
  const absl::Status status = Parse(bytes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("type number 16"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("Q4_K"));
}

TEST(GgufTest, AlignmentIsCheckedAndFollowed) {
  GgufWriter w;
  w.SetTensor("t", {4}, GgufType::kF32, std::string(16, 't'));
  for (uint32_t alignment : {0u, 4u, 33u, 48u, 1u << 31}) {
    w.SetUint32("general.alignment", alignment);
    ExpectInvalid(w.Finish(), {"general.alignment"});
  }
  w.SetString("general.alignment", "32");
  ExpectInvalid(w.Finish(), {"general.alignment", "another type"});
  w.SetUint32("general.alignment", 16);
  EXPECT_TRUE(Parse(w.Finish()).ok());
}

TEST(GgufTest, OnlyTheWholeFileParses) {
  // Behind the last tensor there is nothing, so only the whole file parses.
  testing::TinyModelOptions options;
  options.num_layers = 1;
  options.d_model = 32;
  options.n_heads = 1;
  options.d_ff = 32;
  options.vocab_size = 260;
  const std::string bytes = testing::TinyModelBytes(options);
  ASSERT_TRUE(Parse(bytes).ok());
  for (size_t n = 0; n < bytes.size(); n += n < 16384 ? 1 : 97) {
    const absl::Status status = Parse(bytes.substr(0, n)).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << n;
  }
}

TEST(GgufTest, OpenTellsWhatIsNotThereFromWhatIsWrong) {
  EXPECT_EQ(GgufFile::Open("/nonexistent.gguf").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(GgufFile::Open("/").status().code(),
            absl::StatusCode::kInvalidArgument);
  const std::string path = std::filesystem::temp_directory_path() /
                           ("xcache-gguf-test-" + std::to_string(::getpid()));
  std::ofstream(path).close();
  const absl::Status empty = GgufFile::Open(path).status();
  EXPECT_THAT(std::string(empty.message()), HasSubstr("an empty file"));
  GgufWriter w;
  w.SetString("k", "v");
  std::ofstream(path, std::ios::binary) << w.Finish();
  const auto file = GgufFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->path(), path);
  EXPECT_EQ((*file)->bytes().size(), std::filesystem::file_size(path));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace xcache
