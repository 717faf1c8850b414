// `xcache` as scripts use it: its output, its errors and its exit codes.
#include <google/protobuf/descriptor.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "command_fixture.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace xcache::client {
namespace {

using nlohmann::json;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

TEST_F(CommandTest, AskPrintsTheAnswerAlone) {
  const Result result = Run({"ask", "hello", "there"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "You said: hello there\n");
  EXPECT_EQ(result.err, "");
}

TEST_F(CommandTest, AskReadsStdin) {
  EXPECT_EQ(Run({"ask", "sum up:", "-"}, "a text").out,
            "You said: sum up: a text\n");
  EXPECT_EQ(Run({"ask", "-"}, "").code, 2);
}

TEST_F(CommandTest, AskTakesWhatIsPipedIn) {
  EXPECT_EQ(Run({"ask"}, "hi there\n").out, "You said: hi there\n\n");
  EXPECT_EQ(Run({"ask", "sum", "up:"}, "a text").out,
            "You said: sum up:\n\na text\n");
  EXPECT_EQ(Run({"ask"}, "").code, 2);
  EXPECT_EQ(Run({"ask"}, " \n").code, 2);
}

TEST_F(CommandTest, OutputThatCannotBeWrittenIsAnError) {
  const std::vector<std::vector<std::string>> commands = {
      {"ask", "hi"}, {"ask", "--json", "hi"}, {"chat", "-s", "full"},
      {"info"},      {"info", "--json"},      {"sessions", "list", "--json"},
      {"--version"}};
  for (const auto& args : commands) {
    const Result result = Run(args, "hi\n", "/dev/full");
    EXPECT_EQ(result.code, 1) << args[0];
    EXPECT_EQ(result.err,
              "error: cannot write the output: No space left on device\n")
        << args[0];
  }
}

TEST_F(CommandTest, ATurnThatIsNotOnDiskIsWarnedOf) {
  service_.set_durability(v1::DURABILITY_MEMORY);
  Result result = Run({"chat", "-s", "s"}, "hi\n");
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("warning: the turn is not on disk"));
  result = Run({"ask", "-s", "s", "hi"});
  EXPECT_EQ(result.out, "You said: hi\n");
  EXPECT_THAT(result.err, HasSubstr("warning: the turn is not on disk"));
  result = Run({"ask", "--json", "-s", "s", "hi"});
  EXPECT_EQ(json::parse(result.out)["durability"], "memory");
  EXPECT_THAT(json::parse(result.out)["warnings"][0].get<std::string>(),
              HasSubstr("not on disk"));
  // Without a session there is nothing to keep.
  EXPECT_EQ(Run({"ask", "hi"}).err, "");
}

TEST_F(CommandTest, AFullContextSaysHowToGoOn) {
  service_.set_finish_reason(v1::FINISH_REASON_CONTEXT);
  EXPECT_THAT(Run({"ask", "hi"}).err, HasSubstr("the context is full"));
  const Result result = Run({"chat", "-s", "s"}, "hi\n");
  EXPECT_THAT(result.err, HasSubstr("the context is full"));
  EXPECT_THAT(result.err, HasSubstr("xcache sessions fork s"));
}

TEST_F(CommandTest, OptionsThatWouldBeIgnoredAreRefused) {
  ASSERT_EQ(Run({"chat", "-s", "s", "--title", "t"}, "hi\n").code, 0);
  const std::vector<std::vector<std::string>> for_new = {
      {"--codec", "lossless"},
      {"--system", "be brief"},
      {"--title", "u"},
      {"--ttl-hours", "1"},
      {"--remat", "step"}};
  for (const auto& option : for_new) {
    const Result result =
        Run({"chat", "-s", "s", option[0], option[1]}, "hi\n");
    EXPECT_EQ(result.code, 2) << option[0];
    EXPECT_THAT(result.err, HasSubstr("session s exists, and " + option[0] +
                                      " is for new sessions"));
  }
  EXPECT_THAT(Run({"chat", "-s", "s", "--title", "u", "--codec", "kivi"}).err,
              ContainsRegex("--title, --codec are for new sessions"));
  EXPECT_EQ(Run({"ask", "-s", "s", "--system", "be brief", "hi"}).code, 2);
  EXPECT_EQ(Run({"ask", "--raw", "--system", "be brief", "hi"}).code, 2);
  EXPECT_EQ(Run({"ask", "--raw", "-s", "s", "hi"}).code, 2);
  EXPECT_EQ(Run({"ask", "--logprobs", "1", "hi"}).code, 2);
  EXPECT_EQ(Run({"stats", "--once", "--interval", "3"}).code, 2);
  EXPECT_EQ(Run({"--server-name", "x", "info"}).code, 2);
  EXPECT_EQ(Run({"--key", "x", "info"}).code, 2);
}

TEST_F(CommandTest, AChatThatSaysNothingLeavesNoSession) {
  EXPECT_EQ(Run({"chat"}, "").code, 0);
  EXPECT_EQ(Run({"chat", "-s", "s"}, "\n  \n").code, 0);
  EXPECT_EQ(Run({"sessions", "list"}).err, "no sessions\n");
  EXPECT_EQ(Run({"chat", "-s", "s"}, "hi\n").code, 0);
  EXPECT_THAT(Run({"sessions", "list"}).out, ContainsRegex("s +1 "));
}

TEST_F(CommandTest, BlocksAreOneMessage) {
  const Result result =
      Run({"chat", "-s", "p"},
          "\"\"\"\none\n\ntwo\n\"\"\"\n\"\"\"in\nline\"\"\"\n\"\"\"open\nend");
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out,
            "You said: one\n\ntwo\nYou said: in\nline\nYou said: open\n"
            "end\n");
}

