// The sharing rules on a clock of the test's own: a step takes what the test
// says it does.
#include "server/core/scheduler/fair_shares.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

namespace xcache {
namespace {

using Part = FairShares::Part;
constexpr int64_t kBudget = 128;

struct Machine {
  double fixed = 0.004, row = 0.0008;  // seconds
  double Seconds(int64_t rows) const {
    return fixed + row * static_cast<double>(rows);
  }
};
// Where rows are dear, where they cost as much as they do, where they are next
// to nothing.
const Machine kMachines[] = {{0.0, 0.001}, {0.004, 0.0008}, {0.010, 0.000001}};

int64_t RowsOf(const std::vector<Part>& parts) {
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.gets;
  return rows;
}

// One step of these parts; returns what it took.
double Step(FairShares& shares, const Machine& machine,
            std::vector<Part>& parts) {
  for (Part& part : parts) part.weight = shares.PartOf(part.tenant).weight;
  shares.Share(kBudget, parts);
  EXPECT_LE(RowsOf(parts), kBudget);
  for (const Part& part : parts) {
    EXPECT_LE(part.gets, part.wants + part.drafts);
  }
  const double seconds = machine.Seconds(RowsOf(parts));
  shares.Ran(parts, seconds);
  return seconds;
}

TenantPolicies Weights(const std::map<std::string, int64_t>& weights) {
  TenantPolicies policies;
  for (const auto& [tenant, weight] : weights) policies[tenant].weight = weight;
  return policies;
}

TEST(StepCostTest, FindsTheFixedPartAndARowsPart) {
  StepCost cost;
  for (int i = 0; i < 20; ++i) cost.Add(1, 0, 0.005);
  // All of one size: nothing is known of a row, but what such a step takes.
  EXPECT_EQ(cost.row_seconds(0), 0);
  EXPECT_NEAR(cost.seconds(1, 0), 0.005, 1e-9);
  for (int i = 0; i < 20; ++i) cost.Add(4, 0, 0.008);
  EXPECT_NEAR(cost.row_seconds(0), 0.001, 1e-9);
  EXPECT_NEAR(cost.seconds(10, 0), 0.014, 1e-9);
}

TEST(StepCostTest, FindsAKeysPartWhereRowsReadManyOrFew) {
  const auto seconds = [](double rows, double keys) {
    return 0.0026 + 0.0006 * rows + 0.9e-6 * keys;
  };
  StepCost cost;
  for (int i = 0; i < 400; ++i) {
    const int64_t rows = 1 + i % 3;
    const double keys = static_cast<double>(rows) * (i % 7) * 500;
    cost.Add(rows, keys, seconds(static_cast<double>(rows), keys));
  }
  EXPECT_NEAR(cost.seconds(1, 0), seconds(1, 0), 0.0001);
  EXPECT_NEAR(cost.row_seconds(4000), 0.0042, 0.0002);
  // Steps that are all alike say no other thing.
  for (int i = 0; i < 400; ++i)
    cost.Add(1 + i % 2, 100, seconds(1 + i % 2, 100));
  EXPECT_NEAR(cost.row_seconds(4000), 0.0042, 0.0002);
}

TEST(StepCostTest, OneStepThatWasHeldUpSaysLittle) {
  StepCost cost;
  for (int i = 0; i < 100; ++i) {
    const int64_t rows = 1 + i % 8;
    cost.Add(rows, 0, 0.004 + 0.001 * static_cast<double>(rows));
  }
  cost.Add(1, 0, 10.0);
  EXPECT_LT(cost.seconds(1, 0), 0.0068);
  for (int i = 0; i < 400; ++i) cost.Add(1 + i % 8, 0, 0.1);
  EXPECT_GT(cost.seconds(1, 0), 0.09);  // and a machine that became slow does
}

TEST(FairSharesTest, ATenantByItselfGetsAll) {
  FairShares shares(nullptr);
  std::vector<Part> parts = {{.tenant = "a", .wants = 1000, .waits = true}};
  Step(shares, Machine(), parts);
  EXPECT_EQ(parts[0].gets, kBudget);
}

TEST(FairSharesTest, AFloodNeverDoublesTheTimeBetweenTwoTokens) {
  for (const Machine& machine : kMachines) {
    // It decodes, it has prompts, or both.
    for (const bool flood_waits : {false, true}) {
      FairShares shares(nullptr);
      std::vector<Part> alone = {{.tenant = "good", .wants = 1, .waits = true}};
      double idle = 0;
      for (int i = 0; i < 50; ++i) idle = Step(shares, machine, alone);
      std::vector<Part> parts = {
          {.tenant = "flood", .wants = 500, .waits = flood_waits},
          {.tenant = "good", .wants = 1, .waits = true}};
      double busy = 0;
      int64_t flood_rows = 0;
      for (int i = 0; i < 1000; ++i) {
        const double seconds = Step(shares, machine, parts);
        ASSERT_LE(seconds, 2 * idle) << machine.row << " step " << i;
        ASSERT_EQ(parts[1].gets, 1);
        busy += seconds;
        flood_rows += parts[0].gets;
      }
      // And it takes what the other one leaves: a fifth of the time at least,
      // where rows cost any, and all rows where they cost none.
      if (machine.row < 1e-5) {
        EXPECT_EQ(parts[0].gets, kBudget - 1);
      } else {
        EXPECT_GE(static_cast<double>(flood_rows) * machine.row, busy / 5);
      }
    }
  }
}

// The machine is busy with something else: what a step takes varies by a factor
// of three, now and then by much more.
TEST(FairSharesTest, AlsoWhereStepsTakeMoreThanTheyShould) {
  const Machine machine;
  FairShares shares(nullptr);
  uint32_t seed = 1;
  const auto random = [&] {
    seed = seed * 1664525u + 1013904223u;
    return static_cast<double>(seed >> 8) / (1 << 24);
  };
  const auto run = [&](std::vector<Part>& parts) {
    for (Part& part : parts) part.weight = 1;
    shares.Share(kBudget, parts);
    const double should = machine.Seconds(RowsOf(parts));
    const double slow = random() < 0.02 ? 10 : 1 + 2 * random();
    shares.Ran(parts, slow * should);
    return should;
  };
  std::vector<Part> alone = {{.tenant = "good", .wants = 1, .waits = true}};
  for (int i = 0; i < 300; ++i) run(alone);
  std::vector<Part> parts = {{.tenant = "flood", .wants = 500},
                             {.tenant = "good", .wants = 1, .waits = true}};
  int longer = 0;
  double total = 0;
  for (int i = 0; i < 4000; ++i) {
    const double should = run(parts);
    total += should;
    longer += should > 2 * machine.Seconds(1) ? 1 : 0;
  }
  EXPECT_LE(total / 4000, 1.7 * machine.Seconds(1));
  EXPECT_LE(longer, 4000 / 20);
}

TEST(FairSharesTest, AlsoWhereThereAreLargeStepsBefore) {
  const Machine machine;
  FairShares shares(nullptr);
  std::vector<Part> prompts = {{.tenant = "flood", .wants = 500}};
  for (int i = 0; i < 20; ++i) Step(shares, machine, prompts);
  std::vector<Part> parts = {{.tenant = "flood", .wants = 500},
                             {.tenant = "good", .wants = 1, .waits = true}};
  for (int i = 0; i < 300; ++i) {
    ASSERT_LE(Step(shares, machine, parts), 2 * machine.Seconds(1)) << i;
  }
}

// Rows of long prompts read many keys. What a step takes, of rows and keys, as
// measured on the demo model.
double OfKeys(double rows, double keys) {
  return 0.0026 + 0.0006 * rows + 0.9e-6 * keys;
}

struct Flooded {
  double p95 = 0, mean = 0;  // of a step, over the one without the flood
  double flood_rows = 0;     // a step
};

// One who waits and is at 100 keys, beside a flood at `depth`. Each 200 steps
// it asks anew, which is a large step with a prompt of the flood.
Flooded BesideKeys(double depth, bool flood_waits, int64_t wants = 64) {
  FairShares shares(nullptr);
  std::vector<double> times;
  Flooded out;
  constexpr int kSteps = 4000;
  for (int i = 0; i < kSteps; ++i) {
    if (i % 200 == 0) {
      std::vector<Part> parts = {
          {.tenant = "flood",
           .wants = 92,
           .waits = flood_waits,
           .gets = 92,
           .keys = 80000},
          {.tenant = "good", .wants = 36, .gets = 36, .keys = 650}};
      shares.Ran(parts, 0.098);
    }
    std::vector<Part> parts = {
        {.tenant = "good", .wants = 1, .waits = true, .depth = 100}};
    if (i % 50 != 0) {  // now and then it is between two requests
      parts.push_back({.tenant = "flood",
                       .wants = wants,
                       .waits = flood_waits,
                       .depth = depth});
    }
    shares.Share(kBudget, parts);
    double keys = 0;
    for (Part& part : parts) {
      const auto gets = static_cast<double>(part.gets);
      part.keys = part.depth * gets;
      // Many rows of a prompt read them together.
      keys += part.depth * (part.waits ? gets : std::min(gets, 4.0));
    }
    const double seconds = OfKeys(static_cast<double>(RowsOf(parts)), keys);
    shares.Ran(parts, seconds);
    if (i < 400 || parts[0].gets == 0) continue;
    times.push_back(seconds / OfKeys(1, 100));
    out.mean += times.back();
    out.flood_rows += static_cast<double>(RowsOf(parts) - 1);
  }
  const auto n = static_cast<double>(times.size());
  EXPECT_GE(n, 0.99 * (kSteps - 400));
  std::sort(times.begin(), times.end());
  out.p95 = times[static_cast<size_t>(0.95 * n)];
  out.mean /= n;
  out.flood_rows /= n;
  return out;
}

TEST(FairSharesTest, RowsThatReadManyKeysAreNoMoreThanAShare) {
  for (const double depth : {500, 1500, 2400}) {
    for (const bool waits : {false, true}) {
      const Flooded flooded = BesideKeys(depth, waits);
      EXPECT_LE(flooded.p95, 2) << depth;
      EXPECT_LE(flooded.mean, 1.95) << depth;
      EXPECT_GE(flooded.flood_rows, 0.5) << depth;
    }
  }
  // A row takes more than a step without it: they come rarely, several at once.
  for (const double depth : {4000, 8000}) {
    for (const bool waits : {false, true}) {
      const Flooded flooded = BesideKeys(depth, waits);
      EXPECT_LE(flooded.p95, 1.05) << depth;
      EXPECT_LE(flooded.mean, 1.6) << depth;
      EXPECT_GE(flooded.flood_rows, 0.1) << depth;
    }
  }
  // One answer each: neither is a flood, and both go on in each step.
  EXPECT_GE(BesideKeys(8000, true, 1).flood_rows, 0.97);
}

TEST(FairSharesTest, AWeightIsATimesShare) {
  const Machine machine;
  TenantLedger ledger;
  ledger.SetPolicies(Weights({{"heavy", 3}, {"light", 1}}));
  FairShares shares(&ledger);
  std::map<std::string, int64_t> rows;
  for (int i = 0; i < 200; ++i) {
    std::vector<Part> parts = {{.tenant = "heavy", .wants = 640},
                               {.tenant = "light", .wants = 640}};
    Step(shares, machine, parts);
    for (const Part& part : parts) rows[part.tenant] += part.gets;
  }
  EXPECT_NEAR(
      static_cast<double>(rows["heavy"]) / static_cast<double>(rows["light"]),
      3.0, 0.1);
  EXPECT_EQ(rows["heavy"] + rows["light"], 200 * kBudget);
}

TEST(FairSharesTest, SeveralFloodsShareWhatOneWouldHave) {
  const Machine machine;
  FairShares shares(nullptr);
  std::map<std::string, int64_t> rows;
  for (int i = 0; i < 300; ++i) {
    std::vector<Part> parts;
    for (const char* tenant : {"a", "b", "c"}) {
      parts.push_back({.tenant = tenant, .wants = 400});
    }
    Step(shares, machine, parts);
    for (const Part& part : parts) rows[part.tenant] += part.gets;
  }
  for (const auto& [tenant, n] : rows) {
    EXPECT_NEAR(static_cast<double>(n), 100 * kBudget, 130) << tenant;
  }
}

TEST(FairSharesTest, EqualsAreNotHeldUp) {
  for (const Machine& machine : kMachines) {
    FairShares shares(nullptr);
    std::vector<Part> parts;
    for (const char* tenant : {"a", "b", "c", "d"}) {
      parts.push_back({.tenant = tenant, .wants = 10, .waits = true});
    }
    for (int i = 0; i < 10; ++i) {
      Step(shares, machine, parts);
      for (const Part& part : parts) EXPECT_EQ(part.gets, 10);
    }
  }
}

TEST(FairSharesTest, MoreTenantsThanRowsTakeTurns) {
  FairShares shares(nullptr);
  std::vector<Part> parts;
  for (int i = 0; i < 3 * kBudget; ++i) {
    parts.push_back(
        {.tenant = "t" + std::to_string(i), .wants = 1, .waits = true});
  }
  std::map<std::string, int64_t> rows;
  for (int i = 0; i < 6; ++i) {
    Step(shares, Machine(), parts);
    for (const Part& part : parts) rows[part.tenant] += part.gets;
  }
  for (const auto& [tenant, n] : rows) EXPECT_EQ(n, 2) << tenant;
}

TEST(FairSharesTest, WhoWantedLittleHasSavedNothingUp) {
  const Machine machine;
  FairShares shares(nullptr);
  for (int i = 0; i < 5000; ++i) {
    std::vector<Part> parts = {{.tenant = "flood", .wants = 500},
                               {.tenant = "good", .wants = 1, .waits = true}};
    Step(shares, machine, parts);
  }
  // A long prompt of its own: half of the steps, and no more.
  int64_t flood = 0, good = 0;
  for (int i = 0; i < 100; ++i) {
    std::vector<Part> parts = {{.tenant = "flood", .wants = 500},
                               {.tenant = "good", .wants = 500}};
    Step(shares, machine, parts);
    flood += parts[0].gets;
    good += parts[1].gets;
  }
  EXPECT_NEAR(static_cast<double>(flood), static_cast<double>(good),
              2.0 * kBudget);
}

TEST(FairSharesTest, WhoWasAwayComesBackToItsShare) {
  const Machine machine;
  FairShares shares(nullptr);
  std::vector<Part> both = {{.tenant = "a", .wants = 500},
                            {.tenant = "b", .wants = 500}};
  for (int i = 0; i < 10; ++i) Step(shares, machine, both);
  std::vector<Part> one = {{.tenant = "b", .wants = 500}};
  for (int i = 0; i < 1000; ++i) Step(shares, machine, one);
  int64_t a = 0, b = 0;
  for (int i = 0; i < 100; ++i) {
    Step(shares, machine, both);
    a += both[0].gets;
    b += both[1].gets;
  }
  EXPECT_NEAR(static_cast<double>(a), static_cast<double>(b), 2.0 * kBudget);
}

TEST(FairSharesTest, NobodyIsShutOutByAWeight) {
  TenantLedger ledger;
  ledger.SetPolicies(Weights({{"heavy", kMaxTenantWeight}, {"light", 1}}));
  FairShares shares(&ledger);
  std::vector<Part> parts = {{.tenant = "heavy", .wants = 1, .waits = true},
                             {.tenant = "light", .wants = 50, .waits = true}};
  int64_t rows = 0;
  for (int i = 0; i < 160; ++i) {
    Step(shares, Machine(), parts);
    rows += parts[1].gets;
  }
  EXPECT_GE(rows, 150);
}

TEST(FairSharesTest, RematerializingIsPartOfAShare) {
  const Machine machine;
  constexpr double kBlock = 0.003;
  FairShares shares(nullptr);
  std::vector<Part> parts = {{.tenant = "flood", .wants = 500, .waits = true},
                             {.tenant = "good", .wants = 1, .waits = true}};
  for (int i = 0; i < 100; ++i) Step(shares, machine, parts);
  // Whoever does not wait for a token leaves it its time.
  const std::vector<Part> only_prompts = {{.tenant = "good", .wants = 100}};
  EXPECT_EQ(shares.RestoreSeconds("flood", only_prompts), FairShares::kNoLimit);
  double between = 0, longest = 0, total = 0;
  int blocks = 0;
  for (int i = 0; i < 1000; ++i) {
    between = 0;
    if (shares.RestoreSeconds("flood", parts) > 0) {
      shares.Restored("flood", kBlock);
      between += kBlock;
      ++blocks;
    }
    between += Step(shares, machine, parts);
    EXPECT_EQ(parts[1].gets, 1);
    longest = std::max(longest, between);
    total += between;
  }
  EXPECT_GT(blocks, 100);
  EXPECT_LE(longest, 2 * machine.Seconds(1));
  EXPECT_LE(total / 1000, 1.6 * machine.Seconds(1));
  // Alone again, it owes nobody anything.
  std::vector<Part> alone = {{.tenant = "flood", .wants = 500, .waits = true}};
  shares.Restored("flood", 1.0);
  Step(shares, machine, alone);
  EXPECT_GT(shares.RestoreSeconds("flood", parts), 0);
}

// A block is sealed with every 64th row of a tenant, and takes twice as long as
// a step of one row: few steps are long for that, whoever's blocks they are.
TEST(FairSharesTest, SealingIsPartOfAShare) {
  const Machine machine;
  const double idle = machine.Seconds(1), seal = 2 * machine.Seconds(1);
  FairShares shares(nullptr);
  std::vector<Part> parts = {{.tenant = "flood", .wants = 500, .waits = true},
                             {.tenant = "good", .wants = 1, .waits = true}};
  std::map<std::string, int64_t> rows;
  int longer = 0, without = 0;
  double total = 0;
  constexpr int kSteps = 6400;
  for (int i = 0; i < kSteps; ++i) {
    shares.Share(kBudget, parts);
    double seconds = machine.Seconds(RowsOf(parts));
    for (Part& part : parts) {
      int64_t& have = rows[part.tenant];
      part.seals = (have + part.gets) / 64 - have / 64;
      have += part.gets;
      seconds += static_cast<double>(part.seals) * seal;
    }
    shares.Ran(parts, seconds);
    longer += seconds > 2 * idle ? 1 : 0;
    // Once it is known what a block takes.
    without += i >= 100 && parts[1].gets == 0 ? 1 : 0;
    total += seconds;
  }
  // Its own blocks cost the one that wants little no turn.
  EXPECT_EQ(without, 0);
  // Of these, its own are 1 in 64.
  EXPECT_LE(longer, kSteps / 20);
  EXPECT_LE(total / kSteps, 1.6 * idle);
  EXPECT_GE(rows["flood"], kSteps);
}

TEST(FairSharesTest, DraftsHaveRowsAsAnyHave) {
  const Machine machine;
  FairShares shares(nullptr);
  std::vector<Part> alone = {
      {.tenant = "a", .wants = 1, .drafts = 15, .waits = true}};
  Step(shares, machine, alone);
  EXPECT_EQ(alone[0].gets, 16);
  alone[0].wants = kBudget - 5;
  Step(shares, machine, alone);
  EXPECT_EQ(alone[0].gets, kBudget);
  alone[0].wants = 1;
  for (int i = 0; i < 50; ++i) {
    alone[0].drafts = i % 4;
    Step(shares, machine, alone);
  }
  // Of two, both have some, and neither doubles the other's step.
  std::vector<Part> both = {
      {.tenant = "a", .wants = 1, .drafts = 15, .waits = true},
      {.tenant = "b", .wants = 1, .drafts = 15, .waits = true}};
  for (int i = 0; i < 100; ++i) {
    Step(shares, machine, both);
    for (const Part& part : both) {
      EXPECT_GT(part.gets, 1);
      EXPECT_LE(machine.Seconds(RowsOf(both)), 2 * machine.Seconds(part.gets));
    }
  }
  // Beside one that has none: as much as any flood of rows.
  both[1].drafts = 0;
  double total = 0;
  for (int i = 0; i < 100; ++i) {
    total += Step(shares, machine, both);
    EXPECT_EQ(both[1].gets, 1);
  }
  EXPECT_LE(total / 100, 1.6 * machine.Seconds(1));
}

// Whose rows read many keys, and who drafts, is no flood for that.
TEST(FairSharesTest, DraftsCostNobodyTheRowOfItsAnswer) {
  FairShares shares(nullptr);
  std::vector<Part> parts = {{.tenant = "deep",
                              .wants = 1,
                              .drafts = 15,
                              .waits = true,
                              .depth = 8000},
                             {.tenant = "good", .waits = true, .depth = 100}};
  for (int i = 0; i < 2000; ++i) {
    parts[1].wants = i < 200 ? 1 + i % 3 : 1;
    shares.Share(kBudget, parts);
    double seconds = 0.0026;
    for (Part& part : parts) {
      part.keys = part.depth * static_cast<double>(part.gets);
      seconds += 0.0006 * static_cast<double>(part.gets) + 0.9e-6 * part.keys;
    }
    shares.Ran(parts, seconds);
    if (i < 200) continue;
    // Once it is known what its rows take.
    EXPECT_EQ(parts[0].gets, 1) << i;
    EXPECT_EQ(parts[1].gets, 1) << i;
  }
}

TEST(FairSharesTest, WhereAllOweSomethingAllGoOn) {
  FairShares shares(nullptr);
  std::vector<Part> parts = {{.tenant = "a", .wants = 1, .waits = true},
                             {.tenant = "b", .wants = 1, .waits = true}};
  Step(shares, Machine(), parts);
  shares.Restored("a", 1.0);
  shares.Restored("b", 1.0);
  int64_t rows = 0;
  for (int i = 0; i < 100; ++i) {
    Step(shares, Machine(), parts);
    rows += RowsOf(parts);
  }
  EXPECT_EQ(rows, 200);
}

}  // namespace
}  // namespace xcache
