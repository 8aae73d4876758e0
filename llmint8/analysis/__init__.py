"""What 8 bit does to a model: comparison with a reference, outlier features, errors of layers, plots of these."""

from llmint8.analysis.comparison import Comparison, compare, perplexity, text_windows
from llmint8.analysis.layer_errors import LayerError, layer_errors
from llmint8.analysis.outlier_report import InputOutliers, OutlierColumn, OutlierReport, outlier_report
from llmint8.analysis.planted_outliers import plant_outliers
from llmint8.analysis.plots import plot_layer_errors, plot_outliers

__all__ = [
    "Comparison",
    "InputOutliers",
    "LayerError",
    "OutlierColumn",
    "OutlierReport",
    "compare",
    "layer_errors",
    "outlier_report",
    "perplexity",
    "plant_outliers",
    "plot_layer_errors",
    "plot_outliers",
    "text_windows",
]
