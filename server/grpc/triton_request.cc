#include "server/grpc/triton_request.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/coding.h"
#include "engine/base/status_macros.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "server/core/reason.h"
#include "server/frontend/text_input.h"

namespace xcache {
namespace {

namespace pb = ::inference;
using google::protobuf::Value;

struct Tensor {
  const char* name;
  const char* datatype;
  pb::DataType type;
  bool optional;
};
constexpr Tensor kInputs[] = {
    {"text_input", "BYTES", pb::TYPE_STRING, false},
    {"stream", "BOOL", pb::TYPE_BOOL, true},
    {"sampling_parameters", "BYTES", pb::TYPE_STRING, true},
    {"exclude_input_in_output", "BOOL", pb::TYPE_BOOL, true}};
constexpr Tensor kOutputs[] = {
    {"text_output", "BYTES", pb::TYPE_STRING, false},
    {"finish_reason", "BYTES", pb::TYPE_STRING, true}};

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// At most this much of a client's word is said back.
std::string Named(const std::string& name) {
  return absl::StrCat("'", name.substr(0, 100), "'");
}

// The one element of an input, of which `raw` is there or `contents`.
absl::StatusOr<std::string> ReadBytes(
    const pb::ModelInferRequest::InferInputTensor& input,
    const std::string* raw) {
  if (raw == nullptr) {
    if (input.contents().bytes_contents_size() != 1) {
      return Bad(input.name(), ": expected 1 element, found ",
                 input.contents().bytes_contents_size());
    }
    return input.contents().bytes_contents(0);
  }
  FieldReader reader(*raw);
  std::string bytes(reader.Bytes());
  if (!reader.ok() || reader.remaining() != 0) {
    return Bad(input.name(),
               ": expected 4 bytes of a length and so many bytes, found ",
               raw->size(), " bytes");
  }
  return bytes;
}

absl::StatusOr<bool> ReadBool(
    const pb::ModelInferRequest::InferInputTensor& input,
    const std::string* raw) {
  const int size = raw != nullptr ? static_cast<int>(raw->size())
                                  : input.contents().bool_contents_size();
  if (size != 1) {
    return Bad(input.name(), ": expected 1 element, found ", size);
  }
  return raw != nullptr ? (*raw)[0] != 0 : input.contents().bool_contents(0);
}

// --- sampling_parameters

absl::Status BadParameter(const std::string& name, std::string_view expected,
                          const Value& found) {
  return Bad("sampling_parameters: ", name.substr(0, 100), ": expected ",
             std::string(expected), ", found ",
             found.ShortDebugString().substr(0, 100));
}

absl::StatusOr<double> ToNumber(const std::string& name, const Value& value) {
  double number = value.number_value();
  const bool is_number = value.kind_case() == Value::kNumberValue ||
                         (value.kind_case() == Value::kStringValue &&
                          absl::SimpleAtod(value.string_value(), &number));
  if (!is_number || !std::isfinite(number)) {
    return BadParameter(name, "a number", value);
  }
  return number;
}

// A double has every integer up to 2^53; a string has them all.
absl::StatusOr<int64_t> ToInteger(const std::string& name, const Value& value) {
  int64_t out = 0;
  if (value.kind_case() == Value::kStringValue &&
      absl::SimpleAtoi(value.string_value(), &out)) {
    return out;
  }
  XC_ASSIGN_OR_RETURN(const double number, ToNumber(name, value));
  constexpr double kMost = 9007199254740992.0;
  if (number != std::floor(number) || std::abs(number) > kMost) {
    return BadParameter(name, "an integer", value);
  }
  return static_cast<int64_t>(number);
}

absl::Status ReadStops(const Value& value, std::vector<std::string>* out) {
  if (value.kind_case() == Value::kStringValue) {
    out->push_back(value.string_value());
    return absl::OkStatus();
  }
  if (value.kind_case() != Value::kListValue) {
    return BadParameter("stop", "a string or an array of strings", value);
  }
  for (const Value& stop : value.list_value().values()) {
    if (stop.kind_case() != Value::kStringValue) {
      return BadParameter("stop", "strings", stop);
    }
    out->push_back(stop.string_value());
  }
  return absl::OkStatus();
}

int Clamped(int64_t value) {
  return static_cast<int>(std::min<int64_t>(std::max<int64_t>(value, 0),
                                            std::numeric_limits<int>::max()));
}

absl::Status ReadParameter(const std::string& name, const Value& value,
                           GenerationOptions* out) {
  if (value.kind_case() == Value::kNullValue) return absl::OkStatus();
  SamplingParams& sampling = out->sampling;
  const std::pair<std::string_view, float*> numbers[] = {
      {"temperature", &sampling.temperature},
      {"top_p", &sampling.top_p},
      {"min_p", &sampling.min_p},
      {"repetition_penalty", &sampling.repetition_penalty},
      {"presence_penalty", &sampling.presence_penalty},
      {"frequency_penalty", &sampling.frequency_penalty}};
  for (const auto& [key, to] : numbers) {
    if (name != key) continue;
    XC_ASSIGN_OR_RETURN(const double number, ToNumber(name, value));
    *to = static_cast<float>(number);
    return absl::OkStatus();
  }
  if (name == "stop") return ReadStops(value, &out->stop);
  if (name == "ignore_eos") {
    if (value.kind_case() != Value::kBoolValue) {
      return BadParameter(name, "true or false", value);
    }
    out->ignore_eos = value.bool_value();
    return absl::OkStatus();
  }
  if (name != "top_k" && name != "seed" && name != "max_tokens") {
    return Bad("sampling_parameters: no ", Named(name),
               "; there are temperature, top_k, top_p, min_p, "
               "repetition_penalty, presence_penalty, frequency_penalty, seed, "
               "max_tokens, stop and ignore_eos");
  }
  XC_ASSIGN_OR_RETURN(const int64_t number, ToInteger(name, value));
  if (name == "seed") {
    out->seed = static_cast<uint64_t>(number);
  } else if (name == "max_tokens") {
    out->max_tokens = number;
  } else {
    sampling.top_k = Clamped(number);  // -1 is off, for some clients
  }
  return absl::OkStatus();
}

absl::Status ReadSampling(const std::string& text, GenerationOptions* out) {
  google::protobuf::Struct object;
  const auto parsed =
      google::protobuf::util::JsonStringToMessage(text, &object);
  if (!parsed.ok()) {
    return Bad("sampling_parameters: expected a JSON object: ",
               parsed.ToString().substr(0, 300));
  }
  for (const auto& [name, value] : object.fields()) {
    XC_RETURN_IF_ERROR(ReadParameter(name, value, out));
  }
  return CheckOptions(*out);
}

// --- parameters

absl::StatusOr<std::string> ReadSequenceId(const pb::InferParameter& value) {
  switch (value.parameter_choice_case()) {
    case pb::InferParameter::kStringParam:
      return value.string_param();
    case pb::InferParameter::kInt64Param:
      return value.int64_param() == 0 ? "" : absl::StrCat(value.int64_param());
    case pb::InferParameter::kUint64Param:
      return value.uint64_param() == 0 ? ""
                                       : absl::StrCat(value.uint64_param());
    default:
      return Bad("parameter sequence_id: expected an integer or a string");
  }
}

absl::Status ReadParameters(const pb::ModelInferRequest& request,
                            TritonRequest* out) {
  for (const auto& [name, value] : request.parameters()) {
    if (name == "sequence_id") {
      XC_ASSIGN_OR_RETURN(out->session, ReadSequenceId(value));
    }
    if (name != "sequence_start" && name != "sequence_end") continue;
    if (value.parameter_choice_case() != pb::InferParameter::kBoolParam) {
      return Bad("parameter ", name, ": expected a bool");
    }
    (name == "sequence_start" ? out->session_is_new : out->session_ends) =
        value.bool_param();
  }
  if (out->session.empty() && (out->session_is_new || out->session_ends)) {
    return Bad(
        "parameters sequence_start and sequence_end: expected a sequence_id");
  }
  return absl::OkStatus();
}

absl::Status ReadOutputs(const pb::ModelInferRequest& request,
                         TritonRequest* out) {
  if (request.outputs().empty()) return absl::OkStatus();
  out->wants_text = out->wants_reason = false;
  for (const auto& output : request.outputs()) {
    if (output.name() == "text_output") {
      out->wants_text = true;
    } else if (output.name() == "finish_reason") {
      out->wants_reason = true;
    } else {
      return Bad("outputs: no ", Named(output.name()),
                 "; there are text_output and finish_reason");
    }
  }
  return absl::OkStatus();
}

const Tensor* InputOf(std::string_view name) {
  for (const Tensor& tensor : kInputs) {
    if (name == tensor.name) return &tensor;
  }
  return nullptr;
}

absl::Status CheckInput(const pb::ModelInferRequest::InferInputTensor& input) {
  const Tensor* const tensor = InputOf(input.name());
  if (tensor == nullptr) {
    return Bad(
        "inputs: no ", Named(input.name()), "; there are ",
        absl::StrJoin(kInputs, ", ", [](std::string* out, const Tensor& t) {
          out->append(t.name);
        }));
  }
  if (input.datatype() != tensor->datatype) {
    return Bad(input.name(), ": expected datatype ", tensor->datatype,
               ", found ", Named(input.datatype()));
  }
  for (const int64_t size : input.shape()) {
    if (size != 1) {
      return Bad(input.name(), ": expected a shape of one element, found [",
                 absl::StrJoin(input.shape(), ","), "]");
    }
  }
  return absl::OkStatus();
}

std::string_view ReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kEnd:
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kMaxTokens:
    case FinishReason::kContext:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "";
}

void AddOutput(const Tensor& tensor, std::string_view value,
               pb::ModelInferResponse* out) {
  auto* output = out->add_outputs();
  output->set_name(tensor.name);
  output->set_datatype(tensor.datatype);
  output->add_shape(1);
  FieldWriter(*out->add_raw_output_contents()).Bytes(value);
}

}  // namespace

