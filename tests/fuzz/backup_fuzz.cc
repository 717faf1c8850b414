// SHA256SUMS and BACKUP.json of any bytes: what is taken names files of a
// backup alone, and comes back as it was.
#include <set>
#include <string>

#include "client/command/backup_folder.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace xcache::command;
  const std::string text(reinterpret_cast<const char*>(data), size);
  if (const auto files = ParseSums(text); files.ok()) {
    std::set<std::string> paths;
    for (const SummedFile& file : *files) {
      XCACHE_FUZZ_CHECK(file.path == "BACKUP.json" || IsBackupPath(file.path));
      XCACHE_FUZZ_CHECK(file.path.find("..") != 0 && file.path.front() != '/');
      XCACHE_FUZZ_CHECK(file.path.find("/.") == file.path.npos);
      XCACHE_FUZZ_CHECK(paths.insert(file.path).second);
      XCACHE_FUZZ_CHECK(text.find(file.hex + "  " + file.path) != text.npos);
    }
  } else {
    XCACHE_FUZZ_CHECK(absl::IsInvalidArgument(files.status()));
  }
  if (const auto info = ParseBackupInfo(text); info.ok()) {
    const std::string again = EncodeBackupInfo(*info);
    const auto same = ParseBackupInfo(again);
    XCACHE_FUZZ_CHECK(same.ok() && EncodeBackupInfo(*same) == again);
  } else {
    XCACHE_FUZZ_CHECK(absl::IsInvalidArgument(info.status()));
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  using namespace xcache::command;
  const std::string hex(64, '7');
  return {EncodeBackupInfo({.sessions = 3,
                            .store_format = 2,
                            .as_of = "x",
                            .server_version = "y"}),
          hex + "  BACKUP.json\n" + hex + "  sessions/000012.sst\n",
          hex + "  sessions/../x\n"};
}
