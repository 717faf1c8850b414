// The command line of `xcache` as a whole: global flags, dispatch, errors.
#include "client/command/commands.h"

#include <cstdio>
#include <string>
#include <utility>

#include "client/command/exit_code.h"
#include "client/command/text.h"

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

int Main(int argc, const char* const* argv) {
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
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& done) {  // --help, --version
    return app.exit(done);
  } catch (const CLI::Error& error) {
    std::fprintf(stderr, "error: %s (see xcache --help)\n",
                 OneLine(error.what()).c_str());
    return kExitUsage;
  }
  Interrupts::Install();
  return action(Context(std::move(globals)));
}

}  // namespace xcache::command
