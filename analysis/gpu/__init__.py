"""What a GPU is good for here, measured in a few minutes: `python -m analysis.gpu`.

It needs torch, transformers, tokenizers, tiktoken, safetensors, numpy, pyarrow and pydantic, and neither Ray nor DeepSpeed: what an embedding actor does with
rows, and the training loop on its plain engine. Text is made up.
"""
