// `xcache` as a person uses it, on a pseudo-terminal.
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <thread>

#include "command_fixture.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache::client {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

using TerminalTest = CommandTest;

constexpr char kCtrlC[] = "\x03";
constexpr char kCtrlD[] = "\x04";
constexpr char kUp[] = "\x1b[A";
// The prompt: from here on keys go to the line editor, not to the terminal's
// own line buffer.
constexpr char kPrompt[] = ">\x1b[0m ";

TEST_F(TerminalTest, CtrlCCancelsTheAnswerAndNotTheChat) {
  Terminal terminal(Words({"chat", "--session", "t"}));
  ASSERT_TRUE(terminal.Expect("new session t")) << terminal.all();
  service_.set_hang(true);
  terminal.Type("first\n");
  ASSERT_TRUE(terminal.Expect("You ")) << terminal.all();
  terminal.Type(kCtrlC);
  ASSERT_TRUE(terminal.Expect("cancelled; the session stays at turn 0"))
      << terminal.all();
  // The server sees it a moment later than the client says so.
  for (int i = 0; i < 1000 && service_.cancelled() == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ASSERT_EQ(service_.cancelled(), 1);
  service_.set_hang(false);
  terminal.Type("second\n");
  ASSERT_TRUE(terminal.Expect("You said: second")) << terminal.all();
  ASSERT_TRUE(terminal.Expect("reused 64 (disk pages)")) << terminal.all();
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  EXPECT_EQ(service_.last_chat().expected_turn(), 0U);
  // One at the prompt only warns.
  terminal.Type(std::string("half a line") + kCtrlC);
  ASSERT_TRUE(terminal.Expect("Ctrl-C again")) << terminal.all();
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  terminal.Type("third\n");
  ASSERT_TRUE(terminal.Expect("You said: third")) << terminal.all();
  ASSERT_TRUE(terminal.Expect("first after")) << terminal.all();
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  terminal.Type(kCtrlC);
  ASSERT_TRUE(terminal.Expect("Ctrl-C again")) << terminal.all();
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  terminal.Type(kCtrlC);
  EXPECT_TRUE(terminal.Expect("session kept: xcache chat --session t"))
      << terminal.all();
  EXPECT_EQ(terminal.Wait(), 0);
}

TEST_F(TerminalTest, LinesCanBeEditedAndRecalled) {
  {
    Terminal terminal(Words({"chat", "--session", "t"}));
    ASSERT_TRUE(terminal.Expect("new session t")) << terminal.all();
    terminal.Type("helloo\x7f w\xC3\xB6rld\n");
    ASSERT_TRUE(terminal.Expect("You said: hello w\xC3\xB6rld"))
        << terminal.all();
    // Not waiting for the prompt: what is typed early is not lost.
    terminal.Type(kCtrlD);
    EXPECT_EQ(terminal.Wait(), 0);
  }
  Terminal terminal(Words({"chat", "--session", "t"}));
  ASSERT_TRUE(terminal.Expect("session t: 1 turn")) << terminal.all();
  ASSERT_TRUE(terminal.Expect("You said: hello")) << terminal.all();
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  terminal.Type(std::string(kUp) + "!\n");
  ASSERT_TRUE(terminal.Expect("You said: hello w\xC3\xB6rld!"))
      << terminal.all();
  terminal.Type("/again\n");
  ASSERT_TRUE(terminal.Expect("You said:")) << terminal.all();
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  EXPECT_TRUE(service_.last_chat().regenerate());
  EXPECT_EQ(service_.last_chat().messages_size(), 0);
  EXPECT_FALSE(service_.last_chat().keep_partial());
  terminal.Type("/last 2\n");
  ASSERT_TRUE(terminal.Expect("now in made-1, 2 messages")) << terminal.all();
  terminal.Type("/last\n");
  ASSERT_TRUE(terminal.Expect("/last takes a number")) << terminal.all();
  terminal.Type("/fork 1\n");
  ASSERT_TRUE(terminal.Expect("now in made-2, 1 messages")) << terminal.all();
  terminal.Type("/nonsense\n");
  ASSERT_TRUE(terminal.Expect("no command /nonsense")) << terminal.all();
  terminal.Type("/quit\n");
  EXPECT_EQ(terminal.Wait(), 0);
}

TEST_F(TerminalTest, APasteIsOneMessage) {
  Terminal terminal(Words({"chat", "--session", "t"}));
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  EXPECT_THAT(terminal.all(), HasSubstr("\x1b[?2004h"));
  // Terminals send the ends of pasted lines as Enter.
  terminal.Type("see: \x1b[200~one\r\ttwo \xC3\xB6\r/quit\r\x1b[201~");
  terminal.Type("!\r");
  ASSERT_TRUE(terminal.Expect("first after")) << terminal.all();
  EXPECT_EQ(service_.last_chat().messages(0).content(),
            "see: one\n\ttwo \xC3\xB6\n/quit!");
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  // It is recalled as one, too; and a pasted path is no command.
  terminal.Type(std::string(kUp) + "?\r");
  ASSERT_TRUE(terminal.Expect("first after")) << terminal.all();
  EXPECT_EQ(service_.last_chat().messages(0).content(),
            "see: one\n\ttwo \xC3\xB6\n/quit!?");
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  terminal.Type("\x1b[200~/usr/bin\r/bin\x1b[201~\r");
  ASSERT_TRUE(terminal.Expect("first after")) << terminal.all();
  EXPECT_EQ(service_.last_chat().messages(0).content(), "/usr/bin\n/bin");
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  terminal.Type("\"\"\"\r/quit\r\"\"\"\r");
  ASSERT_TRUE(terminal.Expect("first after")) << terminal.all();
  EXPECT_EQ(service_.last_chat().messages(0).content(), "/quit");
  terminal.Type(kCtrlD);
  EXPECT_EQ(terminal.Wait(), 0);
  EXPECT_THAT(terminal.all(), HasSubstr("\x1b[?2004l"));
}

TEST_F(TerminalTest, AChatThatSaysNothingSaysSo) {
  Terminal terminal(Words({"chat"}));
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  terminal.Type("/session\r");
  ASSERT_TRUE(terminal.Expect("nothing has been said yet")) << terminal.all();
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  terminal.Type("/hsitory\r");
  ASSERT_TRUE(terminal.Expect("did you mean /history?")) << terminal.all();
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  terminal.Type(kCtrlD);
  EXPECT_TRUE(terminal.Expect("no session is kept")) << terminal.all();
  EXPECT_EQ(terminal.Wait(), 0);
}

TEST_F(TerminalTest, CtrlCWhileStdinIsReadExitsWith130) {
  Terminal terminal(Words({"ask", "-"}));
  ASSERT_TRUE(terminal.Expect("then Ctrl-D")) << terminal.all();
  terminal.Type("half a question");
  terminal.Type(kCtrlC);
  EXPECT_EQ(terminal.Wait(), 130) << terminal.all();
}

// A terminal of any width shows each line of it once.
TEST_F(TerminalTest, StatsRedrawsAtAnyWidth) {
  const Listener metrics(
      "HTTP/1.0 200 OK\r\n\r\nxcache_build_info{version=\"1.2.3\","
      "model=\"a model with a long name\",codec=\"xquant-gqa:bits=4\"} 1\n"
      "xcache_requests_total{code=\"OK\"} 12345\n");
  setenv("XCACHE_METRICS_ADDRESS", metrics.address().c_str(), 1);
  for (const uint16_t columns : std::array<uint16_t, 4>{30, 57, 80, 200}) {
    Terminal terminal(Words({"stats", "--interval", "0.1"}),
                      {50, columns, 0, 0});
    ASSERT_TRUE(terminal.Expect("\x1b[J")) << terminal.all();
    const std::string all = terminal.all();
    const std::string first = all.substr(0, all.find("\x1b["));
    // The cursor goes up by as many lines as the terminal shows.
    int lines = 0;
    size_t width = 0;
    for (const char c : first) {
      if (c == '\n') {
        ++lines;
        width = 0;
      } else if (c != '\r') {
        EXPECT_LE(++width, columns);
      }
    }
    EXPECT_THAT(all, HasSubstr("\x1b[" + std::to_string(lines) + "A\x1b[J"));
    terminal.Type(kCtrlC);
    EXPECT_EQ(terminal.Wait(), 0) << terminal.all();
  }
}

TEST_F(TerminalTest, ColourOnlyWhereItIsWanted) {
  {
    Terminal terminal(Words({"ask", "hi"}));
    EXPECT_EQ(terminal.Wait(), 0);
    EXPECT_THAT(terminal.all(), HasSubstr("\x1b[2m"));
  }
  setenv("NO_COLOR", "1", 1);
  Terminal terminal(Words({"ask", "hi"}));
  EXPECT_EQ(terminal.Wait(), 0);
  EXPECT_THAT(terminal.all(), HasSubstr("You said: hi"));
  EXPECT_THAT(terminal.all(), Not(HasSubstr("\x1b[")));
  unsetenv("NO_COLOR");
}

TEST_F(TerminalTest, CtrlCDuringAskExitsWith130) {
  service_.set_hang(true);
  Terminal terminal(Words({"ask", "hi"}));
  ASSERT_TRUE(terminal.Expect("You ")) << terminal.all();
  terminal.Type(kCtrlC);
  EXPECT_EQ(terminal.Wait(), 130) << terminal.all();
}

}  // namespace
}  // namespace xcache::client
