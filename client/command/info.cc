// `xcache info`: what the server serves.
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/command/commands.h"
#include "client/command/exit_code.h"
#include "client/command/text.h"

namespace xcache::command {
namespace {

int Run(const Context& context) {
  auto client = context.Connect();
  if (!client.ok()) return Fail(context, client.status());
  const auto info = (*client)->GetModelInfo();
  if (!info.ok()) return Fail(context, info.status());
  if (context.json()) {
    context.PrintJson(ToJson(*info));
    return kExitOk;
  }
  const double ratio =
      info->page_bytes_per_token > 0
          ? info->kv_fp16_bytes_per_token / info->page_bytes_per_token
          : 0;
  const std::string table = Table({
      {"model", OneLine(info->name)},
      {"architecture", absl::StrFormat("%s, %s parameters, %d layers, width %d",
                                       OneLine(info->architecture),
                                       HumanCount(info->num_parameters),
                                       info->num_layers, info->d_model)},
      {"attention",
       absl::StrFormat("%d heads, %d KV heads of %d", info->n_heads,
                       info->n_kv_heads, info->head_dim)},
      {"context", absl::StrCat(HumanCount(info->context_length), " tokens")},
      {"vocabulary", absl::StrCat(HumanCount(info->vocab_size), " tokens")},
      {"chat template", OneLine(info->chat_template)},
      {"codec", OneLine(info->codec)},
      {"X-cache", absl::StrFormat("%.0f bytes a token, FP16 K/V %.0f: %.2fx",
                                  info->page_bytes_per_token,
                                  info->kv_fp16_bytes_per_token, ratio)},
      {"device", OneLine(info->device)},
      {"numerics", OneLine(info->numerics_id)},
      {"model_fp", OneLine(info->model_fp)},
      {"cache_fp", OneLine(info->cache_fp)},
      {"server", OneLine(info->server_version)},
  });
  std::fputs(table.c_str(), stdout);
  return kExitOk;
}

}  // namespace

void AddInfo(CLI::App* app, Action* action) {
  app->add_subcommand("info", "The model, its codec and the server")
      ->callback([action] { *action = Run; });
}

}  // namespace xcache::command
