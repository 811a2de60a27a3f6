"""Models beneath training, embedding and evaluation: built or opened, what they run on, what they cost, their losses and hidden states."""
