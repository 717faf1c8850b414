// `xcache sessions ...`.
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/command/commands.h"
#include "client/command/exit_code.h"
#include "client/command/text.h"

namespace xcache::command {
namespace {

using client::Client;
using client::SessionInfo;

// Runs `f` with a client and prints nothing but errors itself.
template <typename F>
int WithClient(const Context& context, const F& f) {
  auto client = context.Connect();
  if (!client.ok()) return Fail(context, client.status());
  const absl::Status status = f(**client);
  return status.ok() ? kExitOk : Fail(context, status);
}

std::string State(const SessionInfo& session) {
  std::string out = session.in_memory ? "memory" : "stored";
  if (session.pinned) absl::StrAppend(&out, ", pinned");
  if (session.durability == client::Durability::kMemory) {
    absl::StrAppend(&out, ", NOT on disk");
  }
  if (session.needs_migration) absl::StrAppend(&out, ", another model's");
  return out;
}

int List(const Context& context, uint32_t limit) {
  return WithClient(context, [&](Client& client) {
    std::vector<SessionInfo> sessions;
    std::string token;
    do {
      auto page = client.ListSessions(0, token);
      if (!page.ok()) return page.status();
      for (SessionInfo& session : page->sessions) {
        if (limit > 0 && sessions.size() == limit) break;
        sessions.push_back(std::move(session));
      }
      token = page->next_page_token;
    } while (!token.empty() && (limit == 0 || sessions.size() < limit));

    if (context.json()) {
      nlohmann::json list = nlohmann::json::array();
      for (const SessionInfo& session : sessions) {
        list.push_back(ToJson(session));
      }
      context.PrintJson({{"sessions", list}});
      return absl::OkStatus();
    }
    if (sessions.empty()) {
      std::fprintf(stderr, "no sessions\n");
      return absl::OkStatus();
    }
    const absl::Time now = absl::Now();
    std::vector<std::vector<std::string>> rows = {
        {"ID", "TURNS", "TOKENS", "PAGES", "STATE", "USED", "TITLE"}};
    for (const SessionInfo& s : sessions) {
      rows.push_back({OneLine(s.id), absl::StrCat(s.turn),
                      HumanCount(s.num_tokens),
                      HumanBytes(static_cast<double>(s.page_bytes)), State(s),
                      HumanAgo(s.update_time, now), OneLine(s.title)});
    }
    std::fputs(Table(rows, {1, 2, 3}).c_str(), stdout);
    return absl::OkStatus();
  });
}

void PrintSession(const Context& context, const SessionInfo& s) {
  if (context.json()) {
    context.PrintJson(ToJson(s));
    return;
  }
  const auto time = [](absl::Time t) {
    return absl::FormatTime("%Y-%m-%d %H:%M:%S", t, absl::LocalTimeZone());
  };
  const std::string table = Table({
      {"id", OneLine(s.id)},
      {"title", OneLine(s.title)},
      {"turns", absl::StrCat(s.turn)},
      {"messages", absl::StrCat(s.num_messages)},
      {"tokens", HumanCount(s.num_tokens)},
      {"pages", HumanBytes(static_cast<double>(s.page_bytes))},
      {"codec", OneLine(s.codec)},
      {"remat", OneLine(s.remat)},
      {"state", State(s)},
      {"created", time(s.create_time)},
      {"used", time(s.update_time)},
      {"expires", s.expire_time ? time(*s.expire_time) : "never"},
  });
  std::fputs(table.c_str(), stdout);
  const Style& style = context.out();
  for (const client::Message& message : s.messages) {
    std::printf("\n%s%s:%s\n%s\n", std::string(style.bold).c_str(),
                client::RoleName(message.role),
                std::string(style.reset).c_str(),
                Printable(message.content).c_str());
  }
}

int PrintResult(const Context& context,
                const std::function<absl::StatusOr<SessionInfo>(Client&)>& f) {
  return WithClient(context, [&](Client& client) {
    const auto session = f(client);
    if (session.ok()) PrintSession(context, *session);
    return session.status();
  });
}

// Each of them is tried, and each is reported.
int Remove(const Context& context, const std::vector<std::string>& ids) {
  auto client = context.Connect();
  if (!client.ok()) return Fail(context, client.status());
  nlohmann::json removed = nlohmann::json::array();
  nlohmann::json failed = nlohmann::json::array();
  int code = kExitOk;
  for (const std::string& id : ids) {
    const absl::Status status = (*client)->DeleteSession(id);
    if (status.ok()) {
      removed.push_back(id);
      if (!context.json()) {
        Write(absl::StrCat("removed ", OneLine(id), "\n"));
      }
      continue;
    }
    nlohmann::json error = ToJson(status)["error"];
    error["id"] = id;
    failed.push_back(std::move(error));
    std::fprintf(stderr, "%s%s%s\n", std::string(context.err().red).c_str(),
                 ErrorLine(status).c_str(),
                 std::string(context.err().reset).c_str());
    if (code == kExitOk) code = ExitCodeOf(status);
  }
  if (context.json()) {
    context.PrintJson({{"removed", removed}, {"failed", failed}});
  }
  return code;
}

int SetPinned(const Context& context, const std::string& id, bool pinned) {
  return WithClient(context, [&](Client& client) {
    const auto session =
        pinned ? client.PinSession(id) : client.UnpinSession(id);
    if (!session.ok()) return session.status();
    if (context.json()) {
      context.PrintJson(ToJson(*session));
    } else {
      std::printf(pinned ? "%s is pinned: it does not expire\n"
                         : "%s may expire again\n",
                  OneLine(session->id).c_str());
    }
    return absl::OkStatus();
  });
}

int Flush(const Context& context, const std::string& id) {
  return WithClient(context, [&](Client& client) {
    const auto result = client.FlushSession(id);
    if (!result.ok()) return result.status();
    if (context.json()) {
      context.PrintJson({{"pages_written", result->pages_written},
                         {"bytes_written", result->bytes_written}});
    } else {
      std::printf(
          "%s pages written, %s\n", HumanCount(result->pages_written).c_str(),
          HumanBytes(static_cast<double>(result->bytes_written)).c_str());
    }
    return absl::OkStatus();
  });
}

struct Options {
  std::vector<std::string> ids;
  std::string id;
  std::string new_id;
  uint64_t num_messages = 0;
  uint64_t keep_last = 0;
  uint32_t limit = 0;
  bool no_messages = false;
  std::optional<std::string> title;
  std::optional<double> ttl_seconds;
};

}  // namespace

void AddSessions(CLI::App* app, Action* action) {
  auto options = std::make_shared<Options>();
  CLI::App* sessions =
      app->add_subcommand("sessions", "Look after stored conversations");
  sessions->require_subcommand(1);
  sessions->fallthrough();
  const auto add = [&](const char* name, const char* help,
                       std::function<int(const Context&, const Options&)> run) {
    CLI::App* sub = sessions->add_subcommand(name, help);
    sub->callback([options, action, run] {
      *action = [options, run](const Context& context) {
        return run(context, *options);
      };
    });
    return sub;
  };
  const auto with_id = [&](CLI::App* sub) {
    sub->add_option("id", options->id, "Session")->required();
    return sub;
  };
  add("list", "The sessions, last used first",
      [](const Context& context, const Options& o) {
        return List(context, o.limit);
      })
      ->add_option("--limit", options->limit, "At most so many; 0: all");
  with_id(add("show", "One session with its messages",
              [](const Context& context, const Options& o) {
                return PrintResult(context, [&](Client& client) {
                  return client.GetSession(o.id, !o.no_messages);
                });
              }))
      ->add_flag("--no-messages", options->no_messages, "Without its messages");
  CLI::App* fork =
      with_id(add("fork", "A new session with messages of another",
                  [](const Context& context, const Options& o) {
                    return PrintResult(context, [&](Client& client) {
                      return client.ForkSession(o.id, o.new_id, o.num_messages,
                                                o.keep_last);
                    });
                  }));
  fork->add_option("new-id", options->new_id,
                   "Its id; made where none is given");
  fork->add_option("-m,--messages", options->num_messages,
                   "How many messages it keeps, from the first; 0: all");
  fork->add_option("--keep-last", options->keep_last,
                   "Of those the system prompt and the last so many, from a "
                   "user's on; 0: all");
  CLI::App* set = with_id(
      add("set", "Change a session's title or time to live",
          [](const Context& context, const Options& o) {
            return PrintResult(context, [&](Client& client) {
              if (!o.title && !o.ttl_seconds) {
                return absl::StatusOr<SessionInfo>(
                    absl::InvalidArgumentError("give --title, --ttl or both"));
              }
              client::SessionUpdate update{.title = o.title};
              if (o.ttl_seconds) {
                update.ttl = absl::Seconds(*o.ttl_seconds);
              }
              return client.UpdateSession(o.id, update);
            });
          }));
  set->add_option("--title", options->title, "What it is called");
  set->add_option("--ttl", options->ttl_seconds,
                  "Seconds after its last turn; 0: it never expires")
      ->check(CLI::NonNegativeNumber);
  with_id(add("pin", "Keep a session and its pages",
              [](const Context& context, const Options& o) {
                return SetPinned(context, o.id, true);
              }));
  with_id(add("unpin", "Let a session expire again",
              [](const Context& context, const Options& o) {
                return SetPinned(context, o.id, false);
              }));
  with_id(add("flush", "Write a session to disk and free its memory",
              [](const Context& context, const Options& o) {
                return Flush(context, o.id);
              }));
  AddDocuments(sessions, action);
  add("rm", "Delete sessions",
      [](const Context& context, const Options& o) {
        return Remove(context, o.ids);
      })
      ->add_option("ids", options->ids, "Sessions")
      ->required();
}

}  // namespace xcache::command
