"""Datasets of many WebDataset tars (shards) on web servers, downloaded one after the other and read by parts."""
