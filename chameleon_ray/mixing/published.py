"""Domain weights printed in the Chameleon paper (ICML 2025), as presets of the fixed method.

Values are kept as printed, misprints included; `weights` renormalises them and `raw_sum` records what they summed to. Domains carry the printed
names in lower case, except that Wiki40b's languages carry their codes and C++ is `cpp`. The tokenizer is the one the paper trained with: a fraction
of tokens is not quite the same fraction under another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublishedWeights:
    """One column of one table.

    Attributes:
        table: where it is printed.
        raw: name -> value as printed; need not sum to 1.
        note: known misprints.
    """

    table: str
    raw: Mapping[str, float]
    note: str = ""
    tokenizer: str = "gpt2"

    @property
    def raw_sum(self) -> float:
        """Sum of the printed values."""
        return math.fsum(self.raw.values())

    @property
    def weights(self) -> dict[str, float]:
        """Name -> fraction of tokens: the printed values divided by their sum."""
        return {name: value / self.raw_sum for name, value in self.raw.items()}

    def provenance(self) -> dict[str, Any]:
        """What a mixture made of these weights records of its origin."""
        return {"table": self.table, "tokenizer": self.tokenizer, "raw_sum": self.raw_sum, "raw": dict(self.raw), "note": self.note}


_SLIMPAJAMA = ("arxiv", "book", "cc", "c4", "github", "stackexchange", "wikipedia")
_PILE = (
    "arxiv", "dm_mathematics", "enron_emails", "europarl", "freelaw", "github", "gutenberg_pg_19", "hackernews", "nih_exporter",
    "philpapers", "pile_cc", "pubmed_abstracts", "pubmed_central", "stackexchange", "ubuntu_irc", "uspto_backgrounds", "wikipedia_en",
)  # fmt: skip
_WIKI40B = ("fr", "de", "it", "es", "pt", "nl", "pl")
_STACK = ("python", "java", "c", "cpp", "go", "ruby", "php")
_TWIN_ROWS = "philpapers and stackexchange are printed with the same value here and in the other column of the authors' own runs."


def _column(table: str, names: tuple[str, ...], values: tuple[float, ...], note: str = "") -> PublishedWeights:
    return PublishedWeights(f"Chameleon (ICML 2025), table {table}", dict(zip(names, values, strict=True)), note)


PUBLISHED: dict[str, PublishedWeights] = {
    "slimpajama_doremi": _column("9", _SLIMPAJAMA, (0.057, 0.002, 0.237, 0.237, 0.130, 0.101, 0.236)),
    "slimpajama_doge": _column("9", _SLIMPAJAMA, (0.041, 0.078, 0.268, 0.283, 0.059, 0.230, 0.041)),
    "slimpajama_chameleon": _column("9", _SLIMPAJAMA, (0.083, 0.164, 0.202, 0.247, 0.082, 0.149, 0.073)),
    "slimpajama_regmix": _column("9", _SLIMPAJAMA, (0.001, 0.025, 0.924, 0.024, 0.019, 0.006, 0.001)),
    "pile_human": _column("15", _PILE, (0.134, 0.025, 0.004, 0.005, 0.049, 0.054, 0.025, 0.010, 0.007, 0.003, 0.142, 0.107, 0.136, 0.118, 0.009, 0.053, 0.117)),
    "pile_doremi": _column(
        "15", _PILE, (0.004, 0.002, 0.009, 0.008, 0.005, 0.022, 0.009, 0.016, 0.008, 0.034, 0.743, 0.014, 0.006, 0.019, 0.011, 0.004, 0.086)
    ),
    "pile_doge": _column(
        "15",
        _PILE,
        (0.0608, 0.0280, 0.0239, 0.0407, 0.0293, 0.0693, 0.0283, 0.3949, 0.180, 0.0266, 0.0348, 0.0398, 0.0251, 0.0266, 0.0474, 0.0366, 0.0425),
        f"The column sums to 1.135: nih_exporter is printed .180 and surely means .018. {_TWIN_ROWS}",
    ),
    "pile_regmix": _column(
        "15", _PILE, (0.001, 0.000, 0.002, 0.000, 0.001, 0.000, 0.002, 0.012, 0.001, 0.000, 0.870, 0.024, 0.003, 0.000, 0.064, 0.002, 0.016)
    ),
    "pile_chameleon": _column(
        "15",
        _PILE,
        (0.0386, 0.0538, 0.0085, 0.0048, 0.0147, 0.0099, 0.0115, 0.0637, 0.0424, 0.0226, 0.4519, 0.0104, 0.1207, 0.0226, 0.0123, 0.0212, 0.1075),
        f"The column sums to 1.017; which value is misprinted is not known. {_TWIN_ROWS}",
    ),
    "wiki40b_chameleon": _column("16", _WIKI40B, (0.115, 0.163, 0.127, 0.109, 0.090, 0.140, 0.257)),
    "stack_chameleon": _column("17", _STACK, (0.125, 0.129, 0.102, 0.088, 0.241, 0.118, 0.197)),
}
