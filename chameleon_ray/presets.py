"""Model shapes by name: (layers, attention heads, width); the feed-forward width is four times the width.

60M to 684M are table 8 of the paper (vocabulary 50,257, tied embeddings counted in the name). The paper does not give the layout of its
1.2B model; 36 layers of width 1600 come to 1.19B. 1M is RegMix's proxy (without embeddings). The `cpu-*` shapes are ours, for laptops and tests.
"""

from __future__ import annotations

PRESETS: dict[str, tuple[int, int, int]] = {
    "cpu-tiny": (2, 2, 64),
    "cpu-small": (4, 4, 128),
    "cpu-medium": (6, 4, 256),
    "1M": (2, 8, 256),
    "60M": (3, 6, 768),
    "82M": (6, 12, 768),
    "124M": (12, 12, 768),
    "210M": (24, 16, 768),
    "684M": (36, 24, 1200),
    "1.2B": (36, 25, 1600),
}
