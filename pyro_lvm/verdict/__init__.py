"""Whether the means and standard deviations of a guide can be trusted."""
