// `xcache chat`: a conversation on the terminal. Ctrl-C cancels the answer that
// is being written, never the chat; the server rolls the turn back.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/command/commands.h"
#include "client/command/exit_code.h"
#include "client/command/line_editor.h"
#include "client/command/text.h"
#include "engine/base/status_macros.h"

namespace xcache::command {
namespace {

struct Options {
  std::string session;
  client::CreateSessionOptions create;
  std::optional<double> ttl_hours;
  AnswerFlags answer;
  bool no_history = false;
};

constexpr char kHelp[] =
    "/history       the conversation so far\n"
    "/session       this session's numbers\n"
    "/fork [N]      go on in a new session with the first N messages (all)\n"
    "/help          this\n"
    "/quit          leave (so does Ctrl-D); the session stays\n"
    "A line that ends with \\ goes on in the next one.\n";

class Chat {
 public:
  Chat(const Context& context, Options options)
      : context_(context), options_(std::move(options)) {}

  int Run() {
    auto client = context_.Connect();
    if (!client.ok()) return Fail(context_, client.status());
    client_ = *std::move(client);
    editor_ =
        LineEditor::Create(options_.no_history ? "" : DefaultHistoryFile());
    if (const absl::Status status = Open(); !status.ok()) {
      return Fail(context_, status);
    }
    int interrupts = 0;
    while (true) {
      std::string text;
      const LineEditor::Result result = ReadMessage(&text);
      if (result == LineEditor::Result::kEnd) break;
      if (result == LineEditor::Result::kInterrupted) {
        Interrupts::Take();
        if (!editor_->interactive()) return kExitInterrupted;
        if (++interrupts == 2) break;
        Note("Ctrl-C again, or Ctrl-D, leaves the chat");
        continue;
      }
      interrupts = 0;
      const std::string trimmed(absl::StripAsciiWhitespace(text));
      if (trimmed.empty()) continue;
      absl::Status status;
      if (editor_->interactive() && trimmed[0] == '/') {
        if (trimmed == "/quit" || trimmed == "/exit") break;
        status = Slash(trimmed);
      } else {
        status = Turn(text);
      }
      if (status.ok()) continue;
      // A person sees what went wrong and goes on; a script must know.
      const int code = Fail(context_, status);
      if (!editor_->interactive()) return code;
      if (absl::IsNotFound(status)) return code;  // nothing to go on with
      if (absl::IsUnavailable(status)) {
        if (const absl::Status back = Recover(); !back.ok()) {
          return Fail(context_, back);
        }
      } else {
        Refresh().IgnoreError();
      }
    }
    if (editor_->interactive()) {
      Note(absl::StrCat("session kept: xcache chat --session ",
                        OneLine(session_.id)));
    }
    return kExitOk;
  }

 private:
  void Note(const std::string& text) const {
    if (context_.json()) return;
    std::fflush(stdout);
    std::fprintf(stderr, "%s%s%s\n", std::string(context_.err().dim).c_str(),
                 text.c_str(), std::string(context_.err().reset).c_str());
  }

  absl::Status Open() {
    bool created = true;
    if (!options_.session.empty()) {
      auto found = client_->GetSession(options_.session, true);
      if (found.ok()) {
        session_ = *std::move(found);
        created = false;
      } else if (!absl::IsNotFound(found.status())) {
        return found.status();
      }
    }
    if (created) {
      client::CreateSessionOptions create = options_.create;
      create.id = options_.session;
      if (options_.ttl_hours) create.ttl = absl::Hours(*options_.ttl_hours);
      XC_ASSIGN_OR_RETURN(session_, client_->CreateSession(create));
    } else if (!options_.create.system_prompt.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("session ", session_.id,
                       " exists and has its system prompt: leave out "
                       "--system"));
    }
    if (context_.json()) {
      context_.PrintJson({{"session", ToJson(session_)}});
      return absl::OkStatus();
    }
    if (!editor_->interactive()) return absl::OkStatus();
    if (created) {
      Note(absl::StrCat("new session ", OneLine(session_.id),
                        "; /help for help"));
    } else {
      Note(absl::StrCat("session ", OneLine(session_.id), ": ", session_.turn,
                        session_.turn == 1 ? " turn, " : " turns, ",
                        HumanCount(session_.num_tokens), " tokens"));
      ShowMessages(2);
    }
    return absl::OkStatus();
  }

