"""An inner step as a list of operators: traced with its derivatives, simplified, and run without Python's layers around it."""
