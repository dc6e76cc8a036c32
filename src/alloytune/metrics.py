"""The metrics: what each is called, which way is better, and between which limits it lies."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a metric is read. `heading` is for tables; where `lower`, less is better; it lies from `least` to `most`."""

    heading: str
    lower: bool = False
    least: float = 0.0
    most: float = 1.0


METRICS = {
    "accuracy": Metric("accuracy"),
    "macro_f1": Metric("macro-F1"),
    "loss": Metric("loss", lower=True, most=math.inf),
    "recall_at_1": Metric("recall@1"),
    "recall_at_5": Metric("recall@5"),
    "recall_at_10": Metric("recall@10"),
    "ndcg_at_10": Metric("nDCG@10"),
    "mrr": Metric("MRR"),
    "margin": Metric("margin", least=-math.inf, most=math.inf),
    "reward_accuracy": Metric("reward accuracy"),
    "calibration_error": Metric("calibration error", lower=True),
    "micro_f1": Metric("micro-F1"),
    "average_precision": Metric("average precision"),
    "r2": Metric("R2", least=-math.inf),
    "mae": Metric("mean absolute error", lower=True, most=math.inf),
    "pearson": Metric("Pearson", least=-1.0),
    "spearman": Metric("Spearman", least=-1.0),
    "f1": Metric("F1"),
    "precision": Metric("precision"),
    "recall": Metric("recall"),
    "perplexity": Metric("perplexity", lower=True, least=1.0, most=math.inf),
    "exact_match": Metric("exact match"),
    "chrf": Metric("chrF"),
    "bleu": Metric("BLEU"),
    "rouge_1": Metric("ROUGE-1"),
    "rouge_2": Metric("ROUGE-2"),
    "rouge_l": Metric("ROUGE-L"),
}


def gain(metric: str, before: float, after: float) -> float:
    """Give by how much a value is better than another; negative where it is worse."""
    return before - after if METRICS[metric].lower else after - before


def reaches(metric: str, value: float, wanted: float) -> bool:
    """Tell whether a value is as good as the one that is wanted, or better."""
    return gain(metric, wanted, value) >= 0
