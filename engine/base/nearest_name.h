// The name that somebody meant who typed one that does not exist.
#ifndef XCACHE_ENGINE_BASE_NEAREST_NAME_H_
#define XCACHE_ENGINE_BASE_NEAREST_NAME_H_

#include <string>
#include <string_view>
#include <vector>

namespace xcache {

// The one of `names` that is fewest typing errors from `typed`: characters
// left out, put in, exchanged or swapped with a neighbour; or that `typed`
// begins. The first of equals. Empty where none is near enough to be meant.
std::string NearestName(std::string_view typed,
                        const std::vector<std::string>& names);

// " (did you mean NAME?)", or nothing.
std::string DidYouMean(std::string_view typed,
                       const std::vector<std::string>& names);

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_NEAREST_NAME_H_
