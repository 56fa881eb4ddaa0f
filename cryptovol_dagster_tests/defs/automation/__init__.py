"""Tests of jobs, schedules and sensors."""
