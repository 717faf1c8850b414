// `xcache chat`: a conversation on the terminal. Ctrl-C cancels the answer that
// is being written, never the chat; the server rolls the turn back, or keeps
// what there is of it where that was asked for.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/command/commands.h"
#include "client/command/exit_code.h"
#include "client/command/line_editor.h"
#include "client/command/message_reader.h"
#include "client/command/text.h"
#include "engine/base/nearest_name.h"
#include "engine/base/status_macros.h"

namespace xcache::command {
namespace {

struct Options {
  std::string session;
  client::CreateSessionOptions create;
  std::optional<double> ttl_hours;
  // Which of the flags were given that only a new session can have.
  std::vector<std::string> for_new_sessions;
  AnswerFlags answer;
  bool keep_partial = false;
  bool no_history = false;
};

constexpr char kHelp[] =
    "/history       the conversation so far\n"
    "/session       this session's numbers\n"
    "/again         answer the last message again\n"
    "/fork [N]      go on in a new session with the first N messages (all)\n"
    "/last N        go on in a new session with the last N messages\n"
    "/help          this\n"
    "/quit          leave (so does Ctrl-D); the session stays\n"
    "A line that ends with \\ goes on in the next one; so do all lines from\n"
    "\"\"\" to \"\"\". What is pasted is one message, sent with Enter.\n";

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
      TypedMessage message;
      const LineEditor::Result result = Read(&message);
      if (result == LineEditor::Result::kEnd) break;
      if (result == LineEditor::Result::kInterrupted) {
        Interrupts::Take();
        if (!editor_->interactive()) return kExitInterrupted;
        if (++interrupts == 2) break;
        Note("Ctrl-C again, or Ctrl-D, leaves the chat");
        continue;
      }
      interrupts = 0;
      const std::string trimmed(absl::StripAsciiWhitespace(message.text));
      if (trimmed.empty()) continue;
      const bool command =
          editor_->interactive() && message.plain && trimmed[0] == '/';
      if (command && (trimmed == "/quit" || trimmed == "/exit")) break;
      const absl::Status status = command ? Slash(trimmed) : Say(message.text);
      if (OutputError() != 0) return kExitFailed;  // Main() says it
      if (status.ok()) continue;
      // A person sees what went wrong and goes on; a script must know.
      const int code = Fail(context_, status);
      if (IsContextFull(status)) SayWhatNext();
      if (!editor_->interactive()) return code;
      // Nothing to go on with: the session is gone, or its options are no good.
      if (absl::IsNotFound(status)) return code;
      if (!command && !exists_ && absl::IsInvalidArgument(status)) return code;
      if (absl::IsUnavailable(status)) {
        if (const absl::Status back = Recover(); !back.ok()) {
          return Fail(context_, back);
        }
      } else if (exists_) {
        Refresh().IgnoreError();
      }
    }
    if (editor_->interactive()) {
      Note(exists_ ? absl::StrCat("session kept: xcache chat --session ",
                                  OneLine(session_.id))
                   : "nothing was said: no session is kept");
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

  // The server's refusal of a turn that does not fit.
  static bool IsContextFull(const absl::Status& status) {
    return absl::IsInvalidArgument(status) &&
           absl::StrContains(status.message(), "context is too long");
  }

  void SayWhatNext() const {
    if (!exists_ || session_.num_messages == 0) return;
    Note(editor_->interactive()
             ? "to go on: /last N, a new session with the last N messages; or "
               "a new chat"
             : absl::StrCat("to go on: xcache sessions fork ",
                            OneLine(session_.id),
                            " NEW --keep-last N, with its last N messages"));
  }

  // A session that does not exist is made by its first turn: a chat that says
  // nothing leaves none behind.
  absl::Status Open() {
    if (!options_.session.empty()) {
      auto found = client_->GetSession(options_.session, true);
      if (found.ok()) {
        session_ = *std::move(found);
        exists_ = true;
      } else if (!absl::IsNotFound(found.status())) {
        return found.status();
      }
    }
    if (exists_ && !options_.for_new_sessions.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "session ", session_.id, " exists, and ",
          absl::StrJoin(options_.for_new_sessions, ", "),
          options_.for_new_sessions.size() == 1 ? " is" : " are",
          " for new sessions: leave out, or name another session"));
    }
    if (context_.json()) {
      if (exists_) context_.PrintJson({{"session", ToJson(session_)}});
      return absl::OkStatus();
    }
    if (!editor_->interactive()) return absl::OkStatus();
    if (!exists_) {
      Note(absl::StrCat(
          "new session",
          options_.session.empty() ? "" : " " + OneLine(options_.session),
          "; /help for help"));
      return absl::OkStatus();
    }
    Note(absl::StrCat("session ", OneLine(session_.id), ": ", session_.turn,
                      session_.turn == 1 ? " turn, " : " turns, ",
                      HumanCount(session_.num_tokens), " tokens"));
    ShowMessages(2);
    return absl::OkStatus();
  }

  absl::Status Create() {
    client::CreateSessionOptions create = options_.create;
    create.id = options_.session;
    if (options_.ttl_hours) create.ttl = absl::Hours(*options_.ttl_hours);
    XC_ASSIGN_OR_RETURN(session_, client_->CreateSession(create));
    exists_ = true;
    if (context_.json()) {
      context_.PrintJson({{"session", ToJson(session_)}});
    } else if (editor_->interactive() && options_.session.empty()) {
      Note(absl::StrCat("session ", OneLine(session_.id)));
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

  LineEditor::Result Read(TypedMessage* message) {
    const Style& style = context_.out();
    // libedit wants its own marks around what takes no columns.
    const auto prompt = [&](const char* mark) {
      if (style.bold.empty()) return absl::StrCat(mark, " ");
      return absl::StrCat("\1", std::string(style.bold), "\1", mark, "\1",
                          std::string(style.reset), "\1 ");
    };
    return ReadMessage(*editor_, prompt(">"), prompt("."), message);
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
    if (!exists_) {
      Note("the server is back: ask again");
      return absl::OkStatus();
    }
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

  absl::Status Say(const std::string& text) {
    client::ChatRequest request;
    request.messages = {{client::Role::kUser, text}};
    return Turn(std::move(request));
  }

  // `request` says what is new in the turn; the session is the chat's.
  absl::Status Turn(client::ChatRequest request) {
    if (!exists_) XC_RETURN_IF_ERROR(Create());
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
      // Nobody reads the rest: the server need not make it.
      if (!Write(shown)) cancel.Cancel();
      if (!shown.empty()) at_line_start = shown.back() == '\n';
    };
    request.session_id = session_.id;
    request.keep_partial = options_.keep_partial;
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
        AfterCancel();
        return absl::OkStatus();
      }
    }
    if (!answer.ok()) return answer.status();
    session_.turn = answer->turn;
    if (!request.regenerate) session_.num_messages += 2;
    session_.num_tokens = answer->prompt_tokens + answer->generated_tokens;
    if (context_.json()) {
      context_.PrintJson({{"final", ToJson(*answer, /*with_text=*/true)}});
    } else if (editor_->interactive()) {
      Note(AnswerSummary(*answer));
    }
    context_.Warn(*answer);
    if (answer->finish_reason == client::FinishReason::kContext) SayWhatNext();
    return absl::OkStatus();
  }

  // Says what became of a cancelled turn. It may have been too late to cancel,
  // and one that is kept in part is committed a step later.
  void AfterCancel() {
    const uint64_t before = session_.turn;
    for (int i = 0; Refresh().ok() && session_.turn == before; ++i) {
      if (!options_.keep_partial || i == 20) break;
      absl::SleepFor(absl::Milliseconds(100));
    }
    if (session_.turn == before) {
      Note(absl::StrCat("cancelled; the session stays at turn ", before));
    } else if (options_.keep_partial) {
      Note("cancelled; the answer is kept as far as it came");
    } else {
      Note("cancelled too late: the answer was complete already and is kept");
    }
  }

  absl::Status Slash(const std::string& line) {
    const std::vector<std::string> words =
        absl::StrSplit(line, ' ', absl::SkipWhitespace());
    if (words[0] == "/help") {
      std::fputs(kHelp, stdout);
      return absl::OkStatus();
    }
    const std::vector<std::string> known = {
        "/history", "/session", "/again", "/fork", "/last", "/help", "/quit"};
    if (!absl::c_linear_search(known, words[0])) {
      return absl::InvalidArgumentError(
          absl::StrCat("no command ", words[0], DidYouMean(words[0], known),
                       "; /help lists them"));
    }
    if (!exists_) {
      return absl::FailedPreconditionError(
          "nothing has been said yet: the session begins with a message");
    }
    if (words[0] == "/history") {
      XC_RETURN_IF_ERROR(Refresh());
      ShowMessages(0);
      return absl::OkStatus();
    }
    if (words[0] == "/session") {
      XC_RETURN_IF_ERROR(Refresh());
      std::printf("%s: turn %s, %s messages, %s tokens, %s of pages, %s\n",
                  OneLine(session_.id).c_str(),
                  HumanCount(session_.turn).c_str(),
                  HumanCount(session_.num_messages).c_str(),
                  HumanCount(session_.num_tokens).c_str(),
                  HumanBytes(static_cast<double>(session_.page_bytes)).c_str(),
                  OneLine(session_.codec).c_str());
      return absl::OkStatus();
    }
    if (words[0] == "/again") {
      client::ChatRequest request;
      request.regenerate = true;
      return Turn(std::move(request));
    }
    // /fork, /last
    const bool last = words[0] == "/last";
    uint64_t keep = 0;
    if (words.size() > 2 ||
        (words.size() == 2 && !absl::SimpleAtoi(words[1], &keep)) ||
        (last && keep == 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat(words[0], " takes a number of messages"));
    }
    XC_ASSIGN_OR_RETURN(const client::SessionInfo fork,
                        client_->ForkSession(session_.id, "", last ? 0 : keep,
                                             last ? keep : 0));
    session_ = fork;
    Note(absl::StrCat("now in ", OneLine(session_.id), ", ",
                      session_.num_messages, " messages"));
    return absl::OkStatus();
  }

  const Context& context_;
  const Options options_;
  std::unique_ptr<client::Client> client_;
  std::unique_ptr<LineEditor> editor_;
  client::SessionInfo session_;
  bool exists_ = false;  // `session_`, on the server
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
  std::vector<CLI::Option*> for_new = {
      chat->add_option("--system", options->create.system_prompt,
                       "System prompt of a new session"),
      chat->add_option("--title", options->create.title,
                       "Title of a new session"),
      chat->add_option("--codec", options->create.codec,
                       "Codec of a new session: lossless, balanced, compact, "
                       "or a spec like xquant-gqa:bits=3"),
      chat->add_option("--remat", options->create.remat,
                       "Remat policy of a new session: resume or step"),
      chat->add_option("--ttl-hours", options->ttl_hours,
                       "Hours after its last turn that a new session lives; "
                       "0: for ever")
          ->check(CLI::NonNegativeNumber)};
  chat->add_flag("--keep-partial", options->keep_partial,
                 "Ctrl-C keeps the answer as far as it came");
  chat->add_flag("--no-history", options->no_history,
                 "Do not keep typed lines for the next time");
  options->answer.AddTo(chat);
  chat->callback([options, action, for_new] {
    for (const CLI::Option* option : for_new) {
      if (option->count() > 0) {
        options->for_new_sessions.push_back(option->get_name());
      }
    }
    *action = [options](const Context& context) {
      return Chat(context, *options).Run();
    };
  });
}

}  // namespace xcache::command
