"""Pictures of runs and models. The mathematics is NumPy, apart from the drawing."""
