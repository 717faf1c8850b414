// Who we are to an object store, and where that is read: the environment, or a
// file as AWS's tools have it. Web identity: web_identity.h.
#ifndef XCACHE_CACHESTORE_SHARED_CREDENTIALS_H_
#define XCACHE_CACHESTORE_SHARED_CREDENTIALS_H_

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace xcache {

// Secrets: never in a log or a message, but the id, which is none.
struct Credentials {
  std::string access_key_id;
  std::string secret_key;
  std::string session_token;  // empty: not of a session

  bool operator==(const Credentials&) const = default;
};

// INVALID_ARGUMENT: an empty field, or one with bytes that no header takes.
absl::Status CheckCredentials(const Credentials& credentials);

// Thread-safe.
class CredentialsProvider {
 public:
  using Done = std::function<void(absl::StatusOr<Credentials>)>;

  virtual ~CredentialsProvider() = default;

  // Those in force now. `done` is called once, at once or later, in any thread,
  // soon after the deadline at the latest; it must be quick.
  // PERMISSION_DENIED: there are none, and why; UNAVAILABLE or
  // DEADLINE_EXCEEDED: whoever gives them does not answer.
  virtual void Get(std::chrono::steady_clock::time_point deadline,
                   Done done) = 0;
};

// The same always.
std::unique_ptr<CredentialsProvider> FixedCredentials(Credentials credentials);

// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, as they are
// now. NOT_FOUND: neither of the first two is set; INVALID_ARGUMENT: only one.
absl::StatusOr<Credentials> CredentialsFromEnvironment();

// The text of a credentials file: sections "[profile]" with lines
// "aws_access_key_id = ...". NOT_FOUND: no such profile; INVALID_ARGUMENT with
// the line's number; secrets are in no message.
absl::StatusOr<Credentials> ParseCredentialsFile(std::string_view text,
                                                 std::string_view profile);

// From a file that only its owner may read, read again when it changes. A
// change that leaves it broken or absent is logged, and what it said before
// stays in force.
//
// What ParseCredentialsFile or reading the file says.
absl::StatusOr<std::unique_ptr<CredentialsProvider>> CredentialsFromFile(
    std::string path, std::string profile);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_CREDENTIALS_H_