  // The last `n` messages; 0: all.
  void ShowMessages(size_t n) const {
    const auto& messages = session_.messages;
    const size_t first =
        n == 0 || n > messages.size() ? 0 : messages.size() - n;
    const Style& style = context_.out();
    for (size_t i = first; i < messages.size(); ++i) {
      const bool mine = messages[i].role == client::Role::kUser;
      std::printf(
          "%s%s%s %s\n", std::string(style.bold).c_str(),
          mine ? ">"
               : absl::StrCat(client::RoleName(messages[i].role), ":").c_str(),
          std::string(style.reset).c_str(),
          Printable(messages[i].content).c_str());
    }
    std::fflush(stdout);
  }

  LineEditor::Result ReadMessage(std::string* text) {
    const Style& style = context_.out();
    // libedit wants its own marks around what takes no columns.
    const auto prompt = [&](const char* mark) {
      if (style.bold.empty()) return absl::StrCat(mark, " ");
      return absl::StrCat("\1", std::string(style.bold), "\1", mark, "\1",
                          std::string(style.reset), "\1 ");
    };
    std::string line;
    LineEditor::Result result = editor_->Read(prompt(">"), &line);
    while (result == LineEditor::Result::kLine && !line.empty() &&
           line.back() == '\\') {
      line.back() = '\n';
      *text += line;
      line.clear();
      result = editor_->Read(prompt("."), &line);
    }
    if (result == LineEditor::Result::kEnd && !text->empty()) {
      result = LineEditor::Result::kLine;
    }
    *text += line;
    return result;
  }

  absl::Status Refresh() {
    XC_ASSIGN_OR_RETURN(session_, client_->GetSession(session_.id, true));
    return absl::OkStatus();
  }

  // The server went away during a turn: waits for it, and finds out whether the
  // turn was made durable before.
  absl::Status Recover() {
    const uint64_t before = session_.turn;
    Globals globals = context_.globals();
    if (!globals.wait_seconds) globals.wait_seconds = 60;
    XC_RETURN_IF_ERROR(Context(globals).WaitReady(*client_));
    XC_RETURN_IF_ERROR(Refresh());
    if (session_.turn > before) {
      Note("the server is back, and has kept the turn:");
      ShowMessages(1);
    } else {
      Note(absl::StrCat("the server is back; the session is at turn ",
                        session_.turn, ": ask again"));
    }
    return absl::OkStatus();
  }

  absl::Status Turn(const std::string& text) {
    const bool terminal = IsTerminal(STDOUT_FILENO);
    client::CancelHandle cancel;
    bool at_line_start = true;
    client::StreamOptions stream{.cancel = &cancel};
    stream.on_delta = [&](std::string_view delta) {
      if (context_.json()) {
        context_.PrintJson({{"delta", std::string(delta)}});
        return;
      }
      const std::string shown = terminal
                                    ? Printable({delta.data(), delta.size()})
                                    : std::string(delta);
      std::fwrite(shown.data(), 1, shown.size(), stdout);
      std::fflush(stdout);
      if (!shown.empty()) at_line_start = shown.back() == '\n';
    };
    client::ChatRequest request;
    request.session_id = session_.id;
    request.messages = {{client::Role::kUser, text}};
    request.expected_turn = session_.turn;
    request.params = options_.answer.params;
    absl::StatusOr<client::Answer> answer;
    {
      Interrupts::Scope scope(&cancel);
      answer = client_->Chat(request, stream);
    }
    if (!context_.json() && !at_line_start) std::printf("\n");
    std::fflush(stdout);
    if (cancel.cancelled()) {
      Interrupts::Take();
      if (!editor_->interactive()) return answer.status();
      if (!answer.ok()) {
        Note(absl::StrCat("cancelled; the session stays at turn ",
                          session_.turn));
        // It may have been too late to cancel.
        const uint64_t before = session_.turn;
        if (Refresh().ok() && session_.turn > before) {
          Note("the answer was complete already and is kept");
        }
        return absl::OkStatus();
      }
    }
    if (!answer.ok()) return answer.status();
    session_.turn = answer->turn;
    session_.num_tokens = answer->prompt_tokens + answer->generated_tokens;
    if (context_.json()) {
      context_.PrintJson({{"final", ToJson(*answer, /*with_text=*/true)}});
    } else if (editor_->interactive()) {
      Note(AnswerSummary(*answer));
    }
    return absl::OkStatus();
  }

