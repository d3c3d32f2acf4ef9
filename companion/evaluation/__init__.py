"""What trained networks are measured by."""

from companion.evaluation.compare import Side, compare_sides, side
from companion.evaluation.evaluator import Evaluator, labelled

__all__ = ["Evaluator", "Side", "compare_sides", "labelled", "side"]
