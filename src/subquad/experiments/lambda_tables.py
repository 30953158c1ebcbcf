"""What the lambda paper prints of layers, placements and ablations. No torch here.

Source: Bello 2021, "LambdaNetworks: modeling long-range interactions without attention": ResNet-50
on ImageNet at 224 pixels, 90 epochs. Accuracies of ablations but for the sizes were not read in the
paper itself, and are marked so where they are shown.
"""

from subquad.experiments.spec import Json

PAPER = "Bello 2021, LambdaNetworks"

# Our name of a layer: millions of parameters, if printed, and top-1 accuracy in per cent.
LAYERS: dict[str, tuple[float | None, float]] = {
    "convolution": (25.6, 76.9),
    "squeeze-excitation": (28.1, 77.6),
    "linear attention": (None, 77.3),
    "global attention": (25.8, 77.7),
    "axial attention": (None, 77.5),
    "local attention": (18.0, 77.4),
    "lambda": (15.0, 78.4),
    "lambda u4 r7": (16.0, 78.9),
}

# Our name of an ablation: top-1 accuracy in per cent.
ABLATIONS: dict[str, float] = {
    "default": 78.4, "scope 3": 77.6, "scope 7": 78.2, "scope global": 78.4, "content only": 68.8,
    "position only": 78.1, "softmax on queries too": 78.1, "L2 norm on keys": 78.0,
    "keys as they are": 70.0, "no batch-norm": 76.2, "k 8": 77.9, "h 8": 78.1,
    "u 4 with scope 7": 78.9,
}  # fmt: skip

COMPARED: Json = {
    "heading": f"Beside the paper ({PAPER})",
    "words": "The paper's networks are ResNet-50s on ImageNet, after 90 epochs; ours are small, on "
    "small images, and trained briefly. What can be held against each other is the order of the "
    "rows, and whether fewer parameters do.",
    "tables": [
        {
            "title": "Layers: ResNet-50 at 224 pixels",
            "head": ["layer", "parameters, M", "top-1, %", "over its own baseline, points"],
            "lines": [
                ["convolution", "25.6", "76.9", ""],
                ["convolution + squeeze-excitation", "28.1", "77.6", "0.7"],
                ["convolution + linear attention (Chen et al. 2018)", "33.0", "77.0", ""],
                ["convolution + linear attention (Shen et al. 2018)", "", "77.3", "1.2"],
                ["convolution + global self-attention (Bello et al. 2019)", "25.8", "77.7", "1.3"],
                ["local self-attention (Ramachandran et al. 2019)", "18.0", "77.4", "0.5"],
                ["local self-attention (Hu et al. 2019)", "23.3", "77.3", "1.0"],
                ["local self-attention (Zhao et al. 2020)", "20.5", "78.2", "1.3"],
                ["axial self-attention", "", "77.5", ""],
                ["lambda layer", "15.0", "78.4", "1.5"],
                ["lambda layer, u = 4", "16.0", "78.9", "2.0"],
            ],
            "note": "Rows with a plus keep the convolutions; here each layer stands in their "
            "place. Baselines differ from work to work.",
        },
        {
            "title": "Placements: a letter for each of four stages",
            "head": ["stages", "parameters, M", "images/s, inference on 8 TPUv3 cores", "top-1, %"],
            "lines": [
                ["CCCC", "25.6", "7,240", "76.9"],
                ["LCCC", "25.5", "1,880", "77.3"],
                ["LLCC", "25.0", "1,280", "77.2"],
                ["LLLC", "21.7", "1,160", "77.8"],
                ["LLLL", "15.0", "1,160", "78.4"],
                ["CLLL", "15.1", "2,200", "78.3"],
                ["CCLL", "15.4", "4,980", "78.3"],
                ["CCCL", "18.8", "7,160", "77.3"],
            ],
            "note": "Ours have three stages, so no row is the same; ours for all C and all L are "
            "convolution and lambda.",
        },
    ],
}


def beside_layer(name: str) -> Json:
    """Return what the paper reports for a layer, as the report's columns have it; else nothing."""
    if name not in LAYERS:
        return {}
    parameters, accuracy = LAYERS[name]
    found = {"paper_accuracy": round(accuracy / 100, 4)}
    return found if parameters is None else {**found, "paper_parameters_millions": parameters}


def beside_ablation(name: str) -> Json:
    """Return the same for an ablation."""
    return {"paper_accuracy": round(ABLATIONS[name] / 100, 4)} if name in ABLATIONS else {}
