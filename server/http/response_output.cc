#include "server/http/response_output.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace xcache {

using nlohmann::json;

using Kind = ToolCallReader::Part::Kind;

std::vector<OutputReader::Part> OutputReader::Add(std::string_view text) {
  if (with_calls_) return Take(calls_.Add(text));
  return Take({{Kind::kText, std::string(text)}});
}

std::vector<OutputReader::Part> OutputReader::Finish() {
  std::vector<Part> out;
  if (with_calls_) out = Take(calls_.Finish());
  if (items_.empty()) out = Take({{Kind::kText, ""}});
  return out;
}

std::vector<OutputReader::Part> OutputReader::Take(
    const std::vector<ToolCallReader::Part>& parts) {
  std::vector<Part> out;
  for (const ToolCallReader::Part& part : parts) {
    const bool call = part.kind == Kind::kCall;
    const bool begins = call || items_.empty() ||
                        (part.kind == Kind::kText && items_.back().is_call);
    if (begins) {
      items_.push_back(
          {.is_call = call, .name = call ? part.text : "", .text = ""});
    }
    const std::string& text = call ? std::string() : part.text;
    items_.back().text += text;
    out.push_back({.index = items_.size() - 1, .begins = begins, .text = text});
  }
  return out;
}

std::vector<OutputItem> ReadOutput(std::string_view text, bool with_calls) {
  OutputReader reader(with_calls);
  reader.Add(text);
  reader.Finish();
  return reader.items();
}

std::string ItemId(const OutputItem& item, std::string_view name,
                   size_t index) {
  std::string id =
      absl::StrCat(item.is_call ? "fc_" : "msg_", std::string(name));
  if (item.is_call || index > 0) absl::StrAppend(&id, "_", index);
  return id;
}

std::string CallId(std::string_view name, size_t index) {
  return absl::StrCat("call_", std::string(name), "_", index);
}

json TextPart(std::string_view text, json logprobs) {
  return {{"type", "output_text"},
          {"text", std::string(text)},
          {"annotations", json::array()},
          {"logprobs", std::move(logprobs)}};
}

json ItemObject(const OutputItem& item, std::string_view name, size_t index,
                std::string_view status, json logprobs) {
  json out = {{"id", ItemId(item, name, index)},
              {"status", std::string(status)}};
  if (item.is_call) {
    out["type"] = "function_call";
    out["call_id"] = CallId(name, index);
    out["name"] = item.name;
    out["arguments"] = item.text;
  } else {
    out["type"] = "message";
    out["role"] = "assistant";
    out["content"] = json::array({TextPart(item.text, std::move(logprobs))});
  }
  return out;
}

json OutputObject(const std::vector<OutputItem>& items, std::string_view name,
                  std::string_view status, json logprobs) {
  json out = json::array();
  for (size_t i = 0; i < items.size(); ++i) {
    const bool last = i + 1 == items.size();
    out.push_back(ItemObject(items[i], name, i, last ? status : "completed",
                             std::exchange(logprobs, json::array())));
  }
  return out;
}

}  // namespace xcache
