from metalearn.shipping.adapted import AdaptedModel as AdaptedModel
from metalearn.shipping.loading import load as load
from metalearn.shipping.starting import start_from as start_from
