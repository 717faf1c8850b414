// A real S3 server for tests: SeaweedFS, as a process of its own that can be
// killed and started again over the same data.
#ifndef XCACHE_TESTS_SUPPORT_WEED_SERVER_H_
#define XCACHE_TESTS_SUPPORT_WEED_SERVER_H_

#include <sys/types.h>

#include <array>
#include <string>

namespace xcache {

class WeedServer {
 public:
  static constexpr char kAccessKey[] = "AKIDXCACHE";
  static constexpr char kSecretKey[] = "s3cret-of-the-test";
  static constexpr char kReaderAccessKey[] = "AKIDREADER";  // may read alone
  static constexpr char kReaderSecretKey[] = "s3cret-of-the-reader";

  // `program`: the path of `weed`. `folder` is made, and everything is in it.
  WeedServer(std::string program, std::string folder);
  ~WeedServer();  // Kill()
  WeedServer(const WeedServer&) = delete;
  WeedServer& operator=(const WeedServer&) = delete;

  // Returns when its port takes connections; false: it did not come up.
  bool Start();
  void Kill();  // -9
  void Suspend();
  void Resume();

  int port() const { return ports_[0]; }
  int tls_port() const { return ports_[8]; }
  // What its certificate, of 127.0.0.1, is checked with.
  std::string ca_file() const { return folder_ + "/cert.pem"; }

 private:
  const std::string program_;
  const std::string folder_;
  std::array<int, 9> ports_{};
  pid_t pid_ = -1;
};

}  // namespace xcache

#endif  // XCACHE_TESTS_SUPPORT_WEED_SERVER_H_
