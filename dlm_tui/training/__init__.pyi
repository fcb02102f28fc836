from .pipeline import TrainOutcome as TrainOutcome
from .pipeline import TrainRequest as TrainRequest
from .pipeline import train_document as train_document
