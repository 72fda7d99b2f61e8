"""What every benchmark needs: result files, timing, tables as text."""
