// OpenAI's HTTP API over the core: which path is what, who may call, and what
// is answered at once. The rest are completion_call.h's, response_call.h's,
// stored_call.h's and session_call.h's.
#ifndef XCACHE_SERVER_HTTP_OPENAI_API_H_
#define XCACHE_SERVER_HTTP_OPENAI_API_H_

#include <memory>

#include "server/http/exchange.h"
#include "server/http/openai_call.h"

namespace xcache {

// What there is, HTTP.md says. All but /health and the page at / need a token,
// where the server has tokens.
std::unique_ptr<HttpHandler> MakeOpenAiApi(const OpenAiOptions& options);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_OPENAI_API_H_
