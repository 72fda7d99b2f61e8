"""Which attacks run on a defended model, and which gradient serves them best."""
