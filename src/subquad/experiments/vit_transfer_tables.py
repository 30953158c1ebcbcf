"""What the paper prints of positions and of self-supervision, to stand beside our rows. No torch.

Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", Table 8, section 4.6 and appendix
B.1.2.
"""

from subquad.experiments.spec import Json
from subquad.experiments.vit_tables import PAPER

BY_POSITIONS: Json = {
    "heading": f"Beside the paper ({PAPER})",
    "words": "Shares right of B/16, pre-trained on JFT, told from five images of each class of "
    "ImageNet. Other images, a far larger network, far more training: only the order of the ways "
    "can be held against our rows.",
    "tables": [
        {
            "title": "Table 8: position embeddings, ImageNet 5-shot",
            "head": ["", "at the stem", "every layer", "shared by all layers"],
            "lines": [
                ["none", "0.61382", "", ""],
                ["1-D", "0.64206", "0.63964", "0.64292"],
                ["2-D", "0.64001", "0.64046", "0.64022"],
                ["relative", "0.64032", "", ""],
            ],
            "note": "Class token and mean of all tokens stand in a figure without numbers.",
        }
    ],
}

BY_MASKED_PATCHES: Json = {
    "heading": f"Beside the paper ({PAPER})",
    "words": "The paper pre-trains B/16 on JFT for a million steps and fine-tunes it on ImageNet. "
    "Ours sees small images for a minute or two: only signs and orders can be held against it.",
    "tables": [
        {
            "title": "Section 4.6: masked patch prediction, B/16, ImageNet",
            "head": ["", "top-1, %"],
            "lines": [
                ["from masked patches", "79.9"],
                ["against training from scratch", "+2"],
                ["against supervised pre-training", "-4"],
            ],
            "note": "As targets 4 x 4 patches of 3-bit colours do about as well as mean colours; "
            "all pixels, or 15 % corrupted in place of 50 %, slightly worse.",
        },
        {
            "title": "Table 5: fine-tuned on ImageNet at 384 pixels, by what came before",
            "head": ["pre-trained on", "B/16", "B/32", "L/16", "L/32", "H/14"],
            "lines": [
                ["ImageNet-21k", "83.97", "81.28", "85.15", "80.99", "85.13"],
                ["JFT", "84.15", "80.73", "87.12", "84.37", "88.04"],
                ["ImageNet itself", "77.91", "73.38", "76.53", "71.16", ""],
            ],
        },
    ],
}
