// Rule R1 as a property: random chunkings, batches, forks, truncations and
// resumes of a sequence must all give what one plain pass over it gives. Any
// engine, any model.
#ifndef XCACHE_TESTS_UNIT_ENGINE_ENGINE_PROPERTY_H_
#define XCACHE_TESTS_UNIT_ENGINE_ENGINE_PROPERTY_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace xcache::testing {

// A token sequence with what one plain pass gives for it.
struct Reference {
  std::vector<TokenId> tokens;
  std::vector<std::vector<float>> logits;  // one row a token
  std::vector<std::string> pages;          // one a full block
};

// Forwards `tokens` block by block, alone. Test failures where that fails.
Reference ComputeReference(Engine& engine, const CodecHandle& codec,
                           std::vector<TokenId> tokens,
                           RematPolicy remat = RematPolicy::kResume);

std::vector<TokenId> RandomTokens(int n, int vocab_size, uint32_t seed);

// Test failure unless every logit is within `tolerance`, or has the same bits
// where that is 0.
void ExpectSameLogits(std::span<const float> actual,
                      std::span<const float> expected, float tolerance,
                      const std::string& where);

// Runs `num_actions` random actions on sequences over `texts`, of both remat
// policies and with blocks of both forms, checking every logit and every page
// against the references.
void RunRandomActions(Engine& engine, const CodecHandle& codec,
                      std::span<const Reference> texts, int num_actions,
                      uint32_t seed, float tolerance);

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_ENGINE_ENGINE_PROPERTY_H_
