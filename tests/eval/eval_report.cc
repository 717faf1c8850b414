#include "tests/eval/eval_report.h"

#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace xcache {
namespace {

// Every figure by name, in the order of columns. The first ones are what
// readers of the lines have had from the start.
nlohmann::ordered_json Row(const EvalSetup& setup, const Evaluation& e) {
  nlohmann::ordered_json row;
  row["codec"] = e.codec;
  row["tokens"] = e.tokens;
  row["ppl"] = std::exp(e.nll());
  row["nll"] = e.nll();
  row["delta_nll"] = e.delta_nll();
  row["kl"] = e.kl();
  row["top1_agreement"] = e.top1_agreement();
  row["page_bytes_per_token"] = e.page_bytes_per_token();
  row["kv_fp16_bytes_per_token"] = e.kv_fp16_bytes_per_token;
  row["ratio"] = e.ratio();
  row["ppl_change_percent"] = 100.0 * std::expm1(e.delta_nll());
  row["kv_fp16_ppl"] = std::exp(e.baseline_nll());
  row["model"] = setup.model;
  row["text"] = setup.text;
  row["window"] = setup.window;
  row["windows"] = setup.windows;
  row["turns"] = setup.turns;
  row["original_ratio"] = nullptr;
  if (setup.original_kv_bytes_per_token > 0) {
    row["original_ratio"] =
        setup.original_kv_bytes_per_token / e.page_bytes_per_token();
  }
  row["answers"] = nullptr;
  row["whole_answers"] = nullptr;
  row["prefix_share"] = nullptr;
  if (e.answers > 0) {
    row["answers"] = e.answers;
    row["whole_answers"] = e.whole_answers;
    row["prefix_share"] = e.prefix_share();
  }
  return row;
}

std::string CsvField(const nlohmann::ordered_json& value) {
  if (value.is_null()) return "";
  if (!value.is_string()) return value.dump();
  std::string quoted = "\"";
  for (char c : value.get<std::string>()) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + "\"";
}

}  // namespace

std::string EvalTable(const EvalSetup& setup,
                      const std::vector<Evaluation>& evaluations) {
  const bool expanded = setup.original_kv_bytes_per_token > 0;
  char line[512];
  std::string out = absl::StrCat(setup.text, ", ", setup.windows,
                                 " windows of ", setup.window, " tokens");
  if (setup.turns > 1) {
    absl::StrAppend(&out, ", each in ", setup.turns, " turns");
  }
  if (!evaluations.empty()) {
    std::snprintf(line, sizeof(line), "; kv-fp16: perplexity %.3f",
                  std::exp(evaluations[0].baseline_nll()));
    out += line;
  }
  std::snprintf(line, sizeof(line), "\n%-72s %8s %10s %9s %8s %9s %7s%s\n",
                "codec", "ppl", "change", "kl", "top-1", "bytes/tok", "ratio",
                expanded ? "  to the original's K/V" : "");
  out += line;
  for (const Evaluation& e : evaluations) {
    std::snprintf(
        line, sizeof(line), "%-72s %8.3f %+8.3f %% %9.5f %8.4f %9.1f %7.2f",
        e.codec.c_str(), std::exp(e.nll()), 100.0 * std::expm1(e.delta_nll()),
        e.kl(), e.top1_agreement(), e.page_bytes_per_token(), e.ratio());
    out += line;
    if (expanded) {
      std::snprintf(
          line, sizeof(line), " %22.2f",
          setup.original_kv_bytes_per_token / e.page_bytes_per_token());
      out += line;
    }
    if (e.answers > 0) {
      std::snprintf(line, sizeof(line),
                    "  whole %lld of %lld, to the first "
                    "miss %.4f",
                    static_cast<long long>(e.whole_answers),
                    static_cast<long long>(e.answers), e.prefix_share());
      out += line;
    }
    out += '\n';
  }
  return out;
}

std::string EvalJsonLines(const EvalSetup& setup,
                          const std::vector<Evaluation>& evaluations) {
  std::string out;
  for (const Evaluation& e : evaluations) out += Row(setup, e).dump() + "\n";
  return out;
}

std::string EvalCsvHead() {
  std::string out;
  const nlohmann::ordered_json row = Row({}, {});
  for (const auto& [name, value] : row.items()) {
    absl::StrAppend(&out, out.empty() ? "" : ",", name);
  }
  return out + "\n";
}

std::string EvalCsvRows(const EvalSetup& setup,
                        const std::vector<Evaluation>& evaluations) {
  std::string out;
  for (const Evaluation& e : evaluations) {
    std::string line;
    const nlohmann::ordered_json row = Row(setup, e);
    for (const auto& [name, value] : row.items()) {
      absl::StrAppend(&line, line.empty() ? "" : ",", CsvField(value));
    }
    out += line + "\n";
  }
  return out;
}

}  // namespace xcache
