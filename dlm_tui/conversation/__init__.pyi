from .saving import messages_of as messages_of
from .saving import save_conversation as save_conversation
from .tree import Conversation as Conversation
from .tree import load_conversation as load_conversation
from .tree import new_conversation as new_conversation
