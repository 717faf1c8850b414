#!/usr/bin/env python3
"""Writes lines.jsonl: the texts that tokenizers are compared on, one JSON
string a line. Deterministic; needs nothing but Python.

    make_lines.py > lines.jsonl

The tokens that go with them are made by make_tokens.py."""
import json
import random
import unicodedata

R = random.Random(20240607)

PROSE = """
The keeper of the lighthouse wrote a letter every evening and read the answer every morning.
It's a long way down, isn't it? They'll say we've been there; I'd rather you didn't.
IT'S LOUD, WE'VE HEARD, I'M SURE, THEY'LL COME, YOU'RE LATE, HE'D GO, DON'T.
On 2024-06-07 at 14:35:09 the price was $1,234,567.89, up 3.25% from €0.99.
Call +49 (0)30 1234567 or write to first.last+tag@mail.example.org, see https://example.org/a/b?c=d&e=%20f#g.
"Quoted," he said - 'and quoted again' -- "with dashes…" — and an em dash.
In chapter IV, section 12.3.4(b), footnote 17, it says: see p. 3f., cf. [12], op. cit.
E = mc², H₂O, x³ + y³ = z³, ½ + ¼ = ¾, 10⁻⁹ m, 25 °C, №5, §7, ¶2, 100‰.
Zürich, naïve café, Ångström, Łódź, İstanbul, coöperate, façade, piñata, smörgåsbord, Dvořák.
Der Übermut der Straßenbahn: »Großes Mißverständnis«, sagte Jürgen, „wirklich?“
Portez ce vieux whisky au juge blond qui fume ; l'œuvre d'été, à bientôt, s'il vous plaît !
El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia. ¿Qué? ¡Sí, señor!
Pchnąć w tę łódź jeża lub ośm skrzyń fig. Příliš žluťoučký kůň úpěl ďábelské ódy.
Съешь же ещё этих мягких французских булок, да выпей чаю. Їжак, ґанок, ў.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Γαζέες καὶ μυρτιὲς δὲν θὰ βρῶ πιὰ.
דג סקרן שט בים מאוכזב ולפתע מצא חברה. שָׁלוֹם עֲלֵיכֶם
نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر. السَّلامُ عَلَيْكُم ١٢٣٤٥
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश। नमस्ते १२३
বাংলা ভাষা সুন্দর। தமிழ் மொழி இனிது. తెలుగు భాష. ಕನ್ನಡ. മലയാളം. ไทยเป็นภาษาที่ไม่มีช่องว่าง ๑๒๓
いろはにほへと ちりぬるを。東京都は日本の首都です。カタカナもＡＢＣも１２３も。
天地玄黃，宇宙洪荒。我能吞下玻璃而不傷身體。这是一个测试，包含标点符号：“引号”、《书名》。
다람쥐 헌 쳇바퀴에 타고파. 한국어 문장입니다. ㄱㄴㄷ
Tôi có thể ăn thủy tinh mà không hại gì. Ngôn ngữ tiếng Việt có nhiều dấu.
The answer\tis\ttabbed,  double  spaced,   triple   spaced, and    ends with spaces.   
Smile 🙂 and 👩‍👩‍👧‍👦 family, flags 🇩🇪🇫🇷, skin 👍🏽, heart ❤️, keycap 1️⃣, 🏳️‍🌈 end.
A list: (1) one; (2) two; (3) three... [x] done, [ ] not. {curly} <angle> |pipe| ~tilde~ `tick` ^caret^
""".strip("\n").split("\n")

CODE = [
    "def f(x, *args, **kw):\n    if x is None:\n        return {}\n    return [y ** 2 for y in args if y != x]\n",
    "#include <vector>\n\nint main() {\n\tstd::vector<int> v{1, 2, 3};\n\tfor (auto& x : v) x <<= 2;\n\treturn v[0] == 4 ? 0 : -1;\n}\n",
    "SELECT a.id, COUNT(*) AS n FROM t1 a LEFT JOIN t2 b ON a.id=b.id WHERE b.x IS NOT NULL GROUP BY 1 HAVING n>=10;",
    "<div class=\"a b\" id='c'><p>text &amp; more&nbsp;</p><!-- note --><br/></div>",
    "{\"key\": [1, 2.5e-10, true, null], \"nested\": {\"a\": \"b\\n\\u00e9\"}}",
    "for i in $(seq 1 10); do echo \"$i: ${name%%.*}\" | sed 's/[0-9]\\+/N/g' >> out.txt 2>&1; done",
    "fn main() -> Result<(), Box<dyn Error>> { let x: &'static str = r#\"raw\"#; println!(\"{x:?}\"); Ok(()) }",
    "const f = async ({a, b = 2, ...rest}) => { await g`tpl ${a}`; return a?.b ?? !!rest; };",
    "MOV EAX, [EBX+4*ECX-0x1F]\r\nJNZ short loc_401000\r\n; comment\r\n",
    "\\begin{equation}\n  \\int_{-\\infty}^{\\infty} e^{-x^2}\\,dx = \\sqrt{\\pi}\n\\end{equation}",
    "- item\n  - nested\n    * deeper\n\n1. one\n2. two\n\n> quote\n\n```python\nprint('hi')\n```\n",
    "0x7fff_ffff 1e10 3.14159265358979 0b1010 0o777 1_000_000 NaN Infinity 12345678901234567890",
    "import numpy as np;A=np.zeros((3,4));A[:,1:]+=1;print(A.T@A)#comment",
    "@@ -1,7 +1,7 @@\n-old line\n+new line\n context\n",
    "    indented by four\n        by eight\n\tby a tab\n\t\tby two\n \t mixed\n",
]

