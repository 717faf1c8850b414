// What every command of `xcache` shares: the global flags, the connection, and
// how results are written.
#ifndef XCACHE_CLIENT_COMMAND_CONTEXT_H_
#define XCACHE_CLIENT_COMMAND_CONTEXT_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "client/command/terminal.h"
#include "client/xcache_client.h"
#include "nlohmann/json.hpp"

namespace xcache::command {

struct Globals {
  std::string address = client::kDefaultAddress;
  std::string metrics_address = "127.0.0.1:9464";
  std::string token;
  std::string ca_file;
  std::string server_name;
  std::string cert_file;
  std::string key_file;
  bool tls = false;
  bool json = false;
  std::optional<double> wait_seconds;
  std::optional<double> timeout_seconds;  // of each call
};

// What the commands that make an answer take.
struct AnswerFlags {
  client::GenerationParams params;
  void AddTo(CLI::App* app);
};

class Context {
 public:
  explicit Context(Globals globals);

  const Globals& globals() const { return globals_; }
  const Style& out() const { return out_; }
  const Style& err() const { return err_; }
  bool json() const { return globals_.json; }

  // A client whose server is ready; waits for it with a spinner.
  absl::StatusOr<std::unique_ptr<client::Client>> Connect() const;
  absl::Status WaitReady(client::Client& client) const;

  // One JSON document on one line of stdout.
  void PrintJson(const nlohmann::json& value) const;
  // What a person should know of an answer, on stderr (see Warnings()).
  void Warn(const client::Answer& answer) const;

 private:
  const Globals globals_;
  const Style out_;
  const Style err_;
};

nlohmann::json ToJson(const client::SessionInfo& session);
nlohmann::json ToJson(const client::ModelInfo& info);
// `with_text`: not where the text has been streamed already.
nlohmann::json ToJson(const client::Answer& answer, bool with_text);
nlohmann::json ToJson(const absl::Status& error);

// What is wrong with an answer that came all the same, a sentence each.
std::vector<std::string> Warnings(const client::Answer& answer);

// "reused 4,032 (disk) · prefilled 96 · 64 tokens at 57.2 tok/s · ..."
std::string AnswerSummary(const client::Answer& answer);

}  // namespace xcache::command

#endif  // XCACHE_CLIENT_COMMAND_CONTEXT_H_
