"""What is taken from a checkpoint: a file of anyone's, of which nothing is run, imported or written.

The file is read as plain types and tensors that take no more memory than the file (``files``); names of classes are looked up in
closed lists (``classes``); arguments are held against the signatures of those classes (``values``); a network is laid out without
memory before it is built (``networks``).
"""

from metalearn.carried.config import carried_config
from metalearn.carried.entry import KEY, Entry, check_sizes, count_elements, read_entry
from metalearn.carried.files import read_checkpoint
from metalearn.carried.networks import build_network
from metalearn.carried.values import check_arguments, check_name, class_path, is_name

__all__ = [
    "KEY",
    "Entry",
    "build_network",
    "carried_config",
    "check_arguments",
    "check_name",
    "check_sizes",
    "class_path",
    "count_elements",
    "is_name",
    "read_checkpoint",
    "read_entry",
]
