// The command line of `xcache` as a whole: global flags, dispatch, errors.
#include "client/command/commands.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/command/exit_code.h"
#include "client/command/text.h"
#include "engine/base/nearest_name.h"

namespace xcache::command {
namespace {

constexpr char kFooter[] =
    "Exit codes: 0 done; 1 failed; 2 bad command line or request; 3 no server, "
    "or not ready\nin time; 4 no such session; 5 not allowed; 6 busy, try "
    "again; 7 exists already;\n8 the session's record is damaged; 130 "
    "interrupted.";

void AddGlobals(CLI::App* app, Globals* globals) {
  app->add_option("-a,--address", globals->address, "Server, host:port")
      ->envname("XCACHE_ADDRESS")
      ->capture_default_str();
  app->add_option("--token", globals->token,
                  "Bearer token; the environment keeps it out of `ps`")
      ->envname("XCACHE_TOKEN");
  app->add_option("--ca", globals->ca_file,
                  "PEM file of the authorities to trust; implies --tls")
      ->envname("XCACHE_CA");
  app->add_flag("--tls", globals->tls, "Use TLS with the system's authorities");
  app->add_option("--server-name", globals->server_name,
                  "Name to expect in the server's certificate");
  CLI::Option* cert =
      app->add_option("--cert", globals->cert_file,
                      "PEM file of a certificate to show to the server; "
                      "implies --tls")
          ->envname("XCACHE_CERT");
  app->add_option("--key", globals->key_file, "PEM file of its private key")
      ->envname("XCACHE_KEY")
      ->needs(cert);
  app->add_option("--metrics-address", globals->metrics_address,
                  "Where `stats` reads /metrics, host:port")
      ->envname("XCACHE_METRICS_ADDRESS")
      ->capture_default_str();
  app->add_option("--wait", globals->wait_seconds,
                  "Seconds to wait for a server that is absent or loads its "
                  "model; without it 60 while it loads, 0 where it is absent")
      ->check(CLI::NonNegativeNumber);
  app->add_option("--timeout", globals->timeout_seconds,
                  "Seconds that each call may take")
      ->check(CLI::PositiveNumber);
  app->add_flag("--json", globals->json, "JSON on stdout, for scripts");
}

}  // namespace

int Fail(const Context& context, const absl::Status& status) {
  if (context.json()) context.PrintJson(ToJson(status));
  std::fprintf(stderr, "%s%s%s\n", std::string(context.err().red).c_str(),
               ErrorLine(status).c_str(),
               std::string(context.err().reset).c_str());
  return ExitCodeOf(status);
}

std::vector<std::string> NamesOfCommands(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) {
    names.push_back(command->get_name());
  }
  return names;
}

std::vector<std::string> NamesOfOptions(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options({})) {
    for (const std::string& name : option->get_lnames()) {
      names.push_back("--" + name);
    }
  }
  return names;
}

namespace {

// What is wrong with a word that nothing takes, and what may have been meant.
std::string UnknownWord(const CLI::App& app, const std::string& word) {
  const CLI::App* innermost = &app;
  std::vector<std::string> options = NamesOfOptions(app);
  while (!innermost->get_subcommands().empty()) {
    innermost = innermost->get_subcommands().front();
    for (std::string& name : NamesOfOptions(*innermost)) {
      options.push_back(std::move(name));
    }
  }
  if (word.starts_with('-')) {
    const std::string name = word.substr(0, word.find('='));
    return absl::StrCat("no option ", name, DidYouMean(name, options));
  }
  const std::vector<std::string> commands = NamesOfCommands(*innermost);
  if (commands.empty()) return absl::StrCat("unexpected argument ", word);
  // "xcache rm" where "xcache sessions rm" is meant.
  for (const CLI::App* command : innermost->get_subcommands({})) {
    for (const std::string& name : NamesOfCommands(*command)) {
      if (name == word) {
        return absl::StrCat("no command ", word, " (did you mean ",
                            command->get_name(), " ", word, "?)");
      }
    }
  }
  return absl::StrCat("no command ", word, DidYouMean(word, commands));
}

// What the process exits with: not 0 where a part of the output was lost.
int Finish(int code) {
  const int error = OutputError();
  if (error == 0) return code;
  std::fprintf(stderr, "error: cannot write the output: %s\n",
               std::strerror(error));
  return code == kExitOk ? kExitFailed : code;
}

}  // namespace

int Main(int argc, const char* const* argv) {
  // gRPC's own log lines would stand beside our messages.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  Globals globals;
  Action action;
  CLI::App app("Talks with an XCache server.", "xcache");
  app.set_version_flag("--version", "xcache " XCACHE_VERSION);
  app.footer(kFooter);
  app.require_subcommand(1);
  app.fallthrough();  // global flags may stand after the command, too
  AddGlobals(&app, &globals);
  AddChat(&app, &action);
  AddAsk(&app, &action);
  AddSessions(&app, &action);
  AddInfo(&app, &action);
  AddStats(&app, &action);
  AddStore(&app, &action);
  AddCompletion(&app, &action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& done) {  // --help, --version
    std::ostringstream out;
    app.exit(done, out);
    Write(out.str());
    return Finish(kExitOk);
  } catch (const CLI::Error& error) {
    const std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
    const std::string what =
        unknown.empty() ? error.what() : UnknownWord(app, unknown.front());
    std::fprintf(stderr, "error: %s (see xcache --help)\n",
                 OneLine(what).c_str());
    return kExitUsage;
  }
  Interrupts::Install();
  return Finish(action(Context(std::move(globals))));
}

}  // namespace xcache::command
