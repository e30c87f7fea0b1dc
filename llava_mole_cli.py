"""What the shell's `llava-mole` runs: --help and mistakes are answered before torch is imported.

`import llava_mole` registers the model with transformers' Auto classes, which takes seconds. Where
this module is loaded first, the package leaves that to the command that needs it (`cli.main`).
"""

from __future__ import annotations

import gc


def main() -> int:
    gc.disable()  # modules are no garbage: looking for some takes a third of the time
    from llava_mole.cli import main as command_line
    from llava_mole.exiting import run_to_end

    gc.enable()
    return run_to_end(command_line)


if __name__ == "__main__":
    import llava_mole_cli  # by its name: that is what the package looks for

    raise SystemExit(llava_mole_cli.main())
