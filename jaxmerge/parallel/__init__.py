"""The device mesh, the sharding rule table and multi-process start-up."""
