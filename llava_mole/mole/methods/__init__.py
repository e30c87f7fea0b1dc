"""Published mixtures of LoRA experts, one short file each: a router, a bank, a loss.

Each file can be held beside its paper: formula, published defaults, where paper and released code
differ (a named option each), what could be verified and what not. All in one table: docs/mole.md.
"""

from __future__ import annotations

import difflib

from llava_mole.errors import ConfigError
from llava_mole.mole.config import MoleConfig
from llava_mole.mole.methods.amlora import AmLora
from llava_mole.mole.methods.conditional_mixlora import ConditionalMixLora
from llava_mole.mole.methods.dynmole import DynMole
from llava_mole.mole.methods.hydralora import HydraLora
from llava_mole.mole.methods.llava_mole import LlavaMole
from llava_mole.mole.methods.loramoe import LoraMoe
from llava_mole.mole.methods.malora import MaLora
from llava_mole.mole.methods.mola import MoLA
from llava_mole.mole.methods.multilora import MultiLora
from llava_mole.mole.methods.smora import SMoRA

METHODS: dict[str, type[MoleConfig]] = {
    cls.method: cls
    for cls in (
        LlavaMole,
        MoLA,
        DynMole,
        SMoRA,
        LoraMoe,
        HydraLora,
        MaLora,
        MultiLora,
        ConditionalMixLora,
        AmLora,
    )
}


def method_class(name: object) -> type[MoleConfig]:
    """Raises ConfigError on a name that is none."""
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    plain = str(name).lower().replace("-", "_").replace(" ", "_")
    near = difflib.get_close_matches(plain, METHODS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"method={name!r}: allowed are {', '.join(METHODS)}{hint}")
