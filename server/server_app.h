// The whole server in one process: opens what the configuration names, puts the
// parts together, and takes them apart again in order.
//
//   XC_ASSIGN_OR_RETURN(auto app, ServerApp::Listen(config));  // ports are
//   open XC_RETURN_IF_ERROR(app->Load());  // health says SERVING from now on
//   ...
//   app->Stop(std::chrono::seconds(30));
#ifndef XCACHE_SERVER_SERVER_APP_H_
#define XCACHE_SERVER_SERVER_APP_H_

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/config.h"
#include "server/metrics/metrics.h"

namespace xcache {

class ServerApp {
 public:
  // Reads tokens and TLS files and opens the ports. Calls get UNAVAILABLE and
  // health probes NOT_SERVING until Load is through.
  static absl::StatusOr<std::unique_ptr<ServerApp>> Listen(
      const Config& config);
  // Stops at once, where it was not stopped before.
  virtual ~ServerApp() = default;

  // Loads the model, opens the store, makes or loads the profile; then serves.
  // Takes seconds to minutes. Call once.
  virtual absl::Status Load() = 0;

  // Takes no new request, lets running turns go on for up to `drain`, writes
  // what is to be written and closes everything. Returns how many turns were
  // cut short. REQUIRES: no Load is under way.
  virtual int Stop(std::chrono::seconds drain) = 0;

  // Reads token and TLS files again, as happens by itself when they change; of
  // bad ones, what was read before stays in use. The log says what came of it.
  virtual void ReloadCredentials() = 0;

  // With the ports that were really bound. Without a metrics page, or an HTTP
  // API: empty.
  virtual const std::string& address() const = 0;
  virtual const std::string& http_address() const = 0;
  virtual const std::string& metrics_address() const = 0;
  virtual const Metrics& metrics() const = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_SERVER_APP_H_
