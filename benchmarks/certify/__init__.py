"""Certified accuracy beside what attacks leave, of the same images."""
