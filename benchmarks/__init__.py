"""Every figure of the documents: a script, and its result file beside it."""
