// A tenant's limit on requests, over the wire.
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "server/grpc/rpc_server.h"
#include "server/grpc/status.h"
#include "tests/unit/server/grpc/eventually.h"
#include "tests/unit/server/grpc/fake_core.h"
#include "xcache/v1/inference.grpc.pb.h"
#include "xcache/v1/sessions.grpc.pb.h"

namespace xcache {
namespace {

using testing::Eventually;
using ::testing::HasSubstr;

class RpcTenantsTest : public ::testing::Test {
 protected:
  void Start(const std::string& tokens) {
    const std::string path = ::testing::TempDir() + "/rpc_tenants_test." +
                             std::to_string(getpid()) + ".tokens";
    unlink(path.c_str());
    std::ofstream(path) << tokens;
    chmod(path.c_str(), 0600);
    auth_ = Authenticator::Create(path, &tenants_).value();
    unlink(path.c_str());
    RpcServerOptions options;
    options.listen.address = "127.0.0.1:0";
    frontend_ = std::make_unique<Frontend>(Frontend::Options{
        .metrics = &metrics_, .auth = auth_.get(), .tenants = &tenants_});
    frontend_->gate.Open(&core_);
    options.frontend = frontend_.get();
    server_ = RpcServer::Listen(options).value();
    const auto channel = grpc::CreateChannel(
        server_->address(), grpc::InsecureChannelCredentials());
    inference_ = v1::Inference::NewStub(channel);
    sessions_ = v1::Sessions::NewStub(channel);
  }

  struct Call {
    Call(v1::Inference::Stub& stub, const std::string& token,
         const std::string& command) {
      context.AddMetadata("authorization", "Bearer " + token);
      v1::ChatRequest request;
      v1::Message* message = request.add_messages();
      message->set_role(v1::ROLE_USER);
      message->set_content(command);
      reader = stub.Chat(&context, request);
    }
    grpc::Status Finish() {
      v1::ChatResponse response;
      while (reader->Read(&response)) {
      }
      return reader->Finish();
    }
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::ChatResponse>> reader;
  };

  TenantLedger tenants_;
  Metrics metrics_;
  testing::FakeCore core_;
  std::unique_ptr<Authenticator> auth_;
  std::unique_ptr<Frontend> frontend_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Sessions::Stub> sessions_;
};

TEST_F(RpcTenantsTest, ATenantHasNoMoreRequestsUnderWayThanItMay) {
  Start("abc alice\ndef bob\ntenant alice requests=2\n");
  Call first(*inference_, "abc", "hang"), second(*inference_, "abc", "hang");
  ASSERT_TRUE(Eventually([&] { return core_.running() == 2; }));
  Call third(*inference_, "abc", "say x");
  const grpc::Status refused = third.Finish();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(), HasSubstr("requests=2"));
  EXPECT_THAT(refused.error_details(), HasSubstr("TENANT_REQUESTS"));
  EXPECT_EQ(third.context.GetServerTrailingMetadata().count(kRetryAfterTrailer),
            1u);
  // It is about answers; and nobody else's.
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer abc");
  v1::ListSessionsResponse sessions;
  EXPECT_TRUE(
      sessions_->ListSessions(&context, v1::ListSessionsRequest(), &sessions)
          .ok());
  EXPECT_TRUE(Call(*inference_, "def", "say x").Finish().ok());
  first.context.TryCancel();
  first.Finish();
  ASSERT_TRUE(Eventually([&] { return tenants_.uses().at(0).used == 1; }));
  // As soon as a client has its status it may send the next one.
  for (int i = 0; i < 50; ++i) {
    const grpc::Status next = Call(*inference_, "abc", "say x").Finish();
    EXPECT_TRUE(next.ok()) << next.error_message();
  }
  second.context.TryCancel();
  second.Finish();
}

}  // namespace
}  // namespace xcache
