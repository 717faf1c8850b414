// How xcache-eval's figures are written: table, JSON lines, CSV.
#ifndef XCACHE_TESTS_EVAL_EVAL_REPORT_H_
#define XCACHE_TESTS_EVAL_EVAL_REPORT_H_

#include <string>
#include <vector>

#include "tests/eval/evaluate.h"

namespace xcache {

// What a group of figures was measured on.
struct EvalSetup {
  std::string model;  // its name
  std::string text;   // the file's name without folder and extension
  int window = 0;     // tokens
  int windows = 0;
  int turns = 1;
  // FP16 K/V bytes per token of the GQA model that an expanded one was made of;
  // 0: none.
  int original_kv_bytes_per_token = 0;
};

// A head line or two, then a line for each codec.
std::string EvalTable(const EvalSetup& setup,
                      const std::vector<Evaluation>& evaluations);
// One JSON object a line.
std::string EvalJsonLines(const EvalSetup& setup,
                          const std::vector<Evaluation>& evaluations);
// RFC 4180. The rows have the columns of the head.
std::string EvalCsvHead();
std::string EvalCsvRows(const EvalSetup& setup,
                        const std::vector<Evaluation>& evaluations);

}  // namespace xcache

#endif  // XCACHE_TESTS_EVAL_EVAL_REPORT_H_
