#include "server/config_check.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <string_view>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/nearest_name.h"

namespace xcache {
namespace {

// The line, from 1, where a key or a [section] stands; 0 where it does not.
int LineOf(const std::string& path, const CLI::ConfigItem& item) {
  std::ifstream in(path);
  std::string text;
  const std::string section =
      item.parents.empty() ? "" : absl::StrCat("[", item.parents[0], "]");
  for (int number = 1; std::getline(in, text); ++number) {
    const absl::string_view line = absl::StripAsciiWhitespace(text);
    const absl::string_view key =
        absl::StripAsciiWhitespace(line.substr(0, line.find('=')));
    if (key == item.name || key == item.fullname() ||
        (!section.empty() && line == section)) {
      return number;
    }
  }
  return 0;
}

// What may be set: all but --help, --version and --config itself.
std::vector<std::string> Keys(const CLI::App& app) {
  std::vector<std::string> keys;
  for (const CLI::Option* option : app.get_options({})) {
    if (!option->get_configurable()) continue;
    for (const std::string& name : option->get_lnames()) keys.push_back(name);
  }
  return keys;
}

// Read by the command `xcache`, by the engine, or by the project's own tests.
constexpr std::array<std::string_view, 13> kOthers = {
    "XCACHE_ADDRESS",    "XCACHE_TOKEN",       "XCACHE_CA",
    "XCACHE_CERT",       "XCACHE_KEY",         "XCACHE_METRICS_ADDRESS",
    "XCACHE_FORCE_ISA",  "XCACHE_CUDA_PLUGIN", "XCACHE_BUILD",
    "XCACHE_SOURCE_DIR", "XCACHE_TEST_MODEL",  "XCACHE_TEST_TEXT",
    "XCACHE_SEED"};

// Kubernetes gives each pod the addresses of its Services, a Service "xcache"
// as XCACHE_SERVICE_HOST, XCACHE_PORT_50051_TCP and so on.
bool IsFromKubernetes(std::string_view name) {
  return name.starts_with("XCACHE_SERVICE_") || name == "XCACHE_PORT" ||
         name.starts_with("XCACHE_PORT_");
}

}  // namespace

absl::Status CheckConfigKeys(const CLI::App& app) {
  const CLI::Option* config = app["--config"];
  const std::vector<std::string> keys = Keys(app);
  for (const std::string& path : config->results()) {
    if (path.empty()) continue;
    std::vector<CLI::ConfigItem> items;
    try {
      items = app.get_config_formatter()->from_file(path);
    } catch (const CLI::Error& error) {
      return absl::InvalidArgumentError(error.what());
    }
    for (const CLI::ConfigItem& item : items) {
      const bool known =
          item.parents.empty() &&
          std::find(keys.begin(), keys.end(), item.name) != keys.end();
      if (known) continue;
      const std::string where = absl::StrCat(path, ":", LineOf(path, item));
      if (!item.parents.empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat(where, ": keys stand outside of any section, not in [",
                         item.parents[0], "]"));
      }
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": no key \"", item.name, "\"", DidYouMean(item.name, keys)));
    }
  }
  return absl::OkStatus();
}

std::vector<std::string> UnknownVariables(const CLI::App& app,
                                          const char* const* environment) {
  std::vector<std::string> known;
  for (const CLI::Option* option : app.get_options({})) {
    if (const std::string name = option->get_envname(); !name.empty()) {
      known.push_back(name);
    }
  }
  known.emplace_back("XCACHE_CONFIG");
  std::vector<std::string> out;
  for (; *environment != nullptr; ++environment) {
    const std::string_view entry = *environment;
    const std::string_view name = entry.substr(0, entry.find('='));
    if (!name.starts_with("XCACHE_") || IsFromKubernetes(name) ||
        std::find(known.begin(), known.end(), name) != known.end() ||
        std::find(kOthers.begin(), kOthers.end(), name) != kOthers.end()) {
      continue;
    }
    out.push_back(absl::StrCat("no setting is named ", std::string(name),
                               DidYouMean(name, known)));
  }
  return out;
}

}  // namespace xcache
