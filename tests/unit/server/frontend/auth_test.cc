#include "server/frontend/auth.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string WriteFile(const std::string& text, mode_t mode = 0600) {
  const std::string path = ::testing::TempDir() + "/auth_test." +
                           std::to_string(getpid()) + ".tokens";
  unlink(path.c_str());
  std::ofstream(path) << text;
  chmod(path.c_str(), mode);
  return path;
}

absl::StatusOr<std::string> Ask(const Authenticator& auth,
                                std::string_view header) {
  return auth.Authenticate(&header);
}

TEST(TokenTableTest, ReadsTokensCommentsAndEmptyLines) {
  const auto table = TokenTable::Parse(
      "# tokens\n\n  abc  alice # hers\nd-e_f.g bob\r\n#x y\n");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ((*table)->size(), 2u);
  ASSERT_NE((*table)->Find("abc"), nullptr);
  EXPECT_EQ(*(*table)->Find("abc"), "alice");
  EXPECT_EQ(*(*table)->Find("d-e_f.g"), "bob");
  for (const char* unknown : {"", "ab", "abcd", "ABC", "alice", "#x", "x"}) {
    EXPECT_EQ((*table)->Find(unknown), nullptr) << unknown;
  }
}

TEST(TokenTableTest, AByteOrderMarkIsNoPartOfTheFirstToken) {
  const auto table = TokenTable::Parse(
      "\xEF\xBB\xBF"
      "abc alice\n");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_NE((*table)->Find("abc"), nullptr);
}

TEST(TokenTableTest, SeveralTokensMayNameOneTenant) {
  const auto table = TokenTable::Parse("old t\nnew t\n");
  ASSERT_TRUE(table.ok());
  EXPECT_EQ(*(*table)->Find("old"), "t");
  EXPECT_EQ(*(*table)->Find("new"), "t");
}

TEST(TokenTableTest, BadLinesAreNamedWithoutTheirToken) {
  const struct {
    const char* text;
    const char* line;
  } kCases[] = {{"ok t\nsecret-1\n", "line 2"},
                {"secret-1 a b\n", "line 1"},
                {"\n\nsecret-1 a/b\n", "line 3"},
                {"secret-1 a\nsecret-1 b\n", "line 2"}};
  for (const auto& c : kCases) {
    const auto table = TokenTable::Parse(c.text);
    ASSERT_FALSE(table.ok()) << c.text;
    EXPECT_THAT(std::string(table.status().message()), HasSubstr(c.line));
    EXPECT_THAT(std::string(table.status().message()),
                Not(HasSubstr("secret")));
  }
  EXPECT_FALSE(TokenTable::Parse("# nothing\n").ok());
}

TEST(TokenTableTest, ATenantsLimitsStandInALineOfTheirOwn) {
  const auto table = TokenTable::Parse(
      "abc alice\n"
      "tenant alice weight=3 requests=8 queued-tokens=20000 # hers\n"
      "tenant bob tokens-per-minute=60000 sessions=100 page-bytes=2GiB\r\n"
      "def bob\nghi bob\njkl carol\n");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ((*table)->size(), 4u);
  const TenantPolicies& policies = (*table)->policies();
  ASSERT_EQ(policies.size(), 3u);
  const TenantPolicy& alice = policies.at("alice");
  EXPECT_EQ(alice.weight, 3);
  EXPECT_EQ(alice.limit(TenantLimit::kRequests), 8);
  EXPECT_EQ(alice.limit(TenantLimit::kQueuedTokens), 20000);
  EXPECT_EQ(alice.limit(TenantLimit::kSessions), std::nullopt);
  const TenantPolicy& bob = policies.at("bob");
  EXPECT_EQ(bob.weight, 1);
  EXPECT_EQ(bob.limit(TenantLimit::kTokensPerMinute), 60000);
  EXPECT_EQ(bob.limit(TenantLimit::kSessions), 100);
  EXPECT_EQ(bob.limit(TenantLimit::kPageBytes), int64_t{2} << 30);
  EXPECT_EQ(policies.at("carol"), TenantPolicy());
  EXPECT_EQ((*table)->Find("tenant"), nullptr);
  EXPECT_TRUE((*table)->without_token().empty());
}

TEST(TokenTableTest, LimitsOfWhoHasNoTokenAreTakenAndTold) {
  const auto table = TokenTable::Parse("abc alice\ntenant bob requests=1\n");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ((*table)->without_token(), std::vector<std::string>{"bob"});
  // But limits alone let nobody in.
  EXPECT_FALSE(TokenTable::Parse("tenant bob requests=1\n").ok());
}

