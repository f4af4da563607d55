"""Estimates of the evidence and their parts."""
