// Observations in a file, so that a calibration that was stopped, or is made
// again with other options of the fit, need not look at the model again. A
// scratch file of one machine: bytes as they lie in memory.
#ifndef XCACHE_ENGINE_CALIBRATION_OBSERVATIONS_FILE_H_
#define XCACHE_ENGINE_CALIBRATION_OBSERVATIONS_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/sha256.h"
#include "engine/calibration/observations.h"

namespace xcache {

// `inputs`: digest of all that they follow from. UNAVAILABLE: not written.
absl::Status SaveObservations(const Observations& seen, const Digest& inputs,
                              const std::string& path);
// NOT_FOUND: no such file, or one of other inputs, or not whole.
absl::StatusOr<Observations> LoadObservations(const Digest& inputs,
                                              const std::string& path);

}  // namespace xcache

#endif  // XCACHE_ENGINE_CALIBRATION_OBSERVATIONS_FILE_H_
