#include "server/http/http_server.h"

#include <atomic>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "boost/asio/executor_work_guard.hpp"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ssl/context.hpp"
#include "engine/base/log.h"
#include "engine/base/mutex.h"
#include "engine/base/status_macros.h"
#include "server/http/connection.h"

namespace xcache {
namespace {

namespace asio = boost::asio;

// They parse heads, copy bodies and write answers; what takes long has threads
// of its own (server/frontend/work_classes.h).
constexpr int kThreads = 2;

int ChooseHttp11(SSL*, const unsigned char** out, unsigned char* size,
                 const unsigned char* offered, unsigned offered_size, void*) {
  static constexpr unsigned char kProtocols[] = "\x08http/1.1";
  unsigned char* chosen = nullptr;
  if (SSL_select_next_proto(&chosen, size, kProtocols, sizeof(kProtocols) - 1,
                            offered, offered_size) != OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_NOACK;
  }
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

// Null: TLS does not take it, which TlsIdentity has checked.
std::shared_ptr<asio::ssl::context> MakeTlsContext(const TlsPem& pem) {
  auto context =
      std::make_shared<asio::ssl::context>(asio::ssl::context::tls_server);
  boost::system::error_code error;
  const auto failed = [&] {
    if (!error) return false;
    XC_LOG_ERROR("TLS identity not used", "error={}",
                 LogValue(error.message()));
    return true;
  };
  context->set_options(
      asio::ssl::context::default_workarounds | asio::ssl::context::no_tlsv1 |
          asio::ssl::context::no_tlsv1_1 | asio::ssl::context::no_compression,
      error);
  if (failed()) return nullptr;
  context->use_certificate_chain(asio::buffer(pem.cert), error);
  if (failed()) return nullptr;
  context->use_private_key(asio::buffer(pem.key), asio::ssl::context::pem,
                           error);
  if (failed()) return nullptr;
  if (!pem.client_ca.empty()) {
    context->add_certificate_authority(asio::buffer(pem.client_ca), error);
    if (failed()) return nullptr;
    context->set_verify_mode(
        asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert, error);
    if (failed()) return nullptr;
  }
  SSL_CTX_set_alpn_select_cb(context->native_handle(), ChooseHttp11, nullptr);
  // Resumed sessions would go on after a client's certificate was revoked.
  SSL_CTX_set_session_cache_mode(context->native_handle(), SSL_SESS_CACHE_OFF);
  return context;
}

class HttpServerImpl final : public HttpServer {
 public:
  HttpServerImpl(const HttpServerOptions& options,
                 std::unique_ptr<HttpHandler> handler,
                 std::unique_ptr<Listener> listener)
      : options_(options),
        handler_(std::move(handler)),
        listener_(std::move(listener)),
        arriving_(options.arriving_bytes),
        deps_{options_, *handler_, *listener_, arriving_, draining_},
        io_(kThreads),
        work_(io_.get_executor()) {
    for (int i = 0; i < kThreads; ++i) {
      threads_.emplace_back([this] { io_.run(); });
    }
    listener_->Start(
        [this](int fd, const std::string& peer) { Accept(fd, peer); });
  }
  ~HttpServerImpl() override { Shutdown(std::chrono::steady_clock::now()); }

  const std::string& address() const override { return listener_->address(); }
  Listener::Stats connections() override { return listener_->stats(); }

  void StopServing() override {
    draining_ = true;
    for (const auto& connection : Connections()) connection->Drain();
  }

  void Shutdown(std::chrono::steady_clock::time_point deadline) override {
    if (threads_.empty()) return;
    listener_->Stop();
    StopServing();
    {
      MutexLock lock(mu_);
      while (!connections_.empty()) {
        const auto left = deadline - std::chrono::steady_clock::now();
        if (left <= std::chrono::steady_clock::duration::zero()) break;
        gone_.WaitFor(mu_, std::chrono::ceil<std::chrono::milliseconds>(left));
      }
    }
    for (const auto& connection : Connections()) connection->Cut();
    // Then nothing is left to do, and the threads end by themselves.
    work_.reset();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    MutexLock lock(mu_);
    while (!connections_.empty()) gone_.Wait(mu_);
  }

 private:
  void Accept(int fd, const std::string& peer) {
    std::shared_ptr<asio::ssl::context> tls;
    if (options_.tls != nullptr) tls = TlsContext();
    uint64_t number = 0;
    {
      MutexLock lock(mu_);
      number = ++last_number_;
      connections_[number];
    }
    const std::shared_ptr<void> registration(
        nullptr, [this, number](void*) { Forget(number); });
    const auto connection =
        MakeConnection(io_, fd, peer, std::move(tls), deps_, registration);
    {
      MutexLock lock(mu_);
      connections_[number] = connection;
    }
    connection->Start();
  }
  void Forget(uint64_t number) XC_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    connections_.erase(number);
    gone_.SignalAll();
  }
  std::vector<std::shared_ptr<Connection>> Connections() XC_EXCLUDES(mu_) {
    std::vector<std::shared_ptr<Connection>> out;
    MutexLock lock(mu_);
    for (const auto& [_, weak] : connections_) {
      if (auto connection = weak.lock()) out.push_back(std::move(connection));
    }
    return out;
  }

  // Of the listener's thread alone.
  std::shared_ptr<asio::ssl::context> TlsContext() {
    const std::shared_ptr<const TlsPem> pem = options_.tls->pem();
    if (tls_ == nullptr || tls_generation_ != pem->generation) {
      if (auto context = MakeTlsContext(*pem)) tls_ = std::move(context);
      tls_generation_ = pem->generation;
    }
    return tls_;
  }

  const HttpServerOptions options_;
  const std::unique_ptr<HttpHandler> handler_;
  const std::unique_ptr<Listener> listener_;
  RequestBytes arriving_;
  std::atomic<bool> draining_{false};
  const ConnectionDeps deps_;
  std::shared_ptr<asio::ssl::context> tls_;
  uint64_t tls_generation_ = 0;
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::vector<std::thread> threads_;

  Mutex mu_;
  CondVar gone_;
  uint64_t last_number_ XC_GUARDED_BY(mu_) = 0;
  std::unordered_map<uint64_t, std::weak_ptr<Connection>> connections_
      XC_GUARDED_BY(mu_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Listen(
    const HttpServerOptions& options, std::unique_ptr<HttpHandler> handler) {
  XC_ASSIGN_OR_RETURN(auto listener, Listener::Bind(options.listen));
  if (options.tls != nullptr &&
      MakeTlsContext(*options.tls->pem()) == nullptr) {
    return absl::InvalidArgumentError(
        "--tls-cert and --tls-key are not what TLS takes: see the log");
  }
  return std::make_unique<HttpServerImpl>(options, std::move(handler),
                                          std::move(listener));
}

}  // namespace xcache
