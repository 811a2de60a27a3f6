"""Text to tokens: sources, documents, tokenizer, packing, and the Ray Data passes that tie them together."""
