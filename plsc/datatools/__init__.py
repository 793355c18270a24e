"""Work on whole data sets: prepare them as shards, read one through for damage."""
