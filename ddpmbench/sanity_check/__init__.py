"""The sanity check: is a checkpoint evaluated as it was trained?"""
