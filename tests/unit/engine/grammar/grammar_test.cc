#include "engine/grammar/grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/model.h"
#include "engine/model/tokenizer.h"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

using Kind = GrammarSpec::Kind;
using ::testing::HasSubstr;

constexpr int64_t kMaxBytes = int64_t{32} << 20;

const Tokenizer& TinyTokenizer() {
  static const auto model = testing::MakeTinyModel({});
  static const auto tokenizer = *Tokenizer::Create(model->gguf());
  return *tokenizer;
}

const GrammarCompiler& Compiler() {
  static const GrammarCompiler compiler(TinyTokenizer());
  return compiler;
}

GrammarSpec Schema(std::string text) {
  return {.kind = Kind::kJsonSchema,
          .text = std::move(text),
          .choices = {},
          .tagged = {}};
}
GrammarSpec Regex(std::string text) {
  return {.kind = Kind::kRegex,
          .text = std::move(text),
          .choices = {},
          .tagged = {}};
}
GrammarSpec Choice(std::vector<std::string> choices) {
  return {.kind = Kind::kChoice,
          .text = "",
          .choices = std::move(choices),
          .tagged = {}};
}

bool Allows(std::span<const uint32_t> mask, TokenId token) {
  const auto t = static_cast<size_t>(token);
  return mask.empty() || (mask[t / 32] >> (t % 32) & 1u) != 0;
}

// "whole": the text may be an answer; "part": it may begin one; "no".
std::string Judge(const std::shared_ptr<const Grammar>& grammar,
                  std::string_view text) {
  const Tokenizer& tokenizer = TinyTokenizer();
  GrammarMatcher matcher(grammar);
  const std::vector<TokenId> tokens = tokenizer.Encode(text).value();
  for (const TokenId token : tokens) {
    const auto mask = matcher.NextTokens();
    if (!mask.ok()) return std::string(mask.status().message());
    const bool allowed = Allows(*mask, token);
    EXPECT_EQ(matcher.Accept(token).ok(), allowed);
    if (!allowed) return "no";
  }
  const auto mask = matcher.NextTokens();
  if (!mask.ok()) return std::string(mask.status().message());
  return Allows(*mask, tokenizer.eos()) ? "whole" : "part";
}

std::string Judge(const GrammarSpec& spec, std::string_view text) {
  const auto grammar = Compiler().Compile(spec, kMaxBytes);
  if (!grammar.ok()) return std::string(grammar.status().message());
  return Judge(*grammar, text);
}

TEST(GrammarTest, SchemaIsHeldTo) {
  const auto grammar = Compiler().Compile(
      Schema(R"({"type":"object","properties":{"z":{"type":"integer"},)"
             R"("a":{"enum":["x","\u00fc\ud83d\ude00",null]}},)"
             R"("required":["z","a"],"additionalProperties":false})"),
      kMaxBytes);
  ASSERT_TRUE(grammar.ok()) << grammar.status();
  EXPECT_GT((*grammar)->bytes(), 0);
  EXPECT_EQ(Judge(*grammar, R"({"z": -12, "a": "x"})"), "whole");
  EXPECT_EQ(Judge(*grammar, "{\"z\":0,\n  \"a\":\"\u00fc\U0001F600\"}"),
            "whole");
  EXPECT_EQ(Judge(*grammar, R"({"z": 1, "a": null)"), "part");
  EXPECT_EQ(Judge(*grammar, R"({"z": 1.5)"), "no");
  EXPECT_EQ(Judge(*grammar, R"({"z": 1, "a": "y")"), "no");
  EXPECT_EQ(Judge(*grammar, R"({"z": 1, "b": 1)"), "no");
  // In the schema's own order.
  EXPECT_EQ(Judge(*grammar, R"({"a": )"), "no");
}

