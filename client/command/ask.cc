// `xcache ask`: one question, one answer.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/command/commands.h"
#include "client/command/exit_code.h"
#include "client/command/text.h"

namespace xcache::command {
namespace {

struct Options {
  std::vector<std::string> words;
  std::string session;
  std::string system;
  uint32_t logprobs = 0;
  bool raw = false;
  AnswerFlags answer;
};

// The words, "-" standing for the whole of stdin; where none does, what is
// piped in follows them. None where Ctrl-C came first.
std::optional<std::string> Question(const std::vector<std::string>& words) {
  std::vector<std::string> parts;
  bool read = false;
  for (const std::string& word : words) {
    if (word != "-") {
      parts.push_back(word);
      continue;
    }
    if (IsTerminal(STDIN_FILENO)) {
      std::fprintf(stderr, "the question, then Ctrl-D:\n");
    }
    auto input = ReadStdin();
    if (!input) return std::nullopt;
    parts.push_back(*std::move(input));
    read = true;
  }
  std::string question = absl::StrJoin(parts, " ");
  if (read) return question;
  const auto piped = question.empty() && !IsTerminal(STDIN_FILENO)
                         ? ReadStdin()
                         : ReadPipedInput();
  if (!piped) return std::nullopt;
  if (absl::StripAsciiWhitespace(*piped).empty()) return question;
  return question.empty() ? *piped : absl::StrCat(question, "\n\n", *piped);
}

int Run(const Context& context, const Options& options) {
  const std::optional<std::string> question = Question(options.words);
  if (!question) return kExitInterrupted;
  if (absl::StripAsciiWhitespace(*question).empty()) {
    return Fail(context, absl::InvalidArgumentError(
                             "the question is empty: give it as arguments, "
                             "pipe it in, or - to type it"));
  }
  auto client = context.Connect();
  if (!client.ok()) return Fail(context, client.status());

  const bool terminal = IsTerminal(STDOUT_FILENO);
  client::CancelHandle cancel;
  client::StreamOptions stream{.cancel = &cancel};
  if (!context.json()) {
    stream.on_delta = [&](std::string_view delta) {
      const std::string text = terminal
                                   ? Printable({delta.data(), delta.size()})
                                   : std::string(delta);
      // Nobody reads the rest: the server need not make it.
      if (!Write(text)) cancel.Cancel();
    };
  }
  client::GenerationParams params = options.answer.params;
  params.logprobs = options.logprobs;
  absl::StatusOr<client::Answer> answer;
  {
    Interrupts::Scope scope(&cancel);
    if (options.raw) {
      answer = (*client)->Generate(
          {.prompt = {.text = *question}, .params = params}, stream);
    } else {
      client::ChatRequest request{.session_id = options.session,
                                  .params = params};
      if (!options.system.empty()) {
        request.messages.push_back({client::Role::kSystem, options.system});
      }
      request.messages.push_back({client::Role::kUser, *question});
      answer = (*client)->Chat(request, stream);
    }
  }
  if (OutputError() != 0) return kExitFailed;  // Main() says it
  if (!answer.ok()) {
    if (!context.json() && terminal) std::printf("\n");
    return Fail(context, answer.status());
  }
  if (context.json()) {
    context.PrintJson(ToJson(*answer, /*with_text=*/true));
    context.Warn(*answer);
    return kExitOk;
  }
  Write("\n");
  context.Warn(*answer);
  if (terminal && IsTerminal(STDERR_FILENO)) {
    std::fprintf(stderr, "%s%s%s\n", std::string(context.err().dim).c_str(),
                 AnswerSummary(*answer).c_str(),
                 std::string(context.err().reset).c_str());
  }
  return kExitOk;
}

}  // namespace

void AddAsk(CLI::App* app, Action* action) {
  auto options = std::make_shared<Options>();
  CLI::App* ask = app->add_subcommand("ask", "One question, one answer");
  ask->add_option("question", options->words,
                  "The question. What is piped in follows it, or is all of it: "
                  "`xcache ask \"Sum it up:\" < FILE`; - stands for stdin at "
                  "its place");
  CLI::Option* session =
      ask->add_option("-s,--session", options->session,
                      "Ask within this session, as its next turn");
  CLI::Option* system =
      ask->add_option("--system", options->system, "System prompt")
          ->excludes(session);  // a session has its own
  ask->add_option("--logprobs", options->logprobs,
                  "With --json: each token's log-probability (1), and its best "
                  "alternatives' (more)")
      ->needs(app->get_option("--json"));
  ask->add_flag("--raw", options->raw,
                "Continue the text as it is, without the chat template")
      ->excludes(session)
      ->excludes(system);
  options->answer.AddTo(ask);
  ask->callback([options, action] {
    *action = [options](const Context& context) {
      return Run(context, *options);
    };
  });
}

}  // namespace xcache::command
