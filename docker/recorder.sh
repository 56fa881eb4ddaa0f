#!/bin/sh
# In the recorder's image `cryptovol` is the recorder: the same command, without the pipeline's verbs.
exec python -m ingestor "$@"
