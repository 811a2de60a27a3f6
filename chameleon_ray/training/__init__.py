"""Proxy and base models: presets, the mixture plan, the loop, DeepSpeed, and Ray Train around them."""
