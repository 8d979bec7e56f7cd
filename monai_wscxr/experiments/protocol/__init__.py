"""The paper's comparison (table 1) and ablation (table 2) on your own data.

A cell is one method at one k and seed. All cells run in one process and share the features of all images. Each cell leaves one
result file, written atomically, so a killed run resumes with the missing cells. `honest` metrics choose nothing on test
images; `paper` metrics follow the publication's rules and are optimistic.
"""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
