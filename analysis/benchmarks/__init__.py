"""Benchmarks: one file each, run as `python -m analysis.benchmarks.NAME`, or all by `python -m analysis.benchmarks`.

Each compares two sides in one run and prints one line of JSON; its bound stands beside it in the file. No outside data is needed.
"""

BENCHMARKS = (
    "embed_vs_published",
    "embed_vs_forward",
    "train_vs_plain",
    "small_model",
    "plan_vs_training",
    "krls_100k",
    "weigh_100k",
    "encode_text",
    "tokenize_memory",
    "sample_reads",
    "cluster_documents",
    "doge_step_k7",
    "doge_step_k17",
    "doremi_step_k7",
    "regmix_swarm",
)
