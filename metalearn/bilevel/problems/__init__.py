"""Problems with known constants or known answers, and the two real ones of the studies."""
