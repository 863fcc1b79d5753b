"""The one address of an endpoint: takes requests, picks replicas, passes answers through, continues what breaks off."""
