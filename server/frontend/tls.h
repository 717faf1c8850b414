// The server's TLS identity: PEM files, checked before a TLS library sees them
// (which says no more of a bad one than that a handshake failed), and read
// again on demand.
#ifndef XCACHE_SERVER_FRONTEND_TLS_H_
#define XCACHE_SERVER_FRONTEND_TLS_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/base/mutex.h"

namespace xcache {

struct TlsFiles {
  std::string cert;       // the chain, PEM; empty: plaintext
  std::string key;        // its private key, PEM; not readable by everybody
  std::string client_ca;  // where given, clients must show a certificate
};

// What the files held when they were last read and found good.
struct TlsPem {
  std::string cert, key, client_ca;
  uint64_t generation = 0;  // of this identity, from 1 on
};

// Thread-safe.
class TlsIdentity {
 public:
  // NOT_FOUND, PERMISSION_DENIED or INVALID_ARGUMENT, naming file and fault:
  // not readable, a key for everybody, no PEM, key and certificate do not
  // belong together, expired.
  static absl::StatusOr<std::shared_ptr<TlsIdentity>> Load(
      const TlsFiles& files);

  // Reads the files again. Where that fails, what was read before stays.
  absl::Status Reload() XC_EXCLUDES(mu_);

  std::shared_ptr<const TlsPem> pem() const XC_EXCLUDES(mu_);
  const TlsFiles& files() const { return files_; }

 private:
  explicit TlsIdentity(const TlsFiles& files) : files_(files) {}

  const TlsFiles files_;
  mutable Mutex mu_;
  std::shared_ptr<const TlsPem> pem_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_TLS_H_