  absl::Status Slash(const std::string& line) {
    const std::vector<std::string> words =
        absl::StrSplit(line, ' ', absl::SkipWhitespace());
    if (words[0] == "/help") {
      std::fputs(kHelp, stdout);
      return absl::OkStatus();
    }
    if (words[0] == "/history") {
      XC_RETURN_IF_ERROR(Refresh());
      ShowMessages(0);
      return absl::OkStatus();
    }
    if (words[0] == "/session") {
      XC_RETURN_IF_ERROR(Refresh());
      std::printf("%s: turn %d, %s messages, %s tokens, %s of pages, %s\n",
                  OneLine(session_.id).c_str(), static_cast<int>(session_.turn),
                  HumanCount(session_.num_messages).c_str(),
                  HumanCount(session_.num_tokens).c_str(),
                  HumanBytes(static_cast<double>(session_.page_bytes)).c_str(),
                  OneLine(session_.codec).c_str());
      return absl::OkStatus();
    }
    if (words[0] == "/fork") {
      uint64_t keep = 0;
      if (words.size() > 2 ||
          (words.size() == 2 && !absl::SimpleAtoi(words[1], &keep))) {
        return absl::InvalidArgumentError("/fork takes a number of messages");
      }
      XC_ASSIGN_OR_RETURN(const client::SessionInfo fork,
                          client_->ForkSession(session_.id, "", keep));
      session_ = fork;
      Note(absl::StrCat("now in ", OneLine(session_.id), ", ",
                        session_.num_messages, " messages"));
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        absl::StrCat("no command ", words[0], "; /help lists them"));
  }

  const Context& context_;
  const Options options_;
  std::unique_ptr<client::Client> client_;
  std::unique_ptr<LineEditor> editor_;
  client::SessionInfo session_;
};

}  // namespace

void AddChat(CLI::App* app, Action* action) {
  auto options = std::make_shared<Options>();
  CLI::App* chat = app->add_subcommand(
      "chat",
      "Converse. Ctrl-C cancels the answer; twice at the prompt, or Ctrl-D, "
      "leaves");
  chat->add_option("-s,--session", options->session,
                   "Go on with this session, or start one of this id");
  chat->add_option("--system", options->create.system_prompt,
                   "System prompt of a new session");
  chat->add_option("--title", options->create.title, "Title of a new session");
  chat->add_option("--codec", options->create.codec,
                   "Codec of a new session: lossless, balanced, compact, or a "
                   "spec like xquant-gqa:bits=3");
  chat->add_option("--remat", options->create.remat,
                   "Remat policy of a new session: resume or step");
  chat->add_option("--ttl-hours", options->ttl_hours,
                   "Hours after its last turn that a new session lives; 0: "
                   "for ever")
      ->check(CLI::NonNegativeNumber);
  chat->add_flag("--no-history", options->no_history,
                 "Do not keep typed lines for the next time");
  options->answer.AddTo(chat);
  chat->callback([options, action] {
    *action = [options](const Context& context) {
      return Chat(context, *options).Run();
    };
  });
}

}  // namespace xcache::command
