#include "tests/unit/server/grpc/fake_core.h"

#include <cstdlib>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace xcache::testing {
namespace {

using std::chrono::steady_clock;

class FakeCodec final : public CodecHandle {
 public:
  std::string_view spec() const override { return "kv-fp16"; }
  const Digest& cache_fp() const override { return digest_; }
  size_t page_bytes() const override { return 6400; }

 private:
  Digest digest_ = Sha256Of("fake");
};

std::string Key(std::string_view tenant, std::string_view id) {
  return absl::StrCat(std::string(tenant), "/", std::string(id));
}

}  // namespace

absl::StatusOr<std::vector<TokenId>> ByteTokenizer::Encode(
    std::string_view text) const {
  std::vector<TokenId> out;
  for (char c : text) out.push_back(static_cast<uint8_t>(c));
  return out;
}

std::string ByteTokenizer::TokenBytes(TokenId token, bool with_special) const {
  if (token < 256) return std::string(1, static_cast<char>(token));
  return with_special ? absl::StrCat("<", token, ">") : "";
}

FakeCore::FakeCore() : codec_(std::make_unique<FakeCodec>()) {
  model_.name = "fake";
  model_.vocab_size = tokenizer_.vocab_size();
  model_.num_layers = 2;
}

FakeCore::~FakeCore() {
  stopping_ = true;
  std::vector<std::thread> threads;
  {
    MutexLock lock(mu_);
    threads = std::move(threads_);
  }
  for (std::thread& thread : threads) thread.join();
}

