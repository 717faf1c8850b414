#include "server/http/connection.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "boost/asio/basic_waitable_timer.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/post.hpp"
#include "boost/asio/ssl/stream.hpp"
#include "boost/asio/strand.hpp"
#include "boost/asio/write.hpp"
#include "boost/beast/core/flat_buffer.hpp"
#include "boost/beast/http/parser.hpp"
#include "boost/beast/http/read.hpp"
#include "boost/beast/http/string_body.hpp"
#include "server/frontend/frontend_call.h"
#include "server/frontend/trace_context.h"

namespace xcache {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::beast::string_view;
using boost::system::error_code;
using tcp = asio::ip::tcp;
using Strand = asio::strand<asio::io_context::executor_type>;
using Socket = asio::basic_stream_socket<tcp, Strand>;
using TlsStream = asio::ssl::stream<Socket>;
using Clock = std::chrono::steady_clock;
using Timer =
    asio::basic_waitable_timer<Clock, asio::wait_traits<Clock>, Strand>;
using Parser = http::request_parser<http::string_body>;

constexpr size_t kMaxHeadBytes = size_t{16} << 10;
// A head, and what comes with it of the body.
constexpr size_t kMaxBufferBytes = size_t{64} << 10;
constexpr size_t kReadBytes = size_t{4} << 10;
// What is first set aside for a body that does not tell its length.
constexpr size_t kBodyStepBytes = size_t{256} << 10;
// How long what a peer still sends is read, after the last answer: closed at
// once, the answer might never reach it (RFC 9112, section 9.6).
constexpr std::chrono::milliseconds kLingerTime{2'000};

std::string_view View(string_view text) { return {text.data(), text.size()}; }

std::optional<std::string> Value(const Parser::value_type& message,
                                 std::string_view name) {
  const auto found = message.find(string_view(name.data(), name.size()));
  if (found == message.end()) return std::nullopt;
  return std::string(View(found->value()));
}

// What the parser lets through and a server must not: where two read a message
// differently, one of them can be made to take a request for a body. Nothing:
// it is sound.
std::optional<std::string> FaultOf(const Parser& parser) {
  const auto& message = parser.get();
  const auto count = [&](http::field field) {
    const auto [begin, end] = message.equal_range(field);
    return std::distance(begin, end);
  };
  if (message.version() != 10 && message.version() != 11) {
    return "expected HTTP/1.1";
  }
  const auto hosts = count(http::field::host);
  if (hosts > 1 || (hosts == 0 && message.version() == 11)) {
    return "expected one Host header";
  }
  if (count(http::field::authorization) > 1) {
    return "expected at most one Authorization header";
  }
  if (const auto encodings = count(http::field::transfer_encoding);
      encodings > 0) {
    const std::string_view value =
        View(message[http::field::transfer_encoding]);
    if (encodings > 1 || message.version() != 11 ||
        !absl::EqualsIgnoreCase({value.data(), value.size()}, "chunked")) {
      return "expected no Transfer-Encoding other than chunked";
    }
  }
  return std::nullopt;
}

template <typename Stream>
class ConnectionImpl final
    : public Connection,
      public std::enable_shared_from_this<ConnectionImpl<Stream>> {
 public:
  ConnectionImpl(Strand strand, Socket socket, const std::string& peer,
                 std::shared_ptr<asio::ssl::context> tls,
                 const ConnectionDeps& deps, std::shared_ptr<void> registration)
      : registration_(std::move(registration)),
        deps_(deps),
        peer_(peer),
        strand_(std::move(strand)),
        tls_(std::move(tls)),
        stream_(MakeStream(std::move(socket), tls_.get())),
        timer_(strand_) {}

  void Start() override {
    asio::post(strand_, [self = this->shared_from_this()] {
      if constexpr (kIsTls) {
        self->Arm(self->deps_.options.head_timeout);
        self->stream_.async_handshake(asio::ssl::stream_base::server,
                                      [self](error_code error) {
                                        if (error) return self->Close();
                                        self->ReadNext();
                                      });
      } else {
        self->ReadNext();
      }
    });
  }
  void Drain() override {
    asio::post(strand_, [self = this->shared_from_this()] {
      if (self->phase_ == Phase::kIdle) self->Close();
    });
  }
  void Cut() override {
    asio::post(strand_, [self = this->shared_from_this()] { self->Close(); });
  }

 private:
  static constexpr bool kIsTls = std::is_same_v<Stream, TlsStream>;

  enum class Phase {
    kHandshake,
    kIdle,    // nothing of a request is there
    kHead,    // of a request is read
    kBody,    // of it, too
    kAnswer,  // is made and written
    kLinger,  // the last answer is written
    kClosed,
  };

  static Stream MakeStream(Socket socket, asio::ssl::context* tls) {
    if constexpr (kIsTls) {
      return Stream(std::move(socket), *tls);
    } else {
      return socket;
    }
  }
  Socket& socket() {
    if constexpr (kIsTls) {
      return stream_.next_layer();
    } else {
      return stream_;
    }
  }

  void Arm(std::chrono::milliseconds time) {
    timer_.expires_after(time);
    // One that has run out just now may be under way already.
    timer_.async_wait([self = this->shared_from_this(),
                       number = ++timer_number_](error_code error) {
      if (!error && number == self->timer_number_) self->OnTimeout();
    });
  }
  void Disarm() {
    ++timer_number_;
    timer_.cancel();
  }

  void OnTimeout() {
    if (phase_ != Phase::kHead && phase_ != Phase::kBody) return Close();
    timed_out_ = true;
    error_code ignored;
    socket().cancel(ignored);  // the read ends, and says so to the peer
  }

  void Close() {
    if (phase_ == Phase::kClosed) return;
    phase_ = Phase::kClosed;
    Disarm();
    if (exchange_ != nullptr) exchange_->cancellation()->Cancel();
    error_code ignored;
    socket().shutdown(Socket::shutdown_both, ignored);
    socket().close(ignored);
  }

  void ReadNext() {
    parser_.emplace();
    parser_->header_limit(kMaxHeadBytes);
    parser_->body_limit(static_cast<uint64_t>(deps_.options.max_body_bytes));
    arriving_.clear();
    held_bytes_ = 0;
    SkipLineEnds();
    if (buffer_.size() > 0) return ReadHead();
    phase_ = Phase::kIdle;
    Arm(deps_.options.idle_timeout);
    Watch();
  }
  // Some clients end a body with a line that belongs to nothing (RFC 9112,
  // section 2.2).
  void SkipLineEnds() {
    while (buffer_.size() > 0) {
      const char first = *static_cast<const char*>(buffer_.data().data());
      if (first != '\r' && first != '\n') return;
      buffer_.consume(1);
    }
  }

  // Waits for bytes, or the end of them: the next request, or, while an answer
  // is made, a client that goes away.
  void Watch() {
    if (watching_) return;
    watching_ = true;
    stream_.async_read_some(
        buffer_.prepare(kReadBytes),
        [self = this->shared_from_this()](error_code error, size_t size) {
          self->watching_ = false;
          self->buffer_.commit(size);
          self->OnWatched(error);
        });
  }
  void OnWatched(error_code error) {
    switch (phase_) {
      case Phase::kIdle:
        if (error) return Close();
        SkipLineEnds();
        return buffer_.size() > 0 ? ReadHead() : Watch();
      case Phase::kAnswer:
        if (!error) return;  // a request sent ahead; it is no longer watched
        peer_gone_ = true;
        return exchange_->cancellation()->Cancel();
      case Phase::kLinger:
        if (error) return Close();
        buffer_.clear();
        return Watch();
      default:
        return;
    }
  }

  void ReadHead() {
    phase_ = Phase::kHead;
    Arm(deps_.options.head_timeout);
    http::async_read_header(
        stream_, buffer_, *parser_,
        [self = this->shared_from_this()](error_code error, size_t) {
          if (error) return self->ReadFailed(error);
          self->OnHead();
        });
  }

  void ReadFailed(error_code error) {
    if (phase_ == Phase::kClosed) return;
    if (timed_out_) {
      return Fail(408, "the request did not arrive in time");
    }
    if (error.category() != http::make_error_code(http::error{}).category() ||
        error == http::error::end_of_stream ||
        error == http::error::partial_message) {
      return Close();  // the peer is gone
    }
    if (error == http::error::header_limit ||
        error == http::error::buffer_overflow) {
      return Fail(431, "the request's head is larger than 16 KiB");
    }
    if (error == http::error::body_limit) {
      return Fail(413, "the request's body is larger than " +
                           std::to_string(deps_.options.max_body_bytes) +
                           " bytes");
    }
    Fail(400, "no valid HTTP request: " + error.message());
  }
  void OnHead() {
    if (const auto fault = FaultOf(*parser_)) return Fail(400, *fault);
    const auto& message = parser_->get();
    if (!message[http::field::content_encoding].empty()) {
      return Fail(415, "expected a body that is not compressed");
    }
    head_ = HttpHead();
    head_.method = std::string(View(message.method_string()));
    SplitTarget(View(message.target()), &head_.path, &head_.query);
    head_.peer = peer_;
    head_.keep_alive = parser_->keep_alive() && !deps_.draining;
    head_.chunks = message.version() == 11;
    head_.authorization = Value(message, "authorization");
    head_.content_type = Value(message, "content-type");
    head_.request_id = Value(message, kRequestIdHeader);
    head_.session = Value(message, "x-session-id");
    if (!head_.session.has_value()) {
      head_.session = Value(message, "x-openwebui-chat-id");
    }
    // A call that names two traces is of neither.
    if (message.count(kTraceparentHeader) == 1) {
      head_.traceparent = Value(message, kTraceparentHeader);
    }
    HttpHandler::Verdict verdict = deps_.handler.Judge(&head_);
    if (verdict.trusted) deps_.listener.MarkTrusted(peer_);
    if (verdict.refusal.has_value()) {
      // Without its body, what comes next is not to be told from it.
      const bool keep = parser_->is_done() && head_.keep_alive;
      return Answer(*verdict.refusal, keep);
    }
    const auto length = parser_->content_length();
    if (length.has_value() && !Hold(*length)) return NoRoom();
    phase_ = Phase::kBody;
    Arm(deps_.options.body_timeout);
    if (!parser_->is_done() &&
        boost::beast::iequals(message[http::field::expect], "100-continue")) {
      out_ = "HTTP/1.1 100 Continue\r\n\r\n";
      asio::async_write(
          stream_, asio::buffer(out_),
          [self = this->shared_from_this()](error_code error, size_t) {
            if (error) return self->Close();
            self->ReadBody();
          });
      return;
    }
    ReadBody();
  }

  bool Hold(uint64_t bytes) {
    auto held = deps_.arriving.Hold(static_cast<int64_t>(bytes));
    if (!held.has_value()) return false;
    held_bytes_ += bytes;
    arriving_.push_back(*std::move(held));
    return true;
  }
  void NoRoom() {
    Fail(429, "the requests that arrive take the memory set aside for them");
  }

  // For the next piece of a body whose length nobody has told, in the body's
  // own memory too: by itself it would take twice what is in it.
  bool MakeRoom() {
    std::string& body = parser_->get().body();
    if (parser_->content_length().has_value() ||
        body.size() + kMaxBufferBytes <= held_bytes_) {
      return true;
    }
    const uint64_t most =
        static_cast<uint64_t>(deps_.options.max_body_bytes) + kMaxBufferBytes;
    if (held_bytes_ >= most) return true;  // the next piece is too much
    if (!Hold(std::min(most - held_bytes_,
                       std::max<uint64_t>(held_bytes_, kBodyStepBytes)))) {
      return false;
    }
    body.reserve(held_bytes_);
    return true;
  }

  void ReadBody() {
    if (phase_ == Phase::kClosed) return;
    if (parser_->is_done()) return Dispatch();
    if (arriving_.empty() && !MakeRoom()) return NoRoom();
    http::async_read_some(
        stream_, buffer_, *parser_,
        [self = this->shared_from_this()](error_code error, size_t) {
          if (error) return self->ReadFailed(error);
          if (!self->MakeRoom()) return self->NoRoom();
          self->ReadBody();
        });
  }

  void Dispatch() {
    Disarm();
    phase_ = Phase::kAnswer;
    exchange_ = std::make_shared<Exchange>(
        std::move(head_), std::move(parser_->get().body()),
        std::exchange(arriving_, {}), deps_.options.frontend->stream_limits,
        [weak = this->weak_from_this()](bool cut) {
          if (const auto self = weak.lock()) self->Wake(cut);
        });
    deps_.options.frontend->watchdog.Add(exchange_);
    deps_.handler.Handle(exchange_);
    Watch();
  }

  // From any thread.
  void Wake(bool cut) {
    if (cut) return Cut();
    if (woken_.exchange(true)) return;
    asio::post(strand_, [self = this->shared_from_this()] {
      self->woken_ = false;
      self->Pump();
    });
  }

  void Pump() {
    if (phase_ != Phase::kAnswer || exchange_ == nullptr) return;
    auto step = exchange_->queue().Next();
    if (!step.write) {
      if (step.end) EndAnswer();
      return;
    }
    out_ = std::move(step.message.bytes);
    asio::async_write(stream_, asio::buffer(out_),
                      [self = this->shared_from_this(), end = step.end](
                          error_code error, size_t) {
                        if (self->exchange_ == nullptr) return;
                        self->exchange_->queue().WriteDone(!error);
                        if (error) return self->Close();
                        if (end) return self->EndAnswer();
                        self->Pump();
                      });
  }

  void EndAnswer() {
    if (phase_ != Phase::kAnswer) return;
    const bool keep = exchange_->keep_alive() && !peer_gone_ && !deps_.draining;
    exchange_.reset();
    if (keep) return ReadNext();
    Linger();
  }

  void Fail(int status, std::string_view message) {
    Answer(deps_.handler.Fault(status, message), /*keep=*/false);
  }
  void Answer(const HttpResponse& response, bool keep) {
    if (phase_ == Phase::kClosed) return;
    phase_ = Phase::kLinger;
    timed_out_ = false;
    Arm(deps_.options.head_timeout);
    out_ = RenderResponse(response, head_.method != "HEAD", keep);
    asio::async_write(
        stream_, asio::buffer(out_),
        [self = this->shared_from_this(), keep](error_code error, size_t) {
          if (error) return self->Close();
          if (keep) return self->ReadNext();
          self->Linger();
        });
  }

  void Linger() {
    if (phase_ == Phase::kClosed) return;
    if (peer_gone_) return Close();
    phase_ = Phase::kLinger;
    Arm(kLingerTime);
    if constexpr (kIsTls) {
      stream_.async_shutdown(
          [self = this->shared_from_this()](error_code) { self->Close(); });
    } else {
      error_code ignored;
      socket().shutdown(Socket::shutdown_send, ignored);
      buffer_.clear();
      Watch();
    }
  }

  const std::shared_ptr<void> registration_;
  const ConnectionDeps& deps_;
  const std::string peer_;
  Strand strand_;
  const std::shared_ptr<asio::ssl::context> tls_;
  // On the strand.
  Stream stream_;
  Timer timer_;
  uint64_t timer_number_ = 0;
  Phase phase_ = Phase::kHandshake;
  bool timed_out_ = false;
  bool watching_ = false;
  bool peer_gone_ = false;
  boost::beast::flat_buffer buffer_{kMaxBufferBytes};
  std::optional<Parser> parser_;
  HttpHead head_;
  std::vector<RequestBytes::Held> arriving_;
  uint64_t held_bytes_ = 0;
  std::shared_ptr<Exchange> exchange_;
  std::string out_;  // what is written now
  std::atomic<bool> woken_{false};
};

}  // namespace

std::shared_ptr<Connection> MakeConnection(
    asio::io_context& io, int fd, const std::string& peer,
    std::shared_ptr<asio::ssl::context> tls, const ConnectionDeps& deps,
    std::shared_ptr<void> registration) {
  Strand strand = asio::make_strand(io);
  Socket socket(strand, peer.starts_with('[') ? tcp::v6() : tcp::v4(), fd);
  if (tls != nullptr) {
    return std::make_shared<ConnectionImpl<TlsStream>>(
        std::move(strand), std::move(socket), peer, std::move(tls), deps,
        std::move(registration));
  }
  return std::make_shared<ConnectionImpl<Socket>>(
      std::move(strand), std::move(socket), peer, nullptr, deps,
      std::move(registration));
}

}  // namespace xcache
