// `xcache completion`: what a shell needs to complete the commands and flags of
// this program, as they are.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/command/commands.h"
#include "client/command/exit_code.h"

namespace xcache::command {
namespace {

// Of a command's own flags and commands, a case each: "xcache sessions".
void AddCases(const CLI::App& app, const std::string& path, std::string* out) {
  std::vector<std::string> words = NamesOfCommands(app);
  for (std::string& name : NamesOfOptions(app)) {
    words.push_back(std::move(name));
  }
  absl::StrAppend(out, "    '", path, "') words='", absl::StrJoin(words, " "),
                  "' ;;\n");
  for (const CLI::App* command : app.get_subcommands({})) {
    AddCases(*command, absl::StrCat(path, " ", command->get_name()), out);
  }
}

// A word is taken for a command where there is one of that name.
std::string Script(const CLI::App& app) {
  std::string cases;
  AddCases(app, "xcache", &cases);
  return absl::StrCat(R"sh(_xcache_words() {
  local words
  case "$1" in
)sh",
                      cases, R"sh(    *) return 1 ;;
  esac
  echo "$words"
}
_xcache() {
  local path=xcache word words i
  for ((i = 1; i < COMP_CWORD; ++i)); do
    word=${COMP_WORDS[i]}
    if _xcache_words "$path $word" >/dev/null; then path="$path $word"; fi
  done
  # The program's own flags may stand anywhere.
  words="$(_xcache_words "$path")"
  if [[ "$2" == -* ]]; then words+=" $(_xcache_words xcache)"; fi
  COMPREPLY=($(compgen -W "$words" -- "$2"))
}
complete -o bashdefault -o default -F _xcache xcache
)sh");
}

}  // namespace

void AddCompletion(CLI::App* app, Action* action) {
  CLI::App* completion = app->add_subcommand(
      "completion", "A script for the shell: source <(xcache completion bash)");
  const auto shell = std::make_shared<std::string>();
  completion->add_option("shell", *shell, "bash or zsh")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh"}));
  completion->callback([app, action, shell] {
    *action = [app, shell](const Context&) {
      if (*shell == "zsh") {
        Write("autoload -U +X bashcompinit && bashcompinit\n");
      }
      Write(Script(*app));
      return kExitOk;
    };
  });
}

}  // namespace xcache::command
