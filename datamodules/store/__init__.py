"""The packed image store that workers and ranks share."""
