// `xcache store ...`: what an operator does with a server's store, by way of
// its operator socket; a restore needs no server.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/command/backup_folder.h"
#include "client/command/commands.h"
#include "client/command/exit_code.h"
#include "client/command/text.h"
#include "client/operator_client.h"
#include "engine/base/status_macros.h"

namespace xcache::command {
namespace {

using client::OperatorClient;
using nlohmann::json;

struct Options {
  std::string socket, store_dir;
  std::string dir;  // of a backup
  double mb_per_s = 0;
  bool sessions_only = false;
  bool replace = false;
  bool check_only = false;

  uint64_t bytes_per_second() const {
    return static_cast<uint64_t>(mb_per_s * 1e6);
  }
};

std::string HumanSize(uint64_t bytes) {
  return HumanBytes(static_cast<double>(bytes));
}
std::string HumanSize(int64_t bytes) {
  return HumanBytes(static_cast<double>(bytes));
}
std::string Count(int64_t n) { return HumanCount(static_cast<uint64_t>(n)); }

absl::StatusOr<std::unique_ptr<OperatorClient>> Connect(const Options& o) {
  if (!o.socket.empty()) return OperatorClient::Connect(o.socket);
  if (!o.store_dir.empty()) {
    return OperatorClient::Connect(absl::StrCat(o.store_dir, "/operator.sock"));
  }
  return absl::InvalidArgumentError(
      "which store? Give the server's --store-dir (or XCACHE_STORE_DIR), or "
      "its "
      "--operator-socket as --socket");
}

absl::Status Stats(const Context& context, const Options& o) {
  XC_ASSIGN_OR_RETURN(const auto operator_client, Connect(o));
  XC_ASSIGN_OR_RETURN(const client::StoreFigures s,
                      operator_client->GetStats());
  if (context.json()) {
    json tiers = json::array();
    for (const auto& tier : s.tiers) {
      tiers.push_back({{"tier", tier.name},
                       {"pages", tier.pages},
                       {"bytes", tier.bytes},
                       {"queued_pages", tier.queued_pages},
                       {"hits", tier.hits},
                       {"misses", tier.misses},
                       {"puts", tier.puts},
                       {"evictions", tier.evictions},
                       {"damaged", tier.damaged}});
    }
    json out = {{"store_dir", s.store_dir},
                {"sessions",
                 {{"count", s.sessions},
                  {"in_memory_only", s.sessions_in_memory_only},
                  {"damaged", s.damaged_sessions},
                  {"commits", s.commits},
                  {"commit_failures", s.commit_failures},
                  {"expired", s.expired}}},
                {"tiers", tiers},
                {"disk", nullptr}};
    if (s.newest_update) {
      out["sessions"]["newest_update_ms"] =
          absl::ToUnixMillis(*s.newest_update);
    }
    if (s.disk) {
      out["disk"] = {{"cap_bytes", s.disk->cap_bytes},
                     {"used_bytes", s.disk->used_bytes},
                     {"free_bytes", s.disk->free_bytes},
                     {"table_bytes", s.disk->table_bytes},
                     {"log_bytes", s.disk->log_bytes},
                     {"blob_bytes", s.disk->blob_bytes},
                     {"blob_garbage_bytes", s.disk->blob_garbage_bytes},
                     {"pages_set_aside", s.disk->pages_set_aside},
                     {"stopped_writing", s.disk->stopped_writing}};
    }
    context.PrintJson(out);
    return absl::OkStatus();
  }
  std::string sessions = Count(s.sessions);
  if (s.newest_update) {
    absl::StrAppend(&sessions, ", the last used ",
                    HumanAgo(*s.newest_update, absl::Now()));
  }
  if (s.sessions_in_memory_only > 0) {
    absl::StrAppend(&sessions, ", ", s.sessions_in_memory_only, " NOT on disk");
  }
  if (s.damaged_sessions > 0) {
    absl::StrAppend(&sessions, ", ", s.damaged_sessions, " damaged");
  }
  std::vector<std::vector<std::string>> rows = {
      {"store", s.disk ? OneLine(s.store_dir) : "none: memory only"},
      {"sessions", sessions}};
  if (s.disk) {
    const auto& d = *s.disk;
    rows.push_back({"disk", absl::StrCat(HumanSize(d.used_bytes), " of ",
                                         HumanSize(d.cap_bytes), ", ",
                                         HumanSize(d.free_bytes), " free")});
    rows.push_back(
        {"files", absl::StrCat("tables ", HumanSize(d.table_bytes), ", logs ",
                               HumanSize(d.log_bytes), ", pages ",
                               HumanSize(d.blob_bytes), ", of that dead ",
                               HumanSize(d.blob_garbage_bytes))});
    if (!d.stopped_writing.empty()) {
      rows.push_back({"NOT WRITING", OneLine(d.stopped_writing)});
    }
    if (d.pages_set_aside > 0) {
      rows.push_back(
          {"set aside",
           absl::StrCat(d.pages_set_aside, " damaged databases of pages")});
    }
  }
  std::fputs(Table(rows).c_str(), stdout);
  std::vector<std::vector<std::string>> tiers = {
      {"TIER", "PAGES", "BYTES", "HITS", "MISSES", "PUTS", "EVICTED", "DAMAGED",
       "QUEUED"}};
  for (const auto& tier : s.tiers) {
    tiers.push_back(
        {OneLine(tier.name), Count(tier.pages), HumanSize(tier.bytes),
         Count(tier.hits), Count(tier.misses), Count(tier.puts),
         Count(tier.evictions), Count(tier.damaged), Count(tier.queued_pages)});
  }
  std::printf("\n%s", Table(tiers, {1, 2, 3, 4, 5, 6, 7, 8}).c_str());
  return absl::OkStatus();
}

absl::Status VerifyStore(const Context& context, const Options& o) {
  XC_ASSIGN_OR_RETURN(const auto operator_client, Connect(o));
  client::VerifyResult result;
  {
    Spinner spinner;
    XC_ASSIGN_OR_RETURN(
        result, operator_client->Verify(
                    o.bytes_per_second(), [&](const client::VerifyResult& r) {
                      spinner.Show(absl::StrCat(
                          Count(r.sessions), " sessions, ", Count(r.pages),
                          " pages, ", HumanSize(r.bytes)));
                      return !Interrupts::Pending();
                    }));
  }
  if (context.json()) {
    json damaged = json::array();
    for (const auto& session : result.damaged) {
      damaged.push_back({{"tenant", session.tenant},
                         {"id", session.id},
                         {"detail", session.detail}});
    }
    context.PrintJson({{"sessions", result.sessions},
                       {"damaged_sessions", result.damaged_sessions},
                       {"damaged", damaged},
                       {"pages", result.pages},
                       {"damaged_pages", result.damaged_pages},
                       {"damaged_files", result.damaged_files},
                       {"unreadable", result.unreadable},
                       {"bytes", result.bytes}});
  } else {
    std::printf("%s sessions and %s pages checked, %s read\n",
                Count(result.sessions).c_str(), Count(result.pages).c_str(),
                HumanSize(result.bytes).c_str());
    for (const auto& session : result.damaged) {
      std::printf("damaged: session %s of %s: %s\n",
                  OneLine(session.id).c_str(), OneLine(session.tenant).c_str(),
                  OneLine(session.detail).c_str());
    }
    for (const std::string& file : result.damaged_files) {
      std::printf("damaged: table %s\n", OneLine(file).c_str());
    }
    if (result.damaged_pages > 0) {
      std::printf(
          "%s damaged pages were dropped: they will be computed again\n",
          Count(result.damaged_pages).c_str());
    }
    if (result.unreadable > 0) {
      std::printf("%s records could not be read now\n",
                  Count(result.unreadable).c_str());
    }
  }
  if (result.damaged_sessions > 0 || !result.damaged_files.empty()) {
    return absl::DataLossError(
        absl::StrCat("the store is damaged: ", result.damaged_sessions,
                     " sessions, ", result.damaged_files.size(), " tables"));
  }
  return absl::OkStatus();
}

// A writer that hears Ctrl-C.
class Taker final : public client::BackupTaker {
 public:
  explicit Taker(BackupWriter& writer) : writer_(writer) {}

