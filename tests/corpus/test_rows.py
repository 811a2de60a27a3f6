"""Random access to the rows of a corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chameleon_ray.corpus.rows import RowReader
from tests.corpora import make_corpus


def test_rows_of_many_domains_come_in_the_order_asked_for(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    random = np.random.default_rng(0)
    domains = random.integers(0, len(corpus.names), 50)
    rows = np.array([random.integers(corpus.rows()[corpus.names[domain]]) for domain in domains])
    reader = RowReader(corpus)
    found = reader.read_mixed(corpus.names, domains, rows)
    for i, (domain, row) in enumerate(zip(domains, rows, strict=True)):
        alone = reader.read(corpus.names[domain], np.array([row]))
        assert np.array_equal(found.tokens[i], alone.tokens[0])
        assert (found.length[i], found.document[i]) == (alone.length[0], alone.document[0])
