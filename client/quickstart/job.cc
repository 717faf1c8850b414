#include "client/quickstart/job.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/command/terminal.h"
#include "client/command/text.h"
#include "client/quickstart/conversation.h"
#include "client/quickstart/server_process.h"
#include "client/xcache_client.h"
#include "engine/base/status_macros.h"

namespace xcache::quickstart {
namespace {

using client::Answer;
using client::Client;

constexpr char kSession[] = "quickstart";
constexpr uint64_t kSeed = 20240131;
constexpr uint64_t kBlockTokens = 64;
constexpr uint32_t kRecomputedTokens = 16;
// The interrupted chat runs with the server's default; the twin's prompts are
// cut differently.
constexpr int kTwinBatchRows = 208;

client::GenerationParams Params(uint32_t max_tokens, bool whole) {
  client::GenerationParams params;
  params.sampling.temperature = 0.7F;
  params.sampling.top_p = 0.95F;
  params.sampling.seed = kSeed;
  params.max_tokens = max_tokens;
  params.logprobs = 1;
  params.ignore_eos = whole;
  return params;
}

ServerProcess::Options ServerOptions(const JobOptions& options,
                                     const std::string& name,
                                     std::vector<std::string> more) {
  ServerProcess::Options out;
  out.program = options.server;
  out.arguments = {
      "--model",       options.model,
      "--store-dir",   absl::StrCat(options.work_dir, "/", name, "-store"),
      "--profile-dir", absl::StrCat(options.work_dir, "/profiles")};
  if (!options.codec.empty()) {
    out.arguments.insert(out.arguments.end(), {"--codec", options.codec});
  }
  if (options.threads > 0) {
    out.arguments.insert(out.arguments.end(),
                         {"--threads", absl::StrCat(options.threads)});
  }
  out.arguments.insert(out.arguments.end(), more.begin(), more.end());
  out.ready_file = absl::StrCat(options.work_dir, "/", name, "-ready.json");
  out.log_file = absl::StrCat(options.work_dir, "/", name, "-server.log");
  return out;
}

absl::StatusOr<std::unique_ptr<Client>> ConnectTo(const ServerProcess& server) {
  client::ClientOptions options;
  options.address = server.address();
  return Client::Connect(options);
}

absl::StatusOr<Answer> Turn(Client& client, const std::string& text,
                            uint64_t expected_turn,
                            const client::GenerationParams& params,
                            const std::string& what) {
  command::Spinner spinner;
  uint64_t tokens = 0;
  spinner.Show(what);
  client::ChatRequest request;
  request.session_id = kSession;
  request.messages = {{client::Role::kUser, text}};
  request.expected_turn = expected_turn;
  request.params = params;
  return client.Chat(
      request, {.on_token = [&](const client::SampledToken&) {
        spinner.Show(absl::StrCat(what, ", ", ++tokens, " tokens"));
      }});
}

std::string Difference(const Answer& a, const Answer& b) {
  if (a.tokens.size() != b.tokens.size()) {
    return absl::StrCat(a.tokens.size(), " tokens, its twin has ",
                        b.tokens.size());
  }
  for (size_t i = 0; i < a.tokens.size(); ++i) {
    if (a.tokens[i].token_id != b.tokens[i].token_id) {
      return absl::StrCat("token ", i, " is ", a.tokens[i].token_id,
                          ", its twin's ", b.tokens[i].token_id);
    }
    if (std::bit_cast<uint32_t>(a.tokens[i].logprob) !=
        std::bit_cast<uint32_t>(b.tokens[i].logprob)) {
      return absl::StrCat("token ", i, " has log-probability ",
                          a.tokens[i].logprob, ", its twin's ",
                          b.tokens[i].logprob, ", other bits");
    }
  }
  if (a.prompt_tokens != b.prompt_tokens || a.text != b.text) {
    return "its prompt or text is another than its twin's";
  }
  return "";
}

// Other conversations on the twin's server, so that its batches are others.
class Neighbour {
 public:
  explicit Neighbour(const ServerProcess& server)
      : thread_([this, address = server.address()] { Run(address); }) {}
  ~Neighbour() {
    stop_ = true;
    cancel_.Cancel();
    thread_.join();
  }

 private:
  void Run(const std::string& address) {
    client::ClientOptions options;
    options.address = address;
    auto client = Client::Connect(options);
    if (!client.ok()) return;
    for (int i = 0; !stop_; ++i) {
      client::ChatRequest request;
      request.messages = {
          {client::Role::kUser,
           absl::StrCat("Tell me a story about the number ", i, ".")}};
      request.params.max_tokens = 40;
      request.params.sampling.seed = static_cast<uint64_t>(i);
      // What it says does not matter, only that its rows are in the batches.
      (*client)->Chat(request, {.cancel = &cancel_}).status().IgnoreError();
    }
  }

  std::atomic<bool> stop_ = false;
  client::CancelHandle cancel_;
  std::thread thread_;
};

class Job {
 public:
  explicit Job(const JobOptions& options) : options_(options) {}

  absl::StatusOr<JobResult> Run() {
    XC_ASSIGN_OR_RETURN(conversation_, Conversation::Load(options_.root));
    XC_RETURN_IF_ERROR(Interrupted());
    XC_RETURN_IF_ERROR(Twin());
    Compare();
    return std::move(result_);
  }

 private:
  absl::StatusOr<std::unique_ptr<ServerProcess>> StartServer(
      const std::string& name, const std::string& what,
      const std::vector<std::string>& more) {
    command::Spinner spinner;
    spinner.Show(what);
    return ServerProcess::Start(ServerOptions(options_, name, more));
  }

