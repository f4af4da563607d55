"""The problems of ``svi.py``, written for Pyro, for NumPyro and for torch alone, and the processes that time them."""
