"""Episodic LightningDataModules."""