absl::Status CheckTritonModel(std::string_view name, std::string_view version,
                              std::string_view model) {
  if (name == model && (version.empty() || version == kTritonVersion)) {
    return absl::OkStatus();
  }
  return WithReason(
      absl::NotFoundError(absl::StrCat(
          "no model ", Named(std::string(name)), " of version ",
          Named(std::string(version)), "; this server has '",
          std::string(model), "' of version ", std::string(kTritonVersion))),
      Reason::kModelNotFound);
}

absl::StatusOr<TritonRequest> ToTriton(const pb::ModelInferRequest& request,
                                       std::string_view model,
                                       bool may_stream) {
  XC_RETURN_IF_ERROR(
      CheckTritonModel(request.model_name(), request.model_version(), model));
  TritonRequest out;
  out.id = request.id();
  XC_RETURN_IF_ERROR(ReadParameters(request, &out));
  XC_RETURN_IF_ERROR(ReadOutputs(request, &out));
  const int raws = request.raw_input_contents_size();
  if (raws != 0 && raws != request.inputs_size()) {
    return Bad("raw_input_contents: expected one for each of ",
               request.inputs_size(), " inputs, found ", raws);
  }
  bool has_text = false;
  std::optional<bool> exclude_input;
  std::string sampling;
  for (int i = 0; i < request.inputs_size(); ++i) {
    const auto& input = request.inputs(i);
    XC_RETURN_IF_ERROR(CheckInput(input));
    const std::string* const raw =
        raws == 0 ? nullptr : &request.raw_input_contents(i);
    if (input.name() == "text_input") {
      XC_ASSIGN_OR_RETURN(out.text, ReadBytes(input, raw));
      has_text = true;
    } else if (input.name() == "sampling_parameters") {
      XC_ASSIGN_OR_RETURN(sampling, ReadBytes(input, raw));
    } else if (input.name() == "stream") {
      XC_ASSIGN_OR_RETURN(out.stream, ReadBool(input, raw));
    } else {
      XC_ASSIGN_OR_RETURN(exclude_input, ReadBool(input, raw));
    }
  }
  if (!has_text) return Bad("inputs: text_input is missing");
  XC_RETURN_IF_ERROR(CheckText("text_input", out.text, kMaxTextBytes));
  if (out.stream && !may_stream) {
    return Bad("stream: true is for ModelStreamInfer");
  }
  if (out.stream && exclude_input == false) {
    return Bad("exclude_input_in_output: false is for where stream is false");
  }
  out.prepend_input =
      !exclude_input.value_or(out.stream || !out.session.empty());
  if (!sampling.empty()) {
    XC_RETURN_IF_ERROR(ReadSampling(sampling, &out.options));
  }
  return out;
}

