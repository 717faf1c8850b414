#include "server/metrics/process_metrics.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

namespace xcache {
namespace {

std::string ReadProcFile(const char* path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Field `number` of /proc/self/stat as proc(5) counts them, from 3 on. The
// second, the program's name, may hold spaces and brackets: it is skipped.
double StatField(const std::string& stat, int number) {
  const size_t end = stat.rfind(')');
  if (end == std::string::npos) return 0.0;
  std::istringstream in(stat.substr(end + 1));
  std::string word;
  for (int i = 3; i <= number; ++i) {
    if (!(in >> word)) return 0.0;
  }
  return std::strtod(word.c_str(), nullptr);
}

// Seconds of the Unix epoch at which the machine started.
double BootTime() {
  std::istringstream in(ReadProcFile("/proc/stat"));
  std::string line;
  while (std::getline(in, line)) {
    if (line.rfind("btime ", 0) == 0) {
      return std::strtod(line.c_str() + 6, nullptr);
    }
  }
  return 0.0;
}

double CountOpenFds() {
  DIR* dir = opendir("/proc/self/fd");
  if (dir == nullptr) return 0.0;
  // ".", ".." and the descriptor of the listing itself do not count.
  double count = -3.0;
  while (readdir(dir) != nullptr) count += 1.0;
  closedir(dir);
  return count;
}

}  // namespace

void SampleProcess(SampleWriter& writer) {
  const std::string stat = ReadProcFile("/proc/self/stat");
  const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  const auto page = static_cast<double>(sysconf(_SC_PAGESIZE));
  writer.Set(Metric::kProcessCpuSeconds,
             (StatField(stat, 14) + StatField(stat, 15)) / ticks);
  writer.Set(Metric::kProcessResidentBytes, StatField(stat, 24) * page);
  writer.Set(Metric::kProcessVirtualBytes, StatField(stat, 23));
  writer.Set(Metric::kProcessStartTime,
             BootTime() + StatField(stat, 22) / ticks);
  writer.Set(Metric::kProcessOpenFds, CountOpenFds());
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    writer.Set(Metric::kProcessMaxFds, static_cast<double>(limit.rlim_cur));
  }
}

void SampleCore(const CoreGauges& gauges, SampleWriter& writer) {
  const auto set = [&](Metric metric, uint64_t value) {
    writer.Set(metric, static_cast<double>(value));
  };
  set(Metric::kRequestsRunning, gauges.running);
  set(Metric::kRequestsWaiting, gauges.waiting);
  set(Metric::kWaitingTokens, gauges.waiting_tokens);
  set(Metric::kSessions, gauges.sessions);
  set(Metric::kSessionsInMemory, gauges.sessions_in_memory);
  writer.Set(Metric::kPages, static_cast<double>(gauges.working_set_blocks),
             {"device"});
  writer.Set(Metric::kPageBytes, static_cast<double>(gauges.working_set_bytes),
             {"device"});
  writer.Set(Metric::kPrefillRate, gauges.prefill_tokens_per_second);
  writer.Set(Metric::kDecodeRate, gauges.decode_tokens_per_second);
  writer.Set(Metric::kRematBlockRate, gauges.remat_blocks_per_second);
  writer.Set(Metric::kRematByteRate, gauges.remat_bytes_per_second);
  writer.Set(Metric::kClockJump, gauges.clock_jump_seconds);
}

}  // namespace xcache
