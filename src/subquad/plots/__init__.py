"""Figures: functions from result data to a matplotlib Figure; no subquad module is imported here.

No global pyplot state is used, so figures can be made in any thread and without a display.
"""

from subquad.plots.attention import attention_figure as attention_figure
from subquad.plots.attention import picture_attention_figure as picture_attention_figure
from subquad.plots.curves import Curve as Curve
from subquad.plots.curves import learning_curves as learning_curves
from subquad.plots.curves import read_curve as read_curve
from subquad.plots.images import completion_figure as completion_figure
from subquad.plots.images import sample_figure as sample_figure
from subquad.plots.style import png_bytes as png_bytes
from subquad.plots.tradeoff import Point as Point
from subquad.plots.tradeoff import tradeoff_figure as tradeoff_figure
