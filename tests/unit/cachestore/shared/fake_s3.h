// S3 in memory behind an HttpPeer, with the faults that a test asks for.
#ifndef XCACHE_TESTS_UNIT_CACHESTORE_SHARED_FAKE_S3_H_
#define XCACHE_TESTS_UNIT_CACHESTORE_SHARED_FAKE_S3_H_

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/mutex.h"
#include "engine/base/sha256.h"
#include "tests/support/http_peer.h"

namespace xcache {

class FakeS3 {
 public:
  // What becomes of a request, the n-th from 0 on: nothing said, it is done and
  // answered.
  struct Fault {
    bool is_done = false;                  // the store does it all the same
    HttpPeer::Reply reply = ResetReply();  // in place of its answer
  };
  using FaultFn =
      std::function<std::optional<Fault>(const HttpPeer::Request&, int n)>;
  struct Object {
    std::string bytes;
    std::string etag;
    HttpHeaders metadata;
  };

  FakeS3() : peer_([this](const HttpPeer::Request& r) { return Serve(r); }) {}

  void set_faults(FaultFn faults) {
    MutexLock lock(mu_);
    faults_ = std::move(faults);
    count_ = 0;
  }
  int port() const { return peer_.port(); }
  std::vector<HttpPeer::Request> requests() const {
    MutexLock lock(mu_);
    return requests_;
  }
  std::optional<Object> Find(const std::string& path) const {
    MutexLock lock(mu_);
    const auto it = objects_.find(path);
    if (it == objects_.end()) return std::nullopt;
    return it->second;
  }
  // As another client would.
  void Set(const std::string& path, const std::string& bytes,
           const HttpHeaders& metadata = {}) {
    MutexLock lock(mu_);
    objects_[path] = {bytes, ToHex(Sha256Of(bytes)).substr(0, 32), metadata};
  }
  void Erase(const std::string& path) {
    MutexLock lock(mu_);
    objects_.erase(path);
  }

  static HttpPeer::Reply Error(int code, const std::string& name) {
    return HttpReply(code, "<Error><Code>" + name + "</Code></Error>");
  }

 private:
  HttpPeer::Reply Serve(const HttpPeer::Request& request) {
    FaultFn faults;
    int n = 0;
    {
      MutexLock lock(mu_);
      requests_.push_back(request);
      faults = faults_;
      n = count_++;
    }
    const auto fault = faults ? faults(request, n) : std::nullopt;
    if (!fault) return Do(request);
    if (fault->is_done) Do(request);
    return fault->reply;
  }

  HttpPeer::Reply Do(const HttpPeer::Request& request) {
    const auto header = [&request](const char* name) {
      const auto it = request.headers.find(name);
      return it == request.headers.end() ? "" : it->second;
    };
    MutexLock lock(mu_);
    const auto it = objects_.find(request.target);
    const bool found = it != objects_.end();
    if (request.method == "PUT") {
      const std::string must_be = header("if-match");
      if (header("if-none-match") == "*" && found) {
        return Error(412, "PreconditionFailed");
      }
      if (!must_be.empty() && !found) return Error(404, "NoSuchKey");
      if (!must_be.empty() && must_be != "\"" + it->second.etag + "\"") {
        return Error(412, "PreconditionFailed");
      }
      Object object{
          request.body, ToHex(Sha256Of(request.body)).substr(0, 32), {}};
      for (const auto& [name, value] : request.headers) {
        if (name.starts_with("x-amz-meta-")) {
          object.metadata.emplace_back(name, value);
        }
      }
      const std::string etag = "\"" + object.etag + "\"";
      objects_[request.target] = std::move(object);
      return HttpReply(200, "", {{"ETag", etag}});
    }
    if (request.method == "DELETE") {
      objects_.erase(request.target);
      return HttpReply(204, "");
    }
    if (!found) {
      HttpPeer::Reply reply = Error(404, "NoSuchKey");
      if (request.method == "HEAD") reply = HttpReply(404, "");
      return reply;
    }
    HttpHeaders headers = it->second.metadata;
    headers.emplace_back("ETag", "\"" + it->second.etag + "\"");
    if (header("if-none-match") == "\"" + it->second.etag + "\"") {
      return HttpReply(304, "", headers);
    }
    HttpPeer::Reply reply = HttpReply(200, it->second.bytes, headers);
    if (request.method == "HEAD") {
      reply.bytes.resize(reply.bytes.size() - it->second.bytes.size());
    }
    return reply;
  }

  mutable Mutex mu_;
  FaultFn faults_ XC_GUARDED_BY(mu_);
  int count_ XC_GUARDED_BY(mu_) = 0;
  std::vector<HttpPeer::Request> requests_ XC_GUARDED_BY(mu_);
  std::map<std::string, Object> objects_ XC_GUARDED_BY(mu_);
  HttpPeer peer_;  // last: its threads use the rest
};

}  // namespace xcache

#endif  // XCACHE_TESTS_UNIT_CACHESTORE_SHARED_FAKE_S3_H_
