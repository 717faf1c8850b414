// What the plan of each codec promises to those that read it: bytes without
// gaps or overlaps, equal matrices described once, and what a spec asks for.
#include "engine/xcache/payload_plan.h"

#include <memory>
#include <string>

#include "engine/xcache/codec.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/xcache/codec_test_util.h"

namespace xcache {
namespace {

constexpr CodecShape kShape{.num_layers = 5, .d_model = 96, .kv_dim = 48};

std::unique_ptr<const Codec> Make(const FakeModel& model,
                                  const std::string& spec) {
  auto codec = model.Make(spec, Isa::kRef);
  EXPECT_TRUE(codec.ok()) << spec << ": " << codec.status();
  return *std::move(codec);
}

TEST(PayloadPlanTest, PartsFollowEachOtherWithoutGaps) {
  const FakeModel model(kShape);
  for (const std::string& name : CodecNames()) {
    SCOPED_TRACE(name);
    const std::unique_ptr<const Codec> codec = Make(model, name);
    const PayloadPlan& plan = codec->plan();
    ASSERT_EQ(plan.num_layers(), kShape.num_layers);
    if (plan.variable_size()) {
      EXPECT_EQ(name, "xquant-tc");
      EXPECT_GT(codec->payload_bytes(), 0u);
      continue;
    }
    size_t at = 0;
    for (int i = 0; i < plan.num_layers(); ++i) {
      const PayloadPlan::Layer& layer = plan.layer(i);
      EXPECT_EQ(layer.at, at);
      EXPECT_EQ(plan.at(i), at);
      if (layer.scales_at.has_value()) {
        EXPECT_EQ(*layer.scales_at, at);
        at += kBlockTokens;
      }
      ASSERT_FALSE(layer.parts.empty());
      for (const PayloadPlan::Part& part : layer.parts) {
        EXPECT_EQ(part.at, at);
        at += plan.matrices()[part.matrix].bytes;
      }
    }
    EXPECT_EQ(plan.at(plan.num_layers()), at);
    EXPECT_EQ(codec->payload_bytes(), at);
  }
}

TEST(PayloadPlanTest, LayersShareWhatIsAlike) {
  const FakeModel model(kShape);
  EXPECT_EQ(Make(model, "kv-fp16")->plan().matrices().size(), 1u);
  EXPECT_EQ(Make(model, "xquant")->plan().matrices().size(), 1u);
  EXPECT_EQ(Make(model, "kivi")->plan().matrices().size(), 2u);
  // The base layers' and the others'.
  EXPECT_EQ(Make(model, "xquant-cl:bits=2")->plan().matrices().size(), 2u);
  EXPECT_EQ(Make(model, "xquant-cl:bits=4")->plan().matrices().size(), 1u);
}

TEST(PayloadPlanTest, SaysWhatTheSpecAsksFor) {
  const FakeModel model(kShape);
  const std::unique_ptr<const Codec> codec = Make(
      model, "xquant-cl:axis=token,base_layers=2,bits=3,rotate=on,x=residual");
  const PayloadPlan& plan = codec->plan();
  for (int i = 0; i < plan.num_layers(); ++i) {
    const PayloadMatrix& matrix = plan.matrices()[plan.part(i, 0).matrix];
    EXPECT_EQ(matrix.axis, GroupAxis::kToken);
    EXPECT_TRUE(matrix.rotated);
    EXPECT_EQ(matrix.num_channels, kShape.d_model);
    EXPECT_EQ(matrix.tiles.front().bits, i < 2 ? 4 : 3);
    EXPECT_EQ(plan.layer(i).prediction,
              i < 2 ? Prediction::kNone : Prediction::kResidual);
    EXPECT_EQ(plan.layer(i).scales_at.has_value(), i >= 2);
  }
  const std::unique_ptr<const Codec> channels =
      Make(model, "xquant:axis=channel");
  EXPECT_EQ(channels->plan().matrices().front().axis, GroupAxis::kChannel);
  EXPECT_FALSE(channels->plan().matrices().front().rotated);
}

}  // namespace
}  // namespace xcache
