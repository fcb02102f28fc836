from .composing import NewDocument as NewDocument
from .composing import compose as compose
from .composing import write_new as write_new
from .folders import LearnedFolder as LearnedFolder
from .folders import folders_to_learn as folders_to_learn
from .texts import TEMPLATES as TEMPLATES
