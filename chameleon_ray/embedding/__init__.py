"""Domain embeddings: the truncated model, hash groups, and the Ray Data pool that applies one to the other."""
