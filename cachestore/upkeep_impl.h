// One backup of a store on disk, or one look at all that is in it.
#ifndef XCACHE_CACHESTORE_UPKEEP_IMPL_H_
#define XCACHE_CACHESTORE_UPKEEP_IMPL_H_

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/disk_page_store.h"
#include "cachestore/sessions/session_store_impl.h"
#include "cachestore/shared/byte_rate.h"
#include "cachestore/upkeep.h"

namespace xcache {

// Not thread-safe; used once.
class Upkeep {
 public:
  // All borrowed.
  struct Parts {
    Database* sessions_db;
    Database* pages_db;
    SessionStoreImpl* sessions;
    DiskPageStore* pages;
  };
  // `bytes_per_s`: of what is read; 0: not limited.
  Upkeep(const Parts& parts, int64_t bytes_per_s);

  // See CacheStore.
  absl::StatusOr<BackupReport> Backup(bool sessions_only, BackupSink& sink);
  absl::StatusOr<VerifyReport> Verify(const VerifyOptions& options);

 private:
  absl::Status MayGoOn(Database& db) const;
  // Waits until so many bytes are due. What `go_on` says ends it.
  absl::Status Spend(int64_t num_bytes,
                     const std::function<absl::Status()>& go_on);
  absl::Status SendFiles(Database& db, const std::string& folder,
                         BackupSink& sink);
  // One more record: how many bytes of it were read, or why not.
  absl::Status Checked(const absl::StatusOr<int64_t>& bytes,
                       const VerifyOptions& options);
  absl::Status VerifyTables(Database& db, std::string_view folder,
                            const VerifyOptions& options);
  absl::Status VerifySessions(const VerifyOptions& options);
  absl::Status VerifyPages(const VerifyOptions& options);

  const Parts parts_;
  ByteRate rate_;
  VerifyReport found_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_UPKEEP_IMPL_H_
