"""The pipeline's verbs: each materializes, in process, the assets that the UI and the schedules do."""
