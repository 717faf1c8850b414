#include "server/config.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/status_macros.h"
#include "engine/base/unix_socket.h"
#include "server/config_check.h"
#include "server/core/cache/quality.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

absl::string_view ToAbsl(std::string_view s) { return {s.data(), s.size()}; }

std::string Env(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// $XDG_DATA_HOME/xcache, or ~/.local/share/xcache. Empty: neither is known.
std::string DataHome() {
  if (const std::string xdg = Env("XDG_DATA_HOME"); !xdg.empty()) {
    return xdg + "/xcache";
  }
  const std::string home = Env("HOME");
  return home.empty() ? "" : home + "/.local/share/xcache";
}

// "none" and "" both switch off: a shell can hardly pass an empty variable.
bool IsOff(std::string_view value) { return value.empty() || value == "none"; }

// What `flag` was given, as `parse` reads it. `takes`: what it takes, in words.
template <typename T>
absl::Status ReadFlag(std::string_view flag, std::string_view takes,
                      absl::StatusOr<T> (*parse)(std::string_view),
                      const std::string& text, T* out) {
  const absl::StatusOr<T> value = parse(text);
  if (!value.ok()) return FlagError(flag, takes, text);
  *out = *value;
  return absl::OkStatus();
}

absl::Status CheckAddress(std::string_view flag, std::string_view value) {
  if (!ParseHostPort(value).ok()) {
    return FlagError(flag, "host:port (an IPv6 address in brackets)", value);
  }
  return absl::OkStatus();
}

// What is wrong with the settings, in the order of its finding.
class Faults {
 public:
  void Add(const absl::Status& status) {
    if (!status.ok()) found_.push_back(status);
  }
  const std::vector<absl::Status>& found() const { return found_; }

 private:
  std::vector<absl::Status> found_;
};

void CheckListen(const Config& config, Faults& faults) {
  faults.Add(CheckAddress("--listen", config.listen));
  if (!config.metrics_listen.empty()) {
    faults.Add(CheckAddress("--metrics-listen", config.metrics_listen));
  }
  if (!config.http_listen.empty()) {
    faults.Add(CheckAddress("--http-listen", config.http_listen));
  }
  const bool tls = !config.tls_cert.empty();
  if (tls == config.tls_key.empty()) {
    faults.Add(absl::InvalidArgumentError(
        "--tls-cert and --tls-key go together: only one of them is given"));
  }
  if (!tls && !config.tls_client_ca.empty()) {
    faults.Add(absl::InvalidArgumentError(
        "--tls-client-ca needs --tls-cert and --tls-key"));
  }
  for (const auto& [flag, value] :
       {std::pair<const char*, const std::string&>("--listen", config.listen),
        {"--http-listen", config.http_listen}}) {
    const auto address = ParseHostPort(value);
    if (!address.ok() || tls || config.insecure || IsLoopback(address->host)) {
      continue;
    }
    faults.Add(absl::InvalidArgumentError(absl::StrCat(
        flag, " ", value,
        " can be reached from other machines: give --tls-cert and --tls-key, "
        "or say --insecure to serve in plaintext all the same")));
  }
}

// Values as they are typed, before they are read.
struct Raw {
  std::string store_dir, profile_dir;
  std::string memory_bytes = "2GiB";
  std::string disk_bytes = "20GiB";
  std::string device_memory_bytes = "0";
  std::string answers_bytes = "16MiB";
  std::string session_ttl = "7d";
  std::string drain = "30s";
  std::string operator_socket;
  SharedFlags shared;
  std::vector<std::string> given_shared;  // flags that go with --shared
};

absl::Status CheckSocketPath(const std::string& path) {
  if (SocketPathFits(path)) return absl::OkStatus();
  return FlagError(
      "--operator-socket",
      absl::StrCat("a name of at most ", kMaxSocketNameBytes, " bytes"), path);
}

bool IsDevice(std::string_view text) {
  if (text == "auto" || text == "cpu" || text == "cuda") return true;
  constexpr std::string_view kPrefix = "cuda:";
  if (text.substr(0, kPrefix.size()) != kPrefix) return false;
  text.remove_prefix(kPrefix.size());
  return !text.empty() && text.size() <= 3 &&
         text.find_first_not_of("0123456789") == text.npos;
}

// Goes on after a fault, to find the others.
void Finish(const Raw& raw, Config& config, Faults& faults) {
  if (config.model_path.empty()) {
    faults.Add(absl::InvalidArgumentError(
        "--model is missing: give the GGUF file of the model to serve"));
  }
  if (!config.codec.empty() && !config.quality.empty()) {
    faults.Add(absl::InvalidArgumentError(absl::StrCat(
        "--codec and --quality both name the default codec: give one of them, "
        "not --codec ",
        config.codec, " and --quality ", config.quality)));
  }
  if (config.codec.empty() && config.quality.empty()) {
    config.quality = std::string(kDefaultQuality);
  }
  if (!IsDevice(config.device)) {
    faults.Add(
        FlagError("--device", "auto, cpu, cuda or cuda:N", config.device));
  }
  constexpr std::string_view kSize = "a size like 512MiB or 4GiB";
  constexpr std::string_view kDuration = "a duration like 30s, 10m, 12h or 7d";
  faults.Add(ReadFlag("--memory-bytes", kSize, ParseBytes, raw.memory_bytes,
                      &config.memory_bytes));
  faults.Add(ReadFlag("--disk-bytes", kSize, ParseBytes, raw.disk_bytes,
                      &config.disk_bytes));
  faults.Add(ReadFlag("--answers-bytes", kSize, ParseBytes, raw.answers_bytes,
                      &config.answers_bytes));
  faults.Add(ReadFlag("--device-memory-bytes", kSize, ParseBytes,
                      raw.device_memory_bytes, &config.device_memory_bytes));
  faults.Add(ReadFlag("--session-ttl", kDuration, ParseDuration,
                      raw.session_ttl, &config.session_ttl));
  faults.Add(ReadFlag("--drain-seconds", kDuration, ParseDuration, raw.drain,
                      &config.drain));
  if (config.drain > std::chrono::hours(24)) {
    faults.Add(FlagError("--drain-seconds", "at most 24h", raw.drain));
  }

  if (auto shared = ReadSharedConfig(raw.shared, raw.given_shared);
      shared.ok()) {
    config.shared = *std::move(shared);
  } else {
    faults.Add(shared.status());
  }

  if (IsOff(config.metrics_listen)) config.metrics_listen.clear();
  if (IsOff(config.http_listen)) config.http_listen.clear();
  if (config.model_name.empty()) {
    config.model_name = fs::path(config.model_path).stem().string();
  }
  if (raw.store_dir == "none") {
    config.store_dir.clear();
  } else if (!raw.store_dir.empty()) {
    config.store_dir = raw.store_dir;
  } else {
    const std::string home = DataHome();
    if (home.empty()) {
      faults.Add(absl::InvalidArgumentError(
          "--store-dir is not given, and neither XDG_DATA_HOME nor HOME says "
          "where it would be (\"none\" keeps everything in memory)"));
    }
    // A store belongs to one model, so each model gets its own.
    config.store_dir = home + "/" + fs::path(config.model_path).stem().string();
  }
  if (raw.profile_dir == "none") {
    config.profile_dir.clear();
  } else if (!raw.profile_dir.empty()) {
    config.profile_dir = raw.profile_dir;
  } else if (!config.store_dir.empty()) {
    config.profile_dir = config.store_dir + "/profiles";
  }
  if (config.weights_cache_dir == "none") config.weights_cache_dir.clear();
  if (raw.operator_socket == "none") {
    config.operator_socket.clear();
  } else if (!raw.operator_socket.empty()) {
    config.operator_socket = raw.operator_socket;
    faults.Add(CheckSocketPath(config.operator_socket));
  } else if (!config.store_dir.empty()) {
    config.operator_socket = config.store_dir + "/operator.sock";
  }
  CheckListen(config, faults);
}

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(int argc,
                                             const char* const* argv) {
  CommandLine out;
  Config& config = out.config;
  Raw raw;
  const std::span<const char* const> words(argv, static_cast<size_t>(argc));
  CLI::App app(
      "XCache: serves multi-turn chat over gRPC and HTTP, and keeps "
      "conversations as a "
      "compressed X-cache, in memory and on disk.",
      "xcache-server");
  app.set_version_flag("--version",
                       absl::StrCat("xcache-server ", ToAbsl(kServerVersion)));
  const std::string config_file = Env("XCACHE_CONFIG");
  app.set_config("--config", config_file,
                 "TOML or INI file with these flags as keys (also: "
                 "XCACHE_CONFIG)",
                 !config_file.empty());

  std::string group;
  const auto option = [&](const char* flag, const char* env, auto& value,
                          const char* help) {
    return app.add_option(flag, value, help)
        ->envname(env)
        ->capture_default_str()
        ->group(group);
  };
  const auto flag = [&](const char* name, const char* env, bool& value,
                        const char* help) {
    app.add_flag(name, value, help)->envname(env)->group(group);
  };

  group = "Model";
  option("--model", "XCACHE_MODEL", config.model_path,
         "GGUF file of the model (required)");
  option("--codec", "XCACHE_CODEC", config.codec,
         "Default codec of sessions, a spec like xquant-gqa:bits=3; empty: "
         "--quality names it");
  std::vector<std::string> qualities = {""};
  for (const Quality& quality : kQualities)
    qualities.emplace_back(quality.name);
  option("--quality", "XCACHE_QUALITY", config.quality,
         "Default codec of sessions by what it is for: lossless, balanced or "
         "compact; empty: balanced")
      ->check(CLI::IsMember(qualities));
  option("--chat-template", "XCACHE_CHAT_TEMPLATE", config.chat_template,
         "chatml, llama2, llama3, mistral or gemma; empty: the model's own");
  option("--profile-dir", "XCACHE_PROFILE_DIR", raw.profile_dir,
         "Where codec profiles are kept; empty: with the store; \"none\": made "
         "at each start");
  option("--weights-cache", "XCACHE_WEIGHTS_CACHE", config.weights_cache_dir,
         "Folder where the model's packed weights are kept for the next start, "
         "on the CPU; empty or \"none\": they are packed at each start");

  group = "Addresses";
  option("--listen", "XCACHE_LISTEN", config.listen,
         "gRPC address; port 0 takes a free one");
  option("--metrics-listen", "XCACHE_METRICS_LISTEN", config.metrics_listen,
         "HTTP address of /metrics; empty or \"none\": no metrics page");
  option("--http-listen", "XCACHE_HTTP_LISTEN", config.http_listen,
         "Address of OpenAI's HTTP API; empty or \"none\": there is none");
  option("--model-name", "XCACHE_MODEL_NAME", config.model_name,
         "What clients of the HTTP API call the model; empty: its file's name "
         "without its ending");
  option("--ready-file", "XCACHE_READY_FILE", config.ready_file,
         "Written with the bound addresses (JSON) once requests are served");

  group = "Store";
  option("--store-dir", "XCACHE_STORE_DIR", raw.store_dir,
         "Folder of the store; empty: "
         "${XDG_DATA_HOME:-~/.local/share}/xcache/<name of the model file>; "
         "\"none\": memory only");
  option("--memory-bytes", "XCACHE_MEMORY_BYTES", raw.memory_bytes,
         "Hard cap of page pool, working sets, RocksDB's memory and requests");
  option("--disk-bytes", "XCACHE_DISK_BYTES", raw.disk_bytes,
         "Hard cap of the store on disk");
  option("--session-ttl", "XCACHE_SESSION_TTL", raw.session_ttl,
         "How long an unused session lives; 0: for ever");
  flag("--repair", "XCACHE_REPAIR", config.repair,
       "Repair a store that does not open; what is corrupt is dropped");

  group = "Shared tier";
  SharedFlags& shared = raw.shared;
  option("--shared", "XCACHE_SHARED", shared.location,
         "Bucket that replicas share, s3://bucket/prefix; empty or \"none\": "
         "no shared tier");
  const std::vector<CLI::Option*> with_shared = {
      option("--shared-endpoint", "XCACHE_SHARED_ENDPOINT", shared.endpoint,
             "URL of the S3 server; empty: AWS's of the region"),
      option("--shared-region", "XCACHE_SHARED_REGION", shared.region,
             "Region of the bucket; empty: AWS_REGION, or us-east-1"),
      option("--shared-ca", "XCACHE_SHARED_CA", shared.ca_file,
             "PEM file of authorities for the endpoint; empty: the system's"),
      option("--shared-credentials-file", "XCACHE_SHARED_CREDENTIALS_FILE",
             shared.credentials_file,
             "File with [default] aws_access_key_id, aws_secret_access_key; "
             "read again when it changes. Empty: AWS_ACCESS_KEY_ID and so on, "
             "or AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN"),
      option("--shared-bytes-per-s", "XCACHE_SHARED_BYTES_PER_S",
             shared.bytes_per_s,
             "Pages sent and received, bytes a second; 0: no limit"),
      option("--shared-policy", "XCACHE_SHARED_POLICY", shared.policy,
             "While the store is away: strict refuses turns, prefer goes on "
             "with the local store and pushes later"),
      option("--shared-page-life", "XCACHE_SHARED_PAGE_LIFE", shared.page_life,
             "How long a page that nobody uses stays in the bucket; 0: for "
             "ever"),
      option("--shared-encryption", "XCACHE_SHARED_ENCRYPTION",
             shared.encryption,
             "What the store is to encrypt with: none, AES256, aws:kms or "
             "aws:kms:KEY")};

  group = "Compute";
  option("--device", "XCACHE_DEVICE", config.device,
         "cpu, cuda or cuda:N; auto: the first GPU, or the CPU where there is "
         "none");
  option("--device-memory-bytes", "XCACHE_DEVICE_MEMORY_BYTES",
         raw.device_memory_bytes,
         "On a GPU: hard cap of its page pool; 0: nine tenths of what the "
         "weights leave free");
  option("--remat", "XCACHE_REMAT", config.remat,
         "Of sessions that ask for none, on a GPU: resume keeps K and V, step "
         "keeps codes and makes K and V in each step")
      ->check(CLI::IsMember({"resume", "step"}));
  option("--weights", "XCACHE_WEIGHTS", config.weights,
         "On a GPU: bf16 dequantizes weights once, quantized keeps those of "
         "quantized types as they are in the file; auto is bf16 where that "
         "takes at most half of the free device memory")
      ->check(CLI::IsMember({"auto", "bf16", "quantized"}));
  option("--restore", "XCACHE_RESTORE", config.restore,
         "Whether known pages are rematerialized (always), their tokens "
         "computed again (never), or what is measured to be faster (auto)")
      ->check(CLI::IsMember({"auto", "always", "never"}));
  option("--threads", "XCACHE_THREADS", config.num_threads,
         "Threads of the forward pass; 0: one for each CPU")
      ->check(CLI::Range(0, 1024));
  option("--isa", "XCACHE_ISA", config.isa,
         "ref, avx2 or avx512; empty: the best there is")
      ->check(CLI::IsMember({"", "ref", "avx2", "avx512"}));
  option("--batch-rows", "XCACHE_BATCH_ROWS", config.batch_rows,
         "Rows (tokens) of one forward step, over all requests")
      ->check(CLI::Range(1, 1 << 16));
  option("--answers-bytes", "XCACHE_ANSWERS_BYTES", raw.answers_bytes,
         "Memory for the tokens of answers, for histories that are sent again "
         "as text; 0: they are tokenized anew");
  option("--speculate", "XCACHE_SPECULATE", config.speculate,
         "Answers drafted from what was said before, where that is sooner: "
         "ngram, off, or auto: ngram on the CPU")
      ->check(CLI::IsMember({"auto", "ngram", "off"}));
  option("--max-codecs", "XCACHE_MAX_CODECS", config.max_codecs,
         "Codecs open at once; one more closes the one used longest ago")
      ->check(CLI::Range(1, 1 << 10));
  option("--max-queue-requests", "XCACHE_MAX_QUEUE_REQUESTS",
         config.max_queue_requests,
         "Requests that may wait; one more gets RESOURCE_EXHAUSTED")
      ->check(CLI::Range(1, 1 << 20));
  option("--max-queue-tokens", "XCACHE_MAX_QUEUE_TOKENS",
         config.max_queue_tokens,
         "Tokens of the requests that may wait, together")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));

  option("--max-connections", "XCACHE_MAX_CONNECTIONS", config.max_connections,
         "Connections of clients at once, of each API; fewer where the limit "
         "of open files leaves less beside the store's")
      ->check(CLI::Range(1, 1 << 16));
  option("--max-connections-per-peer", "XCACHE_MAX_CONNECTIONS_PER_PEER",
         config.max_connections_per_peer,
         "Those from one address; 0: half of --max-connections")
      ->check(CLI::Range(0, 1 << 16));

  group = "Security";
  option("--tls-cert", "XCACHE_TLS_CERT", config.tls_cert,
         "PEM file with the server's certificate chain");
  option("--tls-key", "XCACHE_TLS_KEY", config.tls_key,
         "PEM file with its private key");
  option("--tls-client-ca", "XCACHE_TLS_CLIENT_CA", config.tls_client_ca,
         "PEM file of authorities; clients must show a certificate of theirs");
  option("--token-file", "XCACHE_TOKEN_FILE", config.token_file,
         "Lines \"token tenant\"; without it there is no authentication and "
         "one tenant. Read again when it changes, and on SIGHUP");
  flag("--insecure", "XCACHE_INSECURE", config.insecure,
       "Allow a --listen or --http-listen address that other machines can "
       "reach, without TLS");

  group = "Operation";
  option("--drain-seconds", "XCACHE_DRAIN_SECONDS", raw.drain,
         "How long running turns may go on after SIGTERM");
  option("--log-level", "XCACHE_LOG_LEVEL", config.log_level,
         "trace, debug, info, warn, error or off")
      ->check(
          CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}));
  option("--log-format", "XCACHE_LOG_FORMAT", config.log_format,
         "text, or json: one object a line, with the same keys")
      ->check(CLI::IsMember({"text", "json"}));
  option("--operator-socket", "XCACHE_OPERATOR_SOCKET", raw.operator_socket,
         "Unix socket of `xcache store`, for the server's own user alone; "
         "empty: operator.sock in the store; \"none\": there is none");
  // Of a command line alone: a server that its file or environment keeps from
  // starting would be a riddle.
  app.add_flag("--check-config", out.check,
               "Say what would be used and what is wrong with it; start "
               "nothing. Exit status 0: a server would start")
      ->configurable(false)
      ->group(group);

  Faults faults;
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    out.print_and_exit = app.help();
    return out;
  } catch (const CLI::CallForVersion& version) {
    out.print_and_exit = absl::StrCat(version.what(), "\n");
    return out;
  } catch (const CLI::Error& error) {
    // Nothing has been read that could be looked at.
    const bool check =
        std::find(words.begin(), words.end(),
                  std::string_view("--check-config")) != words.end();
    if (!check) return absl::InvalidArgumentError(error.what());
    out.check = true;
    out.faults.emplace_back(error.what());
    return out;
  }
  for (const absl::Status& fault : CheckConfigKeys(app)) faults.Add(fault);
  out.warnings = UnknownVariables(app, environ);
  for (const CLI::Option* each : with_shared) {
    if (each->count() > 0 && !each->results().front().empty()) {
      raw.given_shared.push_back(each->get_name());
    }
  }
  Finish(raw, config, faults);
  if (!out.check) {
    if (!faults.found().empty()) return faults.found().front();
    return out;
  }
  for (const absl::Status& fault : faults.found()) {
    out.faults.emplace_back(fault.message());
  }
  // Those whose default depends on others as they came out.
  out.settings = SettingsOf(app, words,
                            {{"quality", config.quality},
                             {"store-dir", config.store_dir},
                             {"profile-dir", config.profile_dir},
                             {"weights-cache", config.weights_cache_dir},
                             {"operator-socket", config.operator_socket},
                             {"metrics-listen", config.metrics_listen},
                             {"http-listen", config.http_listen},
                             {"model-name", config.model_name}});
  return out;
}

}  // namespace xcache