absl::Status Submit(const TritonRequest& request, const RequestBase& base,
                    ServerCore& core, std::shared_ptr<RequestSink> sink) {
  if (request.session.empty()) {
    GenerateRequest generate;
    static_cast<RequestBase&>(generate) = base;
    generate.options = request.options;
    XC_ASSIGN_OR_RETURN(generate.prompt, EncodeText("text_input", request.text,
                                                    /*parse_special=*/true,
                                                    core.tokenizer().add_bos(),
                                                    core.tokenizer()));
    core.SubmitGenerate(std::move(generate), std::move(sink));
    return absl::OkStatus();
  }
  CreateSessionOptions session;
  session.tenant = base.tenant;
  session.id = request.session;
  if (absl::Status made = core.CreateSession(session).status();
      !made.ok() && !absl::IsAlreadyExists(made)) {
    return made;
  }
  ChatTurn turn;
  static_cast<RequestBase&>(turn) = base;
  turn.options = request.options;
  turn.session_id = request.session;
  turn.messages.push_back({.role = Role::kUser, .content = request.text});
  if (request.session_is_new) turn.expected_turn = 0;
  core.SubmitChat(std::move(turn), std::move(sink));
  return absl::OkStatus();
}

pb::ModelInferResponse ToResponse(const TritonRequest& request,
                                  std::string_view model, std::string_view text,
                                  FinishReason reason, bool final) {
  pb::ModelInferResponse out;
  out.set_model_name(std::string(model));
  out.set_model_version(std::string(kTritonVersion));
  out.set_id(request.id);
  (*out.mutable_parameters())["triton_final_response"].set_bool_param(final);
  if (request.wants_text) AddOutput(kOutputs[0], text, &out);
  if (request.wants_reason) AddOutput(kOutputs[1], ReasonName(reason), &out);
  return out;
}

void Describe(std::string_view model, pb::ModelMetadataResponse* out) {
  out->set_name(std::string(model));
  out->add_versions(std::string(kTritonVersion));
  out->set_platform("xcache");
  const auto add = [](const Tensor& tensor, auto* to) {
    to->set_name(tensor.name);
    to->set_datatype(tensor.datatype);
    to->add_shape(1);
  };
  for (const Tensor& tensor : kInputs) add(tensor, out->add_inputs());
  for (const Tensor& tensor : kOutputs) add(tensor, out->add_outputs());
}

void Describe(std::string_view model, pb::ModelConfig* out) {
  out->set_name(std::string(model));
  out->set_platform("xcache");
  out->set_backend("xcache");
  out->mutable_model_transaction_policy()->set_decoupled(true);
  const auto add = [](const Tensor& tensor, auto* to) {
    to->set_name(tensor.name);
    to->set_data_type(tensor.type);
    to->add_dims(1);
  };
  for (const Tensor& tensor : kInputs) {
    pb::ModelInput* const input = out->add_input();
    add(tensor, input);
    input->set_optional(tensor.optional);
  }
  for (const Tensor& tensor : kOutputs) add(tensor, out->add_output());
}

}  // namespace xcache
