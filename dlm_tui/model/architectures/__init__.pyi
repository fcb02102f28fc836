from .families import FAMILIES as FAMILIES
from .spec import DecoderSpec as DecoderSpec
from .spec import LayerSpec as LayerSpec
from .spec import layer_specs as layer_specs
from .spec import why_not as why_not
