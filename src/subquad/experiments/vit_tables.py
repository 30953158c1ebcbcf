"""What the Vision Transformer's paper prints, to stand beside our rows. No torch here.

Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", Table 5.
"""

from subquad.experiments.spec import Json

PAPER = "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words"

BY_PRETRAINING: Json = {
    "heading": f"Beside the paper ({PAPER})",
    "words": "The paper has no images as small as these and no mixer but softmax. Its smallest "
    "data set is ImageNet with 1.3 million images, and its question is how much data a model "
    "without convolutions needs: its Table 5 has the share of ImageNet's images that are right (%) "
    "after training on ever more images. Nothing in it can be held against a figure of this run.",
    "tables": [
        {
            "title": "Table 5: ImageNet top-1 by the images of pre-training",
            "head": ["pre-trained on", "images", "B/16", "B/32", "L/16", "L/32", "H/14"],
            "lines": [
                ["ImageNet", "1.3 M", "77.91", "73.38", "76.53", "71.16", ""],
                ["ImageNet-21k", "14 M", "83.97", "81.28", "85.15", "80.99", "85.13"],
                ["JFT", "303 M", "84.15", "80.73", "87.12", "84.37", "88.04"],
            ],
            "note": "Fine-tuned at 384 pixels. With the fewest images the larger models are the "
            "worse ones.",
        }
    ],
}
