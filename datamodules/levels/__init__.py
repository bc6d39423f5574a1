"""The two levels of a bilevel problem as batches."""
