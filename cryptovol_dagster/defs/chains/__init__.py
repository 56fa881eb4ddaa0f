"""The assets and checks of the seconds and of the minutes, assembled from the same parts."""
