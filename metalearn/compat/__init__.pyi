from metalearn.compat import higher as higher
from metalearn.compat import learn2learn as learn2learn
