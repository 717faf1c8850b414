// `xcache ask`: one question, one answer.
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

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

// "-" stands for the whole of stdin.
std::string Question(const std::vector<std::string>& words) {
  std::vector<std::string> parts;
  for (const std::string& word : words) {
    if (word == "-") {
      parts.emplace_back(std::istreambuf_iterator<char>(std::cin),
                         std::istreambuf_iterator<char>());
    } else {
      parts.push_back(word);
    }
  }
  return absl::StrJoin(parts, " ");
}

int Run(const Context& context, const Options& options) {
  const std::string question = Question(options.words);
  if (question.empty()) {
    return Fail(context, absl::InvalidArgumentError(
                             "the question is empty: give it as arguments, "
                             "or - to read it from stdin"));
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
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    };
  }
  client::GenerationParams params = options.answer.params;
  params.logprobs = options.logprobs;
  absl::StatusOr<client::Answer> answer;
  {
    Interrupts::Scope scope(&cancel);
    if (options.raw) {
      answer = (*client)->Generate(
          {.prompt = {.text = question}, .params = params}, stream);
    } else {
      client::ChatRequest request{.session_id = options.session,
                                  .params = params};
      if (!options.system.empty()) {
        request.messages.push_back({client::Role::kSystem, options.system});
      }
      request.messages.push_back({client::Role::kUser, question});
      answer = (*client)->Chat(request, stream);
    }
  }
  if (!answer.ok()) {
    if (!context.json() && terminal) std::printf("\n");
    return Fail(context, answer.status());
  }
  if (context.json()) {
    context.PrintJson(ToJson(*answer, /*with_text=*/true));
    return kExitOk;
  }
  std::printf("\n");
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
                  "The question; - stands for stdin")
      ->required();
  ask->add_option("-s,--session", options->session,
                  "Ask within this session, as its next turn");
  ask->add_option("--system", options->system,
                  "System prompt (a session has its own)");
  ask->add_option("--logprobs", options->logprobs,
                  "With --json: each token's log-probability (1)");
  ask->add_flag("--raw", options->raw,
                "Continue the text as it is, without the chat template");
  options->answer.AddTo(ask);
  ask->callback([options, action] {
    *action = [options](const Context& context) {
      return Run(context, *options);
    };
  });
}

}  // namespace xcache::command
