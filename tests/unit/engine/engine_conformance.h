// What every engine must do, as a suite that each backend's test file
// instantiates with its own factories:
//   INSTANTIATE_TEST_SUITE_P(Cpu, EngineConformanceTest, ValuesIn(...), Name);
// It checks rule R1 (engine_property.h) on small models, and the error paths of
// the interface.
#ifndef XCACHE_TESTS_UNIT_ENGINE_ENGINE_CONFORMANCE_H_
#define XCACHE_TESTS_UNIT_ENGINE_ENGINE_CONFORMANCE_H_

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/model/model.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/engine/engine_property.h"

namespace xcache::testing {

using EngineFactory = std::function<absl::StatusOr<std::unique_ptr<Engine>>(
    std::shared_ptr<const Model> model)>;

struct EngineCase {
  std::string name;
  EngineFactory make;
  // Largest difference of logits between any two ways to compute them. 0: bit
  // for bit. Pages are always compared bit for bit.
  float logits_tolerance = 0.0f;
  // Why the engine cannot be made on this machine, or OK; the tests are then
  // skipped. Empty: it always can.
  std::function<absl::Status()> available;
  // Whether it computes every architecture, and not just llama and qwen2.
  bool all_architectures = false;
  // Whether it knows xquant-tc, and finds profiles of it.
  bool calibrated = false;
};
inline void PrintTo(const EngineCase& c, std::ostream* out) { *out << c.name; }

// Codec specs that the suite covers: all that the build knows, by their
// defaults, and the options that change their shape; xquant-tc if `calibrated`.
std::vector<std::string> CodecSpecsUnderTest(bool calibrated);

// Shapes that differ where the code does: GQA and MHA, biases, both kinds of
// matrices, untied output, RoPE over part of a head; and, of all architectures,
// norms of heads and of what layers add, and attention that slides.
std::vector<TinyModelOptions> ModelsUnderTest(bool all_architectures);

class EngineConformanceTest : public ::testing::TestWithParam<EngineCase> {
 protected:
  void SetUp() override {
    if (!GetParam().available) return;
    const absl::Status status = GetParam().available();
    if (!status.ok()) GTEST_SKIP() << status.message();
  }
  std::unique_ptr<Engine> Make(const TinyModelOptions& options = {}) const;
};

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_ENGINE_ENGINE_CONFORMANCE_H_
