"""Chat templates by name, each with the assistant mask that training needs.

A base model has no template, and most vendors' lack the `{% generation %}` marks without which no
label mask can be made. Each file in `formats/` is one published format with these marks, and says
where it is published; `docs/templates.md` shows one conversation in each. The text between the
marks is what the model learns to say, its end-of-turn token included. `choosing` turns what a
recipe says into one of them, into the tokenizer's own, or into a file of the user's.
"""

from __future__ import annotations

import difflib
from importlib import resources

from llava_mole.errors import ConfigError

FOLDER = resources.files(__package__) / "formats"
MACROS = (resources.files(__package__) / "macros.jinja").read_text(encoding="utf-8")
TEMPLATES = tuple(
    sorted(file.name.removesuffix(".jinja") for file in FOLDER.iterdir() if file.is_file())
)
"""Names of the formats."""

EXAMPLE = """\
{{- bos_token -}}
{%- for m in messages -%}
  {{- '<|im_start|>' + m['role'] + '\\n' -}}
  {%- if m['role'] == 'assistant' -%}
    {%- generation -%}{{- lines(m) + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}
  {%- else -%}
    {{- lines(m) + '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""A whole template; `lines` is in macros.jinja."""

HOW_TO_ADD = (
    "To add a format, write it to a file, e.g. my_format.jinja, and name it: "
    "model.chat_template: my_format.jinja. Between the generation marks stands what the assistant "
    "says, its end-of-turn token included; lines(m) writes a message's words and pictures:\n\n"
    + EXAMPLE
)


def chat_template(name: str, *, image_token: str) -> str:
    """The Jinja source of a named format.

    Args:
        name: one of TEMPLATES.
        image_token: the tokenizer's placeholder.

    Raises:
        ConfigError: unknown name.
    """
    problem = name_problem(name)
    if problem is not None:
        raise ConfigError(f"{problem}\n{HOW_TO_ADD}")
    return completed((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), image_token)


def name_problem(name: str) -> str | None:
    """What is wrong with a name, if anything."""
    if name in TEMPLATES:
        return None
    near = difflib.get_close_matches(name, [*TEMPLATES, "tokenizer"], 1, 0.5)
    return (
        f"chat_template={name!r}: known are {', '.join(TEMPLATES)}, 'tokenizer' for the "
        "tokenizer's own, or a path that ends in .jinja"
        + (f"; did you mean {near[0]!r}?" if near else "")
    )


def completed(source: str, image_token: str) -> str:
    """A format as the processor keeps it: the shared macros before it, the placeholder in it."""
    return (MACROS + source).replace("<image>", image_token)
