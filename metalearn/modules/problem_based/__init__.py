"""What stands behind the modules whose data are one bilevel problem."""
