"""Expectation maximisation for Pyro models, with E-steps and M-steps that are found in the model itself."""
