"""What stands behind every episodic module: reading tasks, the inner loop, the meta-gradient, evaluation."""
