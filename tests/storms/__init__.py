"""Storms: many kills and stops at random moments. Run by `make test-storm`, which takes as long as it takes."""
