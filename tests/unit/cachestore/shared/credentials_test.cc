#include "cachestore/shared/credentials.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace xcache {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr char kFile[] =
    "# ours\n"
    "[default]\n"
    "aws_access_key_id = AKID1\r\n"
    "aws_secret_access_key=s3cret/1+=\n"
    "region = somewhere\n"
    "\n"
    "; and theirs\n"
    "[ other ]\n"
    "AWS_ACCESS_KEY_ID = AKID2\n"
    "aws_secret_access_key = s3cret2\n"
    "aws_session_token = token==\n";

TEST(CredentialsFileTest, EachProfileHasItsOwn) {
  const auto first = ParseCredentialsFile(kFile, "default");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(*first, (Credentials{"AKID1", "s3cret/1+=", ""}));
  const auto second = ParseCredentialsFile(kFile, "other");
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(*second, (Credentials{"AKID2", "s3cret2", "token=="}));
}

TEST(CredentialsFileTest, AFaultIsNamedAndNoSecretIs) {
  EXPECT_TRUE(absl::IsNotFound(ParseCredentialsFile(kFile, "third").status()));
  EXPECT_TRUE(absl::IsNotFound(ParseCredentialsFile("", "default").status()));
  const auto no_line =
      ParseCredentialsFile("[default]\n\ns3cret without a name\n", "default");
  EXPECT_TRUE(absl::IsInvalidArgument(no_line.status()));
  EXPECT_THAT(std::string(no_line.status().message()), HasSubstr("line 3"));
  EXPECT_THAT(std::string(no_line.status().message()),
              Not(HasSubstr("s3cret")));
  const auto no_secret =
      ParseCredentialsFile("[a]\naws_access_key_id=AKID\n", "a");
  EXPECT_TRUE(absl::IsInvalidArgument(no_secret.status()));
  EXPECT_THAT(std::string(no_secret.status().message()),
              HasSubstr("secret key"));
  const auto spaced = ParseCredentialsFile(
      "[a]\naws_access_key_id=AKID\naws_secret_access_key=a s3cret\n", "a");
  EXPECT_TRUE(absl::IsInvalidArgument(spaced.status()));
  EXPECT_THAT(std::string(spaced.status().message()), Not(HasSubstr("s3cret")));
  EXPECT_TRUE(
      absl::IsInvalidArgument(ParseCredentialsFile("[a\nx=y\n", "a").status()));
}

class CredentialsEnvironmentTest : public testing::Test {
 protected:
  void SetUp() override { Clear(); }
  void TearDown() override { Clear(); }
  static void Clear() {
    for (const char* name :
         {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}) {
      ::unsetenv(name);
    }
  }
};

TEST_F(CredentialsEnvironmentTest, TwoVariablesAndAToken) {
  EXPECT_TRUE(absl::IsNotFound(CredentialsFromEnvironment().status()));
  ::setenv("AWS_ACCESS_KEY_ID", "AKID", 1);
  EXPECT_TRUE(absl::IsInvalidArgument(CredentialsFromEnvironment().status()));
  ::setenv("AWS_SECRET_ACCESS_KEY", "s3cret", 1);
  auto credentials = CredentialsFromEnvironment();
  ASSERT_TRUE(credentials.ok()) << credentials.status();
  EXPECT_EQ(*credentials, (Credentials{"AKID", "s3cret", ""}));
  ::setenv("AWS_SESSION_TOKEN", "token", 1);
  EXPECT_EQ(CredentialsFromEnvironment()->session_token, "token");
  ::setenv("AWS_SECRET_ACCESS_KEY", "s3cret\r\nx-evil: 1", 1);
  credentials = CredentialsFromEnvironment();
  EXPECT_TRUE(absl::IsInvalidArgument(credentials.status()));
  EXPECT_THAT(std::string(credentials.status().message()),
              Not(HasSubstr("s3cret")));
}

class FileCredentialsTest : public testing::Test {
 protected:
  void Write(const std::string& id, mode_t mode = 0600) {
    // As an operator's tools do: another file takes its place.
    const std::string next = path_ + ".next";
    std::ofstream(next) << "[default]\naws_access_key_id=" << id
                        << "\naws_secret_access_key=s3cret\n";
    ::chmod(next.c_str(), mode);
    std::rename(next.c_str(), path_.c_str());
  }
  std::string Id() {
    std::string id;
    provider_->Get(std::chrono::steady_clock::now(),
                   [&id](absl::StatusOr<Credentials> credentials) {
                     id = credentials.ok() ? credentials->access_key_id
                                           : credentials.status().ToString();
                   });
    return id;
  }
  void TearDown() override { std::remove(path_.c_str()); }

  const std::string path_ = testing::TempDir() + "/credentials_test_file";
  std::unique_ptr<CredentialsProvider> provider_;
};

TEST_F(FileCredentialsTest, IsReadAgainWhenItChanges) {
  Write("AKID1");
  auto provider = CredentialsFromFile(path_, "default");
  ASSERT_TRUE(provider.ok()) << provider.status();
  provider_ = *std::move(provider);
  EXPECT_EQ(Id(), "AKID1");
  Write("AKID2");
  EXPECT_EQ(Id(), "AKID2");
}

TEST_F(FileCredentialsTest, ABrokenChangeLeavesWhatWasInForce) {
  Write("AKID1");
  provider_ = *CredentialsFromFile(path_, "default");
  Write("");
  EXPECT_EQ(Id(), "AKID1");
  std::remove(path_.c_str());
  EXPECT_EQ(Id(), "AKID1");
  Write("AKID3", 0644);  // others may read it
  EXPECT_EQ(Id(), "AKID1");
  Write("AKID4");
  EXPECT_EQ(Id(), "AKID4");
}

TEST_F(FileCredentialsTest, AStartNeedsAGoodFile) {
  EXPECT_TRUE(absl::IsNotFound(CredentialsFromFile(path_, "default").status()));
  Write("AKID", 0644);
  EXPECT_TRUE(
      absl::IsPermissionDenied(CredentialsFromFile(path_, "default").status()));
  Write("AKID");
  const auto status = CredentialsFromFile(path_, "other").status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
}

}  // namespace
}  // namespace xcache
