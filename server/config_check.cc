#include "server/config_check.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <utility>

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
constexpr std::array<std::string_view, 14> kOthers = {
    "XCACHE_ADDRESS",    "XCACHE_TOKEN",       "XCACHE_CA",
    "XCACHE_CERT",       "XCACHE_KEY",         "XCACHE_METRICS_ADDRESS",
    "XCACHE_FORCE_ISA",  "XCACHE_CUDA_PLUGIN", "XCACHE_BUILD",
    "XCACHE_SOURCE_DIR", "XCACHE_TEST_MODEL",  "XCACHE_TEST_TEXT",
    "XCACHE_SEED",       "XCACHE_GEMMA_MODEL"};

// Kubernetes gives each pod the addresses of its Services, a Service "xcache"
// as XCACHE_SERVICE_HOST, XCACHE_PORT_50051_TCP and so on.
bool IsFromKubernetes(std::string_view name) {
  return name.starts_with("XCACHE_SERVICE_") || name == "XCACHE_PORT" ||
         name.starts_with("XCACHE_PORT_");
}

// Where a value came from, in their order of precedence.
std::string SourceOf(const CLI::Option& option, const std::string& name,
                     std::span<const char* const> words,
                     const std::vector<CLI::ConfigItem>& items) {
  const std::string flag = "--" + name;
  for (const std::string_view word : words) {
    if (word == flag || word.starts_with(flag + "=")) return "flag";
  }
  for (const CLI::ConfigItem& item : items) {
    if (item.parents.empty() && item.name == name) return "file";
  }
  const char* variable = std::getenv(option.get_envname().c_str());
  return variable == nullptr || *variable == '\0' ? "default" : "variable";
}

}  // namespace

std::vector<absl::Status> CheckConfigKeys(const CLI::App& app) {
  std::vector<absl::Status> faults;
  const CLI::Option* config = app["--config"];
  const std::vector<std::string> keys = Keys(app);
  for (const std::string& path : config->results()) {
    if (path.empty()) continue;
    std::vector<CLI::ConfigItem> items;
    try {
      items = app.get_config_formatter()->from_file(path);
    } catch (const CLI::Error& error) {
      faults.push_back(absl::InvalidArgumentError(error.what()));
      continue;
    }
    for (const CLI::ConfigItem& item : items) {
      const bool known =
          item.parents.empty() &&
          std::find(keys.begin(), keys.end(), item.name) != keys.end();
      if (known) continue;
      const std::string where = absl::StrCat(path, ":", LineOf(path, item));
      faults.push_back(absl::InvalidArgumentError(
          item.parents.empty()
              ? absl::StrCat(where, ": no key \"", item.name, "\"",
                             DidYouMean(item.name, keys))
              : absl::StrCat(where,
                             ": keys stand outside of any section, not in [",
                             item.parents[0], "]")));
    }
  }
  return faults;
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

std::vector<Setting> SettingsOf(
    const CLI::App& app, std::span<const char* const> words,
    const std::map<std::string_view, std::string>& worked_out) {
  std::vector<CLI::ConfigItem> items;
  for (const std::string& path : app["--config"]->results()) {
    if (path.empty()) continue;
    try {
      items = app.get_config_formatter()->from_file(path);
    } catch (const CLI::Error&) {
      // A fault that is told where it is parsed.
    }
  }
  std::vector<Setting> settings;
  for (const CLI::Option* option : app.get_options({})) {
    if (option->get_envname().empty()) continue;  // --help and its like
    const std::string name = option->get_lnames().front();
    std::string value = option->count() > 0 ? option->as<std::string>()
                                            : option->get_default_str();
    if (const auto it = worked_out.find(name); it != worked_out.end()) {
      value = it->second.empty() ? "none" : it->second;
    }
    settings.push_back(
        {"--" + name, std::move(value), SourceOf(*option, name, words, items)});
  }
  return settings;
}

}  // namespace xcache