SPECIALS = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>",
    "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>",
    "<|end_header_id|>", "[INST]", "[/INST]", "<<SYS>>", "<start_of_turn>",
    "<end_of_turn>", "<repo_name>", "<0x0A>", "<|im_", "im_end|>", "<|",
    "<|im_start|><|im_end|>", "<|im_start|>user\nhi<|im_end|>\n",
    "<|end_of_text|>", "<fim_prefix>", "<file_sep>", "[PAD151646]",
]

SPACES = [" ", "  ", "   ", "    ", "\t", "\n", "\r\n", "\n\n", "\r", "\v",
          "\f", "\u00a0", "\u0085", "\u2003", "\u2028", "\u3000", "\u200b",
          "\ufeff", " \n", "\n ", "\t ", " \t\n"]

MARKS = [chr(c) for c in range(0x300, 0x370)] + ["\u200d", "\ufe0f", "\u20e3"]


def emoji():
    c = chr(R.choice([R.randrange(0x1F300, 0x1F650), R.randrange(0x1F680, 0x1F6D0),
                      R.randrange(0x1F900, 0x1FA00), R.randrange(0x2600, 0x2700)]))
    return c + R.choice(["", "", "\ufe0f", "\u200d" + chr(R.randrange(0x1F466, 0x1F46A)),
                         chr(R.randrange(0x1F3FB, 0x1F400))])


def character():
    """Any character that Unicode 14 and before assign."""
    while True:
        c = chr(R.choice([R.randrange(0x20, 0x250), R.randrange(0x250, 0x3000),
                          R.randrange(0x3000, 0x10000),
                          R.randrange(0x10000, 0x20000),
                          R.randrange(0x20000, 0x30000)]))
        if unicodedata.category(c) not in ("Cn", "Cs", "Co"):
            return c


def piece():
    kind = R.randrange(14)
    words = R.choice(PROSE).split(" ")
    if kind < 5:
        start = R.randrange(len(words))
        return " ".join(words[start:start + R.randrange(1, 8)])
    if kind == 5:
        code = R.choice(CODE)
        start = R.randrange(len(code))
        return code[start:start + R.randrange(1, 60)]
    if kind == 6:
        return R.choice(SPACES) * R.randrange(1, 6)
    if kind == 7:
        return "".join(R.choice("0123456789") for _ in range(R.randrange(1, 12)))
    if kind == 8:
        return "".join(emoji() for _ in range(R.randrange(1, 4)))
    if kind == 9:
        return "".join(R.choice("aeonxZQé") + "".join(R.sample(MARKS, R.randrange(3)))
                       for _ in range(R.randrange(1, 6)))
    if kind == 10:
        return "".join(R.choice("!?.,;:-_=+*/\\|'\"()[]{}<>@#$%^&~`") for _ in range(R.randrange(1, 10)))
    if kind == 11:
        return "".join(character() for _ in range(R.randrange(1, 8)))
    if kind == 12:
        return R.choice("abcxyzABC0 .-=#é中") * R.randrange(2, 40)
    return R.choice(SPECIALS)


def mixed():
    parts = []
    for _ in range(R.randrange(1, 7)):
        parts.append(piece())
        parts.append(R.choice(["", " ", " ", " ", "\n", "  "]))
    return "".join(parts)


def main():
    lines = list(PROSE) + list(CODE) + list(SPECIALS) + list(SPACES)
    lines += [c * n for c in (" ", "\n", "\t", "a", "0", ".", "\u3000", "ab ") for n in (2, 3, 7, 16, 33, 100)]
    lines += [" " * n + w for n in range(1, 9) for w in ("x", "7", ".", "é", "\nx", "  \n y")]
    lines += [w + s for s in SPECIALS for w in ("say ", "x", "1", "\n")]
    lines += [s + w for s in SPECIALS for w in (" then", "x", " ", "\n\n")]
    lines += ["".join(character() for _ in range(24)) for _ in range(250)]
    lines += [mixed() for _ in range(2600)]
    seen = set()
    for line in lines:
        if line not in seen:
            seen.add(line)
            print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
