"""python -m monai_wscxr.cross_validation"""

from monai_wscxr.cross_validation import main

main()
