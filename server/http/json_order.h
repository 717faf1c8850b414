// Parts of a JSON text as they stand in it. The members of a schema have an
// order, in which its answers are written; a tree of values does not keep it.
// REQUIRES: the text is one that ParseJsonObject (json_body.h) takes.
#ifndef XCACHE_SERVER_HTTP_JSON_ORDER_H_
#define XCACHE_SERVER_HTTP_JSON_ORDER_H_

#include <string_view>
#include <vector>

#include "nlohmann/json.hpp"

namespace xcache {

// The value of an object's member, the last of that name; empty: it is not
// there, the text is no object, or the name is spelled with escapes.
std::string_view RawMember(std::string_view text, std::string_view name);
// Of an array; empty: the text is none.
std::vector<std::string_view> RawElements(std::string_view text);

// Puts texts in place of the objects whose order matters, wherever a request
// has them: schemas and tools. Readers take both.
void KeepOrders(std::string_view text, nlohmann::json* body);

// Of such a value: its text.
std::string OrderedText(const nlohmann::json& value);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_JSON_ORDER_H_