TEST_F(CommandTest, UnknownWordsSuggestKnownOnes) {
  const auto error = [&](const std::vector<std::string>& args) {
    const Result result = Run(args);
    EXPECT_EQ(result.code, 2);
    return result.err;
  };
  EXPECT_EQ(
      error({"caht"}),
      "error: no command caht (did you mean chat?) (see xcache --help)\n");
  EXPECT_EQ(error({"rm", "x"}),
            "error: no command rm (did you mean sessions rm?) (see xcache "
            "--help)\n");
  EXPECT_EQ(error({"sessions", "lst"}),
            "error: no command lst (did you mean list?) (see xcache --help)\n");
  EXPECT_EQ(error({"ask", "--temprature", "0", "hi"}),
            "error: no option --temprature (did you mean --temperature?) (see "
            "xcache --help)\n");
  EXPECT_EQ(error({"info", "--adress=x"}),
            "error: no option --adress (did you mean --address?) (see xcache "
            "--help)\n");
  EXPECT_EQ(error({"info", "more"}),
            "error: unexpected argument more (see xcache --help)\n");
  EXPECT_EQ(error({"frobnicate"}),
            "error: no command frobnicate (see xcache --help)\n");
}

TEST_F(CommandTest, RemovingReportsEach) {
  ASSERT_EQ(Run({"chat", "-s", "a"}, "hi\n").code, 0);
  ASSERT_EQ(Run({"chat", "-s", "c"}, "hi\n").code, 0);
  const Result result = Run({"sessions", "rm", "a", "b", "c"});
  EXPECT_EQ(result.code, 4);
  EXPECT_EQ(result.out, "removed a\nremoved c\n");
  EXPECT_EQ(result.err, "error: no session b\n");
  ASSERT_EQ(Run({"chat", "-s", "a"}, "hi\n").code, 0);
  const json report =
      json::parse(Run({"--json", "sessions", "rm", "a", "b"}).out);
  EXPECT_EQ(report["removed"], json::array({"a"}));
  EXPECT_EQ(report["failed"][0]["id"], "b");
  EXPECT_EQ(report["failed"][0]["code"], "NOT_FOUND");
}

// Every field of the API, by its own name; times in ms where the API has us.
void ExpectFields(const google::protobuf::Descriptor* message, const json& have,
                  const std::set<std::string>& others = {}) {
  for (int i = 0; i < message->field_count(); ++i) {
    const std::string& name = message->field(i)->name();
    if (others.contains(name)) continue;
    EXPECT_TRUE(have.contains(name) ||
                (name.ends_with("_us") &&
                 have.contains(name.substr(0, name.size() - 3))))
        << message->full_name() << " has " << name << ", not so " << have;
  }
}

TEST_F(CommandTest, JsonHasAllThatTheApiHas) {
  ASSERT_EQ(Run({"chat", "-s", "s"}, "hi\n").code, 0);
  const auto run = [&](const std::vector<std::string>& args) {
    return json::parse(Run(args).out);
  };
  ExpectFields(v1::GetModelInfoResponse::descriptor(), run({"--json", "info"}));
  ExpectFields(v1::Session::descriptor(),
               run({"--json", "sessions", "show", "s"}));
  ExpectFields(v1::Session::descriptor(),
               run({"--json", "sessions", "list"})["sessions"][0],
               {"messages", "remat"});
  ExpectFields(v1::Session::descriptor(),
               run({"--json", "sessions", "pin", "s"}), {"messages"});
  ExpectFields(v1::FlushSessionResponse::descriptor(),
               run({"--json", "sessions", "flush", "s"}));
  const json answer = run({"--json", "ask", "-s", "s", "--logprobs", "2", "x"});
  ExpectFields(v1::Final::descriptor(), answer, {"timings"});
  ExpectFields(v1::Timings::descriptor(), answer["timings_ms"]);
  ExpectFields(v1::ReusedTokens::descriptor(), answer["reused"]);
  const std::set<std::string> as_id = {"token_id"};
  ExpectFields(v1::SampledToken::descriptor(), answer["tokens"][0], as_id);
  ExpectFields(v1::TokenLogprob::descriptor(), answer["tokens"][0]["top"][0],
               as_id);
  // A part of a character is whole in its bytes alone.
  EXPECT_EQ(answer["tokens"][0]["top"][0]["bytes"], json::array({0xC3}));
}

