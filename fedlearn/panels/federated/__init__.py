"""The panels of federated runs: settings, their controls, the run, and its code."""
