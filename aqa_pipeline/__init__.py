"""Action quality assessment with contrastive regression (CoRe + GART), in two stages.

Stage one turns every clip into snippet features once and keeps them in an HDF5 cache;
stage two trains and compares heads on the cached features. Nothing heavy is imported
here: ``import aqa_pipeline`` is cheap, the modules bring what they need.
"""

__version__ = "0.1.0"
