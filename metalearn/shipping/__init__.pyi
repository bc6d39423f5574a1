from metalearn.shipping.adapted import AdaptedModel as AdaptedModel
from metalearn.shipping.loading import load as load
