"""python -m monai_wscxr.experiments.cross_validation"""

from monai_wscxr.experiments.cross_validation import main

main()