TEST(GrammarTest, StringsAreJsons) {
  for (const char* schema :
       {R"({"type":"string"})", R"({"type":"string","minLength":2})",
        R"({"type":"string","maxLength":9})",
        R"({"type":"string","minLength":1,"maxLength":9})",
        R"({"type":"string","pattern":"^.+$"})",
        R"({"type":"string","pattern":"^[^a]+$"})",
        R"({"type":"string","pattern":"^[^a]{1,200}$"})"}) {
    for (const char* wrong : {"\"x\t", "\"\a", "\"x\n", "\"x\x1f"}) {
      EXPECT_EQ(Judge(Schema(schema), wrong), "no") << schema << wrong;
    }
    EXPECT_EQ(Judge(Schema(schema), "\"x y\u00fc\x7f\""), "whole") << schema;
  }
  for (const char* schema :
       {R"({"additionalProperties":{"type":"integer"}})",
        R"({"propertyNames":{"minLength":1,"maxLength":9}})",
        R"({"patternProperties":{"^.+$":{"type":"integer"}}})"}) {
    const std::string object =
        std::string(schema).insert(1, R"("type":"object",)");
    EXPECT_EQ(Judge(Schema(object), "{\"x\t"), "no") << object;
    EXPECT_EQ(Judge(Schema(object), "{\"x y\": 1}"), "whole") << object;
  }
}

TEST(GrammarTest, ReferencesMayRecur) {
  const GrammarSpec tree =
      Schema(R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"object",)"
             R"("properties":{"next":{"anyOf":[{"type":"null"},)"
             R"({"$ref":"#/$defs/node"}]}},"required":["next"]}}})");
  EXPECT_EQ(Judge(tree, R"({"next": {"next": {"next": null}}})"), "whole");
  EXPECT_EQ(Judge(tree, R"({"next": {"next": 1)"), "no");
}

TEST(GrammarTest, JsonObjectIsAnyObject) {
  const GrammarSpec any = {
      .kind = Kind::kJsonObject, .text = "", .choices = {}, .tagged = {}};
  EXPECT_EQ(Judge(any, R"({"a": [1, {"b": "c"}, null, true], "d": -1.5e3})"),
            "whole");
  EXPECT_EQ(Judge(any, "{}"), "whole");
  EXPECT_EQ(Judge(any, "["), "no");
  EXPECT_EQ(Judge(any, "Sure"), "no");
}

TEST(GrammarTest, RegexIsForTheWholeAnswer) {
  const GrammarSpec date = Regex(R"([0-9]{4}-(0[1-9]|1[0-2]))");
  EXPECT_EQ(Judge(date, "1999-12"), "whole");
  EXPECT_EQ(Judge(date, "1999-1"), "part");
  EXPECT_EQ(Judge(date, "1999-13"), "no");
  EXPECT_EQ(Judge(date, "1999-123"), "no");
  EXPECT_EQ(Judge(Regex("a.c"), "a/c"), "whole");
  EXPECT_EQ(Judge(Regex("a.c"), "a\n"), "no");
  EXPECT_EQ(Judge(Regex("\"/\\\\\n"), "\"/\\\n"), "whole");
  EXPECT_EQ(Judge(Regex("^(\u00fc|\u65e5\u672c)+$"), "\u65e5\u672c\u00fc"),
            "whole");
}

TEST(GrammarTest, ChoiceIsOneOfThem) {
  const GrammarSpec choice =
      Choice({"yes", "yes, \"twice\"\\", "n\no", "\u00fc"});
  for (const std::string& text : choice.choices) {
    EXPECT_EQ(Judge(choice, text), "whole") << text;
  }
  EXPECT_EQ(Judge(choice, "ye"), "part");
  EXPECT_EQ(Judge(choice, "no"), "no");
  EXPECT_EQ(Judge(choice, "yesyes"), "no");
}

