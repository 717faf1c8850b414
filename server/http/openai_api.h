// OpenAI's HTTP API over the core: which path is what, who may call, and what
// is answered at once. Completions are completion_call.h's.
#ifndef XCACHE_SERVER_HTTP_OPENAI_API_H_
#define XCACHE_SERVER_HTTP_OPENAI_API_H_

#include <memory>

#include "server/http/completion_call.h"
#include "server/http/exchange.h"

namespace xcache {

// GET /health, /v1/models, /v1/models/{id}; POST /v1/chat/completions,
// /v1/completions. All but /health need a token, where the server has tokens.
std::unique_ptr<HttpHandler> MakeOpenAiApi(const OpenAiOptions& options);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_OPENAI_API_H_
