// The main job, as a developer would see it: a chat, kill -9, the chat goes on;
// and a twin of it that nobody interrupted.
#ifndef XCACHE_CLIENT_QUICKSTART_JOB_H_
#define XCACHE_CLIENT_QUICKSTART_JOB_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/types.h"

namespace xcache::quickstart {

struct JobOptions {
  std::string server;                 // the xcache-server program
  std::string model;                  // GGUF
  std::string root;                   // where the project's documentation is
  std::string work_dir;               // stores and logs; must exist
  std::string codec;                  // empty: the server's default
  int threads = 0;                    // 0: one for each CPU
  uint64_t history_tokens = 4400;     // at least, before the crash
  uint32_t answer_tokens = 48;        // at most, of each turn before it
  uint32_t continuation_tokens = 96;  // exactly, after it; at least 64
};

struct JobResult {
  std::string codec;
  std::string device;
  uint64_t history_tokens = 0;
  absl::Duration restart_time;
  std::vector<client::Answer> before;  // turns before the crash
  client::Answer resumed;              // the turn after it
  client::Answer recomputed;           // its prompt, with no_cache
  std::vector<client::Answer> twin;    // all turns of the twin
  double page_bytes_per_token = 0;     // of the session's real pages
  double kv_fp16_bytes_per_token = 0;
  bool identical = false;  // every turn's ids and log-probability bits
  // The first of those that differs, in words; empty where identical.
  std::string difference;
  // Whether the recomputed answer begins as the resumed one does.
  bool recompute_identical = false;
};

absl::StatusOr<JobResult> RunJob(const JobOptions& options);

}  // namespace xcache::quickstart

#endif  // XCACHE_CLIENT_QUICKSTART_JOB_H_
