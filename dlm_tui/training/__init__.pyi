from .pipeline import train_document as train_document
from .plan import TrainingPlan as TrainingPlan
from .plan import plan_training as plan_training
from .report import TrainOutcome as TrainOutcome
from .request import TrainRequest as TrainRequest
from .request import refuse_before_base as refuse_before_base
