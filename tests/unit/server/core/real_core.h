// The core on real engines (the CPU's, and a device's as the host emulates it),
// a tiny model and the store on disk.
#ifndef XCACHE_TESTS_UNIT_SERVER_CORE_REAL_CORE_H_
#define XCACHE_TESTS_UNIT_SERVER_CORE_REAL_CORE_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cachestore/cache_store.h"
#include "engine/device/engine.h"
#include "engine/emulation/host_ops.h"
#include "engine/engine_factory.h"
#include "engine/kernels/isa.h"
#include "engine/model/chat_template.h"
#include "engine/model/tokenizer.h"
#include "server/core/server_core.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/engine/made_up_profiles.h"
#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {

inline std::unique_ptr<Engine> MakeCpuEngine(std::shared_ptr<const Model> model,
                                             int num_threads) {
  EngineOptions options;
  options.device = "cpu";
  options.num_threads = num_threads;
  options.profile_dir = MadeUpProfiles(*model);
  return CreateEngine(std::move(model), options, {}).value();
}

inline std::unique_ptr<Engine> MakeDeviceEngine(
    std::shared_ptr<const Model> model, int num_threads) {
  cuda::DeviceEngineOptions options;
  options.isa = *ChooseIsa("");
  options.num_threads = num_threads;
  return cuda::DeviceEngine::Create(std::move(model), cuda::MakeHostOps({}),
                                    options, {})
      .value();
}

// One server's parts, over a folder that outlives them.
class RealCore {
 public:
  RealCore(std::string dir, ServerCoreOptions options,
           int64_t memory_bytes = 256 << 20, int num_threads = 2,
           decltype(&MakeCpuEngine) make_engine = &MakeCpuEngine)
      : dir_(std::move(dir)), memory_(memory_bytes) {
    model_ = MakeTinyModel({});
    tokenizer_ = Tokenizer::Create(model_->gguf()).value();
    template_ = ChatTemplate::Create(model_->gguf(), *tokenizer_, "").value();
    engine_ = make_engine(model_, num_threads);
    CacheStoreOptions store;
    store.dir = dir_;
    store_ = CacheStore::Open(store, memory_).value();
    ServerCoreDeps deps;
    deps.engine = engine_.get();
    deps.tokenizer = tokenizer_.get();
    deps.chat_template = template_.get();
    deps.store = store_.get();
    deps.memory = &memory_;
    deps.metrics = &metrics;
    core_ = ServerCore::Create(deps, options, {}).value();
  }

  ServerCore& core() { return *core_; }
  CacheStore& store() { return *store_; }
  const MemoryBudget& memory() const { return memory_; }

  void NewSession(const std::string& id, const std::string& system,
                  const std::string& codec = "",
                  const std::string& remat = "") {
    CreateSessionOptions create;
    create.codec = codec;
    create.remat = remat;
    create.tenant = "t";
    create.id = id;
    create.system_prompt = system;
    ASSERT_TRUE(core_->CreateSession(create).ok());
  }
  std::shared_ptr<CollectSink> Start(ChatTurn turn) {
    auto sink = std::make_shared<CollectSink>();
    core_->SubmitChat(std::move(turn), sink);
    return sink;
  }
  std::shared_ptr<CollectSink> Chat(ChatTurn turn) {
    auto sink = Start(std::move(turn));
    sink->Wait();
    return sink;
  }

  PlainMetrics metrics;

 private:
  const std::string dir_;
  MemoryBudget memory_;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<const ChatTemplate> template_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<CacheStore> store_;
  std::unique_ptr<ServerCore> core_;
};

class CoreEngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "xcache-core-XXXXXX");
    root_ = mkdtemp(pattern.data());
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  std::string Dir(const std::string& name) const { return root_ + "/" + name; }

 private:
  std::string root_;
};

inline ServerCoreOptions Restoring(int step_rows = 128) {
  ServerCoreOptions options;
  options.step_rows = step_rows;
  options.max_running = 16;
  options.restore = ServerCoreOptions::Restore::kAlways;
  return options;
}

inline ChatTurn TurnOf(const std::string& id, uint32_t seed,
                       size_t letters = 90) {
  ChatTurn turn;
  turn.tenant = "t";
  turn.session_id = id;
  turn.messages = {{Role::kUser, Letters(letters, seed)}};
  turn.options.max_tokens = 70;
  turn.options.ignore_eos = true;
  turn.options.num_logprobs = 3;
  turn.options.sampling.temperature = 0.8f;
  turn.options.seed = seed;
  return turn;
}

inline void ExpectSame(const std::vector<SampledToken>& a,
                       const std::vector<SampledToken>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].token, b[i].token) << i;
    EXPECT_EQ(a[i].logprob, b[i].logprob) << i;  // every bit
    ASSERT_EQ(a[i].top.size(), b[i].top.size());
    for (size_t j = 0; j < a[i].top.size(); ++j) {
      EXPECT_EQ(a[i].top[j].token, b[i].top[j].token);
      EXPECT_EQ(a[i].top[j].logprob, b[i].top[j].logprob);
    }
  }
}

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_SERVER_CORE_REAL_CORE_H_
