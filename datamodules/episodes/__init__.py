"""How tasks are drawn: an episode is a pure function of seed, split and index."""
