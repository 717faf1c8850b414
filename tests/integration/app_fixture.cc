#include "tests/integration/app_fixture.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "tests/support/tiny_model.h"

namespace xcache::testing {
namespace {

template <typename Response>
void Collect(grpc::ClientContext& context, grpc::ClientReader<Response>& reader,
             AppFixture::Answer* answer) {
  Response response;
  while (reader.Read(&response)) {
    answer->text += response.delta();
    for (const v1::SampledToken& token : response.logprobs()) {
      answer->tokens.push_back(token.token_id());
      answer->logprobs.push_back(token.logprob());
    }
    if (response.has_final()) answer->final = response.final();
  }
  answer->status = reader.Finish();
  for (const auto& [key, value] : context.GetServerTrailingMetadata()) {
    answer->trailers.emplace(std::string(key.data(), key.size()),
                             std::string(value.data(), value.size()));
  }
}

}  // namespace

TempFolder::TempFolder() {
  std::string pattern = ::testing::TempDir() + "/xcache_app_XXXXXX";
  path_ = mkdtemp(pattern.data());
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string HttpGet(const std::string& address, const std::string& path) {
  const size_t colon = address.rfind(':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port =
      htons(static_cast<uint16_t>(std::atoi(address.c_str() + colon + 1)));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  std::string all;
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0) {
    const std::string request =
        absl::StrCat("GET ", path, " HTTP/1.0\r\nHost: x\r\n\r\n");
    if (write(fd, request.data(), request.size()) ==
        static_cast<ssize_t>(request.size())) {
      char buffer[4096];
      for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) {
        all.append(buffer, static_cast<size_t>(n));
      }
    }
  }
  close(fd);
  const size_t body = all.find("\r\n\r\n");
  return body == std::string::npos ? "" : all.substr(body + 4);
}

AppFixture::AppFixture() {
  InitLogging("error");
  TinyModelOptions model;
  model.context_length = kContextLength;
  config_.model_path = folder_.path() + "/tiny.gguf";
  WriteTinyModel(model, config_.model_path);
  config_.listen = "127.0.0.1:0";
  config_.metrics_listen = "127.0.0.1:0";
  config_.store_dir = folder_.path() + "/store";
  config_.profile_dir = config_.store_dir + "/profiles";
  config_.memory_bytes = uint64_t{256} << 20;
  config_.disk_bytes = uint64_t{256} << 20;
  config_.num_threads = 2;
  config_.restore = "always";  // not what is faster on the day
}

void AppFixture::Start() {
  auto app = ServerApp::Listen(config_);
  ASSERT_TRUE(app.ok()) << app.status();
  app_ = *std::move(app);
  const absl::Status loaded = app_->Load();
  ASSERT_TRUE(loaded.ok()) << loaded;
  Connect(grpc::InsecureChannelCredentials());
}

void AppFixture::Stop() {
  app_->Stop(std::chrono::seconds(10));
  app_.reset();
}

void AppFixture::Connect(
    const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  channel_ = grpc::CreateCustomChannel(app_->address(), credentials, arguments);
  inference_ = v1::Inference::NewStub(channel_);
  sessions_ = v1::Sessions::NewStub(channel_);
  health_ = grpc::health::v1::Health::NewStub(channel_);
}

std::unique_ptr<grpc::ClientContext> AppFixture::Context(
    std::chrono::milliseconds timeout) const {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + timeout);
  if (!token_.empty()) {
    context->AddMetadata("authorization", "Bearer " + token_);
  }
  return context;
}

AppFixture::Answer AppFixture::Chat(const v1::ChatRequest& request,
                                    std::chrono::milliseconds timeout) {
  const auto context = Context(timeout);
  Answer answer;
  Collect(*context, *inference_->Chat(context.get(), request), &answer);
  return answer;
}

AppFixture::Answer AppFixture::Generate(const v1::GenerateRequest& request) {
  const auto context = Context();
  Answer answer;
  Collect(*context, *inference_->Generate(context.get(), request), &answer);
  return answer;
}

grpc::Status AppFixture::CreateSession(const std::string& id,
                                       v1::Session* out) {
  v1::CreateSessionRequest request;
  request.set_id(id);
  v1::Session session;
  return sessions_->CreateSession(Context().get(), request,
                                  out == nullptr ? &session : out);
}

grpc::Status AppFixture::GetSession(const std::string& id, v1::Session* out) {
  v1::GetSessionRequest request;
  request.set_id(id);
  request.set_with_messages(true);
  return sessions_->GetSession(Context().get(), request, out);
}

double AppFixture::MetricValue(const std::string& sample) const {
  std::istringstream page(Scrape());
  for (std::string line; std::getline(page, line);) {
    if (line.rfind(sample + " ", 0) == 0) {
      return std::strtod(line.c_str() + sample.size() + 1, nullptr);
    }
  }
  return -1;
}

v1::ChatRequest Turn(const std::string& session, const std::string& text,
                     uint32_t max_tokens) {
  v1::ChatRequest request;
  request.set_session_id(session);
  v1::Message* message = request.add_messages();
  message->set_role(v1::ROLE_USER);
  message->set_content(text);
  v1::GenerationParams* params = request.mutable_params();
  params->mutable_sampling()->set_temperature(0.0f);
  params->set_max_tokens(max_tokens);
  params->set_ignore_eos(true);
  params->set_logprobs(1);
  return request;
}

}  // namespace xcache::testing
