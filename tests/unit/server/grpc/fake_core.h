// A ServerCore without a model: a token is a byte, and the last message says
// what is to happen. It keeps the contract of server_core.h towards sinks, so
// that the wire can be tested on its own, with the timing that a test needs.
//
//   "say <text>"       the text, a delta for each byte
//   "hang"             nothing, until cancelled or past the deadline
//   "flood"            1 kB deltas as fast as they go, until cancelled
//   "flood <n>"        n bytes in 1 kB deltas
//   "fail <code>"      that status (its number)
//   "busy"             RESOURCE_EXHAUSTED with a retry hint of 1234 ms
#ifndef XCACHE_TESTS_UNIT_SERVER_GRPC_FAKE_CORE_H_
#define XCACHE_TESTS_UNIT_SERVER_GRPC_FAKE_CORE_H_

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "engine/base/mutex.h"
#include "server/core/server_core.h"

namespace xcache::testing {

// A token is a byte; 256 is BOS, 257 the end.
class ByteTokenizer final : public Tokenizer {
 public:
  absl::StatusOr<std::vector<TokenId>> Encode(
      std::string_view text) const override;
  absl::StatusOr<std::vector<TokenId>> EncodeWithSpecial(
      std::string_view text) const override {
    return Encode(text);
  }
  std::string TokenBytes(TokenId token, bool with_special) const override;
  int vocab_size() const override { return 258; }
  bool IsSpecial(TokenId token) const override { return token >= 256; }
  TokenId SpecialId(std::string_view) const override { return -1; }
  TokenId bos() const override { return 256; }
  TokenId eos() const override { return 257; }
  bool add_bos() const override { return true; }
  bool IsEndOfGeneration(TokenId token) const override { return token == 257; }
};

class FakeCore final : public ServerCore {
 public:
  FakeCore();
  ~FakeCore() override;

  void SubmitChat(ChatTurn turn, std::shared_ptr<RequestSink> sink) override;
  void SubmitGenerate(GenerateRequest request,
                      std::shared_ptr<RequestSink> sink) override;
  void SubmitScore(ScoreRequest request,
                   std::shared_ptr<RequestSink> sink) override;
  void SubmitEmbed(EmbedRequest request,
                   std::shared_ptr<RequestSink> sink) override;
  absl::StatusOr<SessionInfo> CreateSession(
      const CreateSessionOptions& options) override;
  absl::StatusOr<SessionInfo> GetSession(std::string_view tenant,
                                         std::string_view id,
                                         bool with_messages) override;
  absl::StatusOr<SessionList> ListSessions(
      std::string_view tenant, int page_size,
      std::string_view page_token) override;
  absl::Status DeleteSession(std::string_view tenant,
                             std::string_view id) override;
  absl::Status ForgetAnswer(std::string_view tenant, std::string_view id,
                            std::string_view name, bool cut) override;
  absl::StatusOr<SessionInfo> ForkSession(const ForkOptions& options) override;
  absl::StatusOr<MigrateResult> MigrateSession(
      const MigrateOptions& options) override;
  absl::StatusOr<std::string> ExportSession(std::string_view tenant,
                                            std::string_view id,
                                            bool text_only) override;
  absl::StatusOr<SessionInfo> ImportSession(
      const ImportOptions& options) override;
  absl::StatusOr<SessionInfo> UpdateSession(
      std::string_view tenant, std::string_view id,
      const SessionUpdate& update) override;
  absl::StatusOr<FlushResult> FlushSession(std::string_view tenant,
                                           std::string_view id) override;
  absl::StatusOr<std::vector<TokenId>> RenderChat(
      const std::vector<ChatMessage>& messages,
      bool add_generation_prompt) const override;
  const ModelInfo& model() const override { return model_; }
  const CodecHandle& default_codec() const override { return *codec_; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  const ChatTemplate* chat_template() const override { return chat_template_; }
  int64_t max_context() const override { return 4096; }
  int Drain(SteadyTime deadline) override;
  CoreGauges Snapshot() const override;

  // Borrowed. None, where it is not set.
  void set_chat_template(const ChatTemplate* chat_template) {
    chat_template_ = chat_template;
  }

  // The requests that are running now, and those that were cancelled so far.
  int running() const { return running_; }
  int cancelled() const { return cancelled_; }

 private:
  void Run(RequestBase base, std::string command, int num_logprobs,
           std::shared_ptr<RequestSink> sink);
  absl::StatusOr<SessionInfo*> Find(std::string_view tenant,
                                    std::string_view id) XC_REQUIRES(mu_);

  ByteTokenizer tokenizer_;
  ModelInfo model_;
  const ChatTemplate* chat_template_ = nullptr;
  std::unique_ptr<CodecHandle> codec_;
  std::atomic<int> running_{0};
  std::atomic<int> cancelled_{0};
  std::atomic<bool> stopping_{false};
  Mutex mu_;
  std::map<std::string, SessionInfo> sessions_ XC_GUARDED_BY(mu_);
  std::vector<std::thread> threads_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_SERVER_GRPC_FAKE_CORE_H_
