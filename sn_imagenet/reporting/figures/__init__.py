"""The paper's figures from ``result.json`` and ``metrics.jsonl``: two functions each, which gather
data and draw them, and one line in ``files.FIGURES``.
"""
