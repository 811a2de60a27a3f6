"""Regressors from a mixture to a loss: one file each, and one line each in `regression.REGRESSORS`."""
