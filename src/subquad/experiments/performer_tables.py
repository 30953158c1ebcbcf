"""The Performer's result tables that our figures are set beside.

Source: Choromanski et al. 2021, "Rethinking Attention with Performers", Table 2: accuracy in per
cent and perplexity on TrEMBL's test set, and on 20 Pfam families that were held out.
"""

from subquad.experiments.spec import Json

BIDIRECTIONAL, UNIDIRECTIONAL = "bidirectional", "unidirectional"

# (direction, our name of the row): accuracy and perplexity, then the same on held-out families.
TABLE_2: dict[tuple[str, str], tuple[float, float, float, float]] = {
    (UNIDIRECTIONAL, "unigram"): (9.92, 17.80, 9.07, 17.93),
    (UNIDIRECTIONAL, "softmax"): (30.80, 9.37, 19.70, 13.20),
    (UNIDIRECTIONAL, "relu"): (31.58, 9.17, 18.44, 13.63),
    (BIDIRECTIONAL, "softmax"): (33.32, 9.22, 25.07, 12.09),
    (BIDIRECTIONAL, "relu"): (36.09, 8.36, 24.10, 12.26),
    (BIDIRECTIONAL, "favor+"): (33.00, 9.24, 23.48, 12.41),
}


def beside(direction: str, name: str) -> Json:
    """Return what the paper reports for a row, as the report's columns have it; else nothing."""
    if (direction, name) not in TABLE_2:
        return {}
    accuracy, perplexity, held_out_accuracy, held_out_perplexity = TABLE_2[direction, name]
    return {
        "paper_accuracy": round(accuracy / 100, 4),
        "paper_perplexity": perplexity,
        "paper_held_out_accuracy": round(held_out_accuracy / 100, 4),
        "paper_held_out_perplexity": held_out_perplexity,
    }
