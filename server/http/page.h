// The page at /: one file (page.html), a part of the program, that chats over
// the API and shows what the cache did. It brings nothing from elsewhere and
// holds nothing that needs a token.
#ifndef XCACHE_SERVER_HTTP_PAGE_H_
#define XCACHE_SERVER_HTTP_PAGE_H_

#include <string_view>

#include "server/http/exchange.h"

namespace xcache {

extern const std::string_view kPageText;

// With a Content-Security-Policy under which a browser runs the page's own
// script and style, named by their digests, speaks to this server alone, and
// does nothing else.
HttpResponse PageResponse();

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_PAGE_H_
