// Early-return macros for absl::Status and absl::StatusOr.
#ifndef XCACHE_ENGINE_BASE_STATUS_MACROS_H_
#define XCACHE_ENGINE_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the calling function if `expr` is a status that is not OK.
#define XC_RETURN_IF_ERROR(expr)                                  \
  do {                                                            \
    if (absl::Status xc_status_ = (expr); !xc_status_.ok()) {     \
      return xc_status_;                                          \
    }                                                             \
  } while (false)

// XC_ASSIGN_OR_RETURN(auto x, F()): x becomes the value, or the status returns.
#define XC_ASSIGN_OR_RETURN(lhs, expr) \
  XC_ASSIGN_OR_RETURN_IMPL_(XC_CONCAT_(xc_or_, __LINE__), lhs, expr)
#define XC_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                              \
  if (!tmp.ok()) return std::move(tmp).status();  \
  lhs = std::move(tmp).value()
#define XC_CONCAT_(a, b) XC_CONCAT_IMPL_(a, b)
#define XC_CONCAT_IMPL_(a, b) a##b

#endif  // XCACHE_ENGINE_BASE_STATUS_MACROS_H_
