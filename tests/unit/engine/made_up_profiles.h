// Profiles for engines of small models, as xcache-calibrate would leave them.
#ifndef XCACHE_TESTS_UNIT_ENGINE_MADE_UP_PROFILES_H_
#define XCACHE_TESTS_UNIT_ENGINE_MADE_UP_PROFILES_H_

#include <string>

#include "engine/model/model.h"

namespace xcache::testing {

// A folder, --profile-dir, with a profile of xquant-tc that is made up for
// `model` (transform_test_util.h). It is there until the program ends.
std::string MadeUpProfiles(const Model& model);

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_ENGINE_MADE_UP_PROFILES_H_