  absl::Status Begin(const std::string& path, uint64_t num_bytes) override {
    return writer_.Begin(path, num_bytes);
  }
  absl::Status Append(std::string_view bytes) override {
    if (Interrupts::Pending()) return absl::CancelledError("interrupted");
    XC_RETURN_IF_ERROR(writer_.Append(bytes));
    spinner_.Show(absl::StrCat("backing up, ", HumanSize(writer_.num_bytes())));
    return absl::OkStatus();
  }

 private:
  BackupWriter& writer_;
  Spinner spinner_;
};

json InfoJson(const BackupInfo& info) {
  return json::parse(EncodeBackupInfo(info));
}

absl::Status Backup(const Context& context, const Options& o) {
  XC_ASSIGN_OR_RETURN(const auto operator_client, Connect(o));
  XC_ASSIGN_OR_RETURN(const std::unique_ptr<BackupWriter> writer,
                      BackupWriter::Create(o.dir));
  client::BackupDone done;
  {
    Taker taker(*writer);
    XC_ASSIGN_OR_RETURN(
        done,
        operator_client->Backup(o.sessions_only, o.bytes_per_second(), taker));
  }
  XC_RETURN_IF_ERROR(writer->Finish(done));
  if (context.json()) {
    context.PrintJson({{"dir", o.dir},
                       {"sessions", done.sessions},
                       {"missing_sessions", done.missing_sessions},
                       {"pages", done.pages},
                       {"files", writer->num_files()},
                       {"bytes", writer->num_bytes()},
                       {"as_of_ms", absl::ToUnixMillis(done.as_of)}});
  } else {
    std::printf("%s: %s sessions, %s pages, %s in %s files\n",
                OneLine(o.dir).c_str(), HumanCount(done.sessions).c_str(),
                HumanCount(done.pages).c_str(),
                HumanSize(writer->num_bytes()).c_str(),
                HumanCount(writer->num_files()).c_str());
  }
  if (done.missing_sessions > 0) {
    std::fprintf(stderr,
                 "%swarning: %s sessions are not in it: they are in the "
                 "server's memory alone, as its disk takes nothing%s\n",
                 std::string(context.err().red).c_str(),
                 HumanCount(done.missing_sessions).c_str(),
                 std::string(context.err().reset).c_str());
  }
  return absl::OkStatus();
}

absl::Status Restore(const Context& context, const Options& o) {
  if (o.check_only) {
    XC_ASSIGN_OR_RETURN(const CheckedBackup backup, CheckBackup(o.dir));
    if (context.json()) {
      context.PrintJson({{"checked", InfoJson(backup.info)}});
    } else {
      std::printf("%s is whole: %s sessions, %s pages, as of %s\n",
                  OneLine(o.dir).c_str(),
                  HumanCount(backup.info.sessions).c_str(),
                  HumanCount(backup.info.pages).c_str(),
                  OneLine(backup.info.as_of).c_str());
    }
    return absl::OkStatus();
  }
  if (o.store_dir.empty()) {
    return absl::InvalidArgumentError(
        "where to? Give the folder of the store as --store-dir (or "
        "XCACHE_STORE_DIR)");
  }
  XC_ASSIGN_OR_RETURN(const Restored restored,
                      RestoreBackup(o.dir, o.store_dir, o.replace));
  if (context.json()) {
    context.PrintJson(
        {{"store_dir", o.store_dir},
         {"restored", InfoJson(restored.info)},
         {"kept_as",
          restored.kept_as.empty() ? json(nullptr) : json(restored.kept_as)}});
    return absl::OkStatus();
  }
  std::printf("%s: %s sessions and %s pages, as of %s\n",
              OneLine(o.store_dir).c_str(),
              HumanCount(restored.info.sessions).c_str(),
              HumanCount(restored.info.pages).c_str(),
              OneLine(restored.info.as_of).c_str());
  if (!restored.kept_as.empty()) {
    std::printf("the store that was there is %s now\n",
                OneLine(restored.kept_as).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddStore(CLI::App* app, Action* action) {
  auto options = std::make_shared<Options>();
  CLI::App* store =
      app->add_subcommand("store", "Look after a server's store, beside it");
  store->require_subcommand(1);
  store->fallthrough();
  store
      ->add_option("--store-dir", options->store_dir,
                   "The server's --store-dir: its operator socket is in it")
      ->envname("XCACHE_STORE_DIR");
  store
      ->add_option(
          "--socket", options->socket,
          "The server's --operator-socket, where it has one of its own")
      ->envname("XCACHE_OPERATOR_SOCKET");
  const auto add = [&](const char* name, const char* help,
                       absl::Status (*run)(const Context&, const Options&)) {
    CLI::App* sub = store->add_subcommand(name, help);
    sub->callback([options, action, run] {
      *action = [options, run](const Context& context) {
        const absl::Status status = run(context, *options);
        return status.ok() ? int{kExitOk} : Fail(context, status);
      };
    });
    return sub;
  };
  const auto with_rate = [&](CLI::App* sub) {
    sub->add_option("--mb-per-s", options->mb_per_s,
                    "Read at most so many MB a second; 0: as fast as it goes")
        ->check(CLI::Range(0.0, 1e6));
    return sub;
  };
  add("stats", "What is in it, by tier", &Stats);
  with_rate(add("verify", "Check every record's checksum while the server runs",
                &VerifyStore));
  CLI::App* backup =
      with_rate(add("backup", "A copy of it while the server runs", &Backup));
  backup->add_option("dir", options->dir, "The folder to make")->required();
  backup->add_flag("--sessions-only", options->sessions_only,
                   "Without pages, which the server can compute again");
  CLI::App* restore = add(
      "restore", "Make a store of a backup; the server must not run", &Restore);
  restore->add_option("dir", options->dir, "The backup")->required();
  restore->add_flag("--replace", options->replace,
                    "Where there is a store: put it aside under another name");
  restore->add_flag("--check-only", options->check_only,
                    "Only say whether the backup is whole");
}

}  // namespace xcache::command
