#include "tests/support/weed_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>
#include <vector>

namespace xcache {
namespace {

sockaddr_in Local(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}

// Ports that nobody has: all are held while others are looked for.
template <size_t n>
std::array<int, n> FreePorts() {
  std::array<int, n> ports{}, sockets{};
  for (size_t i = 0; i < n; ++i) {
    sockets[i] = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = Local(0);
    socklen_t size = sizeof(address);
    ::bind(sockets[i], reinterpret_cast<sockaddr*>(&address), size);
    ::getsockname(sockets[i], reinterpret_cast<sockaddr*>(&address), &size);
    ports[i] = ntohs(address.sin_port);
  }
  for (const int fd : sockets) ::close(fd);
  return ports;
}

bool Listens(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_in address = Local(port);
  const bool does = ::connect(fd, reinterpret_cast<const sockaddr*>(&address),
                              sizeof(address)) == 0;
  ::close(fd);
  return does;
}

std::string Identity(const std::string& id, const std::string& secret,
                     const std::string& actions) {
  return "{\"name\":\"" + id + "\",\"credentials\":[{\"accessKey\":\"" + id +
         "\",\"secretKey\":\"" + secret + "\"}],\"actions\":[" + actions + "]}";
}

// In a short folder: a socket's path has 107 bytes at most.
std::string Socket(const std::string& name, int port) {
  return "/tmp/seaweedfs-" + name + "-" + std::to_string(port) + ".sock";
}

}  // namespace

WeedServer::WeedServer(std::string program, std::string folder)
    : program_(std::move(program)),
      folder_(std::move(folder)),
      ports_(FreePorts<9>()) {
  std::filesystem::create_directories(folder_ + "/data");
  std::ofstream(folder_ + "/s3.json")
      << "{\"identities\":["
      << Identity(kAccessKey, kSecretKey,
                  "\"Admin\",\"Read\",\"Write\",\"List\"")
      << "," << Identity(kReaderAccessKey, kReaderSecretKey, "\"Read\"")
      << "]}";
}

WeedServer::~WeedServer() {
  Kill();
  // Sockets that no flag puts elsewhere.
  const char* const names[] = {"s3", "master", "volume", "filer"};
  for (size_t i = 0; i < 4; ++i) {
    ::unlink(
        Socket(std::string(names[i]) + "-grpc", ports_[2 * i + 1]).c_str());
  }
  ::unlink(Socket("s3", ports_[0]).c_str());
  ::unlink(Socket("filer", ports_[6]).c_str());
}

bool WeedServer::Start() {
  if (!std::filesystem::exists(ca_file())) {
    const std::string command =
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 "
        "-nodes -days 2 -subj /CN=xcache-test "
        "-addext subjectAltName=IP:127.0.0.1 -keyout '" +
        folder_ + "/key.pem' -out '" + ca_file() + "' 2>'" + folder_ +
        "/openssl.log'";
    if (std::system(command.c_str()) != 0) return false;
  }
  const auto port = [this](const char* name, size_t i) {
    return std::string(name) + "=" + std::to_string(ports_[i]);
  };
  std::vector<std::string> arguments = {
      program_, "server", "-dir=" + folder_ + "/data", "-ip=127.0.0.1",
      "-ip.bind=127.0.0.1", "-master.telemetry=false",
      "-master.electionTimeout=1s",  // of one; it is waited for after a kill
      "-volume.max=50", "-master.volumeSizeLimitMB=64", "-s3",
      "-s3.config=" + folder_ + "/s3.json",
      // What else it would listen on.
      "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false",
      "-s3.localSocket=" + Socket("s3", ports_[0]),
      "-filer.localSocket=" + Socket("filer", ports_[6]), port("-s3.port", 0),
      port("-s3.port.grpc", 1), port("-master.port", 2),
      port("-master.port.grpc", 3), port("-volume.port", 4),
      port("-volume.port.grpc", 5), port("-filer.port", 6),
      port("-filer.port.grpc", 7), port("-s3.port.https", 8),
      "-s3.cert.file=" + ca_file(), "-s3.key.file=" + folder_ + "/key.pem"};
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const std::string log = folder_ + "/log";
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // it does not outlive the test
    if (::getppid() != parent) ::_exit(126);
    const int fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    ::dup2(fd, 1);
    ::dup2(fd, 2);
    ::execv(program_.c_str(), argv.data());
    ::_exit(127);
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (std::chrono::steady_clock::now() < end) {
    if (Listens(ports_[0])) return true;
    if (::waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = -1;
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return false;
}

void WeedServer::Kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void WeedServer::Suspend() {
  ::kill(pid_, SIGSTOP);
  ::waitpid(pid_, nullptr, WUNTRACED);  // all its threads stand still
}
void WeedServer::Resume() { ::kill(pid_, SIGCONT); }

}  // namespace xcache
