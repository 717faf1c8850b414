#include "server/http/embedding_call.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <span>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "server/frontend/text_input.h"
#include "server/http/json_body.h"
#include "server/http/openai_error.h"

namespace xcache {
namespace {

// Requests of the core at once: short texts share steps, and more wait in the
// queue for no good.
constexpr size_t kWindow = 16;
// The longest FP32 as text, with its comma: -1.1754944e-38.
constexpr size_t kMaxFloatText = 16;
constexpr size_t kMaxBase64Float = 6;

static_assert(std::endian::native == std::endian::little);

// Of unit length. INTERNAL: not finite.
absl::Status Normalize(std::span<float> vector) {
  double squares = 0;
  for (const float value : vector) squares += double{value} * value;
  if (!std::isfinite(squares)) {
    return absl::InternalError("the model's rows are not finite");
  }
  if (squares == 0) return absl::OkStatus();
  const double scale = 1 / std::sqrt(squares);
  for (float& value : vector) value = static_cast<float>(value * scale);
  return absl::OkStatus();
}

void AppendNumbers(std::span<const float> vector, std::string* out) {
  *out += '[';
  for (const float value : vector) {
    char text[kMaxFloatText];
    const auto end = std::to_chars(text, std::end(text), value).ptr;
    if (out->back() != '[') *out += ',';
    out->append(text, end);
  }
  *out += ']';
}

void AppendBase64(std::span<const float> vector, std::string* out) {
  const auto bytes = std::as_bytes(vector);
  absl::StrAppend(
      out, "\"",
      absl::Base64Escape(
          {reinterpret_cast<const char*>(bytes.data()), bytes.size()}),
      "\"");
}

}  // namespace

class EmbeddingCall::Sink final : public RequestSink {
 public:
  Sink(std::shared_ptr<EmbeddingCall> call, size_t index)
      : call_(std::move(call)), index_(index) {}
  void OnDelta(std::string_view, std::span<const SampledToken>) override {}
  void OnFinish(const absl::Status& status, const FinalInfo& final) override {
    call_->OnFinish(index_, status, final);
  }

