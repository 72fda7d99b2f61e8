"""The paper's tables and figures at its scale and at a CPU's."""
