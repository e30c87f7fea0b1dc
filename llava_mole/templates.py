"""Chat templates by name, each with the assistant mask that training needs.

A base model has no template, and most vendors' lack the `{% generation %}` marks without which no
label mask can be made. The text between the marks is what the model learns to say, its end-of-turn
token included. `<image>` in a template is replaced by the tokenizer's own placeholder token.

- `qa`: a question on one line, the answer on the next. The shortest there is: on small models and
  CPUs the marks of a chat format cost as much as the words. For base models: an answer ends with
  the end-of-sequence token, which they know. Their vocabulary's chat marks were never
  trained, are held to be all but impossible, and unlearning that drowns the first steps.
- `gemma`, `chatml`, `vicuna_v1`: the published formats.
"""

from __future__ import annotations

import difflib

from llava_mole.errors import ConfigError

# Every template spells a message's parts the same way: images as placeholders, text trimmed.
PARTS = (
    "{%- macro parts(m) -%}"
    "{%- if m['content'] is string -%}{{ m['content'] | trim }}"
    "{%- else -%}{%- for p in m['content'] -%}"
    "{%- if p['type'] == 'image' -%}<image>"
    "{%- else -%}{{ p['text'] | trim }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)

QA = (
    "{{- bos_token -}}"
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'assistant' -%}"
    "{% generation %}{{ parts(m) + eos_token }}{% endgeneration %}{{ '\\n' }}"
    "{%- else -%}{{ parts(m) + '\\n' }}{%- endif -%}"
    "{%- endfor -%}"
)

GEMMA = (
    "{{- bos_token -}}"
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'assistant' -%}"
    "{{ '<start_of_turn>model\\n' }}"
    "{% generation %}{{ parts(m) + '<end_of_turn>' }}{% endgeneration %}{{ '\\n' }}"
    "{%- else -%}{{ '<start_of_turn>user\\n' + parts(m) + '<end_of_turn>\\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)

CHATML = (
    "{%- for m in messages -%}"
    "{{- '<|im_start|>' + m['role'] + '\\n' -}}"
    "{%- if m['role'] == 'assistant' -%}"
    "{% generation %}{{ parts(m) + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{%- else -%}{{ parts(m) + '<|im_end|>\\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

VICUNA_V1 = (
    "{{- bos_token -}}"
    "{%- if messages[0]['role'] != 'system' -%}{{ '" + VICUNA_SYSTEM.replace("'", "\\'") + " ' }}"
    "{%- endif -%}"
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'system' -%}{{ parts(m) + ' ' }}"
    "{%- elif m['role'] == 'user' -%}{{ 'USER: ' + parts(m) + ' ' }}"
    # The space is the answer's: a token begins with it, and the generation prompt ends before it.
    "{%- else -%}{{ 'ASSISTANT:' }}"
    "{% generation %}{{ ' ' + parts(m) + eos_token }}{% endgeneration %}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)

TEMPLATES = {"qa": QA, "gemma": GEMMA, "chatml": CHATML, "vicuna_v1": VICUNA_V1}


def chat_template(name: str, *, image_token: str) -> str:
    """The Jinja source of a named template.

    Args:
        name: see the module's docstring.
        image_token: the tokenizer's placeholder.

    Raises:
        ConfigError: unknown name.
    """
    if name not in TEMPLATES:
        near = difflib.get_close_matches(name, TEMPLATES, 1)
        raise ConfigError(
            f"chat_template={name!r}: known are {', '.join(TEMPLATES)}, or 'tokenizer' for the "
            "tokenizer's own" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return (PARTS + TEMPLATES[name]).replace("<image>", image_token)
