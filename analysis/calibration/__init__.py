"""Where the constants of Chameleon's `calibrated` variant come from."""
