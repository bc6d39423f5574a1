"""Studies of the thesis's claims on real data."""
