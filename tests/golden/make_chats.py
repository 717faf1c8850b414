#!/usr/bin/env python3
"""Renders conversations with the models' own templates (Jinja) and tokenizes
the result with llama-cpp-python: the golden data of the chat template tests.

    pip install llama-cpp-python gguf jinja2
    make_chats.py TINY_MODEL_TOOL VOCAB_DIR SMOLLM2.gguf > chats.json

TINY_MODEL_TOOL is build/<preset>/tests/xcache-tiny-model; VOCAB_DIR is what
tests/get_vocabularies.sh prints. Templates in files come from there; the others
are written out below as the families' first models have them."""
import json
import os
import subprocess
import sys
import tempfile

import gguf
import jinja2
from llama_cpp import Llama

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}{% set turns = messages[1:] %}{% else %}{% set system_message = false %}{% set turns = messages %}{% endif %}{% for message in turns %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

LLAMA3 = """{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{{ bos_token + content }}{% else %}{{ content }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

LLAMA31 = """{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}{%- else %}{%- set system_message = "" %}{%- endif %}{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}{{- "Cutting Knowledge Date: December 2023\\n" }}{{- "Today Date: " + date_string + "\\n\\n" }}{{- system_message }}{{- "<|eot_id|>" }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

# Mistral's first ones have "[INST] " and no space before the answer; the space
# is the tokenizer's there, and written out here.
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"""

GEMMA2 = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

GEMMA3 = """{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}{%- set turns = messages[1:] -%}{%- else -%}{%- set first_user_prefix = '' -%}{%- set turns = messages -%}{%- endif -%}{%- for message in turns -%}{%- if message['role'] == 'assistant' -%}{%- set role = 'model' -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}{{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else '') }}{{ message['content'] | trim }}{{ '<end_of_turn>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

GEMMA_TOKENS = "<pad>,<bos>,<eos>,<start_of_turn>,<end_of_turn>"
LLAMA3_TOKENS = "<|end_of_text|>,<|begin_of_text|>,<|eot_id|>,<|start_header_id|>,<|end_header_id|>"

SYSTEM = ["You answer in one sentence.", "  Be brief.\nBe kind.  "]
TURNS = [
    ["Hello!"],
    ["  What is the capital of France?\n", "The capital of France is Paris.", "And of Japan? 東京?"],
    ["One", "Two", "Three", "Four\n\n- a\n- b", "Five 🙂 <|im_end|> is text? No: see below."],
    ["def f(x):\n    return x\n", "It returns `x`.", "Thanks", "You're welcome.", "\n\n  Bye  \n"],
    [""],
]


def conversations(with_system):
    for i, turn in enumerate(TURNS):
        messages = [{"role": "user" if k % 2 == 0 else "assistant", "content": c} for k, c in enumerate(turn)]
        yield messages
        if with_system:
            yield [{"role": "system", "content": SYSTEM[i % 2]}] + messages


def main():
    tool, vocab_dir, smollm2 = sys.argv[1:]
    tmp = tempfile.mkdtemp()

    def tiny(name, special=None):
        path = os.path.join(tmp, name + ".gguf")
        subprocess.run([tool, path] + ([f"special={special}"] if special else []), check=True)
        return path

    vocab = lambda name: os.path.join(vocab_dir, f"ggml-vocab-{name}.gguf")
    # name, file, its name for the test, template (None: the file's), system?
    cases = [
        ("tiny-chatml", tiny("tiny"), "tiny", None, True),
        ("tiny-llama3", tiny("l3", LLAMA3_TOKENS), "tiny:" + LLAMA3_TOKENS, LLAMA3, True),
        ("tiny-llama31", tiny("l31", LLAMA3_TOKENS), "tiny:" + LLAMA3_TOKENS, LLAMA31, True),
        ("tiny-gemma2", tiny("g2", GEMMA_TOKENS), "tiny:" + GEMMA_TOKENS, GEMMA2, False),
        ("tiny-gemma3", tiny("g3", GEMMA_TOKENS), "tiny:" + GEMMA_TOKENS, GEMMA3, True),
        ("smollm2", smollm2, "smollm2", None, True),
        ("qwen2", vocab("qwen2"), "vocab:qwen2", None, True),
        ("llama3", vocab("llama-bpe"), "vocab:llama-bpe", LLAMA3, True),
        ("llama31", vocab("llama-bpe"), "vocab:llama-bpe", LLAMA31, True),
        ("llama2", vocab("llama-spm"), "vocab:llama-spm", LLAMA2, True),
        ("mistral", vocab("llama-spm"), "vocab:llama-spm", MISTRAL, False),
    ]
    out = []
    for name, path, source, template, with_system in cases:
        llama = Llama(path, vocab_only=True, verbose=False)
        if template is None:
            template = gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents()
            stored = None
        else:
            stored = template
        env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        jinja = env.from_string(template)
        spelling = lambda i: llama._model.token_get_text(i) if i >= 0 else ""
        chats = []
        for messages in conversations(with_system):
            # Llama 2's template trims system prompt and first message as one.
            # Rendered one by one, an empty message leaves the prompt's newlines.
            if name == "llama2" and len(messages) == 2 and messages[1]["content"] == "":
                continue
            # In template and text alike llama.cpp takes spellings for special
            # tokens, so such text cannot be compared on.
            if "chatml" in name or name in ("smollm2", "qwen2"):
                messages = [dict(m, content=m["content"].replace("<|im_end|>", "<im_end>")) for m in messages]
            text = jinja.render(messages=messages, add_generation_prompt=True,
                                bos_token=spelling(llama.token_bos()), eos_token=spelling(llama.token_eos()))
            ids = llama.tokenize(text.encode(), add_bos=False, special=True)
            chats.append({"messages": messages, "text": text, "ids": ids})
        out.append({"name": name, "source": source, "template": stored, "chats": chats})
    print("[")
    for i, case in enumerate(out):
        head = {k: v for k, v in case.items() if k != "chats"}
        print(json.dumps(head, ensure_ascii=False)[:-1] + ', "chats": [')
        print(",\n".join(json.dumps(c, ensure_ascii=False) for c in case["chats"]))
        print("]}" + ("," if i + 1 < len(out) else ""))
    print("]")


if __name__ == "__main__":
    main()
