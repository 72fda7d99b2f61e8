"""How units of work are carried out: in any order and by any workers, to the same result."""