TEST(GrammarTest, TagsAloneOrInText) {
  GrammarSpec calls = {
      .kind = Kind::kTagged, .text = "", .choices = {}, .tagged = {}};
  for (const char* name : {"a", "b"}) {
    calls.tagged.tags.push_back(
        {.begin = absl::StrCat("<call>", name, "("),
         .schema = R"({"type":"object","properties":{"x":{"type":"integer"}},)"
                   R"("required":["x"]})",
         .end = ")</call>"});
  }
  calls.tagged.separator = "\n";
  EXPECT_EQ(Judge(calls, "<call>a({\"x\": 1})</call>"), "whole");
  EXPECT_EQ(
      Judge(calls, "<call>a({\"x\": 1})</call>\n<call>b({\"x\":2})</call>"),
      "whole");
  EXPECT_EQ(Judge(calls, ""), "part");
  EXPECT_EQ(Judge(calls, "Well"), "no");
  EXPECT_EQ(Judge(calls, "<call>c"), "no");
  EXPECT_EQ(Judge(calls, "<call>a({" + std::string(100, ' ')), "no");
  calls.tagged.once = true;
  EXPECT_EQ(Judge(calls, "<call>a({\"x\": 1})</call>"), "whole");
  EXPECT_EQ(Judge(calls, "<call>a({\"x\": 1})</call>\n"), "no");
  calls.tagged.once = false;
  // Or else something of another kind.
  calls.tagged.otherwise = Kind::kRegex;
  calls.text = "[0-9]{2}";
  EXPECT_EQ(Judge(calls, "<call>a({\"x\": 1})</call>"), "whole");
  EXPECT_EQ(Judge(calls, "12"), "whole");
  EXPECT_EQ(Judge(calls, "1"), "part");
  EXPECT_EQ(Judge(calls, "12<"), "no");
  EXPECT_EQ(Judge(calls, "Well"), "no");
  calls.tagged.otherwise = Kind::kJsonSchema;
  calls.text = R"({"enum":[7]})";
  EXPECT_EQ(Judge(calls, "7"), "whole");
  EXPECT_EQ(Judge(calls, "8"), "no");
  calls.text = "{";
  EXPECT_THAT(Judge(calls, "7"), HasSubstr("schema"));
  calls.tagged.otherwise = Kind::kNone;
  calls.text.clear();
  calls.tagged.trigger = "<call>";
  EXPECT_EQ(Judge(calls, "Well, <b>no</b>."), "whole");
  EXPECT_EQ(Judge(calls, ""), "whole");
  EXPECT_EQ(Judge(calls, "Well:\n<call>b({\"x\": 1})</call> and so on"),
            "whole");
  EXPECT_EQ(Judge(calls, "Well:\n<call>b({\"y"), "no");
}

TEST(GrammarTest, SpecialTokensNeverComeButAtTheEnd) {
  const Tokenizer& tokenizer = TinyTokenizer();
  const auto grammar = Compiler().Compile(Regex("(.|\n)*"), kMaxBytes);
  ASSERT_TRUE(grammar.ok()) << grammar.status();
  GrammarMatcher matcher(*grammar);
  const auto mask = matcher.NextTokens();
  ASSERT_TRUE(mask.ok());
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.IsSpecial(id)) continue;
    EXPECT_EQ(Allows(*mask, id), tokenizer.IsEndOfGeneration(id)) << id;
  }
}

TEST(GrammarTest, WhiteSpaceHasAnEnd) {
  const GrammarSpec any = {
      .kind = Kind::kJsonObject, .text = "", .choices = {}, .tagged = {}};
  EXPECT_EQ(Judge(any, "{" + std::string(10, ' ')), "part");
  EXPECT_EQ(Judge(any, "{" + std::string(100, ' ')), "no");
}

