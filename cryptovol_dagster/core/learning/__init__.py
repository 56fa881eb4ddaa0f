"""Labels, splits and the rows that models are trained on."""
