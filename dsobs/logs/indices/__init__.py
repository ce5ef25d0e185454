"""What Elasticsearch is told about dsobs's records before the first one comes: templates, lifecycle, roles.

`templates` and `roles` say it as JSON, `install` brings it to a server, changing only what differs.
"""
