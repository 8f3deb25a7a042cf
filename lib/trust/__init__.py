"""Why a number may be believed: calibration, groups, what the corpus alone would score, recordings from outside."""
