"""A page to play with: attack an image, purify it, and see each step (``scoreopt play``)."""
