// ServerCore's implementation: checks requests, renders and tokenizes them on
// the caller's thread, and keeps the parts together. Scheduling, leases and
// storage are theirs.
#ifndef XCACHE_SERVER_CORE_SERVER_CORE_IMPL_H_
#define XCACHE_SERVER_CORE_SERVER_CORE_IMPL_H_

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "cachestore/cache_store.h"
#include "engine/base/mutex.h"
#include "server/core/cache/codec_table.h"
#include "server/core/cache/grammar_table.h"
#include "server/core/cache/known_answers.h"
#include "server/core/scheduler/scheduler.h"
#include "server/core/server_core.h"
#include "server/core/sessions/clock.h"
#include "server/core/sessions/manager.h"

namespace xcache {

class ServerCoreImpl final : public ServerCore {
 public:
  ServerCoreImpl(const ServerCoreDeps& deps, const ServerCoreOptions& options,
                 std::unique_ptr<PlainMetrics> own_metrics);
  ~ServerCoreImpl() override;
  absl::Status Start(const ProgressFn& progress);

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
  const ModelInfo& model() const override { return deps_.engine->info(); }
  const CodecHandle& default_codec() const override { return *default_codec_; }
  const Tokenizer& tokenizer() const override { return *deps_.tokenizer; }
  const ChatTemplate* chat_template() const override {
    return deps_.chat_template;
  }
  int64_t max_context() const override { return max_context_; }
  int Drain(SteadyTime deadline) override;
  CoreGauges Snapshot() const override;

 private:
  std::shared_ptr<ActiveRequest> NewRequest(RequestKind kind,
                                            const RequestBase& base,
                                            std::shared_ptr<RequestSink> sink);
  // Takes over and checks what a generation is to be like.
  absl::Status SetOptions(ActiveRequest& active, GenerationOptions options);
  absl::Status PrepareChat(ActiveRequest& active, ChatTurn turn);
  // Appends the tokens of new messages to those of `base`, of which the request
  // has its part. Answers that are known are what they were made of, where the
  // context has room for that and an answer.
  absl::Status RenderTurn(ActiveRequest& active, const SessionRecord& base,
                          const std::vector<ChatMessage>& messages);
  // What a turn goes on from, and the lease of the session that it becomes.
  absl::StatusOr<SessionRecord> BaseOf(ActiveRequest& active,
                                       const ChatTurn& turn);
  // Of a session that is to be: the defaults, no messages.
  SessionRecord BlankRecord() const;
  // Makes of a session's record what another one begins as: the first so many
  // of its messages (0: all), and nothing that is only said of itself.
  absl::Status MakeAnother(uint64_t num_messages, SessionRecord* record) const;
  absl::Status CheckPrompt(const ActiveRequest& active) const;
  // Refuses text that its bytes alone make too long, before it is tokenized.
  absl::Status CheckBytes(size_t num_bytes, int64_t limit_tokens) const;
  // RESOURCE_EXHAUSTED: the cap is too low for any conversation with this
  // codec, which takes `codec_bytes` more than is in use.
  absl::Status CheckMemoryCap(const CodecHandle& codec,
                              int64_t codec_bytes) const;
  // FAILED_PRECONDITION: its tokens are another model's.
  absl::Status CheckModel(const SessionRecord& record) const;
  // FAILED_PRECONDITION: the model has none.
  absl::Status CheckTemplate() const;
  // Opens the codec of an argument; where that is empty, `fallback`.
  absl::StatusOr<CodecRef> ChooseCodec(const std::string& choice,
                                       std::string_view fallback);
  // INVALID_ARGUMENT: so many tokens leave no room for a turn.
  absl::Status CheckHistory(std::string_view what, size_t num_tokens) const;
  absl::Status CheckUpdate(const SessionUpdate& update) const;
  SessionInfo InfoOf(const SessionRecord& record) const;
  SessionInfo InfoOf(const SessionSummary& summary) const;
  uint64_t PageBytes(std::string_view codec, uint64_t num_pages) const;
  // What is not in the record is how the server's default has it.
  RematPolicy RematPolicyOf(const SessionRecord& record) const;
  absl::Status CommitNew(SessionManager::Lease& lease,
                         const SessionRecord& record);
  void SweepLoop();

  const std::unique_ptr<PlainMetrics> own_metrics_;
  const ServerCoreDeps deps_;
  const ServerCoreOptions options_;
  const int64_t max_context_;
  CoreMetrics& metrics_;
  CodecTable codecs_;
  CodecRef default_codec_;
  KnownAnswers known_answers_;
  mutable SessionClock clock_;
  SessionManager sessions_;
  Scheduler scheduler_;
  GrammarTable grammars_;  // wakes the scheduler
  std::atomic<uint64_t> next_request_{0};

  Mutex mu_;
  CondVar stop_changed_;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  std::thread sweeper_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SERVER_CORE_IMPL_H_
