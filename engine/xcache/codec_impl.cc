#include "engine/xcache/codec_impl.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status_macros.h"

namespace xcache {

absl::Status Codec::SealRemat(const std::function<LayerRows(int layer)>& rows,
                              BlockInfo block, std::span<uint8_t> payload,
                              const RematSink& sink,
                              const ParallelForFn& /*parallel*/) const {
  XC_RETURN_IF_ERROR(Seal(rows, block, payload));
  return Remat(payload.first(used_bytes(payload)), block, sink);
}

std::vector<LayerRange> Codec::SplitLayers(int64_t wanted) const {
  const int layers = num_layers();
  const int64_t n =
      layers_independent() ? std::clamp<int64_t>(wanted, 1, layers) : 1;
  std::vector<LayerRange> ranges;
  for (int64_t i = 0; i < n; ++i) {
    ranges.push_back({static_cast<int>(layers * i / n),
                      static_cast<int>(layers * (i + 1) / n)});
  }
  return ranges;
}

std::string OptionReader::Read(std::string_view key,
                               const std::vector<std::string>& known,
                               std::string_view fallback) {
  read_.emplace_back(key);
  known_.push_back(
      absl::StrCat(std::string(key), "=", absl::StrJoin(known, "|")));
  std::string value(fallback);
  for (const auto& [given, text] : spec_.options) {
    if (given == key) value = text;
  }
  if (error_.ok() &&
      std::find(known.begin(), known.end(), value) == known.end()) {
    error_ = absl::InvalidArgumentError(
        absl::StrCat("codec ", spec_.name, ": option ", std::string(key), "=",
                     value, ": expected one of ", absl::StrJoin(known, ", ")));
  }
  return value;
}

std::string OptionReader::Choice(std::string_view key,
                                 const std::vector<std::string>& known,
                                 std::string_view fallback) {
  std::string value = Read(key, known, fallback);
  canonical_.emplace_back(std::string(key), value);
  return value;
}

std::string OptionReader::ChoiceOrNumber(std::string_view key,
                                         const std::vector<std::string>& known,
                                         int least, int most,
                                         std::string_view fallback) {
  std::vector<std::string> all = known;
  const std::string range = absl::StrCat(least, " to ", most);
  for (const auto& [given, text] : spec_.options) {
    int number = 0;
    // Written as it is printed: one spec for one codec.
    if (given == key && absl::SimpleAtoi(text, &number) && number >= least &&
        number <= most && absl::StrCat(number) == text) {
      all.push_back(text);
    }
  }
  if (all.size() == known.size()) all.push_back(range);
  std::string value = Read(key, all, fallback);
  canonical_.emplace_back(std::string(key), value);
  return value;
}

std::string OptionReader::Preset(std::string_view key,
                                 const std::vector<std::string>& known,
                                 std::string_view fallback) {
  return Read(key, known, fallback);
}

void OptionReader::Refuse(std::string_view what) {
  if (!refused_.ok()) return;
  refused_ = absl::InvalidArgumentError(
      absl::StrCat("codec ", spec_.name, ": ", std::string(what)));
}

absl::StatusOr<CodecSpec> OptionReader::Finish() {
  for (const auto& [key, value] : spec_.options) {
    if (std::find(read_.begin(), read_.end(), key) == read_.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "codec ", spec_.name, ": unknown option ", key, "; ",
          known_.empty()
              ? "it takes none"
              : absl::StrCat("known: ", absl::StrJoin(known_, ", "))));
    }
  }
  if (!error_.ok()) return error_;
  if (!refused_.ok()) return refused_;
  CodecSpec canonical{spec_.name, canonical_};
  std::sort(canonical.options.begin(), canonical.options.end());
  return canonical;
}

absl::Status CheckRows(unsigned live_rows, const CodecShape& shape,
                       const LayerRows& rows, int first_row, int layer,
                       AllFiniteFn all_finite) {
  const auto check = [&](std::string_view what, const float* x, int cols) {
    const float* first = x + int64_t{first_row} * cols;
    const int64_t n = int64_t{kBlockTokens - first_row} * cols;
    if (all_finite(first, n)) return absl::OkStatus();
    int row = first_row;
    while (all_finite(x + int64_t{row} * cols, cols)) ++row;
    return NotFinite(what, layer, row);
  };
  if ((live_rows & kLiveUnitX) != 0) {
    XC_RETURN_IF_ERROR(check("X", rows.unit_x, shape.d_model));
  }
  if ((live_rows & kLiveKvPre) != 0) {
    XC_RETURN_IF_ERROR(check("K", rows.k_pre, shape.kv_dim));
    XC_RETURN_IF_ERROR(check("V", rows.v_pre, shape.kv_dim));
  }
  return absl::OkStatus();
}

absl::Status NotFinite(std::string_view what, int layer, int row) {
  return absl::InvalidArgumentError(
      absl::StrCat("cannot seal: ", std::string(what),
                   " is not finite at layer ", layer, ", row ", row));
}

absl::Status CheckPayloadSize(const PayloadPlan& plan, size_t found) {
  if (found == plan.bytes()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "payload: expected ", plan.bytes(), " bytes, found ", found));
}

}  // namespace xcache
