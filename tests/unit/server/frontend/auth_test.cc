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

}  // namespace
}  // namespace xcache
