"""Dashboards for Grafana and Kibana, and the code that writes them."""
