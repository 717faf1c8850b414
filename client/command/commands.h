// The commands of `xcache`. Each adds its flags and, when it is the one that
// was called, runs and returns what the process exits with (exit_code.h).
#ifndef XCACHE_CLIENT_COMMAND_COMMANDS_H_
#define XCACHE_CLIENT_COMMAND_COMMANDS_H_

#include <functional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "client/command/context.h"

namespace xcache::command {

// Set by the command line's parse to what is to be run.
using Action = std::function<int(const Context&)>;

void AddChat(CLI::App* app, Action* action);
void AddAsk(CLI::App* app, Action* action);
void AddSessions(CLI::App* app, Action* action);
// Commands of `sessions`.
void AddDocuments(CLI::App* sessions, Action* action);
void AddInfo(CLI::App* app, Action* action);
void AddStats(CLI::App* app, Action* action);
void AddStore(CLI::App* app, Action* action);
// Of all that `app` has by then.
void AddCompletion(CLI::App* app, Action* action);

// Of a command, its own: "list", "--json".
std::vector<std::string> NamesOfCommands(const CLI::App& app);
std::vector<std::string> NamesOfOptions(const CLI::App& app);

// The error on stderr, or as a JSON document on stdout with --json; returns the
// exit code.
int Fail(const Context& context, const absl::Status& status);

// The whole program.
int Main(int argc, const char* const* argv);

}  // namespace xcache::command

#endif  // XCACHE_CLIENT_COMMAND_COMMANDS_H_
