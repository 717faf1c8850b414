// How `xcache` writes things for people: sizes, times, tables, and text from
// elsewhere that must not steer the terminal.
#ifndef XCACHE_CLIENT_COMMAND_TEXT_H_
#define XCACHE_CLIENT_COMMAND_TEXT_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace xcache::command {

std::string HumanBytes(double bytes);                   // "1.4 MiB"
std::string HumanCount(uint64_t n);                     // "12,345"
std::string HumanDuration(absl::Duration d);            // "820 ms", "1.2 s"
std::string HumanAgo(absl::Time then, absl::Time now);  // "3 min ago"

// "[#####---------------]  25 %", `width` characters between the brackets.
std::string ProgressBar(int percent, int width);

// Without control characters but newline and tab: a model's answer or another
// user's title cannot send escape sequences to the terminal.
std::string Printable(absl::string_view text);
// The same on one line.
std::string OneLine(absl::string_view text);

// The first `columns` characters.
std::string Cut(std::string_view text, size_t columns);

// Two columns, a name and what is said of it. No line is longer than `columns`:
// what does not fit goes on below, under its beginning.
std::string FoldedTable(
    const std::vector<std::pair<std::string, std::string>>& rows,
    size_t columns);

// Columns as wide as their widest cell (in characters, not bytes), two spaces
// between them. Cells of columns named in `right` align right.
std::string Table(const std::vector<std::vector<std::string>>& rows,
                  const std::vector<size_t>& right = {});

}  // namespace xcache::command

#endif  // XCACHE_CLIENT_COMMAND_TEXT_H_
