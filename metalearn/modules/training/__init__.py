"""What all modules share about training: the outer optimiser, precision, checkpoints and resuming."""