 private:
  const std::shared_ptr<EmbeddingCall> call_;
  const size_t index_;
};

absl::Status EmbeddingCall::Submit() {
  const ModelInfo& model = call_.core().model();
  {
    XC_ASSIGN_OR_RETURN(const Tree body, TakeBody());
    XC_ASSIGN_OR_RETURN(
        request_, ToEmbedding(body.json, model.vocab_size, model.d_model));
  }
  XC_RETURN_IF_ERROR(CheckModel(request_.model));
  XC_RETURN_IF_ERROR(Tokenize());
  cancellations_ = Cancellations(inputs_.size());
  // A tenant that may not have so many at once has them one by one.
  const size_t window = std::min(kWindow, inputs_.size());
  if (call_.TakePlaces(static_cast<int64_t>(window) - 1).ok()) {
    window_ = window;
  }
  {
    MutexLock lock(mu_);
    vectors_.resize(inputs_.size());
  }
  Feed();
  return absl::OkStatus();
}

absl::Status EmbeddingCall::Tokenize() {
  const Tokenizer& tokenizer = call_.core().tokenizer();
  const auto width = static_cast<size_t>(call_.core().model().d_model);
  size_t token_bytes = 0;
  for (const Prompt& input : request_.inputs) {
    // A byte of text is a token at most, and two go around it.
    token_bytes += (input.text.size() + 2) * sizeof(TokenId);
  }
  // The answer is there twice, with its head and without.
  const size_t value_bytes =
      sizeof(float) + 2 * (request_.base64 ? kMaxBase64Float : kMaxFloatText);
  XC_ASSIGN_OR_RETURN(
      held_, call_.Hold(static_cast<int64_t>(
                 token_bytes + request_.inputs.size() * width * value_bytes)));
  for (Prompt& input : request_.inputs) {
    std::vector<TokenId> tokens = std::move(input.tokens);
    if (input.is_text) {
      XC_ASSIGN_OR_RETURN(
          tokens, EncodeText("input", input.text, /*parse_special=*/false,
                             tokenizer.add_bos(), tokenizer));
      if (tokenizer.add_eos()) tokens.push_back(tokenizer.eos());
    }
    inputs_.push_back(std::move(tokens));
  }
  request_.inputs.clear();
  return absl::OkStatus();
}

void EmbeddingCall::Feed() {
  ServerCore& core = call_.core();
  while (true) {
    size_t index = 0;
    {
      MutexLock lock(mu_);
      if (!failure_.ok() || next_ == inputs_.size() || running_ == window_) {
        feeding_ = false;
        return;
      }
      feeding_ = true;
      index = next_++;
      ++running_;
    }
    EmbedRequest embed;
    embed.tokens = std::move(inputs_[index]);
    embed.pooling = request_.pooling.value_or(core.model().pooling);
    call_.SetBase(cancellations_[index], &embed);
    core.SubmitEmbed(std::move(embed), std::make_shared<Sink>(self(), index));
  }
}

void EmbeddingCall::OnFinish(size_t index, const absl::Status& status,
                             const FinalInfo& final) {
  bool failed = false, end = false, feed = false;
  {
    MutexLock lock(mu_);
    --running_;
    sum_.prompt_tokens += final.prompt_tokens;
    sum_.prefilled_tokens += final.prefilled_tokens;
    vectors_[index] = final.embedding;
    if (!status.ok() && failure_.ok()) {
      failed = true;
      failure_ = status;
      retry_after_ms_ = final.retry_after_ms;
    }
    end = TakeEnd();
    feed = !end && failure_.ok() && !feeding_ && next_ < inputs_.size() &&
           running_ <= window_ / 2;
    if (feed) feeding_ = true;
  }
  if (failed && !end) exchange_->cancellation()->Cancel();
  if (!end && !feed) return;
  // Neither is the core's work.
  call_.Run(
      work(), [] { return false; },
      [call = self(), end] { end ? call->Complete() : call->Feed(); },
      [call = self(), end](const absl::Status& refused,
                           int64_t retry_after_ms) {
        call->Fail(refused, retry_after_ms);
        if (end) call->Complete();
      });
}

void EmbeddingCall::Fail(const absl::Status& status, int64_t retry_after_ms) {
  bool end = false;
  {
    MutexLock lock(mu_);
    if (failure_.ok()) {
      failure_ = status;
      retry_after_ms_ = retry_after_ms;
    }
    end = TakeEnd();
  }
  if (end) Complete();
}

bool EmbeddingCall::TakeEnd() {
  const bool more = failure_.ok() && next_ < inputs_.size();
  return running_ == 0 && !more && !std::exchange(ended_, true);
}

void EmbeddingCall::Complete() {
  std::string body;
  absl::Status status;
  int64_t retry_after_ms = 0;
  std::string details;
  {
    MutexLock lock(mu_);
    for (std::vector<float>& vector : vectors_) {
      if (!failure_.ok()) break;
      if (request_.dimensions.has_value()) {
        vector.resize(static_cast<size_t>(*request_.dimensions));
      }
      failure_ = Normalize(vector);
    }
    if (failure_.ok()) body = Body();
    status = failure_;
    retry_after_ms = retry_after_ms_;
    details = DescribeFinal(sum_);
  }
  const FrontendCall::Ending ending =
      call_.Close(exchange_->Explain(status), retry_after_ms, details);
  if (ending.status.ok()) return RespondBody(std::move(body));
  exchange_->Respond(
      ErrorResponse(ending.status, ending.retry_after_ms, call_.request_id()));
}

std::string EmbeddingCall::Body() {
  std::string out = "{\"object\":\"list\",\"data\":[";
  for (size_t i = 0; i < vectors_.size(); ++i) {
    absl::StrAppend(&out, i == 0 ? "" : ",",
                    "{\"object\":\"embedding\",\"index\":", i,
                    ",\"embedding\":");
    if (request_.base64) {
      AppendBase64(vectors_[i], &out);
    } else {
      AppendNumbers(vectors_[i], &out);
    }
    out += '}';
    vectors_[i] = {};
  }
  absl::StrAppend(&out, "],\"model\":", JsonText(options_.model),
                  ",\"usage\":{\"prompt_tokens\":", sum_.prompt_tokens,
                  ",\"total_tokens\":", sum_.prompt_tokens, "}}");
  return out;
}

}  // namespace xcache
