"""dsobs's own HTTP server: metrics, health of dsobs itself, alerts, rules, incidents, control."""
