// The way to one server: its channel, one attempt of a call after the other,
// streams of an answer, and a look at whether it serves. Internal; what the
// calls are is xcache_client.cc's.
#ifndef XCACHE_CLIENT_CONNECTION_H_
#define XCACHE_CLIENT_CONNECTION_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>

#include "absl/algorithm/container.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/convert.h"
#include "client/xcache_client.h"
#include "engine/base/status_macros.h"
#include "xcache/v1/inference.grpc.pb.h"
#include "xcache/v1/sessions.grpc.pb.h"

namespace xcache::client {

// Who may try a call again, and when.
enum class Repeat {
  kAlways,     // reads, and what changes nothing the second time
  kIfRefused,  // only where the server says that it did not start
};

// Thread-safe.
class Connection {
 public:
  // Does not wait for the server. InvalidArgument or NotFound: an option is no
  // good.
  static absl::StatusOr<std::unique_ptr<Connection>> Open(
      const ClientOptions& options);

  const std::string& address() const { return options_.address; }

  // One look at the server. `why` is set where it is unreachable.
  absl::StatusOr<Progress> Look(absl::Status* why) const;

  // Calls a method of one of the two services.
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(
      grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                   Response*),
      const Request& request, Repeat repeat) const {
    Response response;
    XC_RETURN_IF_ERROR(WithRetries(
        repeat, Deadline(std::nullopt), nullptr,
        [&](grpc::ClientContext& context) {
          response.Clear();
          NameSession(request, context);
          return Explain((StubOf<Stub>().*method)(&context, request, &response),
                         context);
        }));
    return response;
  }

  // The same; what it gives is the client's plain type.
  template <typename Stub, typename Request, typename Response>
  auto Get(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                        Response*),
           const Request& request, Repeat repeat) const
      -> absl::StatusOr<decltype(FromProto(std::declval<Response>()))> {
    XC_ASSIGN_OR_RETURN(const Response response, Call(method, request, repeat));
    return FromProto(response);
  }

  // One server stream of text deltas, tokens and, last, `final`.
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Answer> Stream(std::unique_ptr<grpc::ClientReader<Response>> (
                                    Stub::*method)(grpc::ClientContext*,
                                                   const Request&),
                                const Request& request, Repeat repeat,
                                const StreamOptions& stream) const {
    Answer answer;
    bool begun = false;
    bool finished = false;
    const absl::Time called = absl::Now();
    XC_RETURN_IF_ERROR(WithRetries(
        repeat, Deadline(stream.deadline), stream.cancel,
        [&](grpc::ClientContext& context) {
          NameSession(request, context);
          auto reader = (StubOf<Stub>().*method)(&context, request);
          Response response;
          while (reader->Read(&response)) {
            if (!begun) answer.client_ttft = absl::Now() - called;
            begun = true;
            for (const v1::SampledToken& token : response.logprobs()) {
              answer.tokens.push_back(FromProto(token));
              if (stream.on_token) stream.on_token(answer.tokens.back());
            }
            if (!response.delta().empty()) {
              answer.text += response.delta();
              if (stream.on_delta) stream.on_delta(response.delta());
            }
            if (response.has_final()) {
              FromProto(response.final(), &answer);
              finished = true;
            }
          }
          return Explain(reader->Finish(), context);
        },
        [&] { return begun; }));
    if (!finished) {
      return absl::InternalError(
          "the server ended the stream without its final message");
    }
    return answer;
  }

 private:
  explicit Connection(const ClientOptions& options) : options_(options) {}

  // Says which session a call is of, for load balancers that keep a session
  // with its server (deploy/kubernetes). An id that the server will refuse is
  // not sent, as gRPC would stop at what no header may hold.
  template <typename Request>
  static void NameSession(const Request& request,
                          grpc::ClientContext& context) {
    std::string id;
    if constexpr (requires { request.session_id(); }) {
      id = request.session_id();
    } else if constexpr (requires { request.id(); }) {
      id = request.id();
    }
    if (!id.empty() && absl::c_all_of(id, absl::ascii_isgraph)) {
      context.AddMetadata("x-session-id", id);
    }
  }

  template <typename Stub>
  Stub& StubOf() const {
    if constexpr (std::is_same_v<Stub, v1::Inference::Stub>) {
      return *inference_;
    } else {
      return *sessions_;
    }
  }

  absl::Time Deadline(std::optional<absl::Duration> own) const;
  // With the server's hint of when to try again, and in words where there was
  // no server.
  absl::Status Explain(const grpc::Status& status,
                       const grpc::ClientContext& context) const;
  // Runs `attempt` until it succeeds, may not be repeated or has been tried
  // often enough. `begun` says whether the last attempt gave out anything.
  absl::Status WithRetries(
      Repeat repeat, absl::Time deadline, CancelHandle* cancel,
      const std::function<absl::Status(grpc::ClientContext&)>& attempt,
      const std::function<bool()>& begun = nullptr) const;
  void AskWhy(Progress* progress) const;

  ClientOptions options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Sessions::Stub> sessions_;
};

}  // namespace xcache::client

#endif  // XCACHE_CLIENT_CONNECTION_H_
