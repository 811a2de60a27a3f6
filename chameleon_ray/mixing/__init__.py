"""Methods that decide how much of each domain to train on."""