TEST_F(CommandTest, AskPassesItsFlags) {
  const Result result =
      Run({"ask", "--json", "--seed", "7", "--temperature", "0", "-n", "5",
           "--stop", "x", "--stop", "y", "--no-cache", "--logprobs", "1",
           "--system", "be brief", "hi"});
  ASSERT_EQ(result.code, 0) << result.err;
  const json answer = json::parse(result.out);
  EXPECT_EQ(answer["text"], "You said: be brief hi");
  EXPECT_EQ(answer["reused_tokens"], 64);
  EXPECT_EQ(answer["reused"]["disk"], 64);
  EXPECT_EQ(answer["seed"], 7);
  EXPECT_EQ(answer["tokens"].size(), 5U);
  const v1::ChatRequest sent = service_.last_chat();
  EXPECT_EQ(sent.params().max_tokens(), 5U);
  EXPECT_EQ(sent.params().sampling().temperature(), 0.0F);
  EXPECT_EQ(sent.params().stop_size(), 2);
  EXPECT_TRUE(sent.params().no_cache());
  EXPECT_EQ(sent.messages(0).role(), v1::ROLE_SYSTEM);
}

TEST_F(CommandTest, ErrorsAreOneLineAndACode) {
  const Result result = Run({"sessions", "show", "nobody"});
  EXPECT_EQ(result.code, 4);
  EXPECT_EQ(result.err, "error: no session nobody\n");
  EXPECT_EQ(result.out, "");
  const Result as_json = Run({"--json", "sessions", "show", "nobody"});
  EXPECT_EQ(as_json.code, 4);
  EXPECT_EQ(json::parse(as_json.out)["error"]["code"], "NOT_FOUND");
  EXPECT_EQ(Run({"frobnicate"}).code, 2);
  EXPECT_EQ(Run({"ask", "--temperature", "warm", "hi"}).code, 2);
  EXPECT_EQ(Run({"--help"}).code, 0);
}

TEST_F(CommandTest, NobodyThereFailsAtOnce) {
  std::vector<std::string> args = {"--address", "127.0.0.1:1", "info"};
  const Result result = Run(args);
  EXPECT_EQ(result.code, 3);
  EXPECT_EQ(result.err,
            "error: no server answers at 127.0.0.1:1: the connection is "
            "refused (is xcache-server running, and --address its "
            "--listen?)\n");
}

TEST_F(CommandTest, WhatIsWrongWithAnAddressIsSaid) {
  const auto error = [&](const std::string& address, int code) {
    const Result result = Run({"-a", address, "info"});
    EXPECT_EQ(result.code, code) << address;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1);
    return result.err;
  };
  EXPECT_THAT(error("http://localhost:50051", 2),
              HasSubstr("leave out http://"));
  EXPECT_THAT(error("localhost", 2), HasSubstr("it takes host:port"));
  EXPECT_THAT(error("localhost:99999", 2), HasSubstr("from 1 to 65535"));
  EXPECT_THAT(error("nosuchhost.invalid:50051", 3),
              HasSubstr("no host is named nosuchhost.invalid"));
  const Listener http("HTTP/1.0 400 Bad Request\r\n\r\nno\r\n");
  EXPECT_THAT(error(http.address(), 3), HasSubstr("is no gRPC server"));
  const Listener silent("");
  EXPECT_THAT(error(silent.address(), 3), HasSubstr("does not answer"));
}

TEST_F(CommandTest, AServerWithoutTlsIsSaid) {
  const Result result = Run({"--tls", "info"});
  EXPECT_EQ(result.code, 3);
  EXPECT_EQ(result.err, "error: the server at " + service_.address() +
                            " does not speak TLS (leave out --tls, --ca and "
                            "--cert)\n");
}

