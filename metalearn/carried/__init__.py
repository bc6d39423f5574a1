"""What is taken from a checkpoint: a file of anyone's, of which nothing is run, imported or written.

The file is read as plain types and tensors that take no more memory than the file (``files``); names of classes are looked up in
closed lists (``classes``); arguments are held against the signatures of those classes (``values``); a network is laid out without
memory before it is built (``networks``).
"""

from metalearn.lazy import offer

__getattr__, __dir__, __all__ = offer(__name__)
