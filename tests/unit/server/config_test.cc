#include "server/config.h"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;

class ConfigTest : public ::testing::Test {
 protected:
  ConfigTest() { setenv("XDG_DATA_HOME", "/data", 1); }
  ~ConfigTest() override {
    unsetenv("XDG_DATA_HOME");
    for (const std::string& name : set_) unsetenv(name.c_str());
  }

  void SetEnv(const std::string& name, const std::string& value) {
    setenv(name.c_str(), value.c_str(), 1);
    set_.push_back(name);
  }

  static absl::StatusOr<CommandLine> Parse(std::vector<const char*> args) {
    args.insert(args.begin(), "xcache-server");
    return ParseCommandLine(static_cast<int>(args.size()), args.data());
  }
  static std::string Error(std::vector<const char*> args) {
    const auto parsed = Parse(std::move(args));
    EXPECT_FALSE(parsed.ok());
    const std::string message(parsed.status().message());
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message;
  }

 private:
  std::vector<std::string> set_;
};

TEST_F(ConfigTest, DefaultsAreSafe) {
  const auto parsed = Parse({"--model", "/m/some.model.gguf"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const Config& config = parsed->config;
  EXPECT_EQ(config.listen, "127.0.0.1:50051");
  EXPECT_EQ(config.metrics_listen, "127.0.0.1:9464");
  EXPECT_EQ(config.http_listen, "");
  EXPECT_EQ(config.model_name, "some.model");
  EXPECT_EQ(config.store_dir, "/data/xcache/some.model");
  EXPECT_EQ(config.profile_dir, "/data/xcache/some.model/profiles");
  EXPECT_EQ(config.session_ttl, std::chrono::hours(24 * 7));
  EXPECT_FALSE(config.insecure);
  EXPECT_TRUE(parsed->print_and_exit.empty());
}

TEST_F(ConfigTest, TheHttpAddressIsAsSafeAsTheOther) {
  const auto local = Parse({"--model", "m", "--http-listen", "127.0.0.1:8080",
                            "--model-name", "gpt-4o"});
  ASSERT_TRUE(local.ok()) << local.status();
  EXPECT_EQ(local->config.http_listen, "127.0.0.1:8080");
  EXPECT_EQ(local->config.model_name, "gpt-4o");
  EXPECT_EQ(
      Parse({"--model", "m", "--http-listen", "none"})->config.http_listen, "");
  const std::string error =
      Error({"--model", "m", "--http-listen", "0.0.0.0:8080"});
  EXPECT_THAT(error, HasSubstr("--http-listen 0.0.0.0:8080"));
  EXPECT_THAT(error, HasSubstr("--insecure"));
  EXPECT_TRUE(
      Parse({"--model", "m", "--http-listen", "[::]:1", "--insecure"}).ok());
  EXPECT_THAT(Error({"--model", "m", "--http-listen", "8080"}),
              HasSubstr("--http-listen"));
}

TEST_F(ConfigTest, DevicesAreCpuAutoAndNumberedGpus) {
  for (const char* device : {"auto", "cpu", "cuda", "cuda:0", "cuda:15"}) {
    const auto parsed =
        Parse({"--model", "m", "--device", device, "--remat", "step",
               "--device-memory-bytes", "3GiB", "--weights", "quantized"});
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->config.device, device);
    EXPECT_EQ(parsed->config.remat, "step");
    EXPECT_EQ(parsed->config.weights, "quantized");
    EXPECT_EQ(parsed->config.device_memory_bytes, uint64_t{3} << 30);
  }
  for (const char* device : {"gpu", "cuda:", "cuda:x", "cuda:-1", "cuda0"}) {
    EXPECT_THAT(Error({"--model", "m", "--device", device}),
                HasSubstr("--device"));
  }
  // "auto" was one once.
  for (const char* remat : {"never", "auto", ""}) {
    const std::string error = Error({"--model", "m", "--remat", remat});
    EXPECT_THAT(error, HasSubstr("--remat"));
    EXPECT_THAT(error, HasSubstr("{resume,step}"));
  }
  EXPECT_THAT(Error({"--model", "m", "--weights", "fp8"}),
              HasSubstr("--weights"));
}

TEST_F(ConfigTest, ModelIsNeeded) {
  EXPECT_THAT(Error({}), HasSubstr("--model"));
}

TEST_F(ConfigTest, UnknownFlagIsNamed) {
  EXPECT_THAT(Error({"--model", "m", "--modle", "x"}), HasSubstr("--modle"));
}

TEST_F(ConfigTest, HelpAndVersionArePrinted) {
  const auto help = Parse({"--help"});
  ASSERT_TRUE(help.ok());
  EXPECT_THAT(help->print_and_exit, HasSubstr("--tls-client-ca"));
  EXPECT_THAT(help->print_and_exit, HasSubstr("XCACHE_STORE_DIR"));
  const auto version = Parse({"--version"});
  ASSERT_TRUE(version.ok());
  EXPECT_EQ(version->print_and_exit,
            "xcache-server " + std::string(kServerVersion) + "\n");
}

TEST_F(ConfigTest, EveryFlagIsDocumented) {
  const char* root = std::getenv("XCACHE_SOURCE_DIR");
  ASSERT_NE(root, nullptr);
  std::ifstream in(std::string(root) + "/server/CONFIGURATION.md");
  const std::string page{std::istreambuf_iterator<char>(in), {}};
  const std::string help = Parse({"--help"})->print_and_exit;
  const std::regex word("--[a-z][a-z-]+|XCACHE_[A-Z_]+");
  int flags = 0;
  for (std::sregex_iterator it(help.begin(), help.end(), word), end; it != end;
       ++it) {
    const std::string name = it->str();
    if (name == "--help" || name == "--version") continue;
    EXPECT_THAT(page, HasSubstr("| `" + name + "` |"));
    ++flags;
  }
  EXPECT_GE(flags, 50);
}

TEST_F(ConfigTest, EnvironmentGivesWhatTheCommandLineDoesNot) {
  SetEnv("XCACHE_MODEL", "env.gguf");
  SetEnv("XCACHE_MEMORY_BYTES", "3GiB");
  SetEnv("XCACHE_INSECURE", "true");
  SetEnv("XCACHE_METRICS_LISTEN", "none");
  const auto parsed = Parse({"--memory-bytes", "64MiB"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->config.model_path, "env.gguf");
  EXPECT_EQ(parsed->config.memory_bytes, uint64_t{64} << 20);
  EXPECT_TRUE(parsed->config.insecure);
  EXPECT_TRUE(parsed->config.metrics_listen.empty());
}

TEST_F(ConfigTest, FileGivesValues) {
  const std::string path = ::testing::TempDir() + "/config_test.toml";
  std::ofstream(path) << "model = \"file.gguf\"\nthreads = 3\n";
  const auto parsed = Parse({"--config", path.c_str(), "--threads", "2"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->config.model_path, "file.gguf");
  EXPECT_EQ(parsed->config.num_threads, 2);
  EXPECT_THAT(Error({"--config", "/nowhere.toml"}), HasSubstr("/nowhere.toml"));
}

TEST_F(ConfigTest, AnUnknownKeyOfTheFileIsAnError) {
  const std::string path = ::testing::TempDir() + "/config_keys_test.toml";
  const auto error = [&](const std::string& text) {
    std::ofstream(path) << text;
    return Error({"--config", path.c_str(), "--model", "m"});
  };
  EXPECT_EQ(error("# comment\nthreads = 3\nmemory_bytes = \"4GiB\"\n"),
            path + ":3: no key \"memory_bytes\" (did you mean memory-bytes?)");
  EXPECT_EQ(error("\n  frobnicate=1\n"), path + ":2: no key \"frobnicate\"");
  EXPECT_EQ(error("[server]\nthreads = 3\n"),
            path + ":1: keys stand outside of any section, not in [server]");
  // The file may come from the environment as well.
  SetEnv("XCACHE_CONFIG", path);
  EXPECT_THAT(Error({"--model", "m"}), HasSubstr("[server]"));
  std::ofstream(path) << "threads = 3\ninsecure = true\n";
  const auto parsed = Parse({"--model", "m"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->config.num_threads, 3);
  EXPECT_TRUE(parsed->config.insecure);
}

TEST_F(ConfigTest, AnUnknownVariableIsAWarning) {
  SetEnv("XCACHE_MEMORY_BYTE", "4GiB");
  // The command's, and what Kubernetes sets beside a Service of our name.
  SetEnv("XCACHE_ADDRESS", "127.0.0.1:1");
  SetEnv("XCACHE_SERVICE_HOST", "10.0.0.1");
  SetEnv("XCACHE_PORT_50051_TCP", "tcp://10.0.0.1:50051");
  const auto parsed = Parse({"--model", "m"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->warnings,
            std::vector<std::string>{
                "no setting is named XCACHE_MEMORY_BYTE (did you mean "
                "XCACHE_MEMORY_BYTES?)"});
}

TEST_F(ConfigTest, ACodecIsNamedByItselfOrByQuality) {
  EXPECT_EQ(Parse({"--model", "m"})->config.quality, "balanced");
  const auto compact = Parse({"--model", "m", "--quality", "compact"});
  ASSERT_TRUE(compact.ok()) << compact.status();
  EXPECT_EQ(compact->config.quality, "compact");
  EXPECT_EQ(compact->config.codec, "");
  const auto codec = Parse({"--model", "m", "--codec", "kv-fp16"});
  ASSERT_TRUE(codec.ok()) << codec.status();
  EXPECT_EQ(codec->config.quality, "");
  EXPECT_THAT(Error({"--model", "m", "--quality", "best"}),
              HasSubstr("--quality"));
  EXPECT_THAT(
      Error({"--model", "m", "--codec", "kv-fp16", "--quality", "compact"}),
      HasSubstr("give one of them, not --codec kv-fp16"));
}

TEST_F(ConfigTest, RestoreAndSpeculateAreOneOfThree) {
  EXPECT_EQ(Parse({"--model", "m"})->config.restore, "auto");
  EXPECT_EQ(Parse({"--model", "m", "--restore", "never"})->config.restore,
            "never");
  EXPECT_THAT(Error({"--model", "m", "--restore", "some"}),
              HasSubstr("--restore"));
  EXPECT_EQ(Parse({"--model", "m"})->config.speculate, "auto");
  EXPECT_EQ(Parse({"--model", "m", "--speculate", "off"})->config.speculate,
            "off");
  EXPECT_THAT(Error({"--model", "m", "--speculate", "on"}),
              HasSubstr("--speculate"));
}

TEST_F(ConfigTest, PackedWeightsAreKeptWhereTheFlagSays) {
  EXPECT_EQ(Parse({"--model", "m"})->config.weights_cache_dir, "");
  EXPECT_EQ(Parse({"--model", "m", "--weights-cache", "/var/w"})
                ->config.weights_cache_dir,
            "/var/w");
  EXPECT_EQ(Parse({"--model", "m", "--weights-cache", "none"})
                ->config.weights_cache_dir,
            "");
}

TEST_F(ConfigTest, StoreNoneIsMemoryOnly) {
  const auto parsed = Parse({"--model", "m", "--store-dir", "none"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->config.store_dir, "");
  EXPECT_EQ(parsed->config.profile_dir, "");
}

TEST_F(ConfigTest, OtherMachinesNeedTlsOrInsecure) {
  EXPECT_THAT(Error({"--model", "m", "--listen", "0.0.0.0:1"}),
              HasSubstr("--insecure"));
  EXPECT_THAT(Error({"--model", "m", "--listen", "[::]:1"}),
              HasSubstr("--insecure"));
  // Starts like a loopback address, and is a name that anybody may own.
  EXPECT_THAT(Error({"--model", "m", "--listen", "127.evil.example:1"}),
              HasSubstr("--insecure"));
  EXPECT_TRUE(
      Parse({"--model", "m", "--listen", "0.0.0.0:1", "--insecure"}).ok());
  EXPECT_TRUE(Parse({"--model", "m", "--listen", "0.0.0.0:1", "--tls-cert", "c",
                     "--tls-key", "k"})
                  .ok());
  EXPECT_TRUE(Parse({"--model", "m", "--listen", "[::1]:0"}).ok());
}

TEST_F(ConfigTest, TlsFlagsGoTogether) {
  EXPECT_THAT(Error({"--model", "m", "--tls-cert", "c"}),
              HasSubstr("--tls-key"));
  EXPECT_THAT(Error({"--model", "m", "--tls-key", "k"}),
              HasSubstr("--tls-cert"));
  EXPECT_THAT(Error({"--model", "m", "--tls-client-ca", "a"}),
              HasSubstr("--tls-client-ca"));
}

TEST_F(ConfigTest, BadValuesNameTheirFlag) {
  EXPECT_THAT(Error({"--model", "m", "--memory-bytes", "lots"}),
              HasSubstr("--memory-bytes"));
  EXPECT_THAT(Error({"--model", "m", "--disk-bytes", "-1"}),
              HasSubstr("--disk-bytes"));
  EXPECT_THAT(Error({"--model", "m", "--session-ttl", "1 year"}),
              HasSubstr("--session-ttl"));
  EXPECT_THAT(Error({"--model", "m", "--drain-seconds", "2d"}),
              HasSubstr("--drain-seconds"));
  EXPECT_THAT(Error({"--model", "m", "--listen", "localhost"}),
              HasSubstr("--listen"));
  EXPECT_THAT(Error({"--model", "m", "--metrics-listen", ":1"}),
              HasSubstr("--metrics-listen"));
  EXPECT_THAT(Error({"--model", "m", "--isa", "sse9"}), HasSubstr("--isa"));
  EXPECT_THAT(Error({"--model", "m", "--threads", "-1"}),
              HasSubstr("--threads"));
  EXPECT_THAT(Error({"--model", "m", "--log-level", "loud"}),
              HasSubstr("--log-level"));
  EXPECT_THAT(Error({"--model", "m", "--batch-rows", "0"}),
              HasSubstr("--batch-rows"));
}

TEST_F(ConfigTest, ACheckTellsEveryFault) {
  const std::string path = ::testing::TempDir() + "/config_faults_test.toml";
  std::ofstream(path) << "threds = 3\ndisc-bytes = \"1GiB\"\n";
  const auto parsed = Parse({"--check-config", "--config", path.c_str(),
                             "--memory-bytes", "lots", "--listen", "x",
                             "--tls-key", "k", "--drain-seconds", "2d"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(parsed->check);
  for (const char* said :
       {"threds", "disc-bytes", "--memory-bytes", "--listen", "--tls-cert",
        "--drain-seconds", "--model is missing"}) {
    EXPECT_THAT(parsed->faults, ::testing::Contains(HasSubstr(said)));
  }
  EXPECT_EQ(parsed->faults.size(), 7u);
  // What does not parse at all.
  const auto bad = Parse({"--threads", "many", "--check-config"});
  ASSERT_TRUE(bad.ok()) << bad.status();
  EXPECT_TRUE(bad->check);
  EXPECT_THAT(bad->faults, ::testing::ElementsAre(HasSubstr("--threads")));
}

TEST_F(ConfigTest, ACheckTellsWhoSetWhat) {
  const std::string path = ::testing::TempDir() + "/config_source_test.toml";
  std::ofstream(path) << "threads = 3\nisa = \"ref\"\n";
  SetEnv("XCACHE_DISK_BYTES", "1GiB");
  SetEnv("XCACHE_ISA", "avx2");
  SetEnv("XCACHE_THREADS", "4");
  const auto parsed = Parse({"--model=m.gguf", "--check-config", "--threads",
                             "2", "--config", path.c_str()});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->faults, std::vector<std::string>());
  const auto setting = [&](const std::string& flag) {
    for (const Setting& one : parsed->settings) {
      if (one.flag == flag) return one.source + " " + one.value;
    }
    return std::string("not there");
  };
  EXPECT_EQ(setting("--model"), "flag m.gguf");
  EXPECT_EQ(setting("--threads"), "flag 2");
  EXPECT_EQ(setting("--isa"), "file ref");
  EXPECT_EQ(setting("--disk-bytes"), "variable 1GiB");
  EXPECT_EQ(setting("--memory-bytes"), "default 2GiB");
  EXPECT_EQ(setting("--quality"), "default balanced");
  EXPECT_EQ(setting("--store-dir"), "default /data/xcache/m");
  EXPECT_EQ(setting("--operator-socket"),
            "default /data/xcache/m/operator.sock");
  EXPECT_EQ(setting("--check-config"), "not there");
}

TEST_F(ConfigTest, ASocketHasAShortName) {
  const std::string longest(107, 's');
  const std::string deep = "/" + longest + "/" + std::string(82, 's');
  for (const std::string& fits : {longest, deep}) {
    EXPECT_EQ(Parse({"--model", "m", "--operator-socket", fits.c_str()})
                  ->config.operator_socket,
              fits);
    EXPECT_THAT(
        Error({"--model", "m", "--operator-socket", (fits + "s").c_str()}),
        HasSubstr("--operator-socket"));
  }
  EXPECT_EQ(Parse({"--model", "m", "--operator-socket", "none"})
                ->config.operator_socket,
            "");
  EXPECT_EQ(
      Parse({"--model", "m", "--store-dir", "none"})->config.operator_socket,
      "");
}

TEST_F(ConfigTest, SharedTierIsReadAsItIsTyped) {
  SetEnv("AWS_REGION", "eu-west-3");
  auto parsed = Parse({"--model", "m"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_FALSE(parsed->config.shared.enabled());

  parsed = Parse({"--model", "m", "--shared", "s3://bucket/of/mine"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  SharedConfig shared = parsed->config.shared;
  EXPECT_TRUE(shared.enabled());
  EXPECT_EQ(shared.location.bucket, "bucket");
  EXPECT_EQ(shared.location.prefix, "of/mine/");
  EXPECT_EQ(shared.endpoint.host, "");
  EXPECT_EQ(shared.region, "eu-west-3");
  EXPECT_EQ(shared.policy, SharedPolicy::kStrict);
  EXPECT_EQ(shared.page_life, std::chrono::hours(24 * 7));
  EXPECT_EQ(shared.encryption, "");

  SetEnv("XCACHE_SHARED_POLICY", "prefer");
  parsed =
      Parse({"--model", "m", "--shared", "s3://bucket", "--shared-endpoint",
             "http://[::1]:8333", "--shared-region", "here",
             "--shared-bytes-per-s", "2MiB", "--shared-page-life", "12h",
             "--shared-encryption", "aws:kms:arn:aws:kms:here:1:key/2",
             "--shared-credentials-file", "/c", "--shared-ca", "/ca"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  shared = parsed->config.shared;
  EXPECT_EQ(shared.endpoint.Url(), "http://[::1]:8333");
  EXPECT_EQ(shared.region, "here");
  EXPECT_EQ(shared.bytes_per_s, uint64_t{2} << 20);
  EXPECT_EQ(shared.policy, SharedPolicy::kPrefer);
  EXPECT_EQ(shared.page_life, std::chrono::hours(12));
  EXPECT_EQ(shared.encryption, "aws:kms");
  EXPECT_EQ(shared.kms_key_id, "arn:aws:kms:here:1:key/2");
  EXPECT_EQ(shared.credentials_file, "/c");
  EXPECT_EQ(shared.ca_file, "/ca");
}

TEST_F(ConfigTest, FlagsOfTheSharedTierNeedIt) {
  for (const char* flag :
       {"--shared-endpoint", "--shared-region", "--shared-ca",
        "--shared-credentials-file", "--shared-bytes-per-s", "--shared-policy",
        "--shared-page-life", "--shared-encryption"}) {
    for (const char* shared : {"", "none"}) {
      EXPECT_THAT(Error({"--model", "m", "--shared", shared, flag, "x"}),
                  HasSubstr(std::string(flag) + " needs --shared"));
    }
    // Given, but as nothing: a shell can hardly pass an absent one.
    EXPECT_TRUE(Parse({"--model", "m", flag, ""}).ok()) << flag;
  }
  SetEnv("XCACHE_SHARED_REGION", "here");
  EXPECT_THAT(Error({"--model", "m"}),
              HasSubstr("--shared-region needs --shared"));
}

TEST_F(ConfigTest, BadValuesOfTheSharedTierNameTheirFlag) {
  const auto error = [](const char* flag, const char* value) {
    return Error({"--model", "m", "--shared", "s3://bucket", flag, value});
  };
  EXPECT_THAT(Error({"--model", "m", "--shared", "bucket"}),
              HasSubstr("--shared takes s3://bucket"));
  const std::string endpoint =
      error("--shared-endpoint", "http://me:secret@host");
  EXPECT_THAT(endpoint, HasSubstr("--shared-endpoint"));
  EXPECT_EQ(endpoint.find("secret"), std::string::npos);
  EXPECT_THAT(error("--shared-region", "Over There"),
              HasSubstr("--shared-region"));
  EXPECT_THAT(error("--shared-bytes-per-s", "much"),
              HasSubstr("--shared-bytes-per-s"));
  EXPECT_THAT(error("--shared-policy", "lax"), HasSubstr("--shared-policy"));
  for (const char* life : {"10m", "a week"}) {
    EXPECT_THAT(error("--shared-page-life", life),
                HasSubstr("--shared-page-life"));
  }
  for (const char* encryption :
       {"AES", "aws:kms:", "aws:kms:a b", "aws:kmsx"}) {
    EXPECT_THAT(error("--shared-encryption", encryption),
                HasSubstr("--shared-encryption"));
  }
}

TEST(ParseBytesTest, UnitsAndNonsense) {
  EXPECT_EQ(ParseBytes("1000").value(), 1000u);
  EXPECT_EQ(ParseBytes("512MiB").value(), uint64_t{512} << 20);
  EXPECT_EQ(ParseBytes(" 4 GiB ").value(), uint64_t{4} << 30);
  EXPECT_EQ(ParseBytes("1.5g").value(), uint64_t{3} << 29);
  EXPECT_EQ(ParseBytes("2GB").value(), 2'000'000'000u);
  // Up: 0 may mean no limit.
  EXPECT_EQ(ParseBytes("0.5").value(), 1u);
  EXPECT_EQ(ParseBytes("0.0001KiB").value(), 1u);
  EXPECT_EQ(ParseBytes("0KiB").value(), 0u);
  for (const char* bad : {"", "GiB", "-1", "1e9", "1..5", "nan", "inf",
                          "9999999TiB", "1 PiB", "0x10", "+1"}) {
    EXPECT_FALSE(ParseBytes(bad).ok()) << bad;
  }
}

TEST(ParseDurationTest, UnitsAndNonsense) {
  EXPECT_EQ(ParseDuration("0").value().count(), 0);
  EXPECT_EQ(ParseDuration("90").value().count(), 90);
  EXPECT_EQ(ParseDuration("1.5m").value().count(), 90);
  EXPECT_EQ(ParseDuration("7d").value().count(), 7 * 86400);
  // Up: 0 means never.
  EXPECT_EQ(ParseDuration("0.5s").value().count(), 1);
  EXPECT_EQ(ParseDuration("0.001m").value().count(), 1);
  EXPECT_EQ(ParseDuration("1.5s").value().count(), 2);
  EXPECT_EQ(ParseDuration("0.0d").value().count(), 0);
  for (const char* bad : {"", "d", "-1s", "1y", "99999999d", "1 2s"}) {
    EXPECT_FALSE(ParseDuration(bad).ok()) << bad;
  }
}

TEST(ParseHostPortTest, AddressesAndNonsense) {
  const auto v4 = ParseHostPort("10.0.0.1:80");
  ASSERT_TRUE(v4.ok());
  EXPECT_EQ(v4->host, "10.0.0.1");
  EXPECT_EQ(v4->port, 80);
  const auto v6 = ParseHostPort("[fe80::1]:65535");
  ASSERT_TRUE(v6.ok());
  EXPECT_EQ(v6->host, "fe80::1");
  for (const char* bad : {"", ":", "host", "host:", "host:x", "host:65536",
                          "::1:80", "[]:1", "a b:1", "host:-1", "h:1:2"}) {
    EXPECT_FALSE(ParseHostPort(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace xcache
