// `xcache sessions export`, `import` and `migrate`: conversations that leave a
// server, come to one, or change its model.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "client/command/commands.h"
#include "client/command/exit_code.h"
#include "client/command/text.h"

namespace xcache::command {
namespace {

using client::Client;

struct Options {
  std::string id;
  std::string file = "-";
  std::string codec;
  uint64_t keep_last = 0;
  bool text_only = false;
};

absl::StatusOr<std::string> ReadAll(const std::string& file) {
  std::ifstream from_file;
  if (file != "-") from_file.open(file, std::ios::binary);
  std::istream& in = file == "-" ? std::cin : from_file;
  if (!in) return absl::NotFoundError(absl::StrCat("cannot read ", file));
  return std::string(std::istreambuf_iterator<char>(in), {});
}

absl::Status Export(const Context&, Client& client, const Options& o) {
  const auto document = client.ExportSession(o.id, o.text_only);
  if (!document.ok()) return document.status();
  const bool written = std::fwrite(document->data(), 1, document->size(),
                                   stdout) == document->size() &&
                       std::fputc('\n', stdout) != EOF &&
                       std::fflush(stdout) == 0;
  // Half a document is worse than none: whoever keeps it must know.
  return written ? absl::OkStatus()
                 : absl::DataLossError("the document was not written whole");
}

void SayWhatWasMade(const Context& context, const client::SessionInfo& session,
                    const std::string& what, bool retokenized) {
  std::printf("%s %s: %s messages, %s tokens%s\n", what.c_str(),
              OneLine(session.id).c_str(),
              HumanCount(session.num_messages).c_str(),
              HumanCount(session.num_tokens).c_str(),
              retokenized ? ", tokenized anew from its text" : "");
  if (session.durability == client::Durability::kMemory) {
    std::fprintf(stderr, "%swarning: it is NOT on disk%s\n",
                 std::string(context.err().red).c_str(),
                 std::string(context.err().reset).c_str());
  }
}

absl::Status Import(const Context& context, Client& client, const Options& o) {
  const auto document = ReadAll(o.file);
  if (!document.ok()) return document.status();
  const auto session = client.ImportSession(*document, o.id, o.codec);
  if (!session.ok()) return session.status();
  if (context.json()) {
    context.PrintJson(ToJson(*session));
  } else {
    SayWhatWasMade(context, *session, "imported", session->retokenized);
  }
  return absl::OkStatus();
}

absl::Status Migrate(const Context& context, Client& client, const Options& o) {
  const auto result = client.MigrateSession(o.id, o.codec, o.keep_last);
  if (!result.ok()) return result.status();
  if (context.json()) {
    context.PrintJson({{"session", ToJson(result->session)},
                       {"retokenized", result->retokenized},
                       {"tokens_before", result->tokens_before},
                       {"tokens_after", result->tokens_after},
                       {"messages_dropped", result->messages_dropped}});
  } else {
    SayWhatWasMade(context, result->session, "migrated", result->retokenized);
  }
  return absl::OkStatus();
}

}  // namespace

void AddDocuments(CLI::App* sessions, Action* action) {
  auto options = std::make_shared<Options>();
  const auto add =
      [&](const char* name, const char* help,
          absl::Status (*run)(const Context&, Client&, const Options&)) {
        CLI::App* sub = sessions->add_subcommand(name, help);
        sub->callback([options, action, run] {
          *action = [options, run](const Context& context) {
            auto client = context.Connect();
            if (!client.ok()) return Fail(context, client.status());
            const absl::Status status = run(context, **client, *options);
            return status.ok() ? int{kExitOk} : Fail(context, status);
          };
        });
        return sub;
      };
  CLI::App* exported =
      add("export", "A session as a JSON document on stdout", &Export);
  exported->add_option("id", options->id, "Session")->required();
  exported->add_flag("--text-only", options->text_only,
                     "Its messages without their tokens");
  CLI::App* imported =
      add("import", "A new session of a document on stdin", &Import);
  imported->add_option("file", options->file,
                       "The document; without it, or with -, stdin");
  imported->add_option("--id", options->id,
                       "The session's id; the document's where none is given");
  imported->add_option("--codec", options->codec,
                       "Its codec: lossless, balanced, compact, or a spec");
  CLI::App* migrated =
      add("migrate", "Let a session of another model go on with the server's",
          &Migrate);
  migrated->add_option("id", options->id, "Session")->required();
  migrated->add_option("--codec", options->codec,
                       "Its codec: lossless, balanced, compact, or a spec");
  migrated->add_option("--keep-last", options->keep_last,
                       "Keep the system prompt and the last so many messages; "
                       "0: all");
}

}  // namespace xcache::command
