"""Worst cases: the adaptive suite on each defence."""
