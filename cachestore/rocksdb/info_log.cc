#include "cachestore/rocksdb/info_log.h"

#include <array>
#include <cstdio>
#include <utility>

#include "engine/base/log.h"

namespace xcache {
namespace {

class InfoLog : public rocksdb::Logger {
 public:
  explicit InfoLog(std::string path)
      : Logger(rocksdb::InfoLogLevel::WARN_LEVEL), path_(std::move(path)) {}
  ~InfoLog() override { Close().PermitUncheckedError(); }

  using rocksdb::Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    std::array<char, 512> line;
    std::vsnprintf(line.data(), line.size(), format, arguments);
    XC_LOG_DEBUG("rocksdb", "path={} message={}", LogValue(path_),
                 LogValue(std::string(line.data())));
  }

 private:
  const std::string path_;
};

}  // namespace

std::shared_ptr<rocksdb::Logger> MakeInfoLog(std::string path) {
  return std::make_shared<InfoLog>(std::move(path));
}

}  // namespace xcache