TEST(GrammarTest, AnswersOfOneGrammarAreApart) {
  const auto grammar = Compiler().Compile(Choice({"ab", "cd"}), kMaxBytes);
  ASSERT_TRUE(grammar.ok());
  GrammarMatcher first(*grammar), second(*grammar);
  const auto token = [](std::string_view text) {
    return TinyTokenizer().Encode(text)->front();
  };
  ASSERT_TRUE(first.Accept(token("a")).ok());
  ASSERT_TRUE(second.Accept(token("c")).ok());
  EXPECT_TRUE(Allows(*first.NextTokens(), token("b")));
  EXPECT_FALSE(Allows(*first.NextTokens(), token("d")));
  EXPECT_TRUE(Allows(*second.NextTokens(), token("d")));
  EXPECT_FALSE(second.Accept(token("b")).ok());
}

TEST(GrammarTest, WhatCannotBeHeldToIsRefused) {
  for (const char* schema : {
           R"({"if":{"type":"string"},"then":{"minLength":1}})",
           R"({"type":"array","uniqueItems":true})",
           R"({"type":"number","multipleOf":0.1})",
           R"({"allOf":[{"minLength":2},{"pattern":"^a"}]})",
           R"({"$ref":"https://example.com/schema.json"})",
           R"({"$ref":"#/$defs/none"})",
           R"({"type":"object","properties":{"if":{"not":{}}}})",
           R"({"$ref":"#/$defs/a","minLength":2,"$defs":{"a":{}}})",
           R"({"enum":["a",1],"type":"string"})",
           R"({"anyOf":[{"required":["a"]}],"properties":{"a":{}}})",
           R"({"items":{"contains":{"const":1}}})",
           R"j({"type":"string","pattern":"^a(?=b)"})j",
           R"({"type":"string","pattern":"("})",
           R"({"type":"no such"})",
           R"({"type":"integer","minimum":3,"maximum":2})",
       }) {
    const auto grammar = Compiler().Compile(Schema(schema), kMaxBytes);
    EXPECT_TRUE(absl::IsInvalidArgument(grammar.status())) << schema;
  }
  // The last: what is refused comes behind what makes a rule of its own.
  for (const char* regex :
       {"(", "[z-a]", "a(?!b)", "*", R"([a-z]{205}(a|?b))"}) {
    const auto grammar = Compiler().Compile(Regex(regex), kMaxBytes);
    EXPECT_TRUE(absl::IsInvalidArgument(grammar.status())) << regex;
    EXPECT_THAT(grammar.status().message(), HasSubstr(regex));
  }
  const auto small = Compiler().Compile(Regex("[a-z]{1,500}"), 1000);
  EXPECT_THAT(small.status().message(), HasSubstr("of at most 1000 bytes"));
}

TEST(GrammarTest, LimitsAreCheckedBeforeAnythingIsCompiled) {
  const auto check = [](const GrammarSpec& spec) {
    return std::string(CheckGrammar(spec).message());
  };
  EXPECT_EQ(check(Schema("{}")), "");
  EXPECT_EQ(check(Schema("true")), "");
  EXPECT_EQ(check(Schema(R"({"properties":{"not":{"enum":["a"],)"
                         R"("type":"string"}},"required":["not"]})")),
            "");
  EXPECT_THAT(check(Schema("{")), HasSubstr("not no JSON"));
  EXPECT_THAT(check(Schema("[]")), HasSubstr("not array"));
  EXPECT_THAT(check(Schema("\"\xff\"")), HasSubstr("UTF-8"));
  EXPECT_THAT(check(Schema(std::string(kMaxSchemaBytes + 1, ' '))),
              HasSubstr("at most 65536 bytes"));
  std::string deep = "1";
  for (int i = 0; i < 33; ++i) deep = "{\"not\":[" + deep + "]}";
  EXPECT_THAT(check(Schema(deep)), HasSubstr("at most 64 levels deep, not 66"));
  std::string wide = "{\"enum\":[0";
  for (size_t i = 0; i < kMaxSchemaValues; ++i) wide += ",1";
  EXPECT_THAT(check(Schema(wide + "]}")), HasSubstr("at most 4096 values"));
  EXPECT_THAT(check(Schema(R"({"items":{"maxLength":1001}})")),
              HasSubstr("maxLength must be at most 1000, not 1001"));
  EXPECT_THAT(check(Schema(R"({"pattern":"(a{100}){11}"})")),
              HasSubstr("pattern must be of at most 1000 positions"));
  EXPECT_EQ(check(Schema(R"({"properties":{"a":{"pattern":"a{500}"}}})")), "");
  EXPECT_THAT(check(Schema(R"({"properties":{"a":{"pattern":"a{500}"},)"
                           R"("b":{"pattern":"b{501}"}}})")),
              HasSubstr("1000 positions"));
  EXPECT_EQ(check(Regex("(a{100}){9}b{100}")), "");
  EXPECT_THAT(check(Regex("(a{100}b){11}")), HasSubstr("1000 positions"));
  EXPECT_THAT(check(Regex("a{99999999999999999999}")),
              HasSubstr("1000 positions"));
  EXPECT_EQ(check(Regex("[a-z]{1,900}")), "");
  EXPECT_THAT(check(Regex("[a-z]{1,100}-?[a-z]{1,100}")),
              HasSubstr("128 positions that may be left out, not 199"));
  EXPECT_THAT(check(Regex(".{1,20}b.{1,20}")), HasSubstr("left out, not 152"));
  EXPECT_THAT(check(Schema(R"({"pattern":"\u00fc{1,9}a{1,9}b?"})")),
              HasSubstr("left out, not 136"));
  const std::string half = R"({"pattern":"[a-z]{1,64}-?[a-z]{1,64}"})";
  EXPECT_EQ(check(Schema("{\"items\":" + half + "}")), "");
  EXPECT_THAT(
      check(Schema("{\"anyOf\":[" + half + "," + half + "," + half + "]}")),
      HasSubstr("with the others of at most 256"));
  EXPECT_THAT(check(Regex("([a-z]?){0,500}")), HasSubstr("left out"));
  EXPECT_THAT(check(Regex("(.{1,10}){1,10}")), HasSubstr("left out"));
  EXPECT_EQ(check(Regex("([0-9]{1,3}\\.){3}[0-9]{1,3}")), "");
  EXPECT_EQ(check(Regex(R"([{9999}][^\]{9999}]\{9999}[]{9999}]a{9,b})")), "");
  EXPECT_THAT(check(Regex(std::string(40, '(') + std::string(40, ')'))),
              HasSubstr("at most 32 deep"));
  EXPECT_THAT(check(Regex("")), HasSubstr("not empty"));
  EXPECT_THAT(check(Regex(std::string(kMaxRegexBytes + 1, 'a'))),
              HasSubstr("at most 4096 bytes"));
  EXPECT_THAT(check(Choice({})), HasSubstr("1 to 1024"));
  EXPECT_THAT(check(Choice({"a", ""})), HasSubstr("an empty one"));
  EXPECT_THAT(check(Choice({std::string(kMaxChoicesBytes + 1, 'a')})),
              HasSubstr("at most 65536 bytes"));
}

TEST(GrammarTest, KeysTellSpecsApart) {
  const std::vector<GrammarSpec> specs = {
      {.kind = Kind::kJsonObject, .text = "", .choices = {}, .tagged = {}},
      Schema("{}"),
      Regex("{}"),
      Choice({"a", "b"}),
      Choice({"ab"}),
      Choice({"a1:b"}),
      {.kind = Kind::kTagged, .text = "", .choices = {}, .tagged = {}},
      {.kind = Kind::kTagged,
       .text = "",
       .choices = {},
       .tagged = {.tags = {},
                  .trigger = "",
                  .separator = "",
                  .once = false,
                  .otherwise = Kind::kJsonObject}}};
  for (const GrammarSpec& a : specs) {
    for (const GrammarSpec& b : specs) {
      EXPECT_EQ(GrammarKey(a) == GrammarKey(b), a == b);
    }
  }
}

}  // namespace
}  // namespace xcache
