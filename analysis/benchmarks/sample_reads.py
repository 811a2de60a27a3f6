"""Bytes read of a source that is sampled, over the bytes that the text takes there which was wanted of it.

Wanted are so many tokens of every domain to train on and to hold out, as the finished corpus counts its bytes; read is what the object store sent, the look at
the text and whatever was read too far included. Half of the domains are compressed.
"""

from __future__ import annotations

import tempfile

from analysis.benchmarks.measure import Outcome, in_fresh_process, main
from analysis.benchmarks.text_store import BLOCK_BYTES, STORED_BYTES, TextStore

BOUND = 1.3
TOKENS = 1_500_000
HELDOUT_TOKENS = 250_000


def measured(patterns: dict[str, str], tokens: int, heldout_tokens: int) -> dict[str, tuple[int, int]]:
    """By domain the train tokens, and the bytes of text that were wanted."""
    from chameleon_ray.backend import Reads
    from chameleon_ray.config import Resources
    from chameleon_ray.corpus_config import CorpusConfig, DomainConfig, TokenizerConfig, TokenizerTraining
    from chameleon_ray.progress import Reporter
    from chameleon_ray.ray_backend import RayBackend

    domains = {name: DomainConfig(files=(pattern,)) for name, pattern in patterns.items()}
    tokenizer = TokenizerConfig(train=TokenizerTraining(vocab_size=4096, bytes_per_domain=200_000))
    config = CorpusConfig(domains=domains, tokenizer=tokenizer, heldout_tokens=heldout_tokens)
    with tempfile.TemporaryDirectory() as storage:
        corpus = RayBackend(storage, Resources(), Reporter.silent()).tokenize(config, 0, Reads(tokens))
    counts = {name: corpus.domains[name].train for name in corpus.names}
    return {name: (found.tokens, round((tokens + 2 * heldout_tokens) * found.text_bytes / found.tokens)) for name, found in counts.items()}


def run(quick: bool) -> Outcome:
    """Read a sample of four domains of an object store, two and a half terabytes each."""
    tokens, heldout_tokens = (50_000, 10_000) if quick else (TOKENS, HELDOUT_TOKENS)
    store = TextStore(4, 2500, 16_000)
    with store.serve():
        found = in_fresh_process(measured, store.patterns(), tokens, heldout_tokens)
    stored = [wanted * (1 if int(name[-5:]) % 2 else STORED_BYTES / BLOCK_BYTES) for name, (_, wanted) in found.items()]
    ratio = store.sent_bytes / sum(stored)
    fields = {
        "read_megabytes": store.sent_bytes / 1e6,
        "wanted_megabytes": sum(stored) / 1e6,
        "requests": store.requests,
        "source_terabytes": store.text_bytes / 1e12,
        "wanted_tokens_per_domain": tokens,
        "train_tokens": [trained for trained, _ in found.values()],
    }
    return Outcome(ratio, BOUND, ratio <= BOUND and all(trained >= tokens for trained, _ in found.values()), fields)


if __name__ == "__main__":
    main("sample_reads", run)
