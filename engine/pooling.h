// How the rows of a text become one vector.
#ifndef XCACHE_ENGINE_POOLING_H_
#define XCACHE_ENGINE_POOLING_H_

namespace xcache {

enum class Pooling {
  kMean,  // of all tokens' rows
  kLast,  // the last token's row
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_POOLING_H_
