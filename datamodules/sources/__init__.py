"""How data lie on disk: archives, folders, tables and caches, read without trusting them."""
