"""Read one radiograph, whatever its format: grey values in [0, 1], air dark, or a reason why not."""
