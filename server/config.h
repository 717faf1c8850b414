// What the operator says on the command line, in a configuration file or in
// XCACHE_* environment variables (in this order of precedence), checked as far
// as it can be without opening anything.
#ifndef XCACHE_SERVER_CONFIG_H_
#define XCACHE_SERVER_CONFIG_H_

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/shared_config.h"

namespace xcache {

inline constexpr std::string_view kServerVersion = XCACHE_VERSION;

struct Config {
  std::string model_path;
  std::string chat_template;  // family; empty: the model's own

  std::string listen = "127.0.0.1:50051";
  std::string metrics_listen = "127.0.0.1:9464";  // empty: no metrics page
  std::string http_listen;                        // empty: no HTTP API
  std::string model_name;                         // HTTP clients' for the model

  std::string store_dir;  // empty: memory only
  uint64_t memory_bytes = uint64_t{2} << 30;
  uint64_t disk_bytes = uint64_t{20} << 30;
  bool repair = false;  // repair a store that does not open
  std::chrono::seconds session_ttl{7 * 24 * 3600};  // 0: never

  SharedConfig shared;

  // The default codec of sessions: its spec, or, where that is empty, the
  // quality that names one (server/core/cache/quality.h).
  std::string codec;
  std::string quality;            // empty where `codec` is not
  std::string profile_dir;        // empty: profiles are made in memory
  std::string weights_cache_dir;  // empty: weights are packed at each start

  std::string device = "auto";       // auto, cpu, cuda or cuda:N
  uint64_t device_memory_bytes = 0;  // of a GPU; 0: what the weights leave
  std::string remat = "resume";      // on a GPU: resume or step
  std::string weights = "auto";      // on a GPU: auto, bf16 or quantized
  std::string restore = "auto";      // auto, always or never
  int num_threads = 0;               // 0: one for each CPU
  std::string isa;                   // empty: the best there is

  uint64_t answers_bytes = uint64_t{16} << 20;  // 0: none are kept
  int max_codecs = 8;
  int max_queue_requests = 256;
  int64_t max_queue_tokens = 1 << 20;
  int batch_rows = 128;
  std::string speculate = "auto";  // auto, ngram or off

  int max_connections = 1024;
  int max_connections_per_peer = 0;  // 0: half of them

  std::string tls_cert, tls_key;  // PEM files; empty: plaintext
  std::string tls_client_ca;      // PEM file; clients must show a certificate
  std::string token_file;         // empty: no authentication, one tenant
  bool insecure = false;

  std::chrono::seconds drain{30};
  std::string log_level = "info";
  std::string log_format = "text";  // text or json
  std::string ready_file;
  // Where the operator's socket is (`xcache store`); empty: there is none.
  std::string operator_socket;
};

// A setting as it will be used, and what set it: "flag", "file", "variable" or
// "default".
struct Setting {
  std::string flag;  // "--listen"
  std::string value;
  std::string source;
};

// What a command line asks for.
struct CommandLine {
  Config config;
  // Text for stdout (--help, --version); the program is then to exit with 0.
  std::string print_and_exit;
  // For the log: what was written and nothing reads, a sentence each.
  std::vector<std::string> warnings;
  // --check-config: nothing is to be started. Then what is wrong with the
  // settings does not stop their being read: `faults` has it, a line each.
  bool check = false;
  std::vector<std::string> faults;
  std::vector<Setting> settings;  // all of them
};

// INVALID_ARGUMENT: one line that names the flag, what it takes and what it
// was given. With --check-config that is in `faults` instead.
absl::StatusOr<CommandLine> ParseCommandLine(int argc, const char* const* argv);

// INVALID_ARGUMENT: `flag` was given another value than it takes, in words.
absl::Status FlagError(std::string_view flag, std::string_view takes,
                       std::string_view value);

// "512MiB", "4GiB", "1.5G", "1000000": a number with an optional unit, of
// powers of 1024 (KiB, MiB, GiB, TiB, and K, M, G, T) or of 1000 (KB, MB, GB,
// TB).
absl::StatusOr<uint64_t> ParseBytes(std::string_view text);

// "90s", "30m", "12h", "7d", "3600": seconds where no unit is given.
absl::StatusOr<std::chrono::seconds> ParseDuration(std::string_view text);

// "host:port" or "[ipv6]:port", port in [0, 65535].
struct HostPort {
  std::string host;  // without brackets
  int port = 0;
};
absl::StatusOr<HostPort> ParseHostPort(std::string_view text);

// Whether only this machine can reach the address: 127.0.0.0/8, ::1, localhost.
bool IsLoopback(std::string_view host);

}  // namespace xcache

#endif  // XCACHE_SERVER_CONFIG_H_
