"""How tasks are run: in sequence or at once, in threads, compiled; and the probe that finds which way is exact."""