  absl::Status Interrupted() {
    XC_ASSIGN_OR_RETURN(auto server,
                        StartServer("chat", "starting the server", {}));
    XC_ASSIGN_OR_RETURN(auto client, ConnectTo(*server));
    XC_ASSIGN_OR_RETURN(const client::ModelInfo info, client->GetModelInfo());
    result_.codec = info.codec;
    result_.device = info.device;
    result_.kv_fp16_bytes_per_token = info.kv_fp16_bytes_per_token;
    const uint64_t needed = options_.history_tokens + 1024;
    if (info.context_length < needed) {
      return absl::InvalidArgumentError(
          absl::StrCat("the model's context is ", info.context_length,
                       " tokens; this needs ", needed));
    }
    XC_RETURN_IF_ERROR(
        client->CreateSession({.id = kSession, .system_prompt = kSystemPrompt})
            .status());
    client::SessionInfo session;
    for (size_t turn = 0; session.num_tokens < options_.history_tokens;
         ++turn) {
      XC_ASSIGN_OR_RETURN(Answer answer,
                          Turn(*client, conversation_.Message(turn), turn,
                               Params(options_.answer_tokens, false),
                               absl::StrCat("turn ", turn + 1, ", history ",
                                            session.num_tokens, " tokens")));
      if (answer.durability < client::Durability::kLocal) {
        return absl::InternalError(
            absl::StrCat("turn ", turn + 1, " is not on disk"));
      }
      result_.before.push_back(std::move(answer));
      XC_ASSIGN_OR_RETURN(session, client->GetSession(kSession));
    }
    result_.history_tokens = session.num_tokens;
    const uint64_t sealed = session.num_tokens / kBlockTokens * kBlockTokens;
    result_.page_bytes_per_token =
        static_cast<double>(session.page_bytes) / static_cast<double>(sealed);
    server->Kill();

    XC_ASSIGN_OR_RETURN(server,
                        StartServer("chat", "starting the server again", {}));
    result_.restart_time = server->start_time();
    XC_ASSIGN_OR_RETURN(client, ConnectTo(*server));
    XC_ASSIGN_OR_RETURN(session, client->GetSession(kSession));
    if (session.turn != result_.before.size()) {
      return absl::DataLossError(absl::StrCat("the session came back at turn ",
                                              session.turn,
                                              ", its last "
                                              "acknowledged turn was ",
                                              result_.before.size()));
    }
    XC_ASSIGN_OR_RETURN(
        result_.resumed,
        Turn(*client, kLastQuestion, session.turn,
             Params(options_.continuation_tokens, true), "resuming"));
    XC_RETURN_IF_ERROR(Recompute(*client, session.num_messages));
    return server->Stop();
  }

  // The resumed turn's prompt again, as a client without sessions sends it and
  // with nothing looked up.
  absl::Status Recompute(Client& client, uint64_t num_messages) {
    command::Spinner spinner;
    spinner.Show("recomputing the same prompt without the X-cache");
    constexpr char kFork[] = "recompute";
    XC_RETURN_IF_ERROR(
        client.ForkSession(kSession, kFork, num_messages).status());
    client::ChatRequest request;
    request.session_id = kFork;
    request.messages = {{client::Role::kUser, kLastQuestion}};
    request.params = Params(kRecomputedTokens, true);
    request.params.no_cache = true;
    XC_ASSIGN_OR_RETURN(result_.recomputed, client.Chat(request));
    Answer beginning = result_.resumed;
    beginning.tokens.resize(
        std::min<size_t>(beginning.tokens.size(), kRecomputedTokens));
    beginning.text = result_.recomputed.text;
    result_.recompute_identical =
        Difference(beginning, result_.recomputed).empty();
    return absl::OkStatus();
  }

  absl::Status Twin() {
    XC_ASSIGN_OR_RETURN(
        const auto server,
        StartServer("twin", "starting the twin's server",
                    {"--batch-rows", absl::StrCat(kTwinBatchRows)}));
    XC_ASSIGN_OR_RETURN(const auto client, ConnectTo(*server));
    XC_RETURN_IF_ERROR(
        client->CreateSession({.id = kSession, .system_prompt = kSystemPrompt})
            .status());
    const Neighbour neighbour(*server);
    const size_t turns = result_.before.size();
    for (size_t turn = 0; turn <= turns; ++turn) {
      const bool last = turn == turns;
      XC_ASSIGN_OR_RETURN(
          Answer answer,
          Turn(*client, last ? kLastQuestion : conversation_.Message(turn),
               turn,
               last ? Params(options_.continuation_tokens, true)
                    : Params(options_.answer_tokens, false),
               absl::StrCat("the twin's turn ", turn + 1, " of ", turns + 1)));
      result_.twin.push_back(std::move(answer));
    }
    return absl::OkStatus();
  }

  void Compare() {
    std::vector<const Answer*> mine;
    for (const Answer& answer : result_.before) mine.push_back(&answer);
    mine.push_back(&result_.resumed);
    for (size_t i = 0; i < mine.size() && result_.difference.empty(); ++i) {
      const std::string difference = Difference(*mine[i], result_.twin[i]);
      if (!difference.empty()) {
        result_.difference = absl::StrCat("turn ", i + 1, ": ", difference);
      }
    }
    if (result_.difference.empty() && result_.resumed.tokens.size() < 64) {
      result_.difference =
          absl::StrCat("the continuation has only ",
                       result_.resumed.tokens.size(), " tokens");
    }
    result_.identical = result_.difference.empty();
  }

  const JobOptions& options_;
  Conversation conversation_;
  JobResult result_;
};

}  // namespace

absl::StatusOr<JobResult> RunJob(const JobOptions& options) {
  return Job(options).Run();
}

}  // namespace xcache::quickstart
