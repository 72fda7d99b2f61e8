"""Suites of attacks, what is checked of them, and what their figures are put together from."""