void FakeCore::Run(RequestBase base, std::string command, int num_logprobs,
                   std::shared_ptr<RequestSink> sink) {
  FinalInfo final;
  absl::Status status;
  // Whether the request is to stop; sets `status` then.
  const auto stopped = [&] {
    if (base.cancellation != nullptr && base.cancellation->cancelled()) {
      status = absl::CancelledError("cancelled");
      ++cancelled_;
    } else if (steady_clock::now() >= base.deadline) {
      status = absl::DeadlineExceededError("deadline exceeded");
    } else if (stopping_) {
      status = absl::UnavailableError("the server is shutting down");
    }
    return !status.ok();
  };
  const auto starts = [&](std::string_view word) {
    return command.rfind(word, 0) == 0;
  };
  if (starts("say ")) {
    for (char c : command.substr(4)) {
      if (stopped()) break;
      SampledToken token;
      token.token = static_cast<uint8_t>(c);
      token.logprob = -0.5f;
      for (int i = 1; i < num_logprobs; ++i) {
        token.top.push_back({i, -1.0f * static_cast<float>(i)});
      }
      sink->OnDelta(std::string_view(&c, 1),
                    std::span(&token, num_logprobs > 0 ? 1u : 0u));
      ++final.generated_tokens;
    }
  } else if (command == "hang") {
    while (!stopped()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  } else if (starts("flood")) {
    const long limit = command.size() > 6 ? std::atol(command.c_str() + 6) : 0;
    const std::string text(1000, 'x');
    for (long sent = 0; limit == 0 || sent < limit; sent += 1000) {
      if (stopped()) break;
      sink->OnDelta(text, {});
    }
  } else if (starts("fail ")) {
    status = absl::Status(
        static_cast<absl::StatusCode>(std::atoi(command.c_str() + 5)),
        "as asked");
  } else if (command == "busy") {
    status = absl::ResourceExhaustedError("the queue is full");
    final.retry_after_ms = 1234;
  } else {
    status = absl::InvalidArgumentError("the fake does not know this");
  }
  final.finish_reason = FinishReason::kEnd;
  final.prompt_tokens = command.size();
  final.reused.disk = 64;
  final.durability = Durability::kLocal;
  final.seed = 42;
  sink->OnFinish(status, final);
  sink.reset();
  --running_;
}

void FakeCore::SubmitChat(ChatTurn turn, std::shared_ptr<RequestSink> sink) {
  ++running_;
  MutexLock lock(mu_);
  if (!turn.session_id.empty() &&
      !sessions_.contains(Key(turn.tenant, turn.session_id))) {
    sink->OnFinish(absl::NotFoundError("no such session"), FinalInfo());
    --running_;
    return;
  }
  const std::string command = turn.messages.back().content;
  const int logprobs = turn.options.num_logprobs;
  threads_.emplace_back(&FakeCore::Run, this, std::move(turn), command,
                        logprobs, std::move(sink));
}

void FakeCore::SubmitGenerate(GenerateRequest request,
                              std::shared_ptr<RequestSink> sink) {
  ++running_;
  MutexLock lock(mu_);
  const std::string command = tokenizer_.Decode(request.prompt);
  const int logprobs = request.options.num_logprobs;
  threads_.emplace_back(&FakeCore::Run, this, std::move(request), command,
                        logprobs, std::move(sink));
}

void FakeCore::SubmitEmbed(EmbedRequest request,
                           std::shared_ptr<RequestSink> sink) {
  FinalInfo final;
  final.prompt_tokens = request.tokens.size();
  final.embedding.assign(4, static_cast<float>(request.tokens.size()));
  sink->OnFinish(absl::OkStatus(), final);
}

void FakeCore::SubmitScore(ScoreRequest request,
                           std::shared_ptr<RequestSink> sink) {
  std::vector<SampledToken> tokens;
  for (size_t i = std::max<size_t>(1, static_cast<size_t>(request.first));
       i < request.tokens.size(); ++i) {
    SampledToken token;
    token.token = request.tokens[i];
    token.logprob = -1.0f;
    tokens.push_back(token);
  }
  sink->OnDelta("", tokens);
  FinalInfo final;
  final.prompt_tokens = request.tokens.size();
  sink->OnFinish(absl::OkStatus(), final);
}

absl::StatusOr<SessionInfo*> FakeCore::Find(std::string_view tenant,
                                            std::string_view id) {
  const auto found = sessions_.find(Key(tenant, id));
  if (found == sessions_.end()) return absl::NotFoundError("no such session");
  return &found->second;
}

absl::StatusOr<SessionInfo> FakeCore::CreateSession(
    const CreateSessionOptions& options) {
  MutexLock lock(mu_);
  SessionInfo info;
  info.id =
      options.id.empty() ? absl::StrCat("s", sessions_.size()) : options.id;
  info.title = options.title;
  info.messages = options.messages;
  info.create_time_us = 1'500'000;
  info.durability = Durability::kLocal;
  info.expire_time_us = options.ttl == std::chrono::seconds(0) ? 0 : 2'000'000;
  const auto [it, fresh] =
      sessions_.emplace(Key(options.tenant, info.id), info);
  if (!fresh) return absl::AlreadyExistsError("there is one of that id");
  return info;
}

absl::StatusOr<SessionInfo> FakeCore::GetSession(std::string_view tenant,
                                                 std::string_view id,
                                                 bool with_messages) {
  MutexLock lock(mu_);
  const auto info = Find(tenant, id);
  if (!info.ok()) return info.status();
  SessionInfo out = **info;
  if (!with_messages) {
    out.messages.clear();
  } else if (out.messages.empty()) {
    out.messages = {{Role::kSystem, "be brief"}};
  }
  return out;
}

absl::StatusOr<SessionList> FakeCore::ListSessions(
    std::string_view tenant, int page_size, std::string_view /*page_token*/) {
  MutexLock lock(mu_);
  SessionList page;
  for (const auto& [key, info] : sessions_) {
    if (key != Key(tenant, info.id)) continue;
    if (page_size > 0 &&
        page.sessions.size() == static_cast<size_t>(page_size)) {
      page.next_page_token = "more";
      break;
    }
    page.sessions.push_back(info);
  }
  return page;
}

absl::Status FakeCore::DeleteSession(std::string_view tenant,
                                     std::string_view id) {
  MutexLock lock(mu_);
  return sessions_.erase(Key(tenant, id)) == 1
             ? absl::OkStatus()
             : absl::NotFoundError("no such session");
}

absl::Status FakeCore::ForgetAnswer(std::string_view tenant,
                                    std::string_view id,
                                    std::string_view /*name*/, bool /*cut*/) {
  return DeleteSession(tenant, id);
}

absl::StatusOr<SessionInfo> FakeCore::ForkSession(const ForkOptions& options) {
  MutexLock lock(mu_);
  const auto info = Find(options.tenant, options.id);
  if (!info.ok()) return info.status();
  SessionInfo fork = **info;
  fork.id = options.new_id;
  fork.num_messages = options.num_messages + options.keep_last_messages;
  sessions_[Key(options.tenant, options.new_id)] = fork;
  return fork;
}

absl::StatusOr<MigrateResult> FakeCore::MigrateSession(
    const MigrateOptions& options) {
  MutexLock lock(mu_);
  const auto info = Find(options.tenant, options.id);
  if (!info.ok()) return info.status();
  (*info)->codec = options.codec;
  MigrateResult result;
  result.session = **info;
  result.retokenized = true;
  result.tokens_before = 70;
  result.tokens_after = 60;
  result.messages_dropped = options.keep_last_messages;
  return result;
}

absl::StatusOr<std::string> FakeCore::ExportSession(std::string_view tenant,
                                                    std::string_view id,
                                                    bool text_only) {
  MutexLock lock(mu_);
  const auto info = Find(tenant, id);
  if (!info.ok()) return info.status();
  return absl::StrCat(text_only ? "text of " : "all of ", (*info)->id);
}

absl::StatusOr<SessionInfo> FakeCore::ImportSession(
    const ImportOptions& options) {
  MutexLock lock(mu_);
  SessionInfo info;
  info.id = options.id;
  info.title = options.document;
  info.codec = options.codec;
  info.retokenized = true;
  const auto [it, fresh] =
      sessions_.emplace(Key(options.tenant, info.id), info);
  if (!fresh) return absl::AlreadyExistsError("there is one of that id");
  return info;
}

absl::StatusOr<SessionInfo> FakeCore::UpdateSession(
    std::string_view tenant, std::string_view id, const SessionUpdate& update) {
  MutexLock lock(mu_);
  const auto info = Find(tenant, id);
  if (!info.ok()) return info.status();
  if (update.pinned.has_value()) (*info)->pinned = *update.pinned;
  if (update.title.has_value()) (*info)->title = *update.title;
  if (update.ttl.has_value()) {
    (*info)->expire_time_us =
        update.ttl->count() == 0
            ? 0
            : (*info)->create_time_us + update.ttl->count() * 1000;
  }
  return **info;
}

absl::StatusOr<FlushResult> FakeCore::FlushSession(std::string_view tenant,
                                                   std::string_view id) {
  MutexLock lock(mu_);
  const auto info = Find(tenant, id);
  if (!info.ok()) return info.status();
  return FlushResult{3, 300};
}

absl::StatusOr<std::vector<TokenId>> FakeCore::RenderChat(
    const std::vector<ChatMessage>& messages, bool) const {
  std::string all;
  for (const ChatMessage& message : messages) all += message.content;
  return tokenizer_.Encode(all);
}

int FakeCore::Drain(SteadyTime deadline) {
  while (running_ > 0 && steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const int left = running_;
  stopping_ = true;
  while (running_ > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return left;
}

CoreGauges FakeCore::Snapshot() const {
  CoreGauges gauges;
  gauges.running = static_cast<uint64_t>(running_.load());
  return gauges;
}

}  // namespace xcache::testing