TEST(TokenTableTest, BadLimitsSayWhereWhatWasExpectedAndWhatWasFound) {
  const struct {
    const char* line;
    const char* expected;
    const char* found;
  } kCases[] = {
      {"tenant alice", "key=value after 'tenant alice'", "found nothing"},
      {"tenant alice secret", "expected key=value", "a word without a '='"},
      {"tenant alice request=1", "one of weight, requests, queued-tokens",
       "found 'request'"},
      {"tenant alice requests=", "whole number from 1 on", "found ''"},
      {"tenant alice requests=0", "whole number from 1 on", "found '0'"},
      {"tenant alice requests=-1", "whole number from 1 on", "found '-1'"},
      {"tenant alice requests=+1", "whole number from 1 on", "found '+1'"},
      {"tenant alice requests=1.5", "whole number from 1 on", "found '1.5'"},
      {"tenant alice requests=2KiB", "whole number from 1 on", "'2KiB'"},
      {"tenant alice requests=99999999999999999999", "whole number", "'9999"},
      {"tenant alice page-bytes=2G", "KiB, MiB, GiB or TiB", "found '2G'"},
      {"tenant alice page-bytes=9999999TiB", "KiB, MiB, GiB or TiB", "TiB'"},
      {"tenant alice weight=1001", "from 1 to 1000", "found '1001'"},
      {"tenant alice weight=2 weight=2", "each key once", "'weight' twice"},
      {"tenant bob sessions=2", "a tenant's limits in one line",
       "tenant 'bob', whose line is 2"},
  };
  for (const auto& c : kCases) {
    const auto table = TokenTable::Parse(
        std::string("x alice\ntenant bob sessions=1\n") + c.line + "\n");
    ASSERT_FALSE(table.ok()) << c.line;
    EXPECT_TRUE(absl::IsInvalidArgument(table.status()));
    const std::string message(table.status().message());
    EXPECT_THAT(message, HasSubstr("line 3: expected ")) << c.line;
    EXPECT_THAT(message, HasSubstr(c.expected)) << c.line;
    EXPECT_THAT(message, HasSubstr(c.found)) << c.line;
    EXPECT_THAT(message, Not(HasSubstr("secret")));
  }
  // Where a token's line ends, limits do not go on.
  EXPECT_THAT(
      std::string(
          TokenTable::Parse("secret a requests=1\n").status().message()),
      HasSubstr("'tenant NAME key=value ...'"));
}

TEST(AuthenticatorTest, WithoutAFileEverybodyIsTheDefaultTenant) {
  const auto auth = Authenticator::Create("");
  ASSERT_TRUE(auth.ok());
  EXPECT_EQ((*auth)->Authenticate(nullptr).value(), kDefaultTenant);
  EXPECT_EQ(Ask(**auth, "Bearer whatever").value(), kDefaultTenant);
}

TEST(AuthenticatorTest, TokensNameTenants) {
  const auto auth = Authenticator::Create(WriteFile("abc alice\ndef bob\n"));
  ASSERT_TRUE(auth.ok()) << auth.status();
  EXPECT_EQ(Ask(**auth, "Bearer abc").value(), "alice");
  EXPECT_EQ(Ask(**auth, "bearer def").value(), "bob");
  EXPECT_TRUE(absl::IsUnauthenticated((*auth)->Authenticate(nullptr).status()));
  for (const char* header : {"", "Bearer", "Bearer ", "abc", "Basic abc",
                             "Bearer  abc", "Bearer abc ", "Bearer xyz"}) {
    EXPECT_TRUE(absl::IsUnauthenticated(Ask(**auth, header).status()))
        << header;
  }
}

TEST(AuthenticatorTest, AFileThatEverybodyReadsIsRefused) {
  const auto auth = Authenticator::Create(WriteFile("abc alice\n", 0644));
  EXPECT_TRUE(absl::IsPermissionDenied(auth.status()));
  EXPECT_THAT(std::string(auth.status().message()), HasSubstr("chmod"));
  EXPECT_TRUE(Authenticator::Create(WriteFile("abc alice\n", 0640)).ok());
}

TEST(AuthenticatorTest, AMissingFileIsRefused) {
  EXPECT_TRUE(
      absl::IsNotFound(Authenticator::Create("/nowhere/tokens").status()));
  EXPECT_FALSE(Authenticator::Create(::testing::TempDir()).ok());
}

TEST(AuthenticatorTest, ReloadTakesTheNewFileOrKeepsTheOld) {
  const std::string path = WriteFile("abc alice\n");
  const auto auth = Authenticator::Create(path);
  ASSERT_TRUE(auth.ok());
  WriteFile("new alice\n");
  EXPECT_TRUE((*auth)->Reload().ok());
  EXPECT_FALSE(Ask(**auth, "Bearer abc").ok());
  EXPECT_TRUE(Ask(**auth, "Bearer new").ok());
  WriteFile("broken\n");
  EXPECT_FALSE((*auth)->Reload().ok());
  EXPECT_TRUE(Ask(**auth, "Bearer new").ok());
}

TEST(AuthenticatorTest, LimitsAreReadWithTheTokens) {
  TenantLedger tenants;
  const std::string path = WriteFile("abc alice\ntenant alice weight=5\n");
  const auto auth = Authenticator::Create(path, &tenants);
  ASSERT_TRUE(auth.ok()) << auth.status();
  EXPECT_EQ(tenants.WeightOf("alice"), 5);
  EXPECT_FALSE(tenants.has_several());
  WriteFile("abc alice\ndef bob\ntenant alice requests=1\n");
  ASSERT_TRUE((*auth)->Reload().ok());
  EXPECT_EQ(tenants.WeightOf("alice"), 1);
  EXPECT_TRUE(tenants.has_several());
  EXPECT_FALSE(tenants.Take("alice", TenantLimit::kRequests, 2).ok());
  // Of a file that is refused nothing holds.
  WriteFile("abc alice\ntenant alice requests=7\nbroken\n");
  EXPECT_FALSE((*auth)->Reload().ok());
  EXPECT_FALSE(tenants.Take("alice", TenantLimit::kRequests, 2).ok());
}

}  // namespace
}  // namespace xcache