TEST_F(CommandTest, ShuttingDownIsNotLoading) {
  service_.SetStopping();
  const Result result = Run({"info"});
  EXPECT_EQ(result.code, 3);
  EXPECT_THAT(result.err, HasSubstr("is shutting down"));
}

TEST_F(CommandTest, WaitsWhileTheModelLoads) {
  service_.SetServing(false);
  const Result late = Run({"--wait", "0.3", "info"});
  EXPECT_EQ(late.code, 3);
  EXPECT_THAT(late.err,
              HasSubstr("is making a profile [########------------]  42 %"));
  EXPECT_THAT(late.err, HasSubstr("not ready after"));
}

TEST_F(CommandTest, InfoForPeopleAndScripts) {
  EXPECT_THAT(Run({"info"}).out, HasSubstr("6000 bytes a token, FP16 K/V "
                                           "23040: 3.84x"));
  const json info = json::parse(Run({"info", "--json"}).out);
  EXPECT_EQ(info["codec"], "xquant-gqa:bits=4");
  EXPECT_EQ(info["context_length"], 8192);
}

TEST_F(CommandTest, SessionsCommands) {
  EXPECT_EQ(Run({"chat", "--session", "one", "--title", "first"}, "hi\n").out,
            "You said: hi\n");
  const json list = json::parse(Run({"sessions", "list", "--json"}).out);
  ASSERT_EQ(list["sessions"].size(), 1U);
  EXPECT_EQ(list["sessions"][0]["title"], "first");
  EXPECT_THAT(Run({"sessions", "list"}).out, ContainsRegex("one +1 "));
  EXPECT_THAT(Run({"sessions", "show", "one"}).out,
              HasSubstr("assistant:\nYou said: hi\n"));
  EXPECT_THAT(Run({"sessions", "show", "--no-messages", "one"}).out,
              Not(HasSubstr("assistant:")));
  const json fork = json::parse(
      Run({"--json", "sessions", "fork", "one", "two", "-m", "1"}).out);
  EXPECT_EQ(fork["id"], "two");
  EXPECT_EQ(fork["num_messages"], 1);
  EXPECT_EQ(Run({"sessions", "pin", "two"}).out,
            "two is pinned: it does not expire\n");
  EXPECT_EQ(Run({"sessions", "unpin", "two"}).out, "two may expire again\n");
  EXPECT_THAT(Run({"sessions", "flush", "two"}).out,
              HasSubstr("3 pages written, 4.0 KiB"));
  EXPECT_EQ(Run({"sessions", "rm", "one", "two"}).code, 0);
  EXPECT_EQ(Run({"sessions", "rm", "one"}).code, 4);
  EXPECT_EQ(Run({"sessions", "list"}).err, "no sessions\n");
}

TEST_F(CommandTest, ListFollowsThePages) {
  for (int i = 0; i < 60; ++i) {
    ASSERT_EQ(Run({"chat", "--session", "s" + std::to_string(i)}, "hi\n").code,
              0);
  }
  const auto count = [&](std::vector<std::string> args) {
    return json::parse(Run(args).out)["sessions"].size();
  };
  EXPECT_EQ(count({"--json", "sessions", "list"}), 60U);
  EXPECT_EQ(count({"--json", "sessions", "list", "--limit", "55"}), 55U);
}

TEST_F(CommandTest, ChatFromAPipe) {
  const Result result =
      Run({"chat", "--session", "p"}, "one\ntwo \\\nlines\nlast");
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out,
            "You said: one\nYou said: two \nlines\nYou said: last\n");
  // Each turn says which one it is.
  EXPECT_EQ(service_.last_chat().expected_turn(), 2U);
}

TEST_F(CommandTest, ChatAsJsonLines) {
  const Result result = Run({"--json", "chat", "--session", "p"}, "one\n");
  std::vector<json> lines;
  for (size_t at = 0; at < result.out.size();) {
    const size_t end = result.out.find('\n', at);
    lines.push_back(json::parse(result.out.substr(at, end - at)));
    at = end + 1;
  }
  ASSERT_EQ(lines.size(), 5U);
  EXPECT_EQ(lines[0]["session"]["id"], "p");
  EXPECT_EQ(lines[1]["delta"], "You ");
  EXPECT_EQ(lines[4]["final"]["turn"], 1);
}

TEST_F(CommandTest, TheTokenComesFromTheEnvironment) {
  FakeService guarded({.token = "secret", .serving = true});
  EXPECT_EQ(Run({"-a", guarded.address(), "info"}).code, 5);
  setenv("XCACHE_TOKEN", "secret", 1);
  EXPECT_EQ(Run({"-a", guarded.address(), "info"}).code, 0);
  unsetenv("XCACHE_TOKEN");
}

}  // namespace
}  // namespace xcache::client
