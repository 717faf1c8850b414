#include "cachestore/upkeep_impl.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cachestore/rocksdb/open_check.h"
#include "cachestore/rocksdb/page_records.h"
#include "cachestore/rocksdb/pinned_files.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;

// Records between two words of how far it is.
constexpr int kBatch = 64;
// Who waits for the rate looks this often whether it is to stop.
constexpr milliseconds kMaxWait(200);

}  // namespace

Upkeep::Upkeep(const Parts& parts, int64_t bytes_per_s)
    : parts_(parts), rate_(bytes_per_s, ByteRate::Clock::now()) {}

// The files that were pinned take room that a compaction meant to give back.
absl::Status Upkeep::MayGoOn(Database& db) const {
  const DiskSpace& space = db.space();
  if (db.degraded()) {
    return absl::UnavailableError("the store has stopped writing");
  }
  // Pages are refused by now. Turns must not be.
  const int64_t limit =
      (space.plan().pages_limit + space.plan().records_limit) / 2;
  if (!space.HasFreeSpace() || space.used_bytes() > limit) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the store needs room, and a backup keeps it from deleting files: ",
        space.used_bytes(), " of ", space.plan().cap, " bytes are in use, ",
        space.free_bytes(), " free on disk"));
  }
  return absl::OkStatus();
}

absl::Status Upkeep::Spend(int64_t num_bytes,
                           const std::function<absl::Status()>& go_on) {
  rate_.Fill(ByteRate::Clock::now());
  while (!rate_.MayTake()) {
    XC_RETURN_IF_ERROR(go_on());
    std::this_thread::sleep_for(std::min(rate_.Wait(), kMaxWait));
    rate_.Fill(ByteRate::Clock::now());
  }
  rate_.Take(static_cast<size_t>(num_bytes));
  return go_on();
}

absl::Status Upkeep::SendFiles(Database& db, const std::string& folder,
                               BackupSink& sink) {
  XC_ASSIGN_OR_RETURN(const std::unique_ptr<PinnedFiles> pinned, db.PinFiles());
  const auto go_on = [&]() -> absl::Status {
    XC_RETURN_IF_ERROR(MayGoOn(db));
    return sink.GoOn();
  };
  const auto send = [&](std::string_view bytes) -> absl::Status {
    XC_RETURN_IF_ERROR(Spend(static_cast<int64_t>(bytes.size()), go_on));
    return sink.Append(bytes);
  };
  for (const PinnedFile& file : pinned->files()) {
    XC_RETURN_IF_ERROR(
        sink.Begin(absl::StrCat(folder, "/", file.name), file.num_bytes));
    XC_RETURN_IF_ERROR(pinned->Read(file, send));
  }
  return absl::OkStatus();
}

absl::StatusOr<BackupReport> Upkeep::Backup(bool sessions_only,
                                            BackupSink& sink) {
  BackupReport report;
  report.store_format = kSessionsFormat.version;
  if (!sessions_only) {
    report.pages = parts_.pages->stats().num_pages;
    XC_RETURN_IF_ERROR(
        SendFiles(*parts_.pages_db,
                  std::string(DatabaseName(DatabaseKind::kPages)), sink));
  }
  // Last, so that turns that came meanwhile are in it too.
  parts_.sessions->WriteUndurable();
  report.as_of_ms = static_cast<int64_t>(UnixMicros() / 1000);
  const SessionStoreStats stats = parts_.sessions->stats();
  report.sessions = stats.num_sessions - stats.num_undurable;
  report.missing_sessions = stats.num_undurable;
  XC_RETURN_IF_ERROR(
      SendFiles(*parts_.sessions_db,
                std::string(DatabaseName(DatabaseKind::kSessions)), sink));
  return report;
}

absl::StatusOr<VerifyReport> Upkeep::Verify(const VerifyOptions& options) {
  XC_RETURN_IF_ERROR(VerifyTables(
      *parts_.sessions_db, DatabaseName(DatabaseKind::kSessions), options));
  XC_RETURN_IF_ERROR(VerifyTables(*parts_.pages_db,
                                  DatabaseName(DatabaseKind::kPages), options));
  XC_RETURN_IF_ERROR(VerifySessions(options));
  XC_RETURN_IF_ERROR(VerifyPages(options));
  return found_;
}

absl::Status Upkeep::Checked(const absl::StatusOr<int64_t>& bytes,
                             const VerifyOptions& options) {
  if (absl::IsUnavailable(bytes.status()) ||
      absl::IsResourceExhausted(bytes.status())) {
    ++found_.unreadable;
  }
  if (bytes.ok()) found_.bytes += *bytes;
  return Spend(bytes.value_or(0), [&] {
    return options.progress ? options.progress(found_) : absl::OkStatus();
  });
}

absl::Status Upkeep::VerifyTables(Database& db, std::string_view folder,
                                  const VerifyOptions& options) {
  XC_ASSIGN_OR_RETURN(const std::unique_ptr<PinnedFiles> pinned, db.PinFiles());
  for (const PinnedFile& file : pinned->files()) {
    if (!file.is_table()) continue;
    absl::Status told;  // not what is wrong with the file: who looks ends it
    const absl::Status checked =
        pinned->CheckTable(file, [&](std::string_view piece) {
          return told = Checked(static_cast<int64_t>(piece.size()), options);
        });
    XC_RETURN_IF_ERROR(told);
    if (checked.ok()) continue;
    ++found_.damaged_files;
    if (options.on_damaged_file) {
      options.on_damaged_file(
          absl::StrCat(std::string(folder), "/", file.name));
    }
  }
  return absl::OkStatus();
}

absl::Status Upkeep::VerifySessions(const VerifyOptions& options) {
  for (const std::string& tenant : parts_.sessions->tenants()) {
    std::string token;
    do {
      // One that is used meanwhile moves to the list's front: it was read, or
      // has just been written.
      XC_ASSIGN_OR_RETURN(const SessionPage page,
                          parts_.sessions->List(tenant, token, kBatch));
      for (const SessionSummary& summary : page.sessions) {
        const auto bytes = parts_.sessions->Check(tenant, summary.id);
        if (absl::IsNotFound(bytes.status())) continue;  // deleted meanwhile
        ++found_.sessions;
        if (absl::IsDataLoss(bytes.status())) {
          ++found_.damaged_sessions;
          if (options.on_damaged_session) {
            options.on_damaged_session(tenant, summary.id, bytes.status());
          }
        }
        XC_RETURN_IF_ERROR(Checked(bytes, options));
      }
      token = page.next_page_token;
    } while (!token.empty());
  }
  return absl::OkStatus();
}

absl::Status Upkeep::VerifyPages(const VerifyOptions& options) {
  std::string after;
  for (;;) {
    std::vector<PageKey> keys;
    XC_ASSIGN_OR_RETURN(
        const int count,
        parts_.pages_db->ScanSome(Family::kPageIndex, after, kBatch,
                                  [&](std::string_view name, std::string_view) {
                                    after = std::string(name);
                                    if (const auto key = ParseKeyBytes(name))
                                      keys.push_back(*key);
                                  }));
    for (const PageKey& key : keys) {
      const auto bytes = parts_.pages->Check(key);
      if (absl::IsNotFound(bytes.status())) continue;  // evicted meanwhile
      ++found_.pages;
      if (absl::IsDataLoss(bytes.status())) ++found_.damaged_pages;
      XC_RETURN_IF_ERROR(Checked(bytes, options));
    }
    if (count < kBatch) return absl::OkStatus();
  }
}

}  // namespace xcache
