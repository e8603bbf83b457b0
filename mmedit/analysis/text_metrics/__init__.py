"""How much two short texts mean the same, by published metrics, and the paper's sensitivity number made of them.

A metric is called with candidates and references, one of each per pair, and gives one score per pair, higher for texts
that are more alike. `BertScore`, `MoverScore` and `Bleurt` are three; `sensitivity` takes any.
"""

from mmedit.analysis.text_metrics.bert_score import BertScore as BertScore
from mmedit.analysis.text_metrics.bert_score import Overlap as Overlap
from mmedit.analysis.text_metrics.bleurt import Bleurt as Bleurt
from mmedit.analysis.text_metrics.mover_score import MoverScore as MoverScore
from mmedit.analysis.text_metrics.sensitivity import mean_sensitivity as mean_sensitivity
from mmedit.analysis.text_metrics.sensitivity import sensitivity as sensitivity
